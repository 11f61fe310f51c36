"""What the libraries log of a real offer and answer."""

import logging
import re

import pytest
from aiortc import RTCPeerConnection

from socks_tunnel.peer import set_library_log_level


async def test_no_logger_of_theirs_tells_an_ice_password(caplog: pytest.LogCaptureFixture) -> None:
    set_library_log_level(debug=True)
    try:
        with caplog.at_level(logging.DEBUG):
            one, other = RTCPeerConnection(), RTCPeerConnection()
            one.createDataChannel("x")
            await one.setLocalDescription(await one.createOffer())
            await other.setRemoteDescription(one.localDescription)
            await other.setLocalDescription(await other.createAnswer())
            await one.setRemoteDescription(other.localDescription)
            await one.close()
            await other.close()
    finally:
        set_library_log_level(debug=False)
    assert "a=ice-pwd:..." in caplog.text
    for description in (one.localDescription, other.localDescription):
        (password,) = re.findall(r"a=ice-pwd:(\S+)", description.sdp)
        assert password not in caplog.text
