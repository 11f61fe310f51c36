"""Our files are those of prometheus-client: each reads what the other has written."""

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector

from socks_tunnel.ops.multiprocess import KINDS, Sample, decode, encode, file_of, read, slot_of

TEXTS = st.text(max_size=20)
SAMPLES = st.lists(
    st.builds(
        lambda metric, labels, value: (
            f"The help of {metric}",
            Sample(
                metric,
                f"{metric}_total",
                tuple(text for pair in sorted(labels.items()) for text in pair),
                value,
            ),
        ),
        TEXTS,
        st.dictionaries(TEXTS, TEXTS, max_size=3),
        st.floats(allow_nan=False, allow_infinity=False),
    ),
    max_size=8,
)


@given(SAMPLES)
def test_there_and_back(samples: list[tuple[str, Sample]]) -> None:
    assert list(decode(encode(samples))) == [sample for _, sample in samples]


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = file_of(tmp_path, "counter", "worker-0")
    for labels in [(), ("a", "é"), ("a", "x" * 50, "b", "")]:
        path.write_bytes(encode([("An x", Sample("x", "x_total", labels, 2.5))]))
        [(key, value, _, _)] = MmapedDict.read_all_values_from_file(str(path))  # type: ignore[no-untyped-call]
        named = dict(zip(labels[::2], labels[1::2], strict=True))
        assert key == mmap_key("x", "x_total", list(named), list(named.values()), "An x")
        assert value == 2.5


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    path = file_of(tmp_path, "counter", "worker-0")
    theirs = MmapedDict(str(path))  # type: ignore[no-untyped-call]
    for number in range(2000):  # more than its first 64 KiB
        key = mmap_key("x", "x_total", ["a"], ["y" * (number % 13) + str(number)], "An x")
        theirs.write_value(key, float(number), 0.0)  # type: ignore[no-untyped-call]
    theirs.close()  # type: ignore[no-untyped-call]
    assert [sample.value for sample in read(path)] == [float(number) for number in range(2000)]


def test_the_library_adds_up_what_all_processes_wrote(tmp_path: Path) -> None:
    for slot, value in (("supervisor", 1.0), ("worker-0", 2.0)):
        for kind in KINDS:
            name = {"counter": "c_total", "gauge": "g", "histogram": "h_sum"}[kind]
            rows = [("Help", Sample(kind[0], name, (), value))]
            if kind == "histogram":
                rows += [
                    ("Help", Sample("h", "h_bucket", ("le", b), value)) for b in ("1.0", "+Inf")
                ]
            file_of(tmp_path, kind, slot).write_bytes(encode(rows))
    paths = [str(path) for path in tmp_path.iterdir()]
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for metric in MultiProcessCollector.merge(paths)  # type: ignore[no-untyped-call]
        for sample in metric.samples
    }
    assert found == {
        ("c_total",): 3,
        ("g",): 3,
        ("h_sum",): 3,
        ("h_bucket", "1.0"): 3,
        ("h_bucket", "+Inf"): 6,
        ("h_count",): 6,
    }
    assert not any(math.isnan(value) for value in found.values())


def test_the_slot_of_a_file(tmp_path: Path) -> None:
    for kind in KINDS:
        assert slot_of(file_of(tmp_path, kind, "worker-0")) == "worker-0"
    assert slot_of(tmp_path / "worker-0.db") is None
