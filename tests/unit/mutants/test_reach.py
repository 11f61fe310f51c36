"""Which functions are entered, by the forms that mutmut leaves as they were."""

from mutants.reach import digest_of, entries


def x_small__mutmut_orig() -> None:
    """Is called as the form of a function that is not mutated."""


def x_small__mutmut_1() -> None:
    """Is called as one that is."""


def test_what_is_entered_is_named_by_its_module_and_mutmut_s_name() -> None:
    x_small__mutmut_orig()
    with entries() as entered:
        assert entered == set()
        x_small__mutmut_orig()
        x_small__mutmut_1()
    assert entered == {f"{__name__}.x_small"}
    with entries() as nothing:
        x_small__mutmut_1()
    assert nothing == set()


def test_what_is_known_of_a_file_holds_until_it_or_a_module_that_it_names_changes() -> None:
    text = "from socks_tunnel.protocol.toy import small"
    known = digest_of(text, {"toy": "1", "other": "1", "to": "1"})
    assert digest_of(text, {"toy": "1", "other": "2", "to": "2"}) == known
    assert digest_of(text, {"toy": "2", "other": "1", "to": "1"}) != known
    assert digest_of(text + ", big", {"toy": "1"}) != known
