"""URLs and the choice of a proxy: no socket, no environment of the process."""

import re
from collections.abc import Callable

import pytest

from socks_tunnel.protocol.urls import NO_PROXY, Proxy, Url, proxy_for

HTTPS = Url.parse("https://vpn.example.com/")
HTTP = Url.parse("http://vpn.example.com:8765/")


@pytest.mark.parametrize(
    ("text", "shown", "authority"),
    [
        ("http://a:80/", "http://a/", "a:80"),
        ("https://a", "https://a/", "a:443"),
        ("https://A:80/b/c", "https://a:80/b/c", "a:80"),
        ("http://[::1]:8080", "http://[::1]:8080/", "[::1]:8080"),
        ("http://[::1]:80", "http://[::1]/", "[::1]:80"),
    ],
)
def test_a_url_is_read(text: str, shown: str, authority: str) -> None:
    url = Url.parse(text)
    assert (str(url), url.authority) == (shown, authority)
    assert Url.parse(str(url)) == url


def test_urls_of_one_server_have_one_origin() -> None:
    url = Url.parse("http://A.b/c")
    assert url.origin == Url.parse("http://a.b:80/d").origin
    for other in ("https://a.b/c", "http://a.b:81/c", "http://b.a/c"):
        assert url.origin != Url.parse(other).origin


@pytest.mark.parametrize("text", ["http://a/b c", "http://a/\x7f", "http://a/\x00", "http://a/ü"])
def test_a_path_that_would_break_the_request_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="the path has characters that must be escaped"):
        Url.parse(text)


@pytest.mark.parametrize("text", ["http://a/\n", "http://a/\r\nb", "http://a/\tb"])
def test_line_ends_never_reach_the_request_line(text: str) -> None:
    assert Url.parse(text).path in {"/", "/b"}, "urlsplit has taken them out"


@pytest.mark.parametrize("text", ["http://a:0x1/", "http://a:65536/"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the port is not a number from 0 to 65535$"):
        Url.parse(text)


# What stands behind "user:" is quoted by urllib, as a host or as a port.
@pytest.mark.parametrize("parse", [Url.parse, Proxy.parse])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("http://user:[secret]@proxy", "the host cannot be read"),
        ("http://user:secret\u2100@proxy", "the host cannot be read"),
        ("http://user:secret/@proxy", "the port is not a number from 0 to 65535"),
        ("http://user:secret?@proxy", "the port is not a number from 0 to 65535"),
        ("http://user:secret#@proxy", "the port is not a number from 0 to 65535"),
    ],
)
def test_what_cannot_be_read_is_not_quoted(
    parse: Callable[[str], object], text: str, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$") as caught:
        parse(text)
    assert caught.value.__suppress_context__, "nor is it in a traceback"


@pytest.mark.parametrize(
    ("text", "proxy"),
    [
        ("http://proxy:3128", Proxy("proxy", 3128)),
        ("http://proxy:3128/", Proxy("proxy", 3128)),
        ("proxy:3128", Proxy("proxy", 3128)),
        ("http://proxy", Proxy("proxy", 80)),
        ("http://[2001:db8::1]:3128", Proxy("2001:db8::1", 3128)),
        ("http://us%40er:pa%3Ass@proxy:1", Proxy("proxy", 1, "Basic dXNAZXI6cGE6c3M=")),
        ("http://user@proxy:1", Proxy("proxy", 1, "Basic dXNlcjo=")),
    ],
)
def test_a_proxy_is_read(text: str, proxy: Proxy) -> None:
    assert Proxy.parse(text) == proxy
    assert "Basic" not in repr(proxy)


@pytest.mark.parametrize("proxy", [Proxy("proxy", 3128), Proxy("2001:db8::1", 3128)])
def test_a_proxy_is_shown_as_it_is_written(proxy: Proxy) -> None:
    assert Proxy.parse(str(proxy)) == proxy
    assert repr(proxy) == f"<Proxy {proxy}>"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("socks5://p:1", "a proxy is given as http://HOST:PORT, not as socks5://"),
        ("https://u:secret@p", "a proxy is given as http://HOST:PORT, not as https://"),
        ("http://", "a proxy is given as http://HOST:PORT"),
        ("http://u:secret@", "a proxy is given as http://HOST:PORT"),
        ("http://u:secret@p/x", "a proxy is given as http://HOST:PORT"),
        ("http://u:secret@p?x", "a proxy is given as http://HOST:PORT"),
        ("http://u:secret@p#x", "a proxy is given as http://HOST:PORT"),
    ],
)
def test_what_is_no_http_proxy_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Proxy.parse(text)


