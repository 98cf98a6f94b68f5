"""birdtune.data.split: one source on one side, the same side for good, and the user's word obeyed."""

import dataclasses
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import recording

from birdtune.data import split
from birdtune.data.scan import Recording
from birdtune.data.sources import find_sources
from birdtune.data.split import COLUMNS, SplitResult, assign, compile_group_regex
from birdtune.errors import InputError, SettingsError
from birdtune.runtime.files import read_csv
from birdtune.settings import SplitSettings

NOWHERE = Path("no-earlier-split.csv")
ESC10 = Path(__file__).parents[2] / "shared" / "data" / "esc10"


def group(name: str, pattern: str | None = None) -> str:
    return find_sources([recording(name)], compile_group_regex(pattern)).keys[name]


def sources(label: str, n: int, slices: int = 1) -> list[Recording]:
    """`n` sources of a class, each in some slices, named as jibjib names them."""
    start = sum(map(ord, label)) * 1000
    return [recording(f"{label}/{label}-{start + k}_{s}.wav") for k in range(n) for s in range(slices)]


def sides(result: SplitResult) -> dict[str, str]:
    return {name: place.split for name, place in result.places.items()}


def by_class(recordings: Iterable[Recording], result: SplitResult) -> dict[str, Counter[str]]:
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for record in recordings:
        counts[record.label][result.places[record.name].split] += 1
    return counts


def drawn(recordings: Sequence[Recording], earlier: Path = NOWHERE, **how: object) -> SplitResult:
    return assign(sorted(recordings, key=lambda record: record.name), SplitSettings(**how), earlier)


def kept(recordings: Sequence[Recording], path: Path, **how: object) -> SplitResult:
    """Draw as a run does: with what stands in split.csv, and writing it."""
    result = drawn(recordings, path, **how)
    split.write(path, recordings, result.places, path)
    return result


# ---- which recordings are of one source ---------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # slices of a xeno-canto recording, wherever they lie
        ("Turdus_merula/Turdus_merula-12345_1.wav", "id 12345"),
        ("Turdus_merula/Turdus_merula-12345_17.wav", "id 12345"),
        ("Turdus_merula/2019/Turdus_merula-12345_2.wav", "id 12345"),
        ("Turdus_merula/Turdus_merula-12345.wav", "id 12345"),
        # so is an id of xeno-canto
        ("Turdus_merula/XC-12345_1.wav", "XC12345"),
        ("Turdus_merula/XC-12345_2.wav", "XC12345"),
        ("Turdus_merula/XC12345.wav", "XC12345"),
        ("Turdus_merula/a/XC-12345_2.wav", "XC12345"),
        ("Turdus_merula/-5_1.wav", "Turdus_merula/-5"),
        # slices after another trailing number
        ("Turdus_merula/Turdus_merula_7_1.wav", "Turdus_merula/Turdus_merula_7"),
        ("Turdus_merula/Turdus_merula_7_2.wav", "Turdus_merula/Turdus_merula_7"),
        # unsplit files: the one number is the recording's, not a slice's
        ("Turdus_merula/Turdus_merula_7.wav", "Turdus_merula/Turdus_merula_7"),
        ("Turdus_merula/Turdus_merula_8.wav", "Turdus_merula/Turdus_merula_8"),
        ("Noise_noise/Noise_noise_3.wav", "Noise_noise/Noise_noise_3"),
        # recorders name files by date and time
        ("Turdus_merula/20210405_053000.wav", "Turdus_merula/20210405_053000"),
        ("Turdus_merula/20210405_053010.wav", "Turdus_merula/20210405_053010"),
        ("Turdus_merula/SITE4_20210405_053000.wav", "SITE4_20210405_053000"),
        ("Turdus_merula/SM4-20210405-053000.wav", "SM4-20210405-053000"),
        ("Turdus_merula/20210405_053000_3.wav", "20210405_053000"),
        ("Turdus_merula/20210405_053000_4.wav", "20210405_053000"),
        # Freesound takes, as ESC-10 and ESC-50 name them
        ("Rain/1-17367-A.ogg", "id 17367"),
        ("Rain/1-17367-B.ogg", "id 17367"),
        ("Rain/5-17367-A-10.wav", "id 17367"),
        # anything else
        ("Turdus_merula/blackbird.wav", "Turdus_merula/blackbird"),
        ("Turdus_merula/black_bird.wav", "Turdus_merula/black_bird"),
        ("Turdus_merula/sub/blackbird.v2.wav", "Turdus_merula/sub/blackbird.v2"),
        ("Turdus_merula/7.wav", "Turdus_merula/7"),
        ("Turdus_merula/_1.wav", "Turdus_merula/_1"),
    ],
)
def test_the_source_follows_from_the_name(name: str, expected: str) -> None:
    assert group(name) == expected


