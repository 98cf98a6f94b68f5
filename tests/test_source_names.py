"""birdtune.data.source_names and source_numbers: which names are clips of one recording, and which are not."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from makers import recording
from schemes import CLIPS, RECORDINGS, word

from birdtune.data.source_names import RULES, Rule
from birdtune.data.sources import find_sources
from birdtune.data.split import compile_group_regex

CLASSES = ("Turdus_merula", "Erithacus_rubecula", "Parus_major")


def keys(names: Iterable[str]) -> Mapping[str, str]:
    return find_sources([recording(name) for name in sorted(names)]).keys


def sets(names: Iterable[str]) -> set[frozenset[str]]:
    found = defaultdict(set)
    for name, key in keys(names).items():
        found[key].add(name)
    return set(map(frozenset, found.values()))


def clips(title: str, first: int, n: int, label: str = CLASSES[0]) -> list[list[str]]:
    """Names of six clips of each of `n` recordings."""
    return [[f"{label}/{CLIPS[title](rec, k)}.wav" for k in range(6)] for rec in range(first, first + n)]


@pytest.mark.parametrize("title", CLIPS)
def test_clips_of_one_recording_are_one_source(title: str) -> None:
    made = clips(title, 0, 12)
    assert sets(name for inside in made for name in inside) == set(map(frozenset, made))


@pytest.mark.parametrize("title", RECORDINGS)
def test_independent_recordings_are_each_a_source(title: str) -> None:
    names = [f"{CLASSES[0]}/{RECORDINGS[title](n)}.wav" for n in range(18)]
    assert len(sets(names)) == 18


def test_schemes_mixed_in_one_folder_are_separated() -> None:
    made = [inside for number, title in enumerate(CLIPS) for inside in clips(title, 20 * number, 3)]
    counters = ("year and counter", "class, blank, counter", "Zoom", "iPhone", "bare numbers")
    counted = [f"{CLASSES[0]}/{RECORDINGS[title](n)}.flac" for title in counters for n in range(6)]
    assert sets([*(name for inside in made for name in inside), *counted]) == {
        *map(frozenset, made), *(frozenset([name]) for name in counted)
    }  # fmt: skip


# ---- several classes ----------------------------------------------------------------------------

# Names by which a recording is known wherever it lies; another class that has it has the same.
KNOWN_EVERYWHERE = {
    "AudioMoth hexadecimal", "Song Meter", "Song Meter 3", "BTO", "xeno-canto", "Macaulay Library",
    "folders by recorder",
}  # fmt: skip
# They begin with the class.
OF_ONE_CLASS = {"jibjib", "warbleR query_xc", "species before the recorder's file", "class and take",
                "class and two numbers", "two counters after the class"}  # fmt: skip


@pytest.mark.parametrize("title", sorted(set(RECORDINGS) - OF_ONE_CLASS))
def test_counters_count_in_each_class_anew(title: str) -> None:
    names = [f"{label}/{RECORDINGS[title](n)}.wav" for label in CLASSES for n in range(18)]
    assert len(sets(names)) == (18 if title in KNOWN_EVERYWHERE else 54)


@pytest.mark.parametrize("title", sorted(set(CLIPS) - OF_ONE_CLASS))
def test_a_recording_cut_for_several_classes_is_one_source(title: str) -> None:
    made = [frozenset(f"{CLASSES[k % 3]}/{CLIPS[title](rec, k)}.wav" for k in range(6)) for rec in range(12)]
    assert sets(name for inside in made for name in inside) == set(made)


def test_numbered_recordings_of_several_classes_stay_apart_with_their_clips() -> None:
    made = [[f"{label}/rec{rec}_chunk_{k}.wav" for k in range(4)] for label in CLASSES for rec in range(5)]
    assert sets(name for inside in made for name in inside) == set(map(frozenset, made))


def test_counters_after_the_class_are_not_ids() -> None:
    assert len(sets(f"{label}/{label}-{n:02}.wav" for label in CLASSES for n in range(1, 5))) == 12
    assert len(sets(f"{label}/{label}-{year}.wav" for label in CLASSES for year in (2019, 2020))) == 6
    assert len(sets(f"{label}/{label}-{123456 + n}.wav" for label in CLASSES for n in range(4))) == 4


# ---- what the folder decides --------------------------------------------------------------------


def folder(*stems: str, **durations: float) -> int:
    """How many sources a class folder has; files last a second, or as long as is given."""
    records = [recording(f"A_a/{stem}.wav", duration_s=durations.get(stem, 1.0)) for stem in sorted(stems)]
    return len(set(find_sources(records).keys.values()))


def test_one_word_before_numbers_is_a_counter_and_several_are_recordings() -> None:
    assert folder(*(f"amsel_{n}" for n in range(6))) == 6
    assert folder(*(f"{name}_{n}" for name in ("amsel", "garten") for n in range(6))) == 2


def test_numbers_that_begin_anywhere_are_no_clips() -> None:
    assert folder("amsel_17", "amsel_34", "garten_3", "garten_58") == 4


def test_files_of_all_lengths_are_no_clips() -> None:
    lengths = {f"{name}_{n}": 2.0 + n + 10 * (name == "wind") for name in ("wind", "regen") for n in range(6)}
    assert folder(*lengths, **lengths) == 12


def test_seconds_alone_are_seen_by_their_equal_steps() -> None:
    assert folder(*(f"{name}_{5 * n}" for name in ("amsel", "garten") for n in (2, 3, 7))) == 2


def test_two_numbers_are_a_span_where_they_fit_the_length_of_the_file() -> None:
    assert folder("amsel_3_8", "amsel_20_26", amsel_3_8=5.0, amsel_20_26=6.0) == 1
    assert folder("amsel_3_8", "amsel_20_46", amsel_3_8=5.0, amsel_20_46=6.0) == 2


def test_start_and_length_are_seen_where_all_files_are_as_long_as_they_say() -> None:
    names = ["dawn_7_3", "dawn_14_3", "dawn_31_3"]
    assert folder(*names, **dict.fromkeys(names, 3.0)) == 1
    assert folder(*names, **dict.fromkeys(names, 20.0)) == 3
    counted = [f"merula_{n}_3" for n in range(1, 9)]
    assert folder(*counted, **dict.fromkeys(counted, 3.0)) == 8


def test_two_counters_after_the_class_are_a_span_only_where_they_fit_the_files() -> None:
    counted = [f"A_{n}_{n + 9}" for n in range(1, 9)]
    assert folder(*counted) == 8
    assert folder(*counted, **dict.fromkeys(counted, 9.0)) == 1


def test_a_start_alone_after_the_class_is_a_counter_and_after_other_words_it_is_none() -> None:
    assert folder("A_1.1", "A_2.1", "A_3.1") == 3
    assert folder("dawn_1.1", "dawn_2.1", "dawn_3.1") == 1
    assert folder("A_1.1s", "A_2.1s", "A_3.1s") == 1


def test_a_folder_that_may_be_of_a_year_is_an_id_only_for_files_without_a_name() -> None:
    assert folder("XC2023/a", "XC2023/b", "XC2023/c") == 3
    assert folder("XC2023/000", "XC2023/001") == 1
    assert folder("XC20231/a", "XC20231/b") == 1


def test_times_in_folders_of_one_name_are_of_one_source_only_where_no_clip_is_in_two_classes() -> None:
    times = ["0.0-3.0", "3.0-6.0", "6.0-9.0"]
    assert len(sets(f"{label}/dawn/{time}.wav" for label in "AB" for time in times)) == 2
    assert len(sets(f"{label}/dawn/{time}.wav" for label, time in zip("ABA", times, strict=True))) == 1


def test_a_folder_of_one_recorder_or_year_is_no_recording() -> None:
    assert folder("site1/000", "site1/001", "site2/000", "2021/000", "clips/000", "creek/000", "creek/001") == 6


def test_what_a_class_with_one_word_means_follows_from_the_other_classes() -> None:
    lone = [f"B/{word(7)}_{k}.wav" for k in range(4)]
    others = [f"{label}/{word(rec)}_{k}.wav" for label, recs in (("A", (0, 1)), ("C", (2, 3))) for rec in recs
              for k in range(4)]  # fmt: skip
    assert len(sets(lone)) == 4
    assert len(sets([*lone, *others])) == 5


# ---- spelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("REC_20230501_050000_0.WAV", "rec_20230501_050000_1.wav"),  # case
        ("gr\u00f6\u00dfe_chunk1.wav", "gro\u0308\u00dfe_chunk2.wav"),  # ö as one character or as two
        ("creek_12.0s_15.0s.wav", "creek_15.0s_18.0s.flac"),
        ("creek_0,5s_5,5s.wav", "creek_5.5s_10.5s.wav"),
        ("creek.mp3_0.0s_3.0s.wav", "creek_3.0s_6.0s.wav"),
        ("creek_chunk３.wav", "creek_chunk4.wav"),  # noqa: RUF001
        ("XC1234_0.wav", "sub/XC 1234-1.wav"),
        ("0.91_creek_0.0s_3.0s.wav", "1.000_12_creek_3.0s_6.0s.wav"),
        ("20230501_050000Z_0.wav", "20230501_050000Z_1.wav"),
        ("Turdus merula_0.91_1_dawn_0.0s_3.0s.wav", "dawn_9.0s_12.0s.wav"),
        ("Amsel_0.91_1_20230501_050000_0.0s_3.0s.wav", "0.85_2_20230501_050000_3.0s_6.0s.wav"),
        ("creek.wav", "creek_30.0s_33.0s.wav"),  # the whole, and a clip
        ("creek.wav", "creek.flac"),
    ],
)
def test_spelling_does_not_matter(first: str, second: str) -> None:
    assert len(sets([f"A_a/{first}", f"A_a/{second}"])) == 1


def test_only_clips_are_joined_over_the_case_of_letters() -> None:
    assert len(sets(["A_a/creek.wav", "A_a/Creek.wav", "a_a/creek.wav"])) == 3
    assert len(sets(["A_a/creek_0.0s_3.0s.wav", "A_a/Creek.wav"])) == 1
    names = [recording("A_a/Nest1 x.wav"), recording("A_a/nest1 y.wav")]
    assert len(set(find_sources(names, compile_group_regex(r"\w+")).keys.values())) == 2


@pytest.mark.parametrize(
    "name",
    [
        "_", "-1", "()", "0.5_", "XC", "s", "12.0s_15.0s", "...", "1" * 200, "_" * 200 + "1", "0_" * 100, "٣", "💩_1",
    ],
)  # fmt: skip
def test_odd_names_are_sources_too(name: str) -> None:
    assert len(sets([f"A_a/{name}.wav", "A_a/other.wav"])) == 2


# ---- the table ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_examples_of_the_table_are_true(rule: Rule) -> None:
    names = [f"Class/{clip}" for clip in rule.clips]
    expected = find_sources([recording(name) for name in names])
    assert expected.keys[names[0]] == rule.source
    assert any(found.rule == rule.name for found in expected.by_rule) or rule.name == "rank or confidence"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_the_table_of_the_documentation_is_that_of_the_code(rule: Rule) -> None:
    clips = ", ".join(f"`{clip}`" for clip in rule.clips)
    text = (Path(__file__).parents[1] / "docs" / "sources.md").read_text("utf-8")
    assert f"| {rule.name} | {rule.tools} | {clips} | `{rule.source}` |" in text
