"""Hostile input at the real handlers of the supervisor: it costs its connection and nothing else."""

import asyncio
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

import msgpack
import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.carrier import Answered, SignalingError
from socks_tunnel.signaling.direct import DirectClient, DirectServer
from socks_tunnel.signaling.envelope import EnvelopeRejected, Verifier, new_body, seal
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor.control import ControlError, ControlServer

GATEWAY, ENDPOINT = PrivateIdentity.generate(), PrivateIdentity.generate()


def offer() -> bytes:
    body = new_body(
        "offer", GATEWAY, ENDPOINT.public, session=bytes(16), now=time.time(), sdp="v=0"
    )
    return seal(GATEWAY, body)


def signed(packed: bytes) -> bytes:
    envelope: bytes = msgpack.packb({"body": packed, "signature": GATEWAY.sign(packed)})
    return envelope


def nested(levels: int, inner: bytes = b"\xc0") -> bytes:
    return b"\x91" * levels + inner


ODD: list[object] = [
    -1,
    1 << 63,
    1.5,
    float("nan"),
    True,
    None,
    [],
    {},
    "x" * 40_000,
    b"x" * 40_000,
]


def envelopes() -> list[bytes]:
    """What a stranger, and what a peer with a key, could think of; the seed is fixed."""
    fields = msgpack.unpackb(msgpack.unpackb(offer())["body"])
    chance = random.Random(9)
    found = [
        b"",
        nested(1000),
        nested(60_000),
        b"\xdc\xff\xff" * 20_000,
        b"\xdf\xff\xff\xff\xff",
        msgpack.packb({"body": nested(1000), "signature": bytes(64)}),
        signed(nested(1000)),
        signed(msgpack.packb({"x": "\x1b[2J" * 10_000})),
    ]
    for key in fields:
        packed = {k: msgpack.packb(v) for k, v in fields.items()}
        for value in (
            nested(1000),
            nested(9),
            b"\xc7\xff\x01" + bytes(255),
            b"\xc1",
            b"\xdb\xff\xff\xff\xff",
        ):
            parts = packed | {key: value}
            found.append(signed(b"\x88" + b"".join(msgpack.packb(k) + v for k, v in parts.items())))
        for odd in ODD:
            found.append(signed(msgpack.packb(fields | {key: odd})))
    for _ in range(200):
        damaged = bytearray(offer())
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        found.append(bytes(damaged))
    return found


async def test_envelopes_at_the_signalling_port(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    verifier = Verifier(ENDPOINT.public, {GATEWAY.public: "laptop"})
    sentences: list[str] = []

    async def answer(envelope: bytes) -> Answered | None:
        try:
            verifier.open(envelope, time.time(), kinds={"offer"})
        except EnvelopeRejected as rejection:
            sentences.append(rejection.sentence)
            return None
        return Answered(b"answer", "abc123")

    server = DirectServer(HostPort("127.0.0.1", 0), answer)
    await server.start()
    try:
        client = DirectClient(f"http://{server.address}/")
        refused, said = 0, set[str]()
        for envelope in envelopes():
            try:
                await client.offer(envelope, 20)
            except SignalingError as error:
                said.add(str(error).partition(" ")[2])
                refused += 1
        assert refused > 250
        assert said == {"refused the offer; its log says why"}
        assert server.http is not None
        assert server.http.failures == 0, "no exception left the handler"
        assert (await client.offer(offer(), 20))[0] == b"answer"
    finally:
        await server.stop()
    assert all(len(sentence.encode()) <= 400 for sentence in sentences)
    assert all(sentence.isprintable() for sentence in sentences)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


LINES = [
    b"",
    b"[" * 4000,
    b'{"op":' * 600,
    b'{"op": ' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"op": NaN}',
    b'{"op": 1e999}',
    b'{"op": "drain", "timeout": 1e999}',
    b'{"op": "drain", "timeout": ' + b"1" * 4000 + b"}",
    b'{"op": "\\ud800"}',
    b'{"op": "\\u001b[2J\\n"}',
    b'{"op": null}',
    b'{"op": ["status"]}',
    b"\xff\xfe\x00",
    b"\x00" * 100,
    b"null",
    b"{" + b'"a": 1, ' * 400 + b'"op": "x"}',
]


async def test_lines_at_the_control_socket(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def handle(request: dict[str, Any]) -> Any:
        if request["op"] == "status":
            return "fine"
        raise ControlError("there is no such request")

    path = tmp_path / "control.sock"
    server = ControlServer(path, handle)
    await server.start()
    try:
        for line in LINES:
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(line + b"\n")
            answer = json.loads(await asyncio.wait_for(reader.readline(), 20))
            assert answer["ok"] is False
            assert len(answer["error"]) < 500
            writer.close()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b'{"op": "status"}\n')
        assert json.loads(await asyncio.wait_for(reader.readline(), 20))["result"] == "fine"
        writer.close()
    finally:
        await server.stop()
    assert [record for record in caplog.records if record.exc_info] == []