def test_the_same_name_in_two_folders_is_two_sources() -> None:
    assert group("A/x/1.wav") != group("A/y/1.wav")
    assert group("A/1.wav") != group("B/1.wav")


def test_a_source_under_two_classes_is_one() -> None:
    assert group("A_a/A_a-5000_1.wav") == group("B_b/B_b-5000_2.wav")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        (r"^(\w+?)_", "A/site4_5_x.wav", "site4"),
        (r"^[^/]+/", "A/nest3/5.wav", "nest3/"),
        (r"(nest\d+)|other", "A/other/5.wav", "other"),
        (r"nest(\d+)", "A/no match.wav", "A/no match.wav"),
        (r"A", "A/b.wav", "A/b.wav"),  # the class's own folder is not searched
        (r"-(\d+)", "A/A-7_1.wav", "7"),
    ],
)
def test_a_pattern_names_the_source(pattern: str, name: str, expected: str) -> None:
    assert group(name, pattern) == expected


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"group-regex '\(\['.*no regular expression"):
        compile_group_regex("([")
    assert compile_group_regex(None) is None


def test_how_many_names_a_pattern_matches_is_said() -> None:
    records = [recording(f"A/nest{k}_x.wav") for k in range(3)] + [recording("A/other.wav")]
    assert "matches 3 of 4 recordings" in drawn(records, group_regex=r"nest\d").notices[0]
    assert drawn(records[:3], group_regex=r"nest\d").notices == []


# ---- drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1, {"train": 1}), (2, {"train": 1, "test": 1}), (3, {"train": 1, "test": 1, "val": 1}),
        (4, {"train": 2, "test": 1, "val": 1}), (10, {"train": 7, "test": 1, "val": 2}),
        (20, {"train": 14, "val": 3, "test": 3}), (100, {"train": 70, "val": 15, "test": 15}),
    ],
)  # fmt: skip
def test_a_class_is_shared_out_by_whole_sources(n: int, expected: dict[str, int]) -> None:
    records = [*sources("A_a", n), *sources("B_b", 30)]
    counts = by_class(records, drawn(records))["A_a"]
    assert counts["train"] == expected["train"]
    # Between equal claims of validation and test, a whole source more or less is nobody's loss.
    assert sorted([counts["val"], counts["test"]]) == sorted([expected.get("val", 0), expected.get("test", 0)])
    if n == 2:
        assert counts["test"] == 1


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=25), min_size=2, max_size=5),
    seed=st.integers(0, 5),
)
def test_every_class_is_taught_and_no_source_is_torn(sizes: list[list[int]], seed: int) -> None:
    records = [
        recording(f"C{c}/C{c}-{c}{k:03}_{s}.wav")
        for c, of_class in enumerate(sizes) for k, slices in enumerate(of_class) for s in range(slices)
    ]  # fmt: skip
    result = drawn(records, seed=seed)
    of_source: dict[str, set[str]] = defaultdict(set)
    for place in result.places.values():
        of_source[place.group].add(place.split)
    assert all(len(found) == 1 for found in of_source.values())
    counts = by_class(records, result)
    for c, of_class in enumerate(sizes):
        count = counts[f"C{c}"]
        assert count["train"] > 0
        assert (len(of_class) < 2) or count["test"] > 0
        assert (len(of_class) < 3) or count["val"] > 0
        if len(of_class) >= 10:
            # As near to the wanted share as the largest source allows.
            for name, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
                assert abs(count[name] - share * sum(of_class)) <= max(of_class)


