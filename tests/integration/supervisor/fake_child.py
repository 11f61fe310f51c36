"""A child process for tests of the process table: speaks just enough IPC, and misbehaves on demand.

Started as `python fake_child.py BEHAVIOUR --ipc-fd=N …`. Behaviours:

    good            hello, ready once configured, pong, answers, drained; exit 0 on shutdown
    eager           as good, but ready right after hello
    exit-N          exits with status N at once
    boot-exit-N     hello, ready, then exits with status N
    deaf            ready, then answers nothing, and dies of SIGABRT
    numb            as deaf, and survives SIGABRT
    mute            never says hello
    impostor        says hello with another process id
    garbage         ready, then sends a frame out of bounds
    leaver          ready, then closes its stream and stays
    stubborn        as eager, but does not end on shutdown
"""

import os
import signal
import socket
import struct
import sys
import time
from typing import Any

import msgpack

HEADER = struct.Struct("!IBH")


class Stream:
    def __init__(self, fd: int) -> None:
        self.sock = socket.socket(fileno=fd)
        self.buffer = b""

    def send(self, *values: Any, session: int = 0) -> None:
        body = msgpack.packb(values)
        self.sock.sendall(HEADER.pack(len(body) + 3, 1, session) + body)

    def receive(self) -> tuple[int, int, bytes]:
        while True:
            if len(self.buffer) >= 7:
                length, kind, link = HEADER.unpack_from(self.buffer)
                if len(self.buffer) >= 4 + length:
                    body = self.buffer[7 : 4 + length]
                    self.buffer = self.buffer[4 + length :]
                    return kind, link, body
            data = self.sock.recv(65_536)
            if not data:
                sys.exit(1)  # the supervisor is gone
            self.buffer += data


def main() -> None:
    behaviour, *rest = sys.argv[1:]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in rest)
    if behaviour.startswith("exit-"):
        sys.exit(int(behaviour.removeprefix("exit-")))
    if behaviour == "numb":
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
    stream = Stream(int(options["ipc-fd"]))
    if behaviour == "mute":
        time.sleep(600)
    stream.send("hello", os.getpid() + (behaviour == "impostor"))
    if behaviour != "good":
        stream.send("ready")
    if behaviour.startswith("boot-exit-"):
        stream.receive()
        sys.exit(int(behaviour.removeprefix("boot-exit-")))
    if behaviour in {"deaf", "numb"}:
        time.sleep(600)
    if behaviour == "garbage":
        stream.sock.sendall(b"\xff" * 64)
        time.sleep(600)
    if behaviour == "leaver":
        stream.sock.close()
        time.sleep(600)
    serve(stream, behaviour)


def serve(stream: Stream, behaviour: str) -> None:
    while True:
        kind, link, body = stream.receive()
        if kind == 0:  # an echo, with the session that it came on
            stream.sock.sendall(HEADER.pack(len(body) + 3, 0, link) + body)
            continue
        match msgpack.unpackb(body):
            case ["config", *_] if behaviour == "good":
                stream.send("ready")
            case ["ping", number]:
                stream.send("pong", number)
            case ["attach", *_]:
                stream.send("attached", [], True, session=link)
            case ["ask", number, *_]:
                stream.send("answer", number, [{"part": 1}], True)
                stream.send("answer", number, [{"part": 2}], False)
            case ["drain"]:
                stream.send("drained")
            case ["shutdown"] if behaviour != "stubborn":
                sys.exit(0)


main()
