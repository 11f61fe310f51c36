"""docs/metrics.md lists what is exported, all of it and nothing else; and label values have a source."""

import ast
import re

import pytest

from socks_tunnel.ops import labels
from socks_tunnel.ops.meters import AnyFamily
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import Reply
from socks_tunnel.protocol.messages import MessageType
from socks_tunnel.rendezvous.figures import Figures
from socks_tunnel_workers.targets.failures import Failure
from support.checkout import ROOT

PAGE = (ROOT / "docs/metrics.md").read_text("utf-8")


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


def rows() -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
        for line in PAGE.splitlines()
        if line.startswith("| `") and line.count("|") == 6
    ]


def exposed(name: str, kind: str) -> str:
    name = name.removeprefix("socks_tunnel_")
    return f"{name}_total" if kind == "counter" else name


def families() -> list[AnyFamily]:
    """The metrics of an instance, and those of a rendezvous service."""
    return [*Metrics().families(), *Figures().families()]


def test_the_page_lists_what_is_exported_and_nothing_else() -> None:
    listed = {(quoted(name)[0], kind, tuple(quoted(of))) for name, kind, of, *_ in rows()}
    exported = {
        (exposed(family.name, family.kind), family.kind, family.label_names)
        for family in families()
    }
    assert listed == exported
    assert len(rows()) == len(listed), "a metric is listed twice"


def test_each_metric_has_a_meaning() -> None:
    for name, _, _, meaning, _ in rows():
        assert len(meaning) > 10 or meaning == "1", name


def test_the_page_lists_the_values_of_labels() -> None:
    known = {
        (label, exposed(family.name, family.kind)): values
        for family in families()
        for label, values in family.known.items()
    }
    listed = {}
    for line in PAGE.splitlines():
        found = re.fullmatch(r"\| `(\w+)` of ((?:`\w+`(?:, )?)+) \| (.*) \|", line)
        if found:
            for metric in quoted(found[2]):
                listed[found[1], metric] = tuple(quoted(found[3]))
    assert listed == known


@pytest.mark.parametrize(
    ("head", "values"),
    [
        ("`kind` | meaning", labels.PATH_KINDS),
        ("`cause` | the link before", labels.RECONNECT_CAUSES),
        ("`where` | meaning", labels.BUFFERS),
        ("`reason` | on | meaning", labels.UDP_DROPS),
        ("`reason` | meaning | what to do", labels.HTTP_REFUSALS),
        ("`reason` of transports |", labels.TRANSPORT_DROPS),
        ("`reason` on a host |", labels.RELAY_DROPS),
        ("`reason` of hosts |", labels.RENDEZVOUS_REFUSALS),
        ("`reason` of parcels |", labels.RENDEZVOUS_PARCEL_DROPS),
        ("`reason` of datagrams |", labels.RENDEZVOUS_RELAY_DROPS),
    ],
)
def test_each_value_is_explained(head: str, values: tuple[str, ...]) -> None:
    _, _, after = PAGE.partition(f"| {head}")
    table = after.partition("\n\n")[0]
    explained = [v for line in table.splitlines()[2:] for v in quoted(line.split("|")[1])]
    assert sorted(explained) == sorted(values)


# --- label values and their sources -----------------------------------------------------------------


def literals(*calls: str) -> dict[str, set[str]]:
    """Texts that are the first argument of a call of one of these names, or its `kind`."""
    found: dict[str, set[str]] = {}
    for package in ("daemon/socks_tunnel", "workers/socks_tunnel_workers"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call):
                    continue
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if name not in calls:
                    continue
                keywords = [word.value for word in node.keywords if word.arg == "kind"]
                for argument in keywords or node.args[:1]:
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                        where = str(path.relative_to(ROOT))
                        found.setdefault(argument.value, set()).add(where)
    return found


def test_values_that_have_a_type_of_their_own() -> None:
    assert set(labels.DNS_FAILURES) == {failure.value for failure in Failure}
    assert set(labels.REPLIES) == {reply.name.lower() for reply in Reply}
    assert {f"malformed-{kind.name.lower()}" for kind in MessageType} <= set(labels.PROTOCOL_ERRORS)


