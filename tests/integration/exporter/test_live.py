"""The status page and its events."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.exporter import live as module
from socks_tunnel.exporter.history import add_up
from socks_tunnel.exporter.live import Live, Watch, content_security_policy
from socks_tunnel.ops.http_messages import Request, Response


def asking(path: str, method: str = "GET") -> Request:
    return Request(method, path, b"", "127.0.0.1")


class Scene:
    """A live page whose supervisor answers as the test says."""

    def __init__(self, directory: Path) -> None:
        self.asked = 0
        self.answer: Callable[[], list[Any]] = lambda: [{"instance": "a", "asked": self.asked}]
        self.live = Live(self.ask, directory)

    async def ask(self, what: str) -> list[Any]:
        assert what == "overview"
        self.asked += 1
        return self.answer()

    async def watch(self) -> Watch:
        response = await self.live.events(asking("/events"))
        assert response.status == 200
        assert isinstance(response.stream, Watch)
        return response.stream


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(module, "PERIOD", 0.01)
    scene = Scene(tmp_path)
    yield scene
    polling = scene.live._polling
    if polling is not None:
        async with asyncio.timeout(60):
            await polling  # it ends by itself once nobody looks


async def event(watch: Watch) -> dict[str, Any]:
    async with asyncio.timeout(60):
        message = await anext(aiter(watch))
    assert message.startswith(b"data: ")
    assert message.endswith(b"\n\n")
    assert message.count(b"\n") == 2
    decoded: dict[str, Any] = json.loads(message.removeprefix(b"data: "))
    return decoded


async def test_a_watch_sees_one_answer_after_the_other(scene: Scene) -> None:
    watch = await scene.watch()
    assert (await event(watch))["overview"] is None
    first = (await event(watch))["overview"]["asked"]
    assert (await event(watch))["overview"]["asked"] > first
    watch.close()


async def test_the_supervisor_is_asked_once_however_many_look(scene: Scene) -> None:
    watches = [await scene.watch() for _ in range(module.STREAMS_MAX)]
    for watch in watches:
        await event(watch)
    seen = [(await event(watch))["overview"]["asked"] for watch in watches]
    assert max(seen) == min(seen) == 1
    for watch in watches:
        watch.close()


async def test_so_many_may_look_and_a_place_is_given_back(scene: Scene) -> None:
    watches = [await scene.watch() for _ in range(module.STREAMS_MAX)]
    assert (await scene.live.events(asking("/events"))).status == 503
    assert (await scene.live.events(asking("/events"))).stream is None
    watches.pop().close()
    watches.append(await scene.watch())
    assert scene.live.streams == module.STREAMS_MAX
    for watch in watches:
        watch.close()
    assert scene.live.streams == 0


async def test_nobody_is_asked_while_nobody_looks(scene: Scene) -> None:
    watch = await scene.watch()
    await event(watch)
    await event(watch)
    watch.close()
    assert scene.live._polling is not None
    async with asyncio.timeout(60):
        await scene.live._polling
    asked = scene.asked
    await asyncio.sleep(0)
    assert scene.asked == asked
    again = await scene.watch()
    await event(again)
    await event(again)
    assert scene.asked > asked
    again.close()


async def test_a_supervisor_that_does_not_answer_is_said_to(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.01)

    def gone() -> list[Any]:
        raise ConnectionError("the supervisor is gone")

    scene.answer = gone
    watch = await scene.watch()
    await event(watch)
    assert (await event(watch))["problem"] == "the supervisor is gone"
    scene.answer = list
    while (problem := (await event(watch))["problem"]) == "the supervisor is gone":
        continue
    assert problem == "the supervisor has no answer at the moment"

    async def silent(what: str) -> list[Any]:
        await asyncio.Event().wait()
        raise AssertionError(what)

    scene.live._ask = silent
    while (problem := (await event(watch))["problem"]) != "the supervisor does not answer":
        assert problem == "the supervisor has no answer at the moment"
    watch.close()


async def test_the_first_event_has_the_whole_history_and_later_ones_what_is_new(
    scene: Scene,
) -> None:
    for moment in range(3):
        scene.live.history.take(add_up([]), float(moment), float(moment))
    watch = await scene.watch()
    assert [point[0] for point in (await event(watch))["points"]] == [0, 1, 2]
    assert (await event(watch))["points"] == []
    scene.live.history.take(add_up([]), 3.0, 3.0)
    while not (points := (await event(watch))["points"]):
        continue
    assert [point[0] for point in points] == [3]
    watch.close()


async def test_a_bug_in_one_point_of_the_history_is_not_its_end(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fails(_: Path) -> list[Any]:
        calls.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(module, "POINT_PERIOD", 0.01)
    monkeypatch.setattr(module, "counted", fails)
    recording = asyncio.ensure_future(scene.live.record())
    async with asyncio.timeout(30):
        while len(calls) < 2:
            await asyncio.sleep(0.01)
    recording.cancel()


async def test_the_head_of_the_events_takes_no_place(scene: Scene) -> None:
    response = await scene.live.events(asking("/events", "HEAD"))
    assert response.stream is None
    assert response.headers["Content-Type"] == "text/event-stream"
    assert scene.live.streams == 0


async def test_the_page_allows_itself_and_nothing_else(scene: Scene) -> None:
    response: Response = await scene.live.page(asking("/"))
    page = response.body.decode()
    policy = response.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 2
    assert policy == content_security_policy(page)
    assert policy != content_security_policy(page.replace('"use strict"', '"use sloppy"'))
    # One file: nothing is loaded, no attribute runs or styles anything.
    assert not re.search(r"\s(src|srcset|style|on\w+)=", page.partition("<script>")[0])
    assert re.findall(r'href="([^"]+)"', page) == ["data:,", "/metrics"]
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page
    for writes in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert writes not in page
