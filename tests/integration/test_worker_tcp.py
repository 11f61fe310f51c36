"""TCP flows through a gateway worker and an endpoint worker, on real sockets.

This file is long because all of its tests share one pair of workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel.protocol.ipc import Answer, Ask, Credit, Drain, Drained
from socks_tunnel.protocol.messages import (
    Bind,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    WindowUpdate,
    decode,
)
from socks_tunnel_workers.relay import tcp as tcp_flow
from socks_tunnel_workers.relay.tcp import TcpRelay
from support.worker_pair import LINK, WINDOW, Pair, counted, link_down, link_up, worker_pair

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"\x05\x00"


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with worker_pair(tmp_path) as running:
        yield running


@contextlib.asynccontextmanager
async def target(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await handler(reader, writer)
        finally:
            running.discard(task)
            writer.transport.abort() if sys.exception() else writer.close()

    server = await asyncio.start_server(serve, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(running):
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def request(host: str, port: int, command: int = 1) -> bytes:
    return b"\x05" + bytes((command,)) + b"\0" + encode_address(HostPort(host, port))


def named(name: bytes, port: int) -> bytes:
    return b"\x05\x01\0\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big")


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readexactly(4)
    assert head[0] == 5
    assert head[2] == 0
    size = {1: 6, 4: 18}[head[3]]
    return head[1], await reader.readexactly(size)


async def connect(
    pair: Pair, host: str, port: int
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(b"\x05\x01\x00" + request(host, port))
    assert await reader.readexactly(2) == OK
    reply, _ = await read_reply(reader)
    assert reply == 0
    return reader, writer


async def refused(pair: Pair, data: bytes) -> bytes:
    """Send a whole handshake; give all that comes until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(data)
    async with asyncio.timeout(60):
        answer = await reader.read()
    writer.close()
    return answer


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_arrive_both_ways_with_equal_hash(pair: Pair) -> None:
    async with target(echo) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        sent, received = hashlib.sha256(), hashlib.sha256()

        async def send() -> None:
            for _ in range(64):
                block = os.urandom(100_003)
                sent.update(block)
                writer.write(block)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        while data := await reader.read(65536):
            received.update(data)
        await sending
        writer.close()
    assert sent.digest() == received.digest()
    await until(lambda: not list(pair.gateway_worker.flows()))
    await until(lambda: not list(pair.endpoint_worker.flows()))
    await until(lambda: not (pair.gateway_worker.memory.used or pair.endpoint_worker.memory.used))


async def test_bound_address_is_the_endpoints(pair: Pair) -> None:
    seen: list[HostPort] = []

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(HostPort(*writer.get_extra_info("peername")[:2]))
        writer.close()

    async with target(note) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(b"\x05\x01\x00" + request("127.0.0.1", port))
        await reader.readexactly(2)
        reply, bound = await read_reply(reader)
        await reader.read()
        writer.close()
    assert reply == 0
    assert HostPort(socket.inet_ntoa(bound[:4]), int.from_bytes(bound[4:], "big")) == seen[0]


@pytest.mark.parametrize(
    ("host", "reply"),
    [("127.0.0.1", 5), ("10.1.2.3", 2), ("169.254.169.254", 2), ("no-such.invalid", 4)],
)
async def test_true_reply_codes(pair: Pair, host: str, reply: int) -> None:
    with socket.socket() as free:  # bound and not listening: refuses
        free.bind(("127.0.0.1", 0))
        answer = await refused(pair, b"\x05\x01\x00" + request(host, free.getsockname()[1]))
    assert answer[2:] == b"\x05" + bytes((reply,)) + b"\0\x01" + bytes(6)


async def test_name_that_does_not_exist_is_host_unreachable(tmp_path: Path) -> None:
    policy = '[policy]\nallowed_hosts = ["*.invalid"]\nallowed_ports = ["*"]\n'
    async with worker_pair(tmp_path, policy=policy) as pair:
        answer = await refused(pair, b"\x05\x01\x00" + named(b"no-such.invalid", 80))
    assert answer[3] == 4


