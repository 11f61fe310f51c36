"""Flows that users have, held on the gateway's host through a tunnel while its packages are upgraded.

A real ssh session, a download with a hash, a call of datagrams each 20 ms, and flows that say nothing.
"""

import contextlib
import os
import select
import shutil
import socket
import struct
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

from support.hosts import DOMAIN, TARGET_ADDRESS
from support.installed import PROXY, Scene
from support.processes import wait_until
from support.rawsocks import Association, request
from support.targets import body_hash

RTP_INTERVAL = 0.02
"""Seconds between two datagrams of a call (50 packets a second, as G.711 has)."""

RTP_PAYLOAD = 160

PATIENCE = 120.0


class Living:
    """The flows. `goes_on` checks those that can be asked, `finish` all."""

    def __init__(self, scene: Scene, directory: Path, *, idle: int, size: int, rate: str) -> None:
        self.scene = scene
        self.directory = directory
        self.size = size
        self.rate = rate
        self.count = idle
        self.sent = 0
        self.heard = 0
        self.longest = 0.0
        """The longest time in seconds without an answer in the call."""
        self._stop = threading.Event()
        self._exit = contextlib.ExitStack()

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._exit.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._exit.close()

    # --- starting -----------------------------------------------------------------------------

    def _start(self) -> None:
        scene = self.scene
        port = scene.site.ports["echo"]

        def connect() -> list[socket.socket]:
            found = []
            for _ in range(self.count):
                sock, answer = request(PROXY, TARGET_ADDRESS, port)
                self._exit.callback(sock.close)
                assert answer.code == 0
                sock.settimeout(PATIENCE)
                found.append(sock)
            return found

        self.idle: list[socket.socket] = scene.on_gateway(connect)
        self._start_ssh()
        self._start_download()
        self.call: Association = scene.on_gateway(lambda: Association(PROXY))
        self._exit.callback(self.call.close)
        thread = threading.Thread(target=self._talk)
        thread.start()
        self._exit.callback(thread.join)
        self._exit.callback(self._stop.set)
        wait_until(lambda: self.heard > 10, "a call both ways", timeout=PATIENCE)

    def _start_ssh(self) -> None:
        keys = self.directory
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / name)]
            subprocess.run(command, check=True)
        shutil.copy(keys / "user.pub", keys / "authorized_keys")
        (keys / "sshd_config").write_text(
            f"ListenAddress {TARGET_ADDRESS}:22\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"PermitRootLogin prohibit-password\nHostKey {keys}/host\n"
            f"AuthorizedKeysFile {keys}/authorized_keys\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        server = subprocess.Popen(
            [
                *self.scene.site.hosts.target.command(),
                *(str(shutil.which("sshd", path="/usr/sbin:/usr/bin")), "-D", "-e"),
                *("-f", str(keys / "sshd_config")),
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._exit.callback(self._end, server)
        wait_until(lambda: self._listens(22), "the ssh server", timeout=PATIENCE)
        host, port = PROXY
        self.shell = subprocess.Popen(
            [
                *("nsenter", "--target", str(self.scene.gateway.machine.leader), "--net", "--"),
                *("ssh", "-tt", "-F", "/dev/null", "-i", str(keys / "user")),
                *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
                *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
                *("-o", "ConnectionAttempts=20"),
                *("-o", f"ProxyCommand=nc.openbsd -X 5 -x {host}:{port} %h %p"),
                *(f"root@{TARGET_ADDRESS}", "exec /bin/sh -i"),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._exit.callback(self._end, self.shell)
        self._typed = 0
        self.type()

    def _listens(self, port: int) -> bool:
        try:
            with (
                self.scene.site.hosts.target.inside(),
                socket.create_connection((TARGET_ADDRESS, port), 10),
            ):
                return True
        except ConnectionRefusedError:
            return False

    @staticmethod
    def _end(process: "subprocess.Popen[bytes]") -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()

    def _start_download(self) -> None:
        self.file = self.directory / "download"
        self.curl = subprocess.Popen(
            [
                *("nsenter", "--target", str(self.scene.gateway.machine.leader), "--net", "--"),
                *("curl", "--silent", "--show-error", "--limit-rate", self.rate),
                *("--output", str(self.file), "--proxy", f"socks5h://{PROXY[0]}:{PROXY[1]}"),
                f"http://www.{DOMAIN}:{self.scene.site.ports['http']}/bytes/{self.size}",
            ],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        self._exit.callback(self._end, self.curl)
        wait_until(
            lambda: self.file.exists() and self.file.stat().st_size,
            "the download",
            timeout=PATIENCE,
        )

    # --- while they go on -----------------------------------------------------------------------

    def type(self) -> None:
        """Types a command into the shell, and waits for what it prints."""
        self._typed += 1
        assert self.shell.stdin is not None
        assert self.shell.stdout is not None
        # The terminal echoes what is typed, so what is waited for must not stand in it.
        self.shell.stdin.write(b"echo $((%d + 1000))done\n" % self._typed)
        wanted = b"%ddone" % (self._typed + 1000)
        shown = b""
        deadline = time.monotonic() + PATIENCE
        # Not select(2): beside a thousand flows, the descriptor may be over 1,024.
        poll = select.poll()
        poll.register(self.shell.stdout, select.POLLIN)
        while wanted not in shown:
            ready = poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
            assert ready, f"the shell shows nothing more than {shown!r}"
            piece = os.read(self.shell.stdout.fileno(), 4096)
            assert piece, f"the ssh session ended: {shown!r}"
            shown += piece

    def _talk(self) -> None:
        """Sends a datagram each 20 ms, and notes what comes back and when."""
        port = self.scene.site.ports["udp_echo"]
        last = time.monotonic()
        self.call.sock.setblocking(False)
        while not self._stop.wait(RTP_INTERVAL):
            self.call.send(TARGET_ADDRESS, port, struct.pack(">Q", self.sent).ljust(RTP_PAYLOAD))
            self.sent += 1
            with contextlib.suppress(BlockingIOError):
                while True:
                    self.call.receive()
                    now = time.monotonic()
                    self.longest = max(self.longest, now - last)
                    last = now
                    self.heard += 1

    def goes_on(self) -> None:
        """Each of them carries bytes now."""
        self.type()
        heard = self.heard
        wait_until(lambda: self.heard > heard + 10, "the call", timeout=PATIENCE)
        self._wait_download()
        for number, sock in enumerate(self.idle):
            sock.sendall(b"%d" % number)
        for number, sock in enumerate(self.idle):
            assert sock.recv(16) == b"%d" % number, f"idle flow {number}"

    def _wait_download(self) -> None:
        """Waits until more of the download has come, or it has ended."""
        size = self.file.stat().st_size
        wait_until(
            lambda: self.curl.poll() is not None or self.file.stat().st_size > size,
            f"the download, of which there are {size} bytes",
            timeout=PATIENCE,
            interval=0.1,
        )

    def finish(self) -> None:
        """Waits for the end of the download: every byte must have come, however long that takes."""
        while self.curl.poll() is None:
            self._wait_download()
        _, errors = self.curl.communicate()
        assert self.curl.returncode == 0, errors.decode()
        done = subprocess.run(["sha256sum", self.file], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == body_hash(self.size)
        print(
            f"call: {self.sent} datagrams sent, {self.sent - self.heard} without an answer, "
            f"none for {self.longest:.1f} s at most"
        )