def label_values() -> dict[str, list[tuple[ast.expr, ...]]]:
    """What the sources give as label values, by the metric's attribute.

    They write `metrics.NAME.labels(VALUE, …)`, or `count("NAME", VALUE, …)` in workers.
    """
    names = {name for name in vars(Metrics()) if not name.startswith("_")}
    found: dict[str, list[tuple[ast.expr, ...]]] = {}
    for package in ("daemon/socks_tunnel", "workers/socks_tunnel_workers"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name in {"metrics.py", "figures.py"}:
                continue  # where they are made
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if not isinstance(node, ast.Call) or not node.args:
                    continue
                name, values = None, node.args
                if isinstance(node.func, ast.Attribute) and node.func.attr == "labels":
                    name = getattr(node.func.value, "attr", getattr(node.func.value, "id", None))
                elif isinstance(node.args[0], ast.Constant):
                    name, values = node.args[0].value, node.args[1:]
                if name in names and values:
                    found.setdefault(name, []).append(tuple(values))
    return found


def test_each_value_in_the_sources_is_known() -> None:
    """What is known is exported from 0, so that its first event is an increase."""
    metrics = Metrics()
    found = label_values()
    assert {"links_total", "resumes_total", "buffered_bytes", "failovers_total"} <= set(found)
    for name, uses in found.items():
        family = getattr(metrics, name)
        for values in uses:
            for label, value in zip(family.label_names, values, strict=False):
                if label in family.known and isinstance(value, ast.Constant):
                    assert value.value in family.known[label], (name, label, value.value)


def test_only_labels_without_a_list_of_values_are_of_an_instance_or_its_processes() -> None:
    """A new label has a list of its values in ops/labels.py, or is added here with its reason."""
    of_the_instance = {"role", "version", "python", "aiortc"}
    of_the_configuration = {"route", "peer"}
    of_processes = {"process"}
    what_expires = {("tls_certificate_expires_seconds", "kind")} | {
        ("ice_credential_expires_seconds", "kind"),  # no such thing is no time of expiry
        ("membership_expires_seconds", "kind"),
        ("membership_list_heard_seconds", "kind"),  # where there is no copy, nobody is heard
    }
    for family in families():
        name = exposed(family.name, family.kind)
        for label in set(family.label_names) - set(family.known):
            assert (
                label in of_the_instance | of_the_configuration | of_processes
                or (name, label) in what_expires
            ), (name, label)


def test_reasons_of_dropped_datagrams() -> None:
    assert set(literals("drop")) - set(labels.UDP_DROPS) == set()


def test_reasons_of_rejected_envelopes_and_clients() -> None:
    assert set(literals("EnvelopeRejected")) == set(labels.SIGNALING_REJECTIONS)
    assert set(literals("_count_rejected")) <= set(labels.CLIENT_REJECTIONS)


def test_reasons_of_refused_http_requests() -> None:
    assert set(literals("refused", "_refused")) | {"foreign-name", "other-site"} == set(
        labels.HTTP_REFUSALS
    )


def test_kinds_of_protocol_errors() -> None:
    """Each kind that is raised is known, but for those that end something else than a link or flow."""
    elsewhere = {
        *("ipc-control", "ipc-message", "ipc-frame", "ipc-descriptors"),  # of our own processes
        *("proof", "out-of-turn", "malformed", "revocation"),  # of the rendezvous service
        *labels.CLIENT_REJECTIONS,  # of a client of the proxy
        "udp-header",  # a dropped datagram
    }
    raised = literals(
        "RemoteProtocolError", "peer_error", "_protocol_error", "connection_error", "_complain"
    )
    kinds = {kind: where for kind, where in raised.items() if " " not in kind}
    unknown = set(kinds) - set(labels.PROTOCOL_ERRORS) - elsewhere
    assert not unknown, {kind: kinds[kind] for kind in unknown}
