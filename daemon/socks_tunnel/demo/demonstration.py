"""`socks-tunnel demo`: a gateway and an endpoint on this host, real ones, for a newcomer to try.

Two supervisors are started as anybody would start them, with keys and configurations made on the
fly in a temporary directory. They meet on a Unix socket, or through a rendezvous service in this
process, and on 127.0.0.1, so the machine needs no address but loopback. Whatever way the demo ends,
nothing of it stays: the kernel kills the two when this process dies, and their children end with
them.
"""

import asyncio
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import uvloop
from aiohttp import web

from socks_tunnel.config import paths
from socks_tunnel.config.documents import toml_value
from socks_tunnel.config.rendezvous import RendezvousConfig
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, parse_ip
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor import control_client
from socks_tunnel.supervisor.environment import OWN_ENVIRONMENT, PARENT_VARIABLE
from socks_tunnel.supervisor.listeners import ListenError, bind
from socks_tunnel.supervisor.problems import EXIT_CANNOT_CREATE, EXIT_CONFIG, EXIT_UNAVAILABLE
from socks_tunnel.supervisor.processes import describe_exit

EXIT_USAGE: Final = 2

LINK_TIMEOUT: Final = 60.0
"""Seconds until the link must be up."""

STOP_TIMEOUT: Final = 15.0
"""Seconds that both have to end."""

_POLL: Final = 0.1

_COMMON: Final = """\
role = {role}
drain_timeout = 3

[identity]
private_key_file = {key}

[[peers]]
name = {peer}
public_key = {public_key}
{url}
[ice]
addresses = ["127.0.0.1"]

[metrics]
listen = "127.0.0.1:0"

[log]
level = "warning"
format = "text"
"""

_GATEWAY: Final = """
[socks]
listen = [{listen}]
"""

_ENDPOINT: Final = """
[signaling]
{way} = {signaling}
"""

# A demonstration on one machine has its targets on that machine: loopback must be named.
_OPEN_POLICY: Final = """
[policy]
allowed_hosts = ["0.0.0.0", "::", "127.0.0.0/8", "::1"]
allowed_ports = ["*"]
"""