def test_slices_count_and_not_sources() -> None:
    records = [*sources("A_a", 1, slices=60), *sources("B_b", 2)]
    records += [recording(f"A_a/other{k}.wav") for k in range(40)]
    counts = by_class(records, drawn(records))["A_a"]
    assert counts["train"] == 70


def test_the_seed_draws_another_split_and_the_same_seed_the_same() -> None:
    records = [*sources("A_a", 20), *sources("B_b", 20)]
    assert drawn(records) == drawn(records)
    assert drawn(list(reversed(records))) == drawn(records)
    assert sides(drawn(records, seed=2)) != sides(drawn(records, seed=1))


def test_fractions_are_heeded_and_zero_is_none() -> None:
    records = sources("A_a", 100)
    counts = by_class(records, drawn(records, val_fraction=0.0, test_fraction=0.4))["A_a"]
    assert counts == {"train": 60, "test": 40}
    counts = by_class(records, drawn(records, val_fraction=0.3, test_fraction=0.0))["A_a"]
    assert counts == {"train": 70, "val": 30}
    few = sources("A_a", 2)
    assert by_class(few, drawn(few, val_fraction=0.3, test_fraction=0.0))["A_a"] == {"train": 1, "val": 1}


@pytest.mark.parametrize("seed", range(8))
def test_a_class_whose_only_source_belongs_to_a_larger_class_is_taught(seed: int) -> None:
    # The two sources of B_b are A_a's too, which has more of each; its small ones, so they are placed last.
    shared = [recording(f"{label}/{label}-{5000 + k}_{s}.wav") for k in range(6)
              for label, n in (("A_a", 2 if k < 2 else 9), ("B_b", 1 if k < 2 else 0)) for s in range(n)]  # fmt: skip
    result = drawn(shared, seed=seed)
    counts = by_class(shared, result)
    assert counts["B_b"]["train"] >= 1
    assert counts["A_a"]["train"] >= 1
    assert len({(place.group, place.split) for place in result.places.values()}) == 6


def test_small_classes_are_said() -> None:
    records = [*sources("A_a", 1), *sources("B_b", 2), *sources("C_c", 9)]
    assert drawn(records).notices == [
        "Too few source recordings to be tested: A_a.", "Too few source recordings to be validated: A_a, B_b.",
    ]  # fmt: skip
    alone = sources("A_a", 1)
    assert drawn(alone).notices == [
        f"No class has a recording to be {word}." for word in ("tested", "validated")
    ]


# ---- the same for good --------------------------------------------------------------------------


def test_new_recordings_move_nothing(tmp_path: Path) -> None:
    old = [*sources("A_a", 10), *sources("B_b", 3)]
    first = kept(old, tmp_path / "split.csv")
    new = [*old, *sources("C_c", 12), *(recording(f"A_a/new{k}.wav") for k in range(30)), recording("B_b/0.wav")]
    second = kept(new, tmp_path / "split.csv")
    assert {name: second.places[name] for name in first.places} == first.places
    counts = by_class(new, second)["A_a"]
    assert counts == {"train": 28, "val": 6, "test": 6}, "what is new evens the shares out"


def test_a_new_slice_goes_where_its_source_is(tmp_path: Path) -> None:
    old = sources("A_a", 12)
    first = kept(old, tmp_path / "split.csv")
    more = [recording(record.name.replace("_0.wav", "_9.wav")) for record in old]
    second = drawn([*old, *more], tmp_path / "split.csv")
    for record, slice_ in zip(old, more, strict=True):
        assert second.places[slice_.name].split == first.places[record.name].split


def test_a_new_slice_goes_where_its_source_was(tmp_path: Path) -> None:
    old = sources("A_a", 12)
    first = kept(old, tmp_path / "split.csv", seed=5)
    others = [recording(record.name.replace("_0.wav", "_9.wav")) for record in old]
    second = drawn(others, tmp_path / "split.csv")
    assert [place.split for place in second.places.values()] == [place.split for place in first.places.values()]