@pytest.mark.parametrize(
    ("url", "configured", "environ", "chosen"),
    [
        (HTTPS, None, {}, None),
        (HTTPS, None, {"HTTPS_PROXY": "http://p:1"}, "p:1"),
        (HTTPS, None, {"https_proxy": "http://p:1", "HTTPS_PROXY": "http://q:1"}, "p:1"),
        (HTTPS, None, {"https_proxy": "", "HTTPS_PROXY": "http://q:1"}, "q:1"),
        (HTTPS, None, {"http_proxy": "http://p:1"}, None),
        (HTTP, None, {"http_proxy": "http://p:1"}, "p:1"),
        (HTTP, None, {"HTTP_PROXY": "http://p:1"}, None),  # httpoxy
        (HTTP, None, {"HTTPS_PROXY": "http://p:1"}, None),
        (HTTPS, "http://own:9", {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"}, "own:9"),
        (HTTPS, NO_PROXY, {"HTTPS_PROXY": "http://p:1"}, None),
        (Url.parse("https://127.0.0.1/"), "http://own:9", {}, None),
        (Url.parse("https://[::1]/"), "http://own:9", {}, None),
        (Url.parse("https://localhost/"), "http://own:9", {}, None),
    ],
)
def test_which_proxy(
    url: Url, configured: str | None, environ: dict[str, str], chosen: str | None
) -> None:
    proxy = proxy_for(url, configured, environ)
    assert (None if proxy is None else str(proxy)) == chosen


@pytest.mark.parametrize(
    ("host", "exceptions", "excepted"),
    [
        ("vpn.example.com", "*", True),
        ("vpn.example.com", "example.com", True),
        ("vpn.example.com", ".example.com", True),
        ("vpn.example.com", "*.example.com", True),
        ("VPN.Example.COM.", "other, vpn.example.com", True),
        ("vpn.example.com", "ample.com", False),
        ("vpn.example.com", "vpn.example.com.org", False),
        ("vpn.example.com", "example.com:443", True),
        ("vpn.example.com", "example.com:80", False),
        ("vpn.example.com", "other,vpn.example.com", True),
        ("vpn.example.com", "192.0.2.0/24, example.com:80, example.com", True),
        ("vpn.example.com", "example.com:https", False),
        ("vpn.example.com", "example.com:\u00b2", False),
        ("vpn.example.com", "example.com:" + "4" * 5000, False),
        ("vpn.example.com", "", False),
        ("vpn.example.com", ",, ,", False),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3:443", True),
        ("10.1.2.3", "11.0.0.0/8 2001:db8::/32", False),
        ("10.1.2.3", "3", False),
        ("10.1.2.3", "10.0.0.1/8", True),
        ("10.1.2.3", "10.1.2.4:443 example.com 10.1.2.3:443", True),
        ("2001:db8::7", "2001:db8::/32", True),
        ("2001:db8::7", "[2001:db8::7]", True),
        ("2001:db8::7", "[2001:db8::7]:443", True),
        ("2001:db8::7", "10.0.0.0/8", False),
    ],
)
@pytest.mark.parametrize("variable", ["no_proxy", "NO_PROXY"])
def test_exceptions(host: str, exceptions: str, excepted: bool, variable: str) -> None:
    url = Url("https", host, 443, "/")
    environ = {"HTTPS_PROXY": "http://p:1", variable: exceptions}
    assert (proxy_for(url, None, environ) is None) is excepted


def test_an_exception_may_have_the_highest_port() -> None:
    environ = {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "example.com:65535"}
    assert proxy_for(Url("https", "example.com", 65_535, "/"), None, environ) is None
    assert proxy_for(Url("https", "example.com", 65_534, "/"), None, environ) is not None


def test_an_environment_that_cannot_be_used_is_named_without_its_password() -> None:
    with pytest.raises(ValueError, match="HTTPS_PROXY") as caught:
        proxy_for(HTTPS, None, {"HTTPS_PROXY": "socks5://user:secret@p:1"})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("ftp://a/", "is none of http://…, https://… and unix:/path"),
        ("http:///b", "is none of http://…, https://… and unix:/path"),
        ("http://u@a/", "only a host, a port and a path may be given"),
        ("http://a/?q", "only a host, a port and a path may be given"),
        ("http://a/#f", "only a host, a port and a path may be given"),
        ("http://a/ü", "the path has characters that must be escaped (%20)"),
    ],
)
def test_the_sentence_says_what_is_wrong_with_a_url(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Url.parse(text)
