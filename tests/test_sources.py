"""birdtune.data.sources: which recordings are of one source recording, by names and links."""

from collections.abc import Iterable

from makers import recording

from birdtune.data.recorded import recorded_links
from birdtune.data.sources import Link, find_sources, source_lines, source_notices
from birdtune.data.split import compile_group_regex

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
    assert [(one.rule, one.recordings, one.sources, one.source) for one in found.by_rule] == [("made", 4, 1, "A/a")]


def test_links_that_only_warn_join_nothing() -> None:
    links = [link("ab"), link("cd", joins=False), link("ba", joins=False)]
    assert sets(links) == {"ab", "c", "d", "e"}
    assert find_sources(RECORDINGS, None, links).uncertain == (links[1],)


def test_a_pattern_goes_before_links() -> None:
    assert sets([link("ab")], "^[ac]") == set("abcde")
    assert len(find_sources(RECORDINGS, compile_group_regex("^x"), [link("ab")]).uncertain) == 1


def test_links_to_recordings_that_are_not_used_are_passed_over() -> None:
    assert sets([Link("A/a.wav", "A/gone.wav", "made", joins=True)]) == set("abcde")


# ---- what is said -------------------------------------------------------------------------------


def test_how_sources_were_found_is_reported_with_examples() -> None:
    records = [recording(f"A/XC{1000 + rec}_{k}.wav") for rec in range(3) for k in range(2)]
    links = [Link("A/meadow.wav", "A/pond.wav", "noise floor", joins=True)]
    records += [recording("A/meadow.wav"), recording("A/pond.wav"), recording("A/hedge.wav")]
    assert list(source_lines(find_sources(records, None, links))) == [
        "9 recordings of 5 source recordings:",
        "  6 by xeno-canto id: 3 source recordings (e.g. A/XC1000_0.wav and A/XC1000_1.wav are XC1000)",
        "  2 by noise floor: 1 source recording (e.g. A/meadow.wav and A/pond.wav are A/meadow)",
        "  1 is its own source",
    ]


def test_what_joined_files_is_reported_and_one_is_not_many() -> None:
    names = ("C0/kaz.wav", "C0/kbz.wav")
    link = Link(*names, "recorder and time in the files", joins=True, detail="SM4 7, 2023-05-01 05:00:00 UTC")
    first, second = source_lines(find_sources([recording(name) for name in names], None, [link]))
    assert first == "2 recordings of 1 source recording:"
    assert second.endswith("(e.g. C0/kaz.wav and C0/kbz.wav are C0/kaz: SM4 7, 2023-05-01 05:00:00 UTC)")
    assert next(source_lines(find_sources([recording("A/x.wav")]))) == "1 recording of 1 source recording:"


def said(names: Iterable[str], links: Iterable[Link] = (), duration_s: float = 3.0) -> list[str]:
    records = [recording(name, duration_s=duration_s) for name in names]
    return source_notices(records, find_sources(records, None, [*links, *recorded_links(records)]))


def test_clips_that_count_as_sources_of_their_own_are_reported_with_the_way_out() -> None:
    counted = [f"{label}/{word}_{n:03}.wav" for label, word in (("A", "amsel"), ("B", "meise"))
               for n in range(15)]  # fmt: skip
    (notice,) = said(counted)
    assert notice.startswith("30 of 30 recordings count as sources of their own, and most are equally short (3 s)")
    assert "(e.g. A/amsel_000.wav)" in notice
    assert r"--split.group-regex '^(.+?)[\W_]*\d+\.\w+$' takes 'amsel' from that name" in notice
    assert said(counted, duration_s=90.0) == []
    assert said(counted[:10]) == []
    assert said(f"A/XC{1000 + n}.wav" for n in range(30)) == [], "each is known by its id"
    assert said(f"A/XC{1000 + n}_{k}.wav" for n in range(30) for k in range(2)) == []


