"""The direct carrier's reading of URLs."""

import pytest

from socks_tunnel.signaling.direct import DirectClient, parse_url


@pytest.mark.parametrize(
    ("url", "request_url", "path"),
    [
        ("http://10.77.0.2:8765/", "http://10.77.0.2:8765/", ""),
        ("http://10.77.0.2:8765", "http://10.77.0.2:8765/", ""),
        ("https://[2001:db8::1]:443", "https://[2001:db8::1]/", ""),
        ("http://[2001:db8::1]:8765/", "http://[2001:db8::1]:8765/", ""),
        ("https://vpn.example.com/whip", "https://vpn.example.com/whip", ""),
        ("unix:/run/x/signal.sock", "http://localhost/", "/run/x/signal.sock"),
        ("unix:///run/x/signal.sock", "http://localhost/", "/run/x/signal.sock"),
        ("http+unix:///run/x/signal.sock", "http://localhost/", "/run/x/signal.sock"),
    ],
)
def test_urls(url: str, request_url: str, path: str) -> None:
    parsed, socket_path = parse_url(url)
    assert str(parsed) == request_url
    assert socket_path == path


@pytest.mark.parametrize(
    "url",
    [
        "",
        "10.77.0.2:8765",
        "ftp://10.77.0.2/",
        "wss://10.77.0.2/",
        "http://",
        "http://10.77.0.2:99999/",
        "http://user:secret@10.77.0.2/",
        "http://user:secret@10.77.0.2:99999/",
        "http://10.77.0.2/?a=b",
        "unix:signal.sock",
        "http+unix://signal.sock",
    ],
)
def test_what_cannot_be_requested_is_refused(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        DirectClient(url)
    assert "secret" not in str(caught.value)