@pytest.mark.parametrize(
    ("tail", "reply"), [(b"\x05\x09\0\x01" + bytes(6), 7), (b"\x05\x01\0\x09" + bytes(6), 8)]
)
async def test_unknown_command_and_address_type(pair: Pair, tail: bytes, reply: int) -> None:
    answer = await refused(pair, b"\x05\x01\x00" + tail)
    assert answer == OK + b"\x05" + bytes((reply,)) + b"\0\x01" + bytes(6)


async def test_wrong_first_byte_closes_at_once(pair: Pair) -> None:
    assert await refused(pair, b"\x16\x03\x01\x02\x00") == b""
    assert counted(pair.gateway_worker, "socks_rejected_total", "unknown-protocol") == 1


@pytest.mark.parametrize("name", [b"LocalHost", b"localhost.", b"127.0.0.1", b"[::1]", b"::1"])
async def test_names_and_literals_in_a_domain_field(pair: Pair, name: bytes) -> None:
    host = "::1" if b":" in name else "127.0.0.1"
    async with target(echo, host) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(b"\x05\x01\x00" + named(name, port))
        await reader.readexactly(2)
        reply, _ = await read_reply(reader)
        assert reply == 0
        writer.write(b"ping")
        assert await reader.readexactly(4) == b"ping"
        writer.close()


