"""How tests are shared among processes."""

import pytest

from support.groups import group_of


@pytest.mark.parametrize(
    ("test", "group"),
    [
        ("tests/unit/a/test_b.py::test_c[1]", "tests/unit/a/test_b.py::test_c[1]"),
        ("tests/system/test_udp.py::test_c", "tests/system/test_udp.py::test_c"),
        (
            "tests/system/corporate/test_dns.py::test_c[forward]",
            "tests/system/corporate/test_dns.py",
        ),
        ("tests/packaging/test_qa.py::test_c[trixie]", "tests/packaging/test_qa.py"),
        (
            "tests/packaging/test_service.py::test_c[gateway-deb12-endpoint-deb13]",
            "tests/packaging/test_service.py[gateway-deb12-endpoint-deb13]",
        ),
        (
            "tests/packaging/test_service.py::test_c[gateway-deb13-endpoint-deb12]",
            "tests/packaging/test_service.py[gateway-deb13-endpoint-deb12]",
        ),
    ],
)
def test_tests_that_rely_on_each_other_stay_together(test: str, group: str) -> None:
    assert group_of(test) == group
