"""birdtune.dataset.label_table: classes by a table in place of folders."""

from pathlib import Path
from typing import Any

import pytest
from makers import codes, tone, without_processes, write_sound
from test_layout import BIRDS, inspect, put, said, sides

from birdtune.dataset.label_table import parse_columns
from birdtune.errors import InputError, SettingsError


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Nine recordings in data/, without class folders."""
    for k in range(9):
        write_sound(tmp_path / f"data/r{k}.wav", tone(1.0, 8000, seed=k), 8000)
    return tmp_path


def rows(*more: str, header: str = "recording,label", name: str = "r{}.wav") -> str:
    listed = [f"{name.format(k)},{BIRDS[k % 3]}" for k in range(9)]
    return "\n".join([header, *listed, *more]) + "\n"


def inspect_as(place: Path, columns: str | None = None, table: str | None = None, **settings: Any) -> Any:
    return inspect(place, labels={"columns": columns, "table": table and str(place / table)}, **settings)


@pytest.mark.parametrize("where", ["data/labels.csv", "labels.csv"])
def test_a_table_names_the_classes_of_recordings_without_folders(flat: Path, where: str) -> None:
    (flat / where).write_text(rows())
    dataset = inspect(flat)
    assert dataset.classes == BIRDS and len(dataset.recordings) == 9
    assert {r.name: r.label for r in dataset.recordings}["r4.wav"] == BIRDS[1]
    assert dataset.problems == [] and dataset.books()["found"] == 9
    assert f"{flat / where} says the class of 9 of 9 recordings, 3 classes in all" in said(dataset)
    assert len({place.group for place in dataset.places.values()}) == 9


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("filename,category", "recording=filename,label=category"),
        ("filename,primary_label", "label=primary_label, recording=filename"),
        ("recording,class", "label=class"),
    ],
)
def test_columns_may_have_other_names(flat: Path, header: str, columns: str) -> None:
    (flat / "meta.csv").write_text(rows(header=header))
    assert inspect_as(flat, columns, "meta.csv").classes == BIRDS
    with pytest.raises(InputError, match=rf"has no column .*Probably: .*recording={header.split(',')[0]}"):
        inspect_as(flat, None, "meta.csv")


@pytest.mark.parametrize("name", ["r{}.wav", "./r{}.wav", "/home/me/data/r{}.wav", "old\\r{}.wav", "r{}", "r{}.ogg"])
def test_names_are_found_by_their_ends_and_after_a_conversion(flat: Path, name: str) -> None:
    (flat / "data/labels.csv").write_text(rows(name=name))
    dataset = inspect(flat)
    assert len(dataset.recordings) == 9 and dataset.problems == []


def test_what_does_not_match_is_counted_and_named(flat: Path) -> None:
    for name in ("stray", "unlabelled", "both"):
        write_sound(flat / f"data/sub/{name}.wav", tone(seed=ord(name[0])))
    (flat / "data/labels.csv").write_text(
        rows("gone.wav,Parus major", "unlabelled.wav,", "both.wav,Parus major", "both.wav,Turdus merula",
             f"r0.wav,{BIRDS[0]}")
    )
    dataset = inspect(flat)
    assert codes(dataset.problems) == {
        "sub/stray.wav": "no-label", "sub/unlabelled.wav": "no-label", "sub/both.wav": "several-labels",
        "gone.wav": "row-without-file",
    }  # fmt: skip
    assert dataset.books() == {"found": 12, "used": 9, "left_out": {"no-label": 2, "several-labels": 1}}
    assert "gone.wav" in (flat / "out/problems.csv").read_text()


def test_a_row_that_fits_two_files_labels_neither(flat: Path) -> None:
    for folder in ("a", "b"):
        write_sound(flat / f"data/{folder}/twin.wav", tone(seed=ord(folder)))
    (flat / "data/labels.csv").write_text(rows("twin.wav,Parus major"))
    assert codes(inspect(flat).problems) == {"a/twin.wav": "no-label", "b/twin.wav": "no-label"}
    (flat / "data/labels.csv").write_text(rows("a/twin.wav,Parus major", "b/twin.wav,Turdus merula"))
    assert inspect(flat).problems == []


def test_a_table_goes_before_class_folders_and_it_is_said(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS)
    names = [f"{bird}/{letter}.wav" for bird in BIRDS for letter in "abc"]
    listed = [f'"{name}",{name.split("/")[0]}' for name in names[:-1]] + [f'"{names[-1]}",Parus major']
    (tmp_path / "data/labels.csv").write_text("recording,label\n" + "\n".join(listed) + "\n")
    dataset = inspect(tmp_path)
    assert {r.name: r.label for r in dataset.recordings}["Turdus merula/c.wav"] == "Parus major"
    assert "names of folders do not count" in said(dataset)
    assert '1 recordings lie in a folder of another name than their class: Turdus merula/c.wav' in said(dataset)


def test_a_labels_csv_that_is_another_table_is_left_alone_and_said(tmp_path: Path) -> None:
    put(tmp_path, *BIRDS)
    (tmp_path / "data/labels.csv").write_text("column,class,external_id\n0,x,1\n")
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS and "Not used as a table of labels" in said(dataset)
    with pytest.raises(InputError, match="has no column"):
        inspect_as(tmp_path, table="data/labels.csv")
    (tmp_path / "data/labels.csv").unlink()
    (tmp_path / "data/labels.csv").symlink_to("a mount that failed")
    with pytest.raises(InputError, match="cannot be read"):
        inspect(tmp_path)


def test_folds_and_sides_of_the_table_are_the_split(flat: Path) -> None:
    folds = [f"r{k}.wav,{BIRDS[k % 3]},{k // 3 + 1}" for k in range(9)]
    (flat / "data/labels.csv").write_text("recording,label,fold\n" + "\n".join(folds) + "\n")
    dataset = inspect(flat)
    assert sides(dataset) == {"train": 3, "val": 3, "test": 3}
    assert {dataset.places[f"r{k}.wav"].split for k in (6, 7, 8)} == {"test"}
    assert "also divides the recordings, by 3 folds" in said(dataset) and "Fold 3 is test" in said(dataset)
    assert {inspect(flat, split={"test_fold": 1}).places[f"r{k}.wav"].split for k in (0, 1, 2)} == {"test"}
    named = [f"r{k}.wav,{BIRDS[k % 3]},{('training', 'Valid', 'test')[k // 3]}" for k in range(9)]
    (flat / "t.csv").write_text("recording,label,usage\n" + "\n".join(named) + "\n")
    dataset = inspect_as(flat, "split=usage", "t.csv")
    assert {dataset.places[f"r{k}.wav"].split for k in (3, 4, 5)} == {"val"}
    (flat / "t.csv").write_text("recording,label,split\n" + "\n".join(f"{row}x" for row in named) + "\n")
    assert "No split: " in said(inspect_as(flat, table="t.csv"))
    with pytest.raises(InputError, match="expected train, val or test"):
        inspect_as(flat, "split=split", "t.csv")


def test_sides_may_be_folders_where_a_table_has_the_classes(tmp_path: Path) -> None:
    put(tmp_path, "train", "test", recordings=6)
    listed = [f"{side}/{letter}.wav,{BIRDS[k % 3]}" for side in ("train", "test") for k, letter in enumerate("abcdef")]
    (tmp_path / "data/labels.csv").write_text("recording,label\n" + "\n".join(listed) + "\n")
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS and sides(dataset, "test/") == {"test": 6}


def test_labels_of_two_classes_and_negatives_are_as_those_of_folders(flat: Path) -> None:
    text = rows().replace("r8.wav,Turdus merula", 'r8.wav,"Turdus merula,Parus major"')
    (flat / "data/labels.csv").write_text(text)
    faults: list[str] = []
    inspect(flat, faults)
    assert len(faults) == 1 and "names several classes at once" in faults[0]
    (flat / "data/labels.csv").write_text(text.replace('"Turdus merula,Parus major"', "-Turdus merula"))
    assert inspect(flat).background == ("background",)


def test_a_table_that_cannot_be_meant_is_refused(flat: Path) -> None:
    (flat / "t.csv").write_text("recording,label\nother.wav,x\n")
    with pytest.raises(InputError, match="lists none of the recordings"):
        inspect_as(flat, table="t.csv")
    (flat / "t.csv").write_text("")
    with pytest.raises(InputError, match="has no column"):
        inspect_as(flat, table="t.csv")
    with pytest.raises(InputError, match=r"--labels\.table .*there is no such file"):
        inspect_as(flat, table="missing.csv")
    with pytest.raises(SettingsError, match=r"name that: --labels\.table"):
        inspect_as(flat, "label=x")
    (flat / "labels.csv").write_text(rows())
    (flat / "data/labels.csv").write_text(rows())
    with pytest.raises(InputError, match="which one counts"):
        inspect(flat)


@pytest.mark.parametrize("text", ["label", "label=", "=x", "what=x", "label=a,label=b"])
def test_columns_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is not understood; expected each of recording, label, split, fold"):
        parse_columns(text)
