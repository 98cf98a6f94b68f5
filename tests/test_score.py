"""`score`: tables of detections beside a table of annotations."""

import json
from pathlib import Path

import pytest

from birdtune import cli

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


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    ("detections", "truth", "said"),
    [
        (HEADER, "recording,start_s,end_s,label\n", "holds no annotation"),
        (HEADER + "a.wav,0,1,x,1,x\n", "recording,start_s,end_s,label\nb.wav,0,1,x\n", "is of other recordings"),
        (HEADER + "a.wav,1,1,x,1,x\n", "recording,start_s,end_s,label\na.wav,0,1,x\n", "row 2: is from 1 to 1 s"),
        (HEADER + "a.wav,?,1,x,1,x\n", "recording,start_s,end_s,label\na.wav,0,1,x\n", "row 2: could not convert"),
        (HEADER, "recording,end_s,label\na.wav,1,x\n", "has no column start_s"),
    ],
)
def test_tables_that_cannot_be_compared_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], detections: str, truth: str, said: str
) -> None:
    given = [write(tmp_path / "d.csv", detections), "--truth", write(tmp_path / "t.csv", truth)]
    assert cli.main(["score", *given]) == 42
    assert said in capsys.readouterr().err


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
    ]:
        assert cli.main(["score", *arguments]) == code
        assert said in capsys.readouterr().err
