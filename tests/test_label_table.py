"""birdtune.data.label_table: classes by a table in place of folders."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import codes, tone, without_processes, write_sound
from test_layout import BIRDS, inspect, put, said, sides

from birdtune.data.label_table import parse_columns
from birdtune.data.labels import Label
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


def labels_of(dataset: Any, name: str) -> tuple[Label, ...]:
    return next(recording.labels for recording in dataset.recordings if recording.name == name)


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
    assert dataset.rows == {"found": 9, "used": 9, "left_out": {}}
    assert f"9 of 9 recordings have their classes, 3 in all, from {flat / where}" in said(dataset)
    assert len({place.group for place in dataset.places.values()}) == 9


def test_secondary_labels_are_neither_positives_nor_negatives_and_make_no_class(flat: Path) -> None:
    text = rows(header="recording,label,Secondary_Labels").replace(f"0.wav,{BIRDS[0]}", f"0.wav,{BIRDS[0]},x")
    (flat / "labels.csv").write_text(text.replace(",x", f",\"['{BIRDS[1]}', 'Nobody']\""))
    dataset = inspect(flat, model={"output": "sigmoid"})
    assert dataset.classes == BIRDS
    first = next(one for one in dataset.recordings if one.name == "r0.wav")
    targets, known = dataset.targets([first]).of_recordings()
    assert (targets > 0).tolist() == [[True, False, False]] and (known > 0).tolist() == [[True, False, True]]


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
    dataset = inspect(flat, model={"output": "softmax"})
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
    dataset = inspect(flat)
    assert codes(dataset.problems) == {
        "a/twin.wav": "no-label", "b/twin.wav": "no-label", "twin.wav": "row-ambiguous",
    }  # fmt: skip
    assert dataset.rows["left_out"] == {"row-ambiguous": 1}
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
    assert 'In a folder of another name than the class: 1 recording, Turdus merula/c.wav for one' in said(dataset)


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


def test_the_words_of_a_split_column_are_those_of_folders_and_any_other_is_refused(flat: Path) -> None:
    named = [f"r{k}.wav,{BIRDS[k % 3]},{('train', 'val', 'holdout')[k // 3]}" for k in range(9)]
    text = "recording,label,split\n" + "\n".join(named) + "\n"
    (flat / "data/labels.csv").write_text(text)
    dataset = inspect(flat)
    assert {dataset.places[f"r{k}.wav"].split for k in (6, 7, 8)} == {"test"}
    (flat / "data/labels.csv").write_text(text.replace(f"r1.wav,{BIRDS[1]},train", f"r1.wav,{BIRDS[1]},unused"))
    words = r"labels\.csv, column split, row 3: holds 'unused'; expected train, val or test"
    with pytest.raises(InputError, match=words):
        inspect(flat)
    with pytest.raises(InputError, match=words):
        inspect_as(flat, "split=split", "data/labels.csv")
    listed = "".join(f"r{k}.wav,{'train' if k < 6 else 'test'}\n" for k in range(9))
    (flat / "split.csv").write_text(f"recording,split\n{listed}")
    assert sides(inspect(flat, split={"file": str(flat / "split.csv")})) == {"train": 6, "test": 3}
    (flat / "data/labels.csv").write_text(text.replace("split", "fold"))
    with pytest.raises(InputError, match="column fold, row 2: holds 'train'; expected the whole number of a fold"):
        inspect(flat)
    blank = [row[: row.rindex(",") + 1] for row in named]
    (flat / "data/labels.csv").write_text("\n".join(["recording,label,split", *blank]) + "\n")
    assert "column split is empty" in said(inspect(flat))


@pytest.mark.parametrize("name", ["labels.csv", "Labels.CSV"])
@pytest.mark.parametrize("header", ["Recording,Label", "RECORDING,label", "\ufeffRecording,LABEL"])
def test_the_case_of_columns_and_of_the_table_makes_no_difference(flat: Path, name: str, header: str) -> None:
    (flat / "data" / name).write_text(rows(header=header))
    assert inspect(flat).classes == BIRDS


def test_a_table_as_excel_saves_it_names_the_classes(flat: Path) -> None:
    (flat / "data/labels.csv").write_bytes(rows(header="Recording,Label").replace(",", "\t").encode("utf-16"))
    assert inspect(flat).classes == BIRDS
    (flat / "data/labels.csv").write_text("sep=;\n" + rows().replace(",", ";"))
    assert inspect(flat).classes == BIRDS


def test_tables_in_windows_1252_name_classes_and_recordings_and_it_is_said(flat: Path) -> None:
    (flat / "data/r0.wav").rename(flat / "data/grün.wav")
    (flat / "map.csv").write_bytes("label,class\nKäuzchen,Parus major\n".encode("cp1252"))
    (flat / "data/labels.csv").write_bytes(rows("grün.wav,Käuzchen").encode("cp1252"))
    dataset = inspect(flat, labels={"taxonomy": str(flat / "map.csv")})
    assert [label.class_name for label in labels_of(dataset, "grün.wav")] == ["Parus major"]
    for name in ("labels.csv: 1 of 12", "map.csv: 1 of 3"):
        assert f"{name} lines are not UTF-8 and are read as Windows-1252" in said(dataset)


def test_why_a_table_is_not_taken_is_said_where_there_are_no_class_folders(flat: Path) -> None:
    (flat / "data/labels.csv").write_text(rows(header="sound,what"))
    with pytest.raises(InputError, match=r"holds no class folders.*labels\.csv: has no column .*recording.*label"):
        inspect(flat)


@pytest.mark.parametrize(
    "times", ["start,end", "onset,offset", "Begin Time (s),End Time (s)", "t_min,t_max", "start_s,duration", "time,x"]
)
def test_columns_that_may_be_times_are_used_if_they_are_named(flat: Path, times: str) -> None:
    listed = [f"r{k}.wav,0.1,0.9,{BIRDS[k % 3]}" for k in range(9)] + [f"r0.wav,0.9,1.0,{BIRDS[1]}"]
    (flat / "t.csv").write_text(f"recording,{times},label\n" + "\n".join(listed) + "\n")
    dataset = inspect_as(flat, table="t.csv")
    assert labels_of(dataset, "r0.wav") == (Label(BIRDS[0]), Label(BIRDS[1]))
    start, end = times.split(",")
    if end == "x":
        return
    assert "may be times and are not used: each label holds for its whole recording. To use them: " in said(dataset)
    columns = f"start={start},{'duration' if end == 'duration' else 'end'}={end}"
    assert columns in said(dataset)
    dataset = inspect_as(flat, columns, "t.csv")
    ends = (0.9, 1.0) if end != "duration" else (1.0, dataset.recordings[0].facts.duration_s)
    assert labels_of(dataset, "r0.wav")[0] == Label(BIRDS[0], 0.1, ends[0])
    assert labels_of(dataset, "r0.wav")[1].end_s == pytest.approx(ends[1])


def test_times_in_milliseconds_are_not_offered_as_seconds(flat: Path) -> None:
    listed = [f"r{k}.wav,100,900,{BIRDS[k % 3]}" for k in range(9)]
    (flat / "t.csv").write_text("recording,start_ms,end_ms,label\n" + "\n".join(listed) + "\n")
    dataset = inspect_as(flat, table="t.csv")
    assert '"start_ms", "end_ms", which may be times' in said(dataset) and "write them in seconds" in said(dataset)


def test_times_frequencies_and_weights_are_read_and_choose_sigmoid(flat: Path) -> None:
    header = "recording,start_s,end_s,label,low_hz,high_hz,weight"
    listed = [f"r{k}.wav,0.1,0.9,{BIRDS[k % 3]},,," for k in range(8)]
    listed += ['r8.wav,"0,25",0.5,Parus major,800,4000,0.5', "r8.wav,,,Turdus merula,,,"]
    (flat / "data/labels.csv").write_text("\n".join([header, *listed]) + "\n")
    dataset = inspect(flat)
    assert labels_of(dataset, "r8.wav") == (Label("Parus major", 0.25, 0.5, 800, 4000, 0.5), Label("Turdus merula"))
    assert dataset.output == "sigmoid" and dataset.problems == []
    assert "9 labels with times in 9 recordings: elsewhere in these recordings" in said(dataset)
    targets, known = dataset.targets(dataset.recordings).of(np.array([8, 8, 7]), [0.2, 0.6, 0.0], [0.5, 0.9, 0.05])
    assert targets.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    assert known.tolist() == [[1, 0.5, 1], [1, 1, 1], [1, 1, 1]]


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ("x,0.9,", "start_s is 'x', expected a number"),
        ("0.9,0.2,", "start_s is 0.9 and end_s 0.2, expected a larger end_s"),
        ("0.5,0.5,", "expected a larger end_s"), ("-1,0.5,", "start_s is -1, expected a number from 0 on"),
        ("nan,1,", "expected a number from 0 on"), ("0.1,,", "start_s or end_s is empty, expected both or none"),
        ("0.1,0.2,0", "weight is 0, expected more than 0"), ("5,6,", "after the end at 1.00 s"),
    ],
)  # fmt: skip
def test_rows_that_are_no_label_are_counted_and_named(flat: Path, cells: str, why: str) -> None:
    listed = [f"r{k}.wav,0.1,0.9,,{BIRDS[k % 3]}" for k in range(9)]
    listed[0] = f"r0.wav,{cells},{BIRDS[0]}"
    listed.append(f"r1.wav,{cells},{BIRDS[0]}")
    (flat / "data/labels.csv").write_text("recording,start_s,end_s,weight,label\n" + "\n".join(listed) + "\n")
    dataset = inspect(flat)
    code = "row-beyond-end" if cells.startswith("5") else "row-invalid"
    assert codes(dataset.problems) == {"r0.wav": "invalid-label", "r1.wav": code}
    assert [problem.used for problem in dataset.problems] == [False, False, False]
    rows = [problem for problem in dataset.problems if problem.problem == code]
    assert [why in problem.detail for problem in rows] == [True, True]
    assert [problem.detail.partition(":")[0] for problem in rows] == ["labels.csv, row 2", "labels.csv, row 11"]
    assert dataset.rows == {"found": 10, "used": 8, "left_out": {code: 2}}
    assert dataset.books() == {"found": 9, "used": 8, "left_out": {"invalid-label": 1}}


@pytest.mark.parametrize(
    "pair",
    [("r0.flac", "r0.wav"), ("r0.wav", "r0"), ("r0.flac", "r0.mp3"), ("old/r0.wav", "r0.wav"),
     ("a\\r0.wav", "a/r0.wav")],
)  # fmt: skip
def test_rows_of_several_names_that_are_one_file_contradict_each_other(flat: Path, pair: tuple[str, str]) -> None:
    others = rows().replace(f"r0.wav,{BIRDS[0]}\n", "")
    (flat / "data/labels.csv").write_text(others + f"{pair[0]},{BIRDS[1]}\n{pair[1]},{BIRDS[2]}\n")
    dataset = inspect(flat)
    assert codes(dataset.problems) == {"r0.wav": "several-labels"}
    assert re.search('2 classes in .*: "[^"]*", "[^"]*", by rows of several names', dataset.problems[0].detail)
    (flat / "data/labels.csv").write_text(others + f"{pair[0]},{BIRDS[0]}\n{pair[1]},{BIRDS[0]}\n")
    assert inspect(flat).problems == []


def test_a_row_is_of_the_file_that_no_other_row_fits_better(flat: Path) -> None:
    for name in ("a/twin.wav", "b/twin.wav"):
        write_sound(flat / "data" / name, tone(seed=ord(name[0])))
    (flat / "data/labels.csv").write_text(rows("a/twin.wav,Parus major", "twin.wav,Turdus merula"))
    dataset = inspect(flat)
    labels = {r.name: r.label for r in dataset.recordings}
    assert (labels["a/twin.wav"], labels["b/twin.wav"]) == ("Parus major", "Turdus merula")
    assert dataset.problems == []
    more = ("a/twin.wav,Parus major", "b/twin.wav,Parus major", "twin.wav,Turdus merula")
    (flat / "data/labels.csv").write_text(rows(*more))
    assert codes(inspect(flat).problems) == {"twin.wav": "row-ambiguous"}


def test_rows_that_put_one_file_on_two_sides_are_refused(flat: Path) -> None:
    listed = [f"r{k}.wav,{BIRDS[k % 3]},{'train' if k < 6 else 'test'}" for k in range(9)]
    for row, fault in ((f"r0.flac,{BIRDS[0]},test", True), (f"r0.wav,{BIRDS[0]},Training", False)):
        (flat / "data/labels.csv").write_text("\n".join(["recording,label,split", *listed, row]) + "\n")
        if fault:
            with pytest.raises(InputError, match=r"r0\.wav stands there twice, on two sides"):
                inspect(flat)
        else:
            assert sides(inspect(flat)) == {"train": 6, "test": 3}


def test_sides_may_be_folders_where_a_table_has_the_classes(tmp_path: Path) -> None:
    put(tmp_path, "train", "test", recordings=6)
    listed = [f"{side}/{letter}.wav,{BIRDS[k % 3]}" for side in ("train", "test") for k, letter in enumerate("abcdef")]
    (tmp_path / "data/labels.csv").write_text("recording,label\n" + "\n".join(listed) + "\n")
    dataset = inspect(tmp_path)
    assert dataset.classes == BIRDS and sides(dataset, "test/") == {"test": 6}


def test_labels_of_two_classes_and_negatives_are_as_those_of_folders(flat: Path) -> None:
    text = rows().replace("r8.wav,Turdus merula", 'r8.wav,"Turdus merula,Parus major"')
    (flat / "data/labels.csv").write_text(text)
    assert labels_of(inspect(flat), "r8.wav") == (Label("Turdus merula"), Label("Parus major"))
    faults: list[str] = []
    inspect(flat, faults, model={"output": "softmax"})
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
