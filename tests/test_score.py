"""`score`: tables of detections beside a table of annotations."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from birdtune import cli
from birdtune.serving.detect import Call
from birdtune.serving.detection_ledger import Entry, Ledger
from birdtune.serving.detection_tables import ENDINGS, Listed, table_places, write_table

HEADER = "recording,start_s,end_s,class,score,decision\n"


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.usefixtures("alone")
def test_detections_are_scored_by_events_and_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(
        tmp_path / "labels.csv",
        "recording,start_s,end_s,label\nA/1.wav,1,3,robin\nA/1.wav,10,12,wren\nB/1.wav,0,2,robin\nB/2.wav,5,6,wren\n",
    )
    rows = "in/A/1.wav,1,3,robin,0.9,robin\nin/A/1.wav,10,12,wren,0.9,unknown\nin/B/1.wav,0.5,2,robin,0.9,robin\n"
    write(tmp_path / "found/A/1.birdtune.csv", HEADER + rows)
    write(tmp_path / "found/B/2.birdtune.csv", HEADER + "in/B/2.wav,5,6,owl,0.7,owl\nin/C/9.wav,1,2,owl,0.7,owl\n")
    out = str(tmp_path / "x.json")
    asked = ["score", str(tmp_path / "found"), "--truth", truth, "--out", out, "--evaluate.bootstrap", "20"]
    assert cli.main([*asked, "--split.group-regex", "^(.)/"]) == 0
    said = capsys.readouterr().out
    assert "4 events annotated, 3 detected in 3 recordings" in said
    assert "events (overlap 0.3): F1 57 %" in said and "precision 67 %, recall 50 %, error rate 0.50" in said
    assert 'not annotated, so left out: "in/C/9.wav"' in said and 'never annotated, so all false: "owl"' in said
    found = json.loads(Path(out).read_text())
    assert [row["class"] for row in found["events"]["per_class"]] == ["robin", "wren", "owl"]
    assert {row["recording"]: row["recall"] for row in found["per_recording"]} == {
        "A/1.wav": 0.5, "B/1.wav": 1.0, "B/2.wav": 0.0,
    }  # fmt: skip
    assert {row["site"]: row["events"] for row in found["per_site"]} == {"A": 2, "B": 2}
    assert cli.main([*asked, "--overlap", "0.8"]) == 0
    assert "recall 25 %" in capsys.readouterr().out


CALLS = {
    "in/A/1.wav": [(1.0, 3.0, "robin", 0.9), (10.0, 12.0, "wren", 0.8)],
    "in/B/1.wav": [(0.5, 2.0, "robin", 0.7), (4.0, 5.0, "unknown", 0.6)],
    "in/B/2.wav": [(5.0, 6.0, "robin", 0.6)],
    "in/B/3.wav": [],
}
TRUTH = {
    "A/1": [(1.0, 3.0, "robin"), (10.0, 12.0, "wren")], "B/1": [(0.0, 2.0, "robin")], "B/2": [(5.0, 6.0, "wren")],
    "B/3": [(1.0, 2.0, "wren")],
}  # fmt: skip


def predicted(folder: Path, kind: str, *, one_table: bool = False) -> str:
    """The tables that `predict` writes."""
    recordings = [
        Listed(name, Path(name).name, 1, 20.0, None, tuple(
            Call(start_s, end_s, "robin" if label == "unknown" else label, score, label, None, start_s)
            for start_s, end_s, label, score in calls))
        for name, calls in CALLS.items()
    ]  # fmt: skip
    places = table_places([Path(name) for name in CALLS], folder, kind, beside=False)
    if one_table:
        write_table(folder / ENDINGS[kind][1], kind, recordings, (100.0, 8000.0))
    for recording in [] if one_table else recordings:
        place = places[Path(recording.name)]
        place.parent.mkdir(parents=True, exist_ok=True)
        write_table(place, kind, [recording], (100.0, 8000.0))
    ledger = Ledger(folder, "model")
    for k, recording in enumerate(recordings):
        ledger.add(Entry(recording.name, recording.name, 1, 1, 1, str(k), "model", 1800.0, 1, None, "", "", ()))
    ledger.close()
    return str(folder)


def in_raven(rows: list[tuple[float, float, str]]) -> str:
    lines = [f"{k}\t{view} 1\t1\t{start}\t{end}\t0\t9000\t{label}" for k, (start, end, label) in enumerate(rows)
             for view in ("Waveform", "Spectrogram")]  # fmt: skip
    header = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tSpecies"
    return "\n".join([header, *lines, ""])


def in_audacity(rows: list[tuple[float, float, str]]) -> str:
    return "".join(f"{start}\t{end}\t{label}\n" for start, end, label in rows)


def in_elan(rows: list[tuple[float, float, str]]) -> str:
    slots = "".join(f'<TIME_SLOT TIME_SLOT_ID="{edge}{k}" TIME_VALUE="{round(1000 * row[edge])}"/>'
                    for k, row in enumerate(rows) for edge in (0, 1))  # fmt: skip
    marks = "".join(
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{k}" TIME_SLOT_REF1="0{k}" TIME_SLOT_REF2="1{k}">'
        f"<ANNOTATION_VALUE>{label}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
        for k, (_, _, label) in enumerate(rows)
    )
    return (f"<ANNOTATION_DOCUMENT><TIME_ORDER>{slots}</TIME_ORDER><TIER TIER_ID='x'>{marks}</TIER>"
            "</ANNOTATION_DOCUMENT>")  # fmt: skip


def in_praat(rows: list[tuple[float, float, str]]) -> str:
    cells = "".join(f'{start}\n{end}\n"{label}"\n' for start, end, label in rows)
    return ('File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n20\n<exists>\n1\n"IntervalTier"\n"x"\n0\n20\n'
            f"{len(rows)}\n{cells}")  # fmt: skip


FORMATS = {".Table.1.selections.txt": in_raven, ".txt": in_audacity, ".eaf": in_elan, ".TextGrid": in_praat}


def figures(capsys: pytest.CaptureFixture[str], detections: str, truth: Path, *more: str) -> dict[str, Any]:
    out = truth.parent / "figures.json"
    assert cli.main(["score", detections, "--truth", str(truth), "--out", str(out), *SOME, *more]) == 0, (
        capsys.readouterr().err
    )
    return dict(json.loads(out.read_text()))


SOME = ("--evaluate.bootstrap", "20")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """The truth as a table with commas."""
    rows = [f"{name}.wav,{','.join(map(str, row))}" for name, rows in TRUTH.items() for row in rows]
    return Path(write(tmp_path / "truth.csv", "\n".join(["recording,start_s,end_s,label", *rows, ""])))


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["raven", "audacity", "birdnet", "json", "parquet"])
def test_every_table_that_predict_writes_has_the_figures_of_its_csv(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    expected = figures(capsys, predicted(tmp_path / "csv", "csv"), table)
    assert (expected["events"]["detections"], expected["events"]["f1"]) == (4, pytest.approx(2 * 3 / 9))
    found = figures(capsys, predicted(tmp_path / kind, kind), table)
    assert found["events"] == expected["events"] and found["segments"] == expected["segments"]
    assert found["per_recording"] == expected["per_recording"]
    assert found["ranking"] == (None if kind == "audacity" else expected["ranking"])
    said = capsys.readouterr().out
    assert ("no average precision" in said) == (kind == "audacity")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("kind", ["csv", "raven", "birdnet"])
def test_tables_of_an_earlier_command_are_named_and_the_newer_ones_count(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    folder = Path(predicted(tmp_path / "found", kind))
    expected = figures(capsys, str(folder), table)
    each, whole = ENDINGS[kind]
    (folder / whole).write_text("an old one")
    os.utime(folder / whole, (1, 1))
    shutil.copy(folder / f"B/1{each}", folder / f"1{each}")  # as of a command that was given B alone
    os.utime(folder / f"1{each}", (1, 1))
    assert figures(capsys, str(folder), table) == expected
    said = capsys.readouterr().out
    assert f"note: left out {whole}, of an earlier command: " in said
    assert f"1{each} is of the same recording, and newer" in said
    for path in folder.rglob(f"*{each}"):
        os.utime(path, (1, 1))
    predicted(folder, kind, one_table=True)
    found = figures(capsys, str(folder), table)
    assert found == expected, "equal names in two folders are told apart"
    assert f"{whole} is newer" in capsys.readouterr().out


@pytest.mark.usefixtures("alone")
def test_detections_are_ranked_and_their_recall_is_at_false_alarms_an_hour(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = predicted(tmp_path / "csv", "csv")
    found = figures(capsys, folder, table, "--false-alarms-per-hour", "0.2,7")["ranking"]
    assert {row["class"]: row["ap"] for row in found["per_class"]} == pytest.approx({"robin": 1.0, "wren": 1 / 3})
    assert found["hours"] == 2.0
    assert [row["recall"] for row in found["recall_at"]] == [pytest.approx(3 / 5)] * 2
    said = capsys.readouterr().out
    assert "ranked by score: mean average precision 0.667" in said
    assert "at 0.2 false alarms an hour, so none in 2 h 00 min: recall 60 % (scores from 0.700 on)" in said
    assert "at 7 false alarms an hour, so 14 in 2 h 00 min: recall 60 % (all that is listed" in said
    found = figures(capsys, str(next(Path(folder).rglob("1.birdtune.csv"))), table)["ranking"]
    assert found["hours"] is None and "no recall at false alarms an hour" in capsys.readouterr().out


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("ending", FORMATS)
def test_annotations_of_every_program_are_the_truth(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    expected = figures(capsys, predicted(tmp_path / "found", "raven"), table)
    for name, rows in TRUTH.items():
        write(tmp_path / f"marks/{name}{ending}", FORMATS[ending](rows))
    found = figures(capsys, str(tmp_path / "found"), tmp_path / "marks")
    assert found["events"] == expected["events"]
    assert found["recordings"] == 4
    said = capsys.readouterr().out
    views = "5 rows of the annotations repeat a selection in another view or channel of Raven"
    assert (views in said) == ("selections" in ending)
    assert "of the annotations not used" not in said


@pytest.mark.usefixtures("alone")
def test_what_of_the_truth_is_not_used_is_counted_and_a_recording_without_calls_has_false_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "marks/A/1.txt", "3\t1\trobin\n1\t3\trobin\n5\t6\t\n")
    write(tmp_path / "marks/B/1.txt", "")  # somebody went through it
    write(tmp_path / "marks/B/2.birdtune.csv", HEADER + "in/B/2.wav,5,6,robin,0.6,robin\n")
    found = figures(capsys, predicted(tmp_path / "found", "raven"), tmp_path / "marks")
    said = capsys.readouterr().out
    assert "1 row of the annotations not used, row-invalid: A/1.txt, row 1: robin: start_s is 3 and end_s 1" in said
    assert "not used, row-without-label: A/1.txt, row 3" in said
    assert "not taken for true, as a program detected what they say: 2.birdtune.csv" in said
    assert {row["recording"]: row["detections"] for row in found["per_recording"]} == {"A/1": 2, "B/1": 1}


@pytest.mark.usefixtures("alone")
def test_a_recording_that_was_not_scored_is_not_missed(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(predicted(tmp_path / "found", "raven"))
    found = figures(capsys, str(folder / "B/2.birdtune.selections.txt"), table)
    assert [row["recording"] for row in found["per_recording"]] == ["B/2.wav"]
    said = 'not among the recordings of the detections, so left out: "A/1.wav", "B/1.wav", "B/3.wav"'
    assert said in capsys.readouterr().out
    whole = write(tmp_path / "own.csv", HEADER + "A/1.wav,1,3,robin,0.9,robin\n")  # may be all that was detected
    assert figures(capsys, whole, table)["events"]["events"] == 5
    assert 'without any detection, so all missed: "B/1.wav"' in capsys.readouterr().out
    write(table, "recording,start_s,end_s,label\nA/1.wav,1,3,robin\n")
    assert cli.main(["score", str(folder / "B/2.birdtune.selections.txt"), "--truth", str(table)]) == 42


@pytest.mark.usefixtures("alone")
def test_a_class_is_the_same_by_either_of_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = write(tmp_path / "found.csv", HEADER + "a.wav,0,1,Strix aluco_Tawny Owl,1,Strix aluco_Tawny Owl\n")
    for name in ("Tawny owl", "Strix aluco"):
        truth = Path(write(tmp_path / "truth.csv", f"recording,start_s,end_s,label\na.flac,0,1,{name}\n"))
        assert figures(capsys, found, truth)["events"]["f1"] == 1.0
        assert f'taken for one class: "Strix aluco_Tawny Owl" and "{name}"' in capsys.readouterr().out


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("detections", "truth", "said"),
    [
        (HEADER, "recording,start_s,end_s,label\n", "holds no annotation with times"),
        (HEADER + "a.wav,0,1,x,1,x\n", "recording,start_s,end_s,label\nb.wav,0,1,x\n", "is of other recordings"),
        (
            HEADER + "a.wav,1,1,x,1,x\n", "recording,start_s,end_s,label\na.wav,0,1,x\n",
            "row 2: is no detection: x: start_s is 1 and end_s 1",
        ),
        (
            HEADER + "a.wav,?,1,x,1,x\n", "recording,start_s,end_s,label\na.wav,0,1,x\n",
            "row 2: is no detection: x: start_s is '?'",
        ),
        (HEADER, "a,b\n1,2\n", "t.csv: is no table of events"),
        (HEADER, "recording,end_s,label\na.wav,1,x\n", "row-invalid: t.csv, row 2: x: start_s or end_s is empty"),
        (HEADER + "a.wav,0,1,x,?,x\n", "recording,start_s,end_s,label\na.wav,0,1,x\n", "its score is '?'"),
        (
            HEADER + "A/a.wav,0,1,x,1,x\nB/a.wav,0,1,x,1,x\n", "recording,start_s,end_s,label\na.wav,0,1,x\n",
            "a.wav may be A/a.wav or B/a.wav",
        ),
        (
            HEADER + "a.wav,0,1,x,1,x\n", "recording,start_s,end_s,label\nA/a.wav,0,1,x\nB/a.wav,0,1,x\n",
            "several annotated recordings are called like a.wav",
        ),
    ],
)
def test_tables_that_cannot_be_compared_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], detections: str, truth: str, said: str
) -> None:
    given = [write(tmp_path / "d.csv", detections), "--truth", write(tmp_path / "t.csv", truth)]
    assert cli.main(["score", *given]) == 42
    printed = capsys.readouterr()
    assert said in printed.err + printed.out


@pytest.mark.usefixtures("alone")
def test_what_is_not_there_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = write(tmp_path / "t.csv", "recording,start_s,end_s,label\na.wav,0,1,x\n")
    (tmp_path / "none").mkdir()
    for arguments, code, said in [
        ([str(tmp_path / "none"), "--truth", truth], 42, "holds no table of"),
        ([str(tmp_path / "none")], 2, "--truth"),
        (["--truth", truth], 2, "no detections are named"),
        (["x", "--truth", str(tmp_path / "gone.csv")], 42, "there is no such file"),
        (["x", "--truth", truth, "--overlap", "2"], 2, "--overlap 2"),
        (["x", "--truth", truth, "--false-alarms-per-hour", "1,-2"], 2, "--false-alarms-per-hour 1,-2"),
        (["x", "--truth", truth], 42, "x: there is no such file"),
    ]:
        assert cli.main(["score", *arguments]) == code
        assert said in capsys.readouterr().err


# ---- where recordings end, and where nothing is marked ---------------------------------------------


@pytest.mark.usefixtures("alone")
def test_annotations_end_with_their_recordings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predicted(tmp_path / "found", "csv")  # recordings of half an hour
    truth = tmp_path / "truth.csv"
    rows = [("A/1.wav", 1, 3, "robin"), ("A/1.wav", 10, 12, "wren"), ("B/1.wav", 1900, 1910, "robin"),
            ("B/2.wav", 1795, 1900, "wren")]  # fmt: skip
    write(truth, "recording,start_s,end_s,label\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows))
    assert figures(capsys, found, truth)["events"]["events"] == 3
    said = capsys.readouterr().out
    assert "after the recording's end, so left out: B/1.wav at 1900 s" in said
    assert "beyond the recording's end, so trimmed: B/2.wav at 1795 s" in said


@pytest.mark.usefixtures("alone")
def test_where_nothing_is_marked_all_detections_are_false(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = predicted(tmp_path / "found", "csv")
    for name in ("A/1", "B/1", "B/2", "B/3"):
        write(tmp_path / f"truth/{name}.txt", "")
    by_events = figures(capsys, found, tmp_path / "truth")["events"]
    assert (by_events["events"], by_events["detections"], by_events["precision"]) == (0, 4, 0.0)
    assert "0 events annotated, 4 detected in 4 recordings" in capsys.readouterr().out
    # A row without class and times says that something is there, and not what.
    write(tmp_path / "truth/A/1.txt", "")
    write(tmp_path / "truth/B/1.selections.txt", "Selection\tBegin Time (s)\tEnd Time (s)\tSpecies\n1\t\t\t\n")
    (tmp_path / "truth/B/1.txt").unlink()
    write(tmp_path / "truth/B/2.txt", "5\t6\twren\n")
    assert figures(capsys, found, tmp_path / "truth")["events"]["detections"] == 3
    assert 'something is marked without class and times: "B/1' in capsys.readouterr().out