def test_the_way_out_fits_the_names() -> None:
    for name, more, pattern, source in (
        ("A/amsel_003.wav", "A/amsel_007.wav", r"^(.+?)[\W_]*\d+\.\w+$", "amsel"),
        ("A/site3_07.wav", "A/site3_08.wav", r"^(\D*\d+)", "site3"),
        ("A/amsel_morning.wav", "A/amsel_evening.wav", "^([^_ -]+)", "amsel"),
    ):
        (notice,) = said([name, more, "A/x.wav"], [Link(name, "A/x.wav", "made", joins=False)])
        assert f"--split.group-regex '{pattern}' takes '{source}' from that name" in notice
        key = find_sources([recording(name)], compile_group_regex(pattern)).keys[name]
        assert key == source


def test_no_pattern_is_named_that_would_join_none_or_all_or_take_the_folder() -> None:
    for names in (
        ["A/aq.wav", "A/aikooh.wav", "A/bx.wav"],
        ["A/aq.wav", "A/bq.wav", "B/aq.wav", "B/bq.wav"],
        ["A/amsel_1.wav", "A/amsel_2.wav"],
        ["A/field-a/aq.wav", "A/field-a/bq.wav", "A/meadow-a/cq.wav"],
    ):
        (notice,) = said(names, [Link(names[0], names[1], "made", joins=False)])
        assert "--split.group-regex" not in notice
        assert "(--split.file)" in notice and "(--split.acoustic join)" in notice


def test_links_that_only_warn_are_reported() -> None:
    (notice,) = said(["A/a.wav", "A/b.wav", "A/c.wav"], [link("ab", joins=False), link("bc", joins=False)])
    assert notice.startswith("3 recordings may be parts of one with others that count as another source: made (e.g. ")


def test_short_clips_seconds_apart_are_reported() -> None:
    near = [f"A/SITE1_20230501_0500{n}.wav" for n in (10, 20, 45)]
    (notice,) = said(near)
    assert "3 recordings may be parts of one" in notice
    assert "less than a minute apart" in notice
    assert said(["A/SITE1_20230501_050000.wav", "A/SITE2_20230501_050010.wav"]) == []


def test_each_recording_has_its_source_and_the_rules_that_join_it() -> None:
    recordings = [recording("A/creek_0.0s_5.0s.wav"), recording("A/creek_5.0s_10.0s.wav"), recording("A/pond.wav")]
    link = Link("A/creek_0.0s_5.0s.wav", "A/pond.wav", "samples that run on", joins=True)
    assert find_sources(recordings).rows() == [
        {"recording": "A/creek_0.0s_5.0s.wav", "source_recording": "A/creek", "rule": "time span"},
        {"recording": "A/creek_5.0s_10.0s.wav", "source_recording": "A/creek", "rule": "time span"},
        {"recording": "A/pond.wav", "source_recording": "A/pond", "rule": ""},
    ]
    rules = {row["recording"]: row["rule"] for row in find_sources(recordings, links=[link]).rows()}
    assert rules["A/pond.wav"] == "samples that run on"
    assert rules["A/creek_0.0s_5.0s.wav"] == "samples that run on; time span"


def test_numbered_recordings_of_places_and_people_are_a_doubt_and_clips_of_tools_are_joined() -> None:
    people = [recording(f"A/{name}_{k}.wav") for name in ("Helgoland", "Smith", "Juist") for k in range(1, 7)]
    sources = find_sources(people)
    assert sources.alone == 18
    pairs = {(link.first.split("_")[0], link.second.split("_")[0]) for link in sources.uncertain}
    assert pairs == {("A/Helgoland",) * 2, ("A/Smith",) * 2, ("A/Juist",) * 2}
    assert any("numbered names of equally long files" in notice for notice in source_notices(people, sources))
    tools = [recording(f"A/{name}_{k:03}.wav") for name in ("Helgoland", "Smith", "Juist") for k in range(1, 7)]
    assert len(set(find_sources(tools).keys.values())) == 3
