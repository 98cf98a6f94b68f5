"""birdtune.dataset.sources: which recordings are of one source recording, by names and links."""

from makers import recording

from birdtune.dataset.sources import Link, find_sources
from birdtune.dataset.split import compile_group_regex

RECORDINGS = [recording(f"A/{name}.wav") for name in ("a", "b", "c", "d", "e")]


def sets(links: list[Link], pattern: str | None = None) -> set[str]:
    """Sources as the letters of their recordings."""
    keys = find_sources(RECORDINGS, compile_group_regex(pattern), links).keys
    return {"".join(name[2] for name, of in keys.items() if of == key) for key in keys.values()}


def link(pair: str, *, joins: bool = True) -> Link:
    return Link(f"A/{pair[0]}.wav", f"A/{pair[1]}.wav", "made", joins)


def test_links_join_sources_in_any_order() -> None:
    links = [link("ba"), link("cd"), link("bc")]
    assert sets(links) == sets(links[::-1]) == {"abcd", "e"}
    found = find_sources(RECORDINGS, None, links)
    assert found.keys["A/d.wav"] == "A/a"
    assert found.alone == 1
    assert [(one.rule, one.recordings, one.sources, one.source) for one in found.found] == [("made", 4, 1, "A/a")]


def test_links_that_only_warn_join_nothing() -> None:
    links = [link("ab"), link("cd", joins=False), link("ba", joins=False)]
    assert sets(links) == {"ab", "c", "d", "e"}
    assert find_sources(RECORDINGS, None, links).doubted == (links[1],)


def test_a_pattern_goes_before_links() -> None:
    assert sets([link("ab")], "^[ac]") == set("abcde")
    assert len(find_sources(RECORDINGS, compile_group_regex("^x"), [link("ab")]).doubted) == 1


def test_links_to_recordings_that_are_not_used_are_passed_over() -> None:
    assert sets([Link("A/a.wav", "A/gone.wav", "made", joins=True)]) == set("abcde")