def test_what_was_removed_comes_back_to_its_side(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    records = [*sources("A_a", 10), *sources("B_b", 10)]
    first = kept(records, path)
    kept(records[:5] + records[12:], path)
    kept(records[3:], path)
    assert sides(kept(records, path)) == sides(first)
    assert len(read_csv(path)) == 20


def test_a_renamed_recording_keeps_its_side_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    records = sources("A_a", 20)
    first = kept(records, path)
    renamed = [recording(f"A_a/renamed {k}.wav", record.content) for k, record in enumerate(records)]
    second = kept(renamed, path)
    assert [second.places[r.name].split for r in renamed] == [first.places[r.name].split for r in records]


def test_a_recording_of_new_content_keeps_its_side_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    records = sources("A_a", 20)
    first = kept(records, path)
    edited = [recording(record.name, f"edited {record.name}") for record in records]
    assert sides(drawn(edited, path, group_regex=r"(.*)\.wav")) == sides(first)


def test_another_seed_or_share_does_not_move_what_is_placed(tmp_path: Path) -> None:
    records = sources("A_a", 20)
    first = kept(records, tmp_path / "split.csv")
    assert sides(drawn(records, tmp_path / "split.csv", seed=9, test_fraction=0.5)) == sides(first)


def test_sources_that_a_new_pattern_joins_end_on_one_side(tmp_path: Path) -> None:
    records = [*(recording(f"A/nest{k % 4}_{k}a.wav") for k in range(20)), recording("B/x.wav")]
    kept(records, tmp_path / "split.csv")
    result = drawn(records, tmp_path / "split.csv", group_regex=r"nest\d")
    assert len({(place.group, place.split) for place in result.places.values()}) == 5


def test_split_csv_tells_everything(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    records = [*sources("A_a", 3, slices=2), recording("B_b/=x.wav"), recording("B_b/y.wav")]
    result = kept(records, path)
    assert path.read_text("utf-8").splitlines()[0] == ",".join(COLUMNS)
    for row, record in zip(read_csv(path), records, strict=True):
        place = result.places[record.name]
        assert row == {"recording": record.name, "class": record.label, "group": place.group, "split": place.split,
                       "content": record.content}  # fmt: skip


def test_an_earlier_split_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("recording,class,group,split,content\nA/x.wav,A,A/x,sideways,c\n")
    with pytest.raises(InputError, match="the split 'sideways'; expected train, val or test"):
        drawn(sources("A_a", 3), path)
    path.write_text("recording,side\nA/x.wav,train\n")
    with pytest.raises(InputError, match=r"columns are recording, side.*Delete it"):
        drawn(sources("A_a", 3), path)
    path.write_text("")
    assert len(drawn(sources("A_a", 3), path).places) == 3


def test_a_split_without_contents_is_good_enough(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("recording,group,split\nA_a/x.wav,A_a/x,test\n")
    result = drawn([recording("A_a/x.wav", "c"), recording("A_a/y.wav", "")], path)
    assert sides(result) == {"A_a/x.wav": "test", "A_a/y.wav": "train"}


# ---- the user's word ----------------------------------------------------------------------------


def user_file(tmp_path: Path, rows: Mapping[str, object] | str, column: str = "split") -> str:
    text = rows if isinstance(rows, str) else f"recording,{column}\n" + "".join(f"{k},{v}\n" for k, v in rows.items())
    path = tmp_path / "user.csv"
    path.write_text(text, "utf-8")
    return str(path)


def test_a_split_file_is_obeyed_in_any_spelling(tmp_path: Path) -> None:
    spelled = ["train", "TRAIN ", "Training", "val", "Valid", "validation", "dev", "test", "Testing"]
    records = [recording(f"A/{k}.wav") for k in range(len(spelled))]
    file = user_file(tmp_path, {record.name: word for record, word in zip(records, spelled, strict=True)})
    assert list(sides(drawn(records, file=file)).values()) == ["train"] * 3 + ["val"] * 4 + ["test"] * 2


def test_a_split_file_has_the_words_of_folders_and_columns_in_any_case(tmp_path: Path) -> None:
    words = {"A/1.wav": "development", "A/2.wav": "train set", "A/3.wav": "holdout"}
    text = "Recording,SPLIT\n" + "".join(f"{name},{word}\n" for name, word in words.items())
    records = [recording(name) for name in words]
    assert list(sides(drawn(records, file=user_file(tmp_path, text))).values()) == ["val", "train", "test"]
    text = text.replace("train set", "devel")  # as DCASE has it
    assert list(sides(drawn(records, file=user_file(tmp_path, text))).values()) == ["train", "train", "test"]


@pytest.mark.parametrize("cells", [("1.0", "2.0", "3.0"), ("fold1", "Fold 2", "cv_fold_03")])
def test_folds_are_numbers_as_programs_write_them(tmp_path: Path, cells: tuple[str, ...]) -> None:
    records = sources("A_a", 3)
    file = user_file(tmp_path, {r.name: cell for r, cell in zip(records, cells, strict=True)}, "fold")
    assert list(sides(drawn(records, file=file, test_fold=2)).values()) == ["train", "test", "val"]


def test_a_split_file_may_name_any_copy_of_a_recording(tmp_path: Path) -> None:
    table = tmp_path / "split.csv"
    table.write_text("recording,split\nA/listed.wav,train\nB/1.wav,test\n")
    copied = dataclasses.replace(recording("A/Aaa.wav"), copies=("A/listed.wav",))
    result = drawn([copied, recording("B/1.wav")], file=str(table))
    assert sides(result) == {"A/Aaa.wav": "train", "B/1.wav": "test"}
    assert result.problems == []


def test_a_split_file_may_write_umlauts_in_one_character_or_two(tmp_path: Path) -> None:
    one, two = (unicodedata.normalize(form, "Grünspecht/Möwe 1.wav") for form in ("NFC", "NFD"))
    for listed, found in ((one, two), (two, one)):
        table = tmp_path / "split.csv"
        table.write_text(f"recording,split\n{listed},train\nB/1.wav,test\n")
        assert sides(drawn([recording(found), recording("B/1.wav")], file=str(table)))[found] == "train"


def test_sources_that_are_joined_later_are_said_to_be(tmp_path: Path) -> None:
    found = sources("A", 8)
    kept(found, tmp_path / "split.csv")
    joined = drawn(found, tmp_path / "split.csv", group_regex="^(.)")
    assert len({place.split for place in joined.places.values()}) == 1
    assert any("stood on different sides" in notice for notice in joined.notices)
    assert not any("different sides" in notice for notice in drawn(found, tmp_path / "split.csv").notices)


def test_settings_that_come_after_the_split_was_drawn_are_said_to_be_late(tmp_path: Path) -> None:
    found, path = sources("A", 8), tmp_path / "split.csv"
    split.remember_settings(path, SplitSettings(seed=1))
    kept(found, path, seed=1)
    split.remember_settings(path, SplitSettings(seed=2))
    assert not any("have changed" in notice for notice in drawn(found, path, seed=1).notices)
    assert any("have changed" in notice for notice in drawn(found, path, seed=2).notices)
    path.unlink()
    assert not any("have changed" in notice for notice in drawn(found, path, seed=2).notices)


def test_a_split_file_overrules_an_earlier_split(tmp_path: Path) -> None:
    records = sources("A_a", 6)
    kept(records, tmp_path / "split.csv")
    file = user_file(tmp_path, {record.name: "train" for record in records})
    assert set(sides(drawn(records, tmp_path / "split.csv", file=file)).values()) == {"train"}


@pytest.mark.parametrize("listed", ["A/x.wav", "x.wav", "data/A/x.wav", "/home/me/data/A/x.wav", "./A/x.wav"])
def test_a_recording_is_listed_by_its_path_or_the_end_of_it(tmp_path: Path, listed: str) -> None:
    file = user_file(tmp_path, {listed: "train", "B/y.wav": "test"})
    result = drawn([recording("A/x.wav"), recording("B/y.wav")], file=file)
    assert sides(result) == {"A/x.wav": "train", "B/y.wav": "test"}
    assert not any("missing" in notice for notice in result.notices)


def test_a_name_that_fits_two_lines_is_not_guessed(tmp_path: Path) -> None:
    file = user_file(tmp_path, {"a/x.wav": "train", "b/x.wav": "test", "A/y.wav": "train"})
    result = drawn([recording("C/x.wav"), recording("A/y.wav")], file=file)
    assert sides(result) == {"A/y.wav": "train"}


def test_a_file_of_the_same_name_in_another_class_is_another(tmp_path: Path) -> None:
    file = user_file(tmp_path, {"A/1.wav": "train", "A/2.wav": "test"})
    records = [recording("A/1.wav"), recording("A/2.wav"), recording("B/1.wav")]
    result = drawn(records, file=file)
    assert sides(result) == {"A/1.wav": "train", "A/2.wav": "test"}
    assert [(problem.recording, problem.problem) for problem in result.problems] == [("B/1.wav", "not-in-split")]


def test_what_is_not_listed_is_left_out_and_what_is_missing_said(tmp_path: Path) -> None:
    file = user_file(tmp_path, {"A/x.wav": "train", "A/gone.wav": "test", "A/lost.wav": "val"})
    result = drawn([recording("A/x.wav"), recording("B/new.wav")], file=file)
    assert [(p.recording, p.label, p.problem, p.used) for p in result.problems] == [
        ("B/new.wav", "B", "not-in-split", False)
    ]
    assert "lists 2 recordings missing or unusable, e.g. A/gone.wav." in result.notices[0]


def test_a_source_that_the_user_tears_apart_is_said(tmp_path: Path) -> None:
    records = sources("A_a", 1, slices=2)
    file = user_file(tmp_path, {records[0].name: "train", records[1].name: "test"})
    result = drawn(records, file=file)
    words = "On more than one side of the split, as the split given says: 1 source recording, e.g."
    assert any(words in notice for notice in result.notices)


def test_a_class_that_the_user_leaves_untaught_is_said(tmp_path: Path) -> None:
    file = user_file(tmp_path, {"A/x.wav": "train", "B/x.wav": "test"})
    notices = drawn([recording("A/x.wav"), recording("B/x.wav")], file=file).notices
    assert "No training recording for B: it cannot be learnt." in notices


@pytest.mark.parametrize(
    ("text", "how", "error", "words"),
    [
        ("name,split\nA/x.wav,train\n", {}, InputError, "columns are name, split; expected `recording,split`"),
        ("recording,side\nA/x.wav,train\n", {}, InputError, "columns are recording, side"),
        ("", {}, InputError, r"columns are \(none\)"),
        ("recording,split\nA/x.wav,maybe\n", {}, InputError, "row 2: the split 'maybe'"),
        ("recording,split\nA/x.wav,\n", {}, InputError, "row 2: the split ''"),
        ("recording,split\nA/x.wav,train\nA/x.wav,test\n", {}, InputError, "stands there twice, on two sides"),
        ("recording,split\nZ/z.wav,train\n", {}, InputError, r"lists none of the recordings.*A/x\.wav"),
        ("recording,split\nA/x.wav,test\n", {}, InputError, "leaves no recording for training"),
        ("recording,fold\nA/x.wav,one\n", {"test_fold": 1}, InputError, "a fold must be a whole number"),
        ("recording,fold\nA/x.wav,1\nA/y.wav,2\n", {}, SettingsError, r"has folds \(1, 2\).*--split\.test-fold 2"),
        ("recording,fold\nA/x.wav,1\n", {"test_fold": 7}, SettingsError, r"test-fold 7: .* has the folds 1\."),
        ("recording,fold\nA/x.wav,1\nA/y.wav,2\n", {"test_fold": 1, "val_fold": 1}, SettingsError, "val-fold 1"),
        ("recording,fold\nA/x.wav,1\nA/y.wav,2\n", {"test_fold": 1, "val_fold": 9}, SettingsError, "one of 1, 2"),
    ],
)  # fmt: skip
def test_split_files_that_cannot_be_obeyed_are_refused(
    tmp_path: Path, text: str, how: dict[str, int], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        drawn([recording("A/x.wav"), recording("A/y.wav")], file=user_file(tmp_path, text), **how)


def test_a_split_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        drawn([recording("A/x.wav")], file=str(tmp_path / "missing.csv"))


@pytest.mark.parametrize("how", [{"test_fold": 1}, {"val_fold": 1}])
def test_a_fold_without_a_file_is_refused_and_not_ignored(how: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match=re.escape("--split.file")):
        drawn(sources("A_a", 5), **how)


def test_a_recording_listed_twice_on_one_side_is_fine(tmp_path: Path) -> None:
    file = user_file(tmp_path, "recording,split\nA/x.wav,train\nA/x.wav,train\n")
    assert sides(drawn([recording("A/x.wav")], file=file)) == {"A/x.wav": "train"}


# ---- folds --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("folds", "how", "test", "val"),
    [
        ([1, 2, 3, 4, 5], {"test_fold": 1}, 1, 2), ([1, 2, 3, 4, 5], {"test_fold": 5}, 5, 1),
        ([1, 2, 3, 4, 5], {"test_fold": 2, "val_fold": 4}, 2, 4), ([0, 1, 2], {"test_fold": 0}, 0, 1),
        ([1, 2], {"test_fold": 2}, 2, None), ([1, 2], {"test_fold": 1, "val_fold": 2}, 1, 2),
        ([10, 20, 30], {"test_fold": 30}, 30, 10),
    ],
)  # fmt: skip
def test_folds_become_sides(
    tmp_path: Path, folds: list[int], how: dict[str, int], test: int, val: int | None
) -> None:
    records = {recording(f"A/{fold}-{k}.wav"): fold for fold in folds for k in range(3)}
    file = user_file(tmp_path, {record.name: fold for record, fold in records.items()}, "fold")
    expected = {r.name: "test" if f == test else "val" if f == val else "train" for r, f in records.items()}
    if "train" in expected.values():
        assert sides(drawn(list(records), file=file, **how)) == expected
    else:
        with pytest.raises(InputError, match="no recording for training"):
            drawn(list(records), file=file, **how)


@pytest.mark.skipif(not ESC10.exists(), reason="ESC-10 is not here")
@pytest.mark.parametrize("test_fold", range(1, 6))
def test_no_fold_and_no_source_of_esc10_stands_on_two_sides(tmp_path: Path, test_fold: int) -> None:
    records = [recording(path.relative_to(ESC10).as_posix()) for path in sorted(ESC10.glob("*/*.ogg"))]
    fold_of = {record.name: int(record.path.name[0]) for record in records}
    assert len(records) == 400
    file = user_file(tmp_path, fold_of, "fold")
    result = drawn(records, file=file, test_fold=test_fold)
    sides_of: dict[object, set[str]] = defaultdict(set)
    for name, place in result.places.items():
        sides_of[fold_of[name]].add(place.split)
        sides_of[place.group].add(place.split)
    assert all(len(found) == 1 for found in sides_of.values())
    assert sides_of[test_fold] == {"test"}
    assert Counter(sides(result).values()) == {"train": 240, "val": 80, "test": 80}
    assert result.notices == []


@pytest.mark.skipif(not ESC10.exists(), reason="ESC-10 is not here")
def test_esc10_is_drawn_by_its_sources() -> None:
    records = [recording(path.relative_to(ESC10).as_posix()) for path in sorted(ESC10.glob("*/*.ogg"))]
    result = drawn(records)
    groups = {place.group for place in result.places.values()}
    assert groups == {f"id {record.path.name.split('-')[1]}" for record in records}
    for label, counts in by_class(records, result).items():
        assert counts["train"] >= 20, label
        assert counts["val"] >= 2, label
        assert counts["test"] >= 2, label
