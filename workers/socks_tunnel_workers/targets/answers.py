"""Bounds what pycares makes of an answer: private names of pycares, all of them here.

pycares makes Python objects of all records of all sections, also when the answer comes out of the
cache. That takes 0.1 s for the 4,000 addresses that fit an answer by TCP, in which the worker does
nothing else, and whoever has a domain can make such answers. Nothing here needs the sections
authority and additional, and nobody dials dozens of addresses.

If pycares does not have these names as they were read, its own function stays in use.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import Any, Final

import pycares

logger = logging.getLogger(__name__)

RECORDS_MAX: Final = 64
"""Records of one answer that are read: aliases and addresses together."""

_NAMES: Final = ("_ffi", "_lib", "extract_record_data", "maybe_str", "parse_dnsrec")
_FUNCTIONS: Final = (
    "ares_dns_record_rr_cnt",
    "ares_dns_record_rr_get_const",
    "ares_dns_rr_get_class",
    "ares_dns_rr_get_name",
    "ares_dns_rr_get_ttl",
    "ares_dns_rr_get_type",
)

_pycares: Final[dict[str, Any]] = vars(pycares)


@dataclass
class BoundedResult(pycares.DNSResult):
    """The first :data:`RECORDS_MAX` records of an answer. `records` says how many there were."""

    records: int = 0


def _read(dnsrec: Any) -> tuple[BoundedResult | None, int | None]:
    """Returns the result for a `struct ares_dns_record *`, or c-ares's error number."""
    lib, ffi = _pycares["_lib"], _pycares["_ffi"]
    if dnsrec == ffi.NULL:
        return None, pycares.errno.ARES_EBADRESP
    section = lib.ARES_SECTION_ANSWER
    answers = lib.ares_dns_record_rr_cnt(dnsrec, section)
    found = []
    for index in range(min(answers, RECORDS_MAX)):
        record = lib.ares_dns_record_rr_get_const(dnsrec, section, index)
        kind = lib.ares_dns_rr_get_type(record)
        try:
            data = _pycares["extract_record_data"](record, kind)
        except ValueError:
            continue  # of a type that pycares does not know
        found.append(
            pycares.DNSRecord(
                name=_pycares["maybe_str"](ffi.string(lib.ares_dns_rr_get_name(record))),
                type=kind,
                record_class=lib.ares_dns_rr_get_class(record),
                ttl=lib.ares_dns_rr_get_ttl(record),
                data=data,
            )
        )
    others = sum(
        lib.ares_dns_record_rr_cnt(dnsrec, each)
        for each in (lib.ARES_SECTION_AUTHORITY, lib.ARES_SECTION_ADDITIONAL)
    )
    return BoundedResult(found, [], [], answers + others), None


def install() -> bool:
    """Has pycares read answers by :func:`_read`; returns False if it is not as it was read."""
    function = _pycares.get("parse_dnsrec")
    if function is _read:
        return True
    known = (
        function is not None
        and all(name in _pycares for name in _NAMES)
        and tuple(inspect.signature(function).parameters) == ("dnsrec",)
        and all(hasattr(_pycares["_lib"], name) for name in _FUNCTIONS)
    )
    if known:
        _pycares["parse_dnsrec"] = _read
    else:
        logger.warning(
            "pycares %s reads answers in a way that is not known: they are not bounded",
            pycares.__version__,
        )
    return known