async def test_handshake_byte_by_byte_and_early_data(pair: Pair) -> None:
    async with target(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\x05\x03\x01\x02\x00" + request("127.0.0.1", port):
            writer.write(bytes((byte,)))
            await writer.drain()
        assert await reader.readexactly(2) == OK
        assert (await read_reply(reader))[0] == 0
        writer.close()
        # everything in one segment, with payload and the end behind the request
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(b"\x05\x01\x00" + request("127.0.0.1", port) + b"early data")
        writer.write_eof()
        assert await reader.readexactly(2) == OK
        assert (await read_reply(reader))[0] == 0
        assert await reader.read() == b"early data"
        writer.close()


async def test_half_close_by_client_and_by_target(pair: Pair) -> None:
    async def answer_after_eof(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        writer.write(b"answer to " + question)
        writer.close()

    async with target(answer_after_eof) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        writer.write(b"question")
        writer.write_eof()
        assert await reader.read() == b"answer to question"
        writer.close()

    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all I have")
        writer.write_eof()
        got.set_result(await reader.read())
        writer.close()

    async with target(speak_first) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        assert await reader.read() == b"all I have"
        writer.write(b"still here")
        writer.write_eof()
        assert await got == b"still here"
        writer.close()


async def test_reset_is_carried_as_reset(pair: Pair) -> None:
    async def reset_it(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async with target(reset_it) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()

    seen: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
            seen.set_result(None)
        except ConnectionResetError as error:
            seen.set_result(error)
        writer.close()

    async with target(wait) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()
        assert isinstance(await seen, ConnectionResetError)
    await until(lambda: not list(pair.endpoint_worker.flows()))


@pytest.mark.parametrize("half_closed", [False, True], ids=["no window", "after its EOF"])
async def test_reset_of_a_client_that_is_not_read(pair: Pair, *, half_closed: bool) -> None:
    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()  # and read nothing

    async with target(wait) as port:
        _, writer = await connect(pair, "127.0.0.1", port)
        (flow,) = pair.gateway_worker.flows()
        assert isinstance(flow, TcpRelay)
        if half_closed:
            writer.write_eof()
            await until(lambda: flow.core.send.eof_sent)
        else:
            writer.write(bytes(32 << 20))  # more than all kernels on the way take
            await until(lambda: flow.core.send.end == flow.core.send.limit and not flow.reading)
        assert not flow.reading
        writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        writer.transport.abort()
        await until(lambda: not list(pair.gateway_worker.flows()))
        await until(lambda: not list(pair.endpoint_worker.flows()))


async def test_slow_reader_holds_its_window_and_nobody_else(pair: Pair) -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(65536))
                await writer.drain()

    async with target(pour) as port, target(echo) as echo_port:
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stuck, ("127.0.0.1", pair.port))
        await loop.sock_sendall(stuck, b"\x05\x01\x00" + request("127.0.0.1", port))

        def pending() -> int:
            return sum(
                flow.core.receive.pending.size
                for flow in pair.gateway_worker.flows()
                if isinstance(flow, TcpRelay)
            )

        def window_is_full() -> bool:
            windows = [
                flow.core.receive
                for flow in pair.gateway_worker.flows()
                if isinstance(flow, TcpRelay)
            ]
            return bool(windows) and windows[0].received == windows[0].limit

        await until(window_is_full)
        assert 0 < pending() <= WINDOW
        reader, writer = await connect(pair, "127.0.0.1", echo_port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.close()
        stuck.close()
        await until(lambda: pending() == 0)


async def test_requests_wait_for_the_link(tmp_path: Path) -> None:
    async with worker_pair(tmp_path, linked=False) as pair, target(echo) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(b"\x05\x01\x00" + request("127.0.0.1", port))
        assert await reader.readexactly(2) == OK
        await until(lambda: pair.gateway_worker.clients.waiting == 1)
        link_up(pair.endpoint, "laptop")
        link_up(pair.gateway, "office")
        assert (await read_reply(reader))[0] == 0
        writer.close()


async def test_no_link_within_connect_timeout_is_a_general_failure(tmp_path: Path) -> None:
    gateway = "[socks]\nconnect_timeout = 0.2\n"
    async with worker_pair(tmp_path, linked=False, gateway=gateway) as pair:
        answer = await refused(pair, b"\x05\x01\x00" + request("127.0.0.1", 9))
    assert answer[2:] == b"\x05\x01\0\x01" + bytes(6)


async def test_link_down_resets_its_flows(pair: Pair) -> None:
    async with target(echo) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        link_down(pair.gateway)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await until(lambda: not list(pair.gateway_worker.flows()))


async def test_gateway_policy_refuses_before_the_tunnel(tmp_path: Path) -> None:
    gateway = '[policy]\nallowed_hosts = ["10.0.0.0/8"]\nallowed_ports = [80]\n'
    async with worker_pair(tmp_path, gateway=gateway) as pair:
        pair.gateway.recording = True
        answer = await refused(pair, b"\x05\x01\x00" + request("127.0.0.1", 80))
        assert answer[3] == 2
        assert pair.gateway.sent == []


async def test_overstepping_the_window_closes_the_flow(pair: Pair) -> None:
    async def sit(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    pair.endpoint.recording = True
    async with target(sit) as port:
        pair.endpoint.send_message(LINK, OpenConnection(11, "127.0.0.1", port).encode())
        opened = await pair.endpoint.message(ConnectionOpened)
        assert opened.conn_id == 11
        # more than the window and what any socket buffer takes, without one WINDOW_UPDATE awaited
        for _ in range(1 + 64 * 1024 * 1024 // 60_000):
            pair.endpoint.send_message(LINK, Data(11, bytes(60_000)).encode())
        closed = await pair.endpoint.message(CloseConnection)
        assert closed == CloseConnection(11, 0x15)


async def test_consumed_means_taken_by_the_socket(pair: Pair) -> None:
    pair.endpoint.recording = True
    async with target(echo) as port:
        pair.endpoint.send_message(LINK, OpenConnection(12, "127.0.0.1", port).encode())
        await pair.endpoint.message(ConnectionOpened)
        for _ in range(4):
            pair.endpoint.send_message(LINK, Data(12, bytes(WINDOW // 4)).encode())
        update = await pair.endpoint.message(WindowUpdate)
        assert WINDOW // 2 <= update.consumed <= WINDOW
        assert update.limit == update.consumed + WINDOW


async def test_unknown_flow_is_answered_once_and_close_never(pair: Pair) -> None:
    pair.endpoint.recording = True
    pair.endpoint.send_message(LINK, CloseConnection(99, 1).encode())
    pair.endpoint.send_message(LINK, WindowUpdate(99, 0, 1).encode())
    pair.endpoint.send_message(LINK, Data(99, b"x").encode())
    assert await pair.endpoint.message(CloseConnection) == CloseConnection(99, 0x16)
    assert [decode(m) for m in pair.endpoint.sent] == []


async def test_no_credit_no_data_and_control_still_passes(tmp_path: Path) -> None:
    async with worker_pair(tmp_path, linked=False) as pair, target(echo) as port:
        link_up(pair.gateway, "office", credit=40)
        link_up(pair.endpoint, "laptop")
        pair.gateway.keep_credit = True
        pair.gateway.recording = True
        reader, writer = await connect(pair, "127.0.0.1", port)
        writer.write(bytes(100_000))
        writer.write_eof()
        await until(lambda: pair.gateway_worker.sessions[LINK].scheduler.credit <= 0)
        before = sum(len(m) for m in pair.gateway.sent)
        assert before < 40 + 2 * 16_391
        pair.gateway.keep_credit = False
        pair.gateway.send_control(LINK, Credit(100_000, 16_384, 0))
        assert len(await reader.read()) == 100_000
        writer.close()


async def test_drain_finishes_flows_and_refuses_new_ones(pair: Pair) -> None:
    async with target(echo) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        pair.endpoint.send_control(0, Drain())
        pair.endpoint.recording = True
        await until(lambda: pair.endpoint_worker.draining.begun)
        pair.endpoint.send_message(LINK, OpenConnection(55, "127.0.0.1", port).encode())
        assert await pair.endpoint.message(CloseConnection) == CloseConnection(55, 0x12)
        writer.write(b"still works")
        assert await reader.readexactly(11) == b"still works"
        writer.close()
        await pair.endpoint.control(Drained)


async def test_bind_accepts_the_expected_caller(pair: Pair) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(b"\x05\x01\x00" + request("127.0.0.1", 4000, command=2))
    assert await reader.readexactly(2) == OK
    reply, bound = await read_reply(reader)
    assert reply == 0
    port = int.from_bytes(bound[4:], "big")
    far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
    reply, caller = await read_reply(reader)
    assert reply == 0
    assert int.from_bytes(caller[4:], "big") == far_writer.get_extra_info("sockname")[1]
    far_writer.write(b"from the caller")
    assert await reader.readexactly(15) == b"from the caller"
    writer.write(b"back")
    assert await far_reader.readexactly(4) == b"back"
    writer.close()
    far_writer.close()


async def test_connections_and_status_rows(pair: Pair) -> None:
    async with target(echo) as port:
        _, writer = await connect(pair, "127.0.0.1", port)
        pair.gateway.send_control(0, Ask(5, "connections", -1, ""))
        answer = await pair.gateway.control(Answer)
        assert answer.number == 5
        assert answer.rows[0]["destination"] == f"127.0.0.1:{port}"
        pair.gateway.send_control(0, Ask(6, "status", -1, ""))
        answer = await pair.gateway.control(Answer)
        assert answer.rows[0]["flows_tcp"] == 1
        writer.close()


async def test_the_first_flows_by_bytes(pair: Pair) -> None:
    async with target(echo) as port:
        streams = [await connect(pair, "127.0.0.1", port) for _ in range(5)]
        for number, (reader, writer) in enumerate(streams):
            writer.write(bytes(number * 100))
            await reader.readexactly(number * 100)
        for by, expected in (("total", [400, 300]), ("rate", [400, 300]), ("age", [0, 100])):
            question = Ask(5, "connections", 2, by)
            pair.gateway.send_control(0, question)
            answer = await pair.gateway.control(Answer)
            assert [row["up"] for row in answer.rows] == expected
            assert not answer.more
        reader, writer = streams[1]
        writer.write(b"x")
        await reader.readexactly(1)
        pair.gateway.send_control(0, Ask(5, "connections", 1, "rate"))
        answer = await pair.gateway.control(Answer)
        assert [row["up"] for row in answer.rows] == [101], "the only one that moved since then"
        for _, writer in streams:
            writer.close()


async def test_memory_limit_closes_the_flow_that_tips_it(tmp_path: Path) -> None:
    endpoint = "[limits]\nmemory_per_worker = 16777216\n"
    async with worker_pair(tmp_path, endpoint=endpoint) as pair:
        pair.endpoint.recording = True
        # 127.0.0.9 refuses nobody and answers nobody: flows that stay in OPENING keep their bytes
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            port = full.getsockname()[1]
            plugs = [socket.socket() for _ in range(4)]
            for plug in plugs:
                plug.setblocking(False)
                plug.connect_ex(("127.0.0.1", port))
            for conn_id in range(1, 80):
                pair.endpoint.send_message(
                    LINK, OpenConnection(conn_id, "127.0.0.1", port).encode()
                )
                for _ in range(4):
                    pair.endpoint.send_message(LINK, Data(conn_id, bytes(60_000)).encode())
            closed = await pair.endpoint.message(CloseConnection)
            assert closed.reason == 0x17
            assert pair.endpoint_worker.memory.used <= 16_777_216
            for plug in plugs:
                plug.close()


async def test_one_close_ends_a_flow(pair: Pair) -> None:
    pair.gateway.recording = pair.endpoint.recording = True
    async with target(echo) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        writer.write(b"x")
        writer.write_eof()
        assert await reader.read() == b"x"
        writer.close()
        assert await pair.gateway.message(CloseConnection)
        await until(lambda: not list(pair.endpoint_worker.flows()))
    sent = [decode(message) for message in (*pair.gateway.sent, *pair.endpoint.sent)]
    assert not any(isinstance(message, CloseConnection) for message in sent)


async def test_an_endpoint_does_not_wait_for_ever_for_the_close(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_flow, "FINISHED_IDLE_MAX", 0.1)
    pair.gateway.filter = lambda message: message[0] != CloseConnection.TYPE
    pair.endpoint.recording = True
    async with target(echo) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        assert (await pair.endpoint.message(CloseConnection)).reason == 0
        await until(lambda: not list(pair.endpoint_worker.flows()))


@pytest.mark.parametrize("command", [1, 2])
@pytest.mark.parametrize(
    "answers",
    [
        [BindListening, BindListening],
        [BindAccepted],
        [ConnectionOpened, ConnectionOpened],
        [BindListening, BindAccepted, BindAccepted],
        [BindListening, ConnectionOpened],
    ],
)
async def test_answers_out_of_turn_cost_the_flow_and_not_the_worker(
    tmp_path: Path,
    command: int,
    answers: list[type[BindListening | BindAccepted | ConnectionOpened]],
) -> None:
    async with worker_pair(tmp_path, linked=False) as pair:
        pair.gateway.peer = None
        pair.gateway.recording = True
        link_up(pair.gateway, "office")
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(b"\x05\x01\x00" + request("127.0.0.1", 4000, command))
            opening = await pair.gateway.message(OpenConnection if command == 1 else Bind)
            for answer in answers:
                message = answer(opening.conn_id, HostPort("192.0.2.1", 1))
                pair.gateway.send_message(LINK, message.encode())
            closed = await pair.gateway.message(CloseConnection)
            assert closed == CloseConnection(opening.conn_id, 0x15)
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            writer.close()
            assert not list(pair.gateway_worker.flows())


async def test_a_worker_that_loses_its_supervisor_closes_what_it_holds(pair: Pair) -> None:
    (listening,) = pair.gateway_worker._listening.values()
    async with target(echo) as port:
        reader, writer = await connect(pair, "127.0.0.1", port)
        pair.gateway.abort()
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(60):
                assert await reader.read() == b""
        await until(lambda: listening.fileno() == -1)
        writer.close()
