"""A proxy auto-config file for browsers, made from the routes of a gateway. Pure.

The file is a JavaScript function that a browser calls for each URL. It says what the gateway itself
would say: the first route that has the host and the port decides, names are matched as they are
written and never looked up, ranges match only addresses. What no route has is reached directly, and
so is the host of the browser itself. Where no route is configured, everything else goes through the
proxy.

It is ECMAScript 3, for the interpreters in operating systems are old.
"""

import json
from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import Any, Final

from socks_tunnel.protocol.routes import Route

CONTENT_TYPE: Final = "application/x-ns-proxy-autoconfig"

SIZE_MAX: Final = 1_048_576
"""Longest file in bytes: Chromium reads no longer one."""

_SCRIPT: Final = """\
// Made by socks-tunnel from [[routes]]; it changes with a reload of the gateway.
var PROXY = %(proxy)s;
var ROUTES = %(routes)s;
var DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443, "ftp": 21};

function ipv4(host) {
  var parts = /^(\\d{1,3})\\.(\\d{1,3})\\.(\\d{1,3})\\.(\\d{1,3})$/.exec(host), value = 0, i;
  if (!parts) return null;
  for (i = 1; i <= 4; i++) {
    if (parts[i] > 255) return null;
    value = value * 256 + Number(parts[i]);
  }
  return value;
}

// The eight groups of an IPv6 address, or null.
function ipv6(host) {
  var tail = /^(.*:)([0-9.]+)$/.exec(host), halves, groups = [], i, part, side, value;
  if (host.indexOf(":") < 0) return null;
  if (tail && tail[2].indexOf(".") >= 0) {
    value = ipv4(tail[2]);
    if (value === null) return null;
    host = tail[1] + Math.floor(value / 65536).toString(16) + ":" + (value %% 65536).toString(16);
  }
  halves = host.split("::");
  if (halves.length > 2) return null;
  for (side = 0; side < halves.length; side++) {
    part = halves[side] === "" ? [] : halves[side].split(":");
    if (side === 1) while (groups.length + part.length < 8) groups.push(0);
    for (i = 0; i < part.length; i++) {
      if (!/^[0-9a-f]{1,4}$/.test(part[i])) return null;
      groups.push(parseInt(part[i], 16));
    }
  }
  return groups.length === 8 ? groups : null;
}

function mapped(groups) {
  for (var i = 0; i < 5; i++) if (groups[i] !== 0) return null;
  return groups[5] === 65535 ? groups[6] * 65536 + groups[7] : null;
}

function within(value, ranges) {
  for (var i = 0; i < ranges.length; i++) {
    if (ranges[i][0] <= value && value <= ranges[i][1]) return true;
  }
  return false;
}

function hasPrefix(groups, prefix, bits) {
  for (var i = 0; i < 8 && bits > 0; i++, bits -= 16) {
    var shift = bits >= 16 ? 0 : 16 - bits;
    if (groups[i] >> shift !== prefix[i] >> shift) return false;
  }
  return true;
}

function has(route, host, four, six) {
  var i, dot;
  if (route.any) return true;
  if (four !== null) return within(four, route.ipv4);
  if (six !== null) {
    for (i = 0; i < route.ipv6.length; i++) {
      if (hasPrefix(six, route.ipv6[i][0], route.ipv6[i][1])) return true;
    }
    return false;
  }
  if (route.names.hasOwnProperty(host)) return true;
  for (dot = host.indexOf("."); dot >= 0; dot = host.indexOf(".", dot + 1)) {
    if (route.below.hasOwnProperty(host.substring(dot + 1))) return true;
  }
  return false;
}

function FindProxyForURL(url, host) {
  var scheme = url.substring(0, url.indexOf(":")).toLowerCase(), port, found, four, six, i;
  host = host.toLowerCase().replace(/^\\[|\\]$/g, "").replace(/\\.$/, "");
  found = /^[^:]+:\\/\\/(?:[^\\/?#@]*@)?(?:\\[[^\\]]*\\]|[^\\/?#:]*):(\\d+)/.exec(url);
  port = found ? Number(found[1]) : DEFAULT_PORTS[scheme] || 0;
  six = ipv6(host);
  four = six === null ? ipv4(host) : mapped(six);
  if (four !== null) six = null;
  if (host === "localhost" || /\\.localhost$/.test(host)) return "DIRECT";
  if (four !== null && four >= 2130706432 && four <= 2147483647) return "DIRECT";
  if (six !== null && hasPrefix(six, [0, 0, 0, 0, 0, 0, 0, 1], 128)) return "DIRECT";
  for (i = 0; i < ROUTES.length; i++) {
    if (within(port, ROUTES[i].ports) && has(ROUTES[i], host, four, six)) return PROXY;
  }
  return "DIRECT";
}
"""


def script(routes: Sequence[Route], host: str, port: int, protocols: Sequence[str]) -> str:
    """Returns the file, for a proxy at that host and port that speaks some protocols.

    Raises :class:`ValueError` if a browser would not read it: it is too long.
    """
    text = _SCRIPT % {
        "proxy": json.dumps(
            _proxy(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", protocols)
        ),
        "routes": json.dumps([_table(route) for route in routes] or [_EVERYTHING]),
    }
    if len(text) > SIZE_MAX:
        raise ValueError(f"the file would have {len(text)} bytes; browsers read {SIZE_MAX}")
    return text


def _proxy(address: str, protocols: Sequence[str]) -> str:
    """Returns what the function answers. Never DIRECT after it: what is inside stays inside."""
    if "socks5" in protocols:
        return f"SOCKS5 {address}"
    return f"PROXY {address}" if "http" in protocols else f"SOCKS {address}"


_EVERYTHING: Final[dict[str, Any]] = {"any": True, "ports": [[0, 65_535]]}


def _table(route: Route) -> dict[str, Any]:
    """Returns a route as the script has it: names as keys, ranges of IPv4 addresses as numbers."""
    networks = [network for network, _ in route.hosts.networks]
    return {
        "any": route.any_host,
        "names": {name: 1 for name, _ in route.hosts.names},
        "below": {name: 1 for name, _ in route.hosts.below},
        "ipv4": [
            [int(n.network_address), int(n.broadcast_address)]
            for n in networks
            if isinstance(n, IPv4Network)
        ],
        "ipv6": [
            [_groups(int(n.network_address)), n.prefixlen]
            for n in networks
            if not isinstance(n, IPv4Network)
        ],
        "ports": [[first, last] for first, last, _ in route.ports.ranges],
    }


def _groups(address: int) -> list[int]:
    return [address >> shift & 0xFFFF for shift in range(112, -16, -16)]