class _DemoError(Exception):
    """The demo cannot go on; the text is a sentence for the user."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(listen: HostPort, policy_file: Path | None, *, rendezvous: bool = False) -> int:
    """Runs the demo until Ctrl-C or SIGTERM; returns the exit status.

    `listen` is where SOCKS5 clients connect, on loopback; `policy_file` a policy for the endpoint
    (JSON), where None allows every destination. With `rendezvous`, neither side listens for the
    other: both connect to a rendezvous service, which runs here. 0 after a signal, 2 for an address
    off loopback, 69 if the two sides do not find each other or one of them ends, 73 for an address
    that is taken, 78 for a policy file with mistakes.
    """
    try:
        _check_address(listen)
        with _temporary_directory() as directory:
            uvloop.run(_demonstrate(listen, policy_file, Path(directory), rendezvous))
    except _DemoError as error:
        sys.stderr.write(f"socks-tunnel demo: {error}\n")
        return error.exit_code
    return 0


def _temporary_directory() -> tempfile.TemporaryDirectory[str]:
    """Makes a directory for all that the demo needs. Raises :class:`_DemoError`."""
    try:
        return paths.temporary_directory("socks-tunnel-demo-")
    except OSError as error:
        raise _DemoError(f"no temporary directory: {error}", EXIT_CANNOT_CREATE) from None


def _check_address(listen: HostPort) -> None:
    """Checks that the listener can be had, before anything starts. Raises :class:`_DemoError`."""
    ip = parse_ip(listen.host)
    if ip is None or not ip.is_loopback:
        raise _DemoError(
            f"--listen {listen}: the demo serves this machine only; give an address such as "
            "127.0.0.1:1080",
            EXIT_USAGE,
        )
    try:
        bind("--listen", listen).close()
    except ListenError as error:
        other = HostPort(listen.host, 1081 if listen.port == 1080 else 1080)
        raise _DemoError(
            f"{error}. For instance: socks-tunnel demo --listen {other}", EXIT_CANNOT_CREATE
        ) from None


async def _demonstrate(
    listen: HostPort, policy_file: Path | None, directory: Path, rendezvous: bool
) -> None:
    await _Demo(listen, policy_file, directory, rendezvous).run()


class _Demo:
    def __init__(
        self, listen: HostPort, policy_file: Path | None, directory: Path, rendezvous: bool = False
    ) -> None:
        self._rendezvous = rendezvous
        self._keys = {role: PrivateIdentity.generate() for role in ("gateway", "endpoint")}
        self._service: Service | None = None
        self._listen = listen
        self._policy_file = policy_file
        self._directory = directory
        self._signals: asyncio.Queue[int] = asyncio.Queue()
        self._sides: dict[str, asyncio.subprocess.Process] = {}
        self._exits: dict[str, asyncio.Task[int]] = {}
        self._failed: asyncio.Future[tuple[str, int]] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Starts both sides, says what to try, waits for a signal. Raises :class:`_DemoError`."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._signals.put_nowait, number)
        service = await self._serve() if self._rendezvous else None
        try:
            self._write_configurations(service)
        except ValueError as error:
            raise _DemoError(str(error), EXIT_CANNOT_CREATE) from None
        target = web.AppRunner(_target(), access_log=None, handle_signals=False)
        stopped = spawn("signal", self._signals.get())
        try:
            await target.setup()
            site = web.SockSite(target, bind("target", HostPort("127.0.0.1", 0)).socket)
            await site.start()
            await self._start("endpoint")
            linked = spawn("wait for the link", self._link())
            await _first(linked, stopped, self._failed)
            if linked.done():
                status = await linked
                if status is None:
                    raise _DemoError(
                        f"gateway and endpoint did not find each other within {LINK_TIMEOUT:.0f} s",
                        EXIT_UNAVAILABLE,
                    )
                self._say(status, target.addresses[0])
                await _first(stopped, self._failed)
            linked.cancel()
            if not stopped.done():
                raise _DemoError(*self._failed.result())
        finally:
            stopped.cancel()
            await self._stop()
            if self._service is not None:
                await self._service.stop()
            await target.cleanup()

    # --- before -------------------------------------------------------------------------------

    async def _serve(self) -> str:
        """Starts a rendezvous service for the two; returns its URL."""
        listed = [{"name": role, "public_key": key.public_text} for role, key in self._keys.items()]
        fields = {"listen": "127.0.0.1:0", "keys": listed, "source": self._directory / "demo.toml"}
        self._service = Service(RendezvousConfig.model_validate(fields), None)
        await self._service.start()
        return f"ws://{self._service.address}/"

    def _write_configurations(self, service: str | None = None) -> None:
        """Writes both files; `service` is the URL of a rendezvous service."""
        keys = self._keys
        way = "listen" if service is None else "rendezvous"
        signaling = service or f"unix:{self._directory / 'signaling.sock'}"
        own = {
            "gateway": _GATEWAY.format(listen=toml_value(str(self._listen))),
            "endpoint": _ENDPOINT.format(way=way, signaling=toml_value(signaling)),
        }
        if self._policy_file is None:
            own["endpoint"] += _OPEN_POLICY
        gateways = "url" if way == "listen" else way
        for role, other in (("gateway", "endpoint"), ("endpoint", "gateway")):
            key_file = self._directory / f"{role}.key"
            key_file.touch(mode=0o600)
            key_file.write_bytes(keys[role].to_pem())
            text = _COMMON.format(
                role=toml_value(role),
                key=toml_value(str(key_file)),
                peer=toml_value(other),
                public_key=toml_value(keys[other].public_text),
                url="" if role == "endpoint" else f"{gateways} = {toml_value(signaling)}\n",
            )
            if role == "endpoint" and self._policy_file is not None:
                text = f"policy_file = {toml_value(str(self._policy_file.absolute()))}\n{text}"
            (self._directory / f"{role}.toml").write_text(text + own[role], "utf-8")

    async def _start(self, role: str) -> None:
        runtime = self._runtime_directory(role)
        runtime.mkdir()
        environment = {k: v for k, v in os.environ.items() if k not in OWN_ENVIRONMENT}
        environment["RUNTIME_DIRECTORY"] = str(runtime)
        environment[PARENT_VARIABLE] = str(os.getpid())
        command = (sys.executable, "-P", "-m", "socks_tunnel", "run", "--config")
        try:
            side = await asyncio.create_subprocess_exec(
                *command,
                str(self._directory / f"{role}.toml"),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                # Out of the terminal's process group: Ctrl-C is for us, and we end both in order.
                start_new_session=True,
            )
        except OSError as error:
            message = f"the {role} cannot be started: {error.strerror or error}"
            raise _DemoError(message, EXIT_UNAVAILABLE) from None
        self._sides[role] = side
        exited = self._exits[role] = spawn(f"{role} exits", side.wait())

        def report(task: asyncio.Task[int]) -> None:
            if not task.cancelled() and not self._failed.done():
                status = task.result()
                # Its own complaint about the policy file is on the terminal already.
                code = EXIT_CONFIG if status == EXIT_CONFIG else EXIT_UNAVAILABLE
                self._failed.set_result((f"the {role} {describe_exit(status)}", code))

        exited.add_done_callback(report)

    def _runtime_directory(self, role: str) -> Path:
        return self._directory / f"run-{role}"

    async def _link(self) -> dict[str, Any] | None:
        """Waits for the endpoint, starts the gateway, waits for the link.

        Gives the gateway's status, or None if it takes too long.
        """
        try:
            async with asyncio.timeout(LINK_TIMEOUT):
                await self._until("endpoint", lambda status: status["state"] == "ready")
                await self._start("gateway")
                return await self._until(
                    "gateway", lambda status: any(link["state"] == "up" for link in status["links"])
                )
        except TimeoutError:
            return None

    async def _until(self, role: str, reached: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Asks one side for its status until it is as wanted."""
        control = paths.control_socket(self._runtime_directory(role))
        while True:
            status = await asyncio.to_thread(_status, control)
            if status is not None and reached(status):
                return status
            await asyncio.sleep(_POLL)

    # --- while it runs, and after ---------------------------------------------------------------

    def _say(self, status: Mapping[str, Any], target: Any) -> None:
        proxy = status["listen"][0]
        control = paths.control_socket(self._runtime_directory("gateway"))
        allowed = "every destination"
        meet = "on a Unix socket"
        if self._service is not None:
            meet = f"through the rendezvous service on {self._service.address}; neither listens"
        if self._policy_file is not None:
            allowed = f"what {self._policy_file} allows"
        sys.stdout.write(
            f"""
A gateway and an endpoint run on this machine, with a WebRTC data channel between them.

  SOCKS5 proxy   {proxy}
  policy         {allowed}
  they met       {meet}
  metrics        http://{status["metrics"]}/metrics
  status         {_program()} status --socket {control}

Try this in another terminal; the page is served by the demo itself, so it works offline:

  curl --socks5-hostname {proxy} http://{target[0]}:{target[1]}/

Ctrl-C ends it all.
"""
        )
        sys.stdout.flush()

    async def _stop(self) -> None:
        """Ends both, the gateway first for its goodbye; a second signal ends them now."""
        again = spawn("second signal", self._signals.get())
        try:
            for role in ("gateway", "endpoint"):
                if role in self._exits and not self._exits[role].done():
                    self._sides[role].send_signal(signal.SIGTERM)
                    await asyncio.wait(
                        [self._exits[role], again],
                        timeout=STOP_TIMEOUT,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
        finally:
            again.cancel()
            for role, exited in self._exits.items():
                if not exited.done():
                    self._sides[role].kill()
                    await asyncio.wait([exited], timeout=STOP_TIMEOUT)


async def _first(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)


def _program() -> str:
    """Returns how this program can be called from another terminal in the same directory."""
    return shlex.quote("socks-tunnel" if shutil.which("socks-tunnel") else sys.argv[0])


def _status(control: Path) -> dict[str, Any] | None:
    """Asks one side for its status; None while it does not answer yet."""
    try:
        answer = control_client.request(control, {"op": "status"}, timeout=5.0)
    except OSError:
        return None
    result = answer.get("result")
    return result if isinstance(result, dict) else None


def _target() -> web.Application:
    """Returns a web server for the first thing that a newcomer fetches through the tunnel."""

    async def hello(request: web.Request) -> web.Response:
        return web.Response(
            text="It works: this came through SOCKS5, a WebRTC data channel and the endpoint.\n"
            f"To this server, the client is the endpoint's socket {request.remote}.\n"
        )

    app = web.Application()
    app.router.add_get("/", hello)
    return app
