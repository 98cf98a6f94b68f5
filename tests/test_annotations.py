"""birdtune.data.annotations: what people mark in Raven, Audacity, ELAN, Praat and tables becomes labels."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import codes, tone, without_processes, write_sound
from test_label_table import labels_of
from test_layout import inspect, said

from birdtune.cli import main
from birdtune.data import row_books
from birdtune.data.annotations import formats
from birdtune.data.annotations.names import Names
from birdtune.data.annotations.rows import Options, label_of
from birdtune.data.labels import IGNORED, Label
from birdtune.data.scan import PROBLEMS, SoundFile
from birdtune.data.selection import TooFewClassesError
from birdtune.errors import InputError, SettingsError
from birdtune.runtime.files import read_csv
from birdtune.serving import detection_tables

OWL, TIT = "Strix aluco", "Parus major"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Six recordings of three seconds in data/, without class folders."""
    for k in range(6):
        write_sound(tmp_path / f"data/r{k}.wav", tone(3.0, 8000, seed=k), 8000)
    return tmp_path


# ---- formats --------------------------------------------------------------------------------------

RAVEN = (
    "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\r\n"
    f"1\tSpectrogram 1\t1\t0.5\t1.25\t400\t1200\t{OWL}\r\n"
    f"2\tSpectrogram 1\t1\t2\t3\t2000.5\t6000\t{TIT}\r\n"
)
AUDACITY = f"0.5\t1.25\t{OWL}\n\\\t400\t1200\n2\t3\t{TIT}\n\\\t2000.5\t6000\n"
OWN = f"recording,start_s,end_s,label,low_hz,high_hz\nr0.wav,0.5,1.25,{OWL},400,1200\nr0.wav,2,3,{TIT},2000.5,6000\n"
BIRDNET = (
    "Start (s),End (s),Scientific name,Common name,Confidence,File\n"
    f"0.5,1.25,{OWL},Tawny Owl,0.9,/x/r0.wav\n2,3,{TIT},Great Tit,0.8,/x/r0.wav\n"
)
EAF = f"""<?xml version="1.0" encoding="UTF-8"?>
<ANNOTATION_DOCUMENT FORMAT="3.0"><HEADER TIME_UNITS="milliseconds">
<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/field/r0.wav" MIME_TYPE="audio/x-wav" RELATIVE_MEDIA_URL="./r0.wav"/></HEADER>
<TIME_ORDER><TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/>
<TIME_SLOT TIME_SLOT_ID="ts3" TIME_VALUE="2000"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="3000"/></TIME_ORDER>
<TIER LINGUISTIC_TYPE_REF="default" TIER_ID="species">
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a1" TIME_SLOT_REF1="ts1" TIME_SLOT_REF2="ts2">
<ANNOTATION_VALUE>{OWL}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>
<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a2" TIME_SLOT_REF1="ts3" TIME_SLOT_REF2="ts4">
<ANNOTATION_VALUE>{TIT}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION></TIER>
</ANNOTATION_DOCUMENT>
"""
TEXTGRID = f"""File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 3
tiers? <exists>
size = 1
item []:
    item [1]:
        class = "IntervalTier"
        name = "species"
        xmin = 0
        xmax = 3
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.5
            text = ""
        intervals [2]:
            xmin = 0.5
            xmax = 1.25
            text = "{OWL}"
        intervals [3]:
            xmin = 1.25
            xmax = 2
            text = ""
        intervals [4]:
            xmin = 2
            xmax = 3
            text = "{TIT}"
"""
SHORT = (
    '"ooTextFile"\n"TextGrid"\n0\n3\n<exists>\n1\n"IntervalTier"\n"species"\n0\n3\n'
    f'2\n0.5\n1.25\n"{OWL}"\n2\n3\n"{TIT}"\n'
)
FILES = {
    "r0.Table.1.selections.txt": RAVEN, "r0.txt": AUDACITY, "own.csv": OWN, "r0.BirdNET.results.csv": BIRDNET,
    "r0.eaf": EAF, "r0.TextGrid": TEXTGRID, "r0.wav.TextGrid": SHORT,
}  # fmt: skip


def read(path: Path, content: str | bytes, **options: Any) -> Any:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return formats.read(path, Options(**options))


def found(file: Any) -> list[Label | str]:
    return [row.fault or label_of(row.class_name, row.cells) for row in file.rows]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_format_gives_the_same_labels(tmp_path: Path, name: str, encoding: str) -> None:
    has_bounds = FILES[name] in (RAVEN, AUDACITY, OWN)
    bounds = [(400.0, 1200.0), (2000.5, 6000.0)] if has_bounds else [(None, None)] * 2
    content = FILES[name].replace('encoding="UTF-8"', f'encoding="{encoding}"') if encoding == "utf-16" else FILES[name]
    file = read(tmp_path / name, content.encode(encoding))
    assert found(file) == [Label(OWL, 0.5, 1.25, *bounds[0]), Label(TIT, 2.0, 3.0, *bounds[1])]
    assert file.is_detected == ("BirdNET" in name)


@pytest.mark.parametrize("name", FILES)
def test_line_ends_and_decimal_commas_make_no_difference(tmp_path: Path, name: str) -> None:
    plain = read(tmp_path / name, FILES[name])
    text = FILES[name].replace("\r\n", "\n")
    assert found(read(tmp_path / name, text.replace("\n", "\r\n"))) == found(plain)
    if not name.endswith((".eaf", ".csv")):  # milliseconds are whole, and a comma parts cells
        assert found(read(tmp_path / name, text.replace("0.5", "0,5").replace("1.25", "1,25"))) == found(plain)


@pytest.mark.parametrize(
    "column", ["Annotation", "annotations", "Species", "Common Name", "Scientific Name", "Tag", "Label", "Species Code"]
)
def test_the_class_of_a_selection_is_in_any_of_its_usual_columns(tmp_path: Path, column: str) -> None:
    labels = found(read(tmp_path / "r.txt", RAVEN.replace("Annotation", column)))
    assert [label.class_name for label in labels if isinstance(label, Label)] == [OWL, TIT]
    other = read(tmp_path / "r.txt", RAVEN.replace("Annotation", "Call"), columns={"label": "call"})
    assert [row.class_name for row in other.rows] == [OWL, TIT]


def test_selections_over_several_files_are_placed_in_the_file_they_begin_in(tmp_path: Path) -> None:
    text = (
        "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tBegin Path\tSpecies\n"
        f"1\t0,5\t1\tr0.wav\t0,5\tC:\\field\\r0.wav\t{OWL}\n2\t3.5\t4.25\tr1.wav\t0.5\tC:\\field\\r1.wav\t{TIT}\n"
    )
    file = read(tmp_path / "all.txt", text)
    assert found(file) == [Label(OWL, 0.5, 1.0), Label(TIT, 0.5, 1.25)]
    assert [(row.recording, row.path[-6:]) for row in file.rows] == [("r0.wav", "r0.wav"), ("r1.wav", "r1.wav")]


def test_a_row_may_end_in_empty_cells_and_with_more_it_is_a_fault_of_its_recording(tmp_path: Path) -> None:
    text = "recording,start_s,end_s,label,comment\nh.wav,7,8,owl,,,\nh.wav,1,3,owl,loud, near\n"
    first, second = read(tmp_path / "lab.csv", text).rows
    assert (first.recording, first.class_name, first.fault) == ("h.wav", "owl", "")
    assert (second.recording, second.class_name) == ("h.wav", "owl") and "has 6 cells, and the header 5" in second.fault


def test_ratings_are_weights_and_a_label_without_one_has_the_median_of_its_class(tmp_path: Path) -> None:
    text = (
        "primary_label,filename,rating\n"
        "owl,a.ogg,5.0\nowl,b.ogg,2.5\nowl,c.ogg,4\nowl,d.ogg,0.0\ntit,e.ogg,0.1\ntit,f.ogg,\nwren,g.ogg,none\n"
    )
    rows = read(tmp_path / "train_metadata.csv", text).rows
    assert [row.cells["weight"] for row in rows] == ["1", "0.5", "0.8", "0.8", "0.1", "0.1", "0.65"]
    # What says weights itself is believed.
    rows = read(tmp_path / "own.csv", "label,recording,rating,weight\nowl,a.ogg,5,0.3\n").rows
    assert [row.cells["weight"] for row in rows] == ["0.3"]
    rows = read(tmp_path / "none.csv", "label,recording,rating\nowl,a.ogg,\n").rows
    assert [row.cells["weight"] for row in rows] == ["1"]


def test_metadata_of_birdclef_and_of_xeno_canto_name_what_is_heard_behind(tmp_path: Path) -> None:
    text = "primary_label,secondary_labels,filename,rating\n"
    text += "owl,\"['tit', 'jay']\",owl/XC1.ogg,4.5\ntit,[],tit/XC2.ogg,0\n"
    rows = read(tmp_path / "train_metadata.csv", text).rows
    assert [(row.recording, row.class_name, row.also) for row in rows] == [
        ("owl/XC1.ogg", "owl", ("tit", "jay")), ("tit/XC2.ogg", "tit", ()),
    ]  # fmt: skip
    one = {"id": "7", "gen": "Strix", "sp": "aluco", "en": "Tawny Owl", "file-name": "XC7-x.mp3", "also": ["", TIT]}
    for answer in ({"numRecordings": "1", "recordings": [one]}, [{"recordings": [one]}]):
        (row,) = read(tmp_path / "xc.json", json.dumps(answer)).rows
        assert (row.recording, row.path, row.class_name, row.also) == ("XC7", "XC7-x.mp3", OWL, (TIT,))
    assert read(tmp_path / "xc.json", json.dumps(one), columns={"label": "en"}).rows[0].class_name == "Tawny Owl"


def test_tiers_are_chosen_and_may_name_the_class(tmp_path: Path) -> None:
    second = TEXTGRID.replace("size = 1", "size = 2") + (
        '    item [2]:\n class = "TextTier"\n name = "notes"\n xmin = 0\n xmax = 3\n points: size = 1\n'
        ' points [1]:\n number = 2.5\n mark = "odd ""x"""\n'
    )
    labels = found(read(tmp_path / "r.TextGrid", second))
    assert len(labels) == 3 and "is a point at 2.5 s" in str(labels[2])
    assert len(found(read(tmp_path / "r.TextGrid", second, tiers=frozenset(["species"])))) == 2
    for name, content in (("r.TextGrid", TEXTGRID), ("r.eaf", EAF)):
        by_tier = read(tmp_path / name, content, columns={"label": "tier"})
        assert [row.class_name for row in by_tier.rows] == ["species"] * 2
        assert read(tmp_path / name, content, tiers=frozenset(["other"])).rows == ()


def test_annotations_of_elan_that_hang_on_others_have_their_times(tmp_path: Path) -> None:
    hanging = (
        '<TIER TIER_ID="call"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="b1" ANNOTATION_REF="a2"><ANNOTATION_VALUE>song'
        '</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="b2" '
        'ANNOTATION_REF="b2"><ANNOTATION_VALUE>x</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION></TIER>'
    )
    labels = found(read(tmp_path / "r.eaf", EAF.replace("</ANNOTATION_DOCUMENT>", hanging + "</ANNOTATION_DOCUMENT>")))
    assert labels[2:] == [Label("song", 2.0, 3.0), "has no time, or hangs on one without"]


def subdivided(*slots: str | None, names: str) -> str:
    """A tier that divides an annotation of ELAN between slots with and without a time."""
    ids = [f"s{k}" for k in range(len(slots))]
    order = "".join(
        f'<TIME_SLOT TIME_SLOT_ID="{one}"{"" if ms is None else f" TIME_VALUE={ms!r}"}/>'
        for one, ms in zip(ids, slots, strict=True)
    )
    marks = "".join(
        f'<ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="{name}" TIME_SLOT_REF1="{first}" TIME_SLOT_REF2="{last}">'
        f"<ANNOTATION_VALUE>{name}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>"
        for first, last, name in zip(ids, ids[1:], names, strict=False)
    )
    tier = f'<TIME_ORDER>{order}</TIME_ORDER><TIER TIER_ID="x">{marks}</TIER>'
    return f"<ANNOTATION_DOCUMENT>{tier}%s</ANNOTATION_DOCUMENT>"


def test_slots_of_elan_without_a_time_lie_evenly_between_those_that_have_one(tmp_path: Path) -> None:
    text = subdivided("500", None, None, "2000", None, "3000", names="abcde") % ""
    assert found(read(tmp_path / "r.eaf", text)) == [
        Label("a", 0.5, 1.0), Label("b", 1.0, 1.5), Label("c", 1.5, 2.0), Label("d", 2.0, 2.5), Label("e", 2.5, 3.0),
    ]  # fmt: skip
    halves = "".join(
        f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="{name}" ANNOTATION_REF="b"><ANNOTATION_VALUE>{name}'
        "</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>" for name in "fg"
    )
    text = subdivided("500", None, None, "2000", names="abc") % f'<TIER TIER_ID="y">{halves}</TIER>'
    assert found(read(tmp_path / "r.eaf", text))[3:] == [Label("f", 1.0, 1.25), Label("g", 1.25, 1.5)]
    # Open at an end: nothing says how long they are.
    text = subdivided("500", "900", None, None, names="abc") % ""
    assert found(read(tmp_path / "r.eaf", text)) == [
        Label("a", 0.5, 0.9), *["has no time, or hangs on one without"] * 2,
    ]  # fmt: skip


def test_one_odd_element_of_a_json_text_is_a_fault_of_its_row(tmp_path: Path) -> None:
    one = {"id": "7", "gen": "Strix", "sp": "aluco"}
    for answer in ({"recordings": [one, None, 5]}, [{"recordings": [one]}, {"error": "limit"}, None], [one, "x", []]):
        rows = read(tmp_path / "xc.json", json.dumps(answer)).rows
        assert [(row.number, row.class_name) for row in rows] == [(1, OWL), (2, ""), (3, "")]
        assert all("is no recording of xeno-canto" in row.fault for row in rows[1:])
    with pytest.raises(InputError, match="it has no list of recordings"):
        read(tmp_path / "xc.json", '[{"error": {"gen": "", "sp": ""}}]')
    record = {"start_s": 1, "end_s": 2, "label": OWL}
    file = read(tmp_path / "own.json", json.dumps([record, None, "x", {**record, "end_s": [3], "score": 1}, record]))
    assert [row.number for row in file.rows] == [1, 2, 3, 4, 5] and file.is_detected
    assert [str(label)[:12] for label in found(file)[1:4]] == ["is no record", "is no record", "start_s or e"]
    assert found(file)[::4] == [Label(OWL, 1, 2)] * 2


@pytest.mark.parametrize(
    ("start", "end", "times"),
    [
        ("00:01:23.5", "00:01:25", (83.5, 85.0)), ("1:23", "1:25,25", (83.0, 85.25)),
        ("0:59:59", "1:00:01", (3599, 3601)),
        ("90:00", "90:01", (5400, 5401)), ("1:75", "1:80", None), ("1:2", "1:3", None), ("1:60:00", "1:61:00", None),
        ("12", "1:23", None), ("05:00:00 PM", "05:00:01 PM", None),
    ],
)  # fmt: skip
def test_clock_times_are_counted_from_the_beginning_of_the_recording(
    tmp_path: Path, start: str, end: str, times: tuple[float, float] | None
) -> None:
    text = f"recording;start_s;end_s;label\nr0.wav;{start};{end};{OWL}\n"
    (label,) = found(read(tmp_path / "own.csv", text))
    if times is not None:
        assert label == Label(OWL, *times)
    else:
        assert f"start_s is '{start}'" in str(label) and "expected" in str(label) and "seconds" in str(label)
    (label,) = found(read(tmp_path / "r.txt", RAVEN.replace("0.5\t1.25", f"{start}\t{end}").partition("2\tSp")[0]))
    assert label == Label(OWL, *times, 400, 1200) if times else isinstance(label, str)


def test_clock_times_of_a_sequence_of_files_are_those_in_the_file(tmp_path: Path) -> None:
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tFile Offset (s)\tSpecies\n"
    rows = ("1\t1:00:13\t1:00:14.5\tr1.wav\t0:13\tA\n", "2\t3613\t3614.5\tr1.wav\t13\tA\n",
            "3\tx\t3614.5\tr1.wav\t13\tA\n", "4\t3613\t\tr1.wav\t13\tA\n")  # fmt: skip
    labels = found(read(tmp_path / "all.txt", head + "".join(rows)))
    assert labels[:2] == [Label("A", 13, 14.5)] * 2
    assert [str(label)[:18] for label in labels[2:]] == ["start_s is 'x', ex", "start_s or end_s i"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("r.eaf", EAF.replace("<ANNOTATION_D", '<!DOCTYPE a [<!ENTITY b "c">]><ANNOTATION_D', 1), "document type"),
        ("r.eaf", EAF[:400], "no whole XML"),
        ("r.TextGrid", TEXTGRID[:-60], "no whole file of Praat"),
        ("r.TextGrid", TEXTGRID.replace("= 4", '= "4"'), "a count"),
        ("r.txt", RAVEN.encode("utf-16")[:-1], "breaks off"),
        ("x.json", '{"recordings": [{"gen": "a", "sp": ', "no whole file of xeno-canto"),
        ("r.csv", "recording,label,label\na,b,c\n", "two columns"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused_by_its_reason(tmp_path: Path, name: str, content: str | bytes, why: str) -> None:
    with pytest.raises(InputError, match=f"(?s){name}.*{why}"):
        read(tmp_path / name, content)


@pytest.mark.parametrize("name", FILES)
def test_lines_that_are_not_utf8_are_read_as_windows_1252_and_it_is_said(tmp_path: Path, name: str) -> None:
    content = FILES[name].replace(OWL, "Käuzchen")
    assert found(read(tmp_path / name, content.encode("cp1252"))) == found(read(tmp_path / name, content))
    mixed = read(tmp_path / name, content.replace(TIT, "Mésange").encode().replace("é".encode(), b"\xe9"))
    assert [row.class_name for row in mixed.rows] == ["Käuzchen", "Mésange"], "one line does not misspell the others"
    assert re.search(rf"{name}: 1 of \d+ lines are not UTF-8 and are read as Windows-1252, line \d+ as", mixed.note)
    assert "Mésange" in mixed.note and not read(tmp_path / name, content).note
    assert "as Latin-1" in read(tmp_path / name, content.encode("cp1252").replace("ä".encode("cp1252"), b"\x81")).note


def test_what_is_no_annotation_is_left_alone(tmp_path: Path) -> None:
    for content in ("notes of a night", "a,b\n1,2\n", "{}", "<html></html>", "12 birds\tseen\n"):
        assert read(tmp_path / "x.txt", content) is None
    assert read(tmp_path / "x.txt", " \n").rows == ()


@pytest.mark.parametrize(
    ("below", "recording"),
    [
        ("n1.txt", "n1.wav"), ("n1.wav.eaf", "n1.wav"), ("n1.Table.1.selections.txt", "n1.wav"),
        ("n1.x.TextGrid", "n1.wav"), ("n1_labels.txt", "n1.wav"), ("n1 - Label Track.txt", "n1.wav"),
        ("n1.BirdNET.selection.table.txt", "n1.wav"), ("n1_b.txt", "n1_b"), ("a/n2.txt", "a/n2.wav"),
        ("b/n2.txt", "b/n2.wav"), ("n2.txt", "n2"), ("other.txt", "other"),
        ("marks/a/n2.txt", "a/n2.wav"), ("a/marks/n2.txt", "n2"),  # a tree of annotations beside that of recordings
    ],
)  # fmt: skip
def test_a_file_is_named_after_its_recording(below: str, recording: str) -> None:
    files = [SoundFile(name, Path(name), "", 1, 1) for name in ("n1.wav", "a/n2.wav", "b/n2.wav", "XC12 - Merle.mp3")]
    names = Names(files)
    assert names.of_file(below) == recording
    assert names.of_row("marks/a/n2.txt", "n2.wav", "") == "a/n2.wav"
    assert names.of_row("n2.txt", "n2.wav", "") == "n2.wav"
    assert names.of_row("x.json", "XC12", "") == "XC12 - Merle.mp3" and names.of_row("x.json", "XC1", "") == "XC1"
    assert names.of_row("b/x.txt", "n2.wav", "/field/a/n2.wav") == "b/n2.wav"
    assert names.of_row("x.txt", "n2.wav", "/field/a/n2.wav") == "/field/a/n2.wav"
    assert names.of_row("b/x.txt", "n2.wav", "in/a/n2.wav") == "in/a/n2.wav", "a path that begins on no machine counts"
    assert names.of_row("b/x.txt", "n2.wav", "n2.wav") == "b/n2.wav"


# ---- into labels ----------------------------------------------------------------------------------


def annotate(flat: Path, **files: str) -> None:
    """Write annotation files beside the recordings; a name's first stroke stands for its dot."""
    for name, text in files.items():
        (flat / "data" / name.replace("_", ".", 1)).write_text(text)


def track(*spans: tuple[float, float, str]) -> str:
    return "".join(f"{start}\t{end}\t{name}\n" for start, end, name in spans)


def all_annotated(flat: Path) -> None:
    for k in range(6):
        (flat / f"data/r{k}.txt").write_text(track((0.1 * k, 1.0, OWL), (1.5, 2.0, TIT)))


def test_annotations_beside_flat_recordings_are_their_labels(flat: Path) -> None:
    all_annotated(flat)
    dataset = inspect(flat)
    assert dataset.classes == (TIT, OWL) and len(dataset.recordings) == 6 and dataset.output == "sigmoid"
    assert labels_of(dataset, "r2.wav") == (Label(OWL, 0.2, 1.0), Label(TIT, 1.5, 2.0))
    assert dataset.problems == [] and dataset.books() == {"found": 6, "used": 6, "left_out": {}}
    assert dataset.rows == {"found": 12, "used": 12, "left_out": {}}
    assert "12 rows in 6 annotation files (6 Audacity)" in said(dataset)


def test_annotations_lie_anywhere_and_are_named(flat: Path) -> None:
    for k in range(6):
        path = flat / f"marks/deep/r{k}.Table.1.selections.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(RAVEN)
    (flat / "marks/readme.txt").write_text("by me")
    for named in (flat / "marks", None):
        settings = {"labels": {"annotations": str(named)}} if named else {}
        if named is None:
            with pytest.raises(InputError, match=r"holds no class folders.*--labels\.annotations"):
                inspect(flat, **settings)
            continue
        dataset = inspect(flat, **settings)
        assert dataset.rows == {"found": 12, "used": 12, "left_out": {}}
        assert labels_of(dataset, "r3.wav")[1] == Label(TIT, 2.0, 3.0, 2000.5, 6000.0)


def test_one_table_for_all_recordings_is_named_by_itself(flat: Path) -> None:
    (flat / "all.csv").write_text(
        "file,onset,offset,what,site\n" + "".join(f"r{k}.wav,0.5,1.5,{(OWL, TIT)[k % 2]},s{k // 2}\n" for k in range(6))
    )
    columns = "recording=file,start=onset,end=offset,label=what"
    dataset = inspect(
        flat, labels={"annotations": str(flat / "all.csv"), "columns": columns}, split={"group_column": "site"}
    )
    assert labels_of(dataset, "r1.wav") == (Label(TIT, 0.5, 1.5),)
    assert {dataset.places[f"r{k}.wav"].group for k in range(6)} == {"s0", "s1", "s2"}
    assert all(dataset.places[f"r{k}.wav"] == dataset.places[f"r{k + 1}.wav"] for k in (0, 2, 4))
    with pytest.raises(InputError, match=r"'day' \(--split\.group-column\)"):
        inspect(flat, labels={"annotations": str(flat / "all.csv"), "columns": columns}, split={"group_column": "day"})


DARWIN_CORE = "recording=associatedMedia,start=onset,end=offset,label=scientificName"


def darwin_core(delimiter: str, quote: str = "") -> str:
    """A table of a collection: names with their authors, decimal commas but between commas, clock times."""
    point = "." if delimiter == "," and not quote else ","
    lines = [["eventTime", "associatedMedia", "onset", "offset", "scientificName", "individualCount"]]
    names = (f"{OWL} Linnaeus, 1758" if quote else OWL, TIT)
    lines += [["05:00:00", f"https://example.org/r{k}.wav", f"{at}{point}5", f"{at + 1}{point}25", name, "1"]
              for k in range(6) for at, name in enumerate(names)]  # fmt: skip
    return "".join(delimiter.join(f"{quote}{cell}{quote}" for cell in line) + "\r\n" for line in lines)


@pytest.mark.parametrize("given", ["annotations", "table"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_columns_are_named_whatever_divides_cells(flat: Path, given: str, delimiter: str, quote: str) -> None:
    (flat / "obs.tsv").write_text(darwin_core(delimiter, quote))
    dataset = inspect(flat, labels={given: str(flat / "obs.tsv"), "columns": DARWIN_CORE})
    owl = f"{OWL} Linnaeus, 1758" if quote else OWL
    assert labels_of(dataset, "r3.wav") == (Label(owl, 0.5, 1.25), Label(TIT, 1.5, 2.25))
    assert dataset.rows == {"found": 12, "used": 12, "left_out": {}} and dataset.classes == (TIT, owl)


def test_columns_that_are_not_named_or_not_there_are_said(flat: Path) -> None:
    (flat / "marks").mkdir()
    place = flat / "marks/obs.csv"
    place.write_text(darwin_core(";"))

    def given(columns: str | None) -> Any:
        return inspect(flat, labels={"annotations": str(flat / "marks"), "columns": columns})

    dataset = given(None)  # recordings and classes are known by their columns
    assert labels_of(dataset, "r0.wav") == (Label(OWL), Label(TIT))
    assert "which may be times and are not used" in said(dataset) and "start=onset,end=offset" in said(dataset)
    with pytest.raises(InputError, match=r'no table has a column "bird".*obs\.csv are "eventTime"'):
        given(f"{DARWIN_CORE.rpartition('=')[0]}=bird")
    for clock in {one.detail.partition("start_s is")[2] for one in given_problems(flat, "eventTime")}:
        assert clock.startswith(" '05:00:00' and end_s is ") and clock.endswith("both in minutes and seconds")
    place.write_text(place.read_text().replace("scientificName", "bird").replace("associatedMedia", "where"))
    with pytest.raises(InputError, match=r"obs\.csv: holds a table of events.*columns start=onset,end=offset,label="):
        given(None)
    all_annotated(flat)
    place.with_suffix(".svl").write_text("<sv/>")
    dataset = inspect(flat, labels={"annotations": str(flat)})
    unread = [one.detail for one in dataset.problems if one.problem == "annotation-unreadable"]
    assert len(unread) == 2 and "holds annotations of Sonic Visualiser, of no format that is read" in unread[1]


def test_a_duration_stands_for_the_end_and_milliseconds_for_nothing(flat: Path) -> None:
    marks = flat / "marks"
    marks.mkdir()
    lines = [f"r{k}.wav,0.25,1.5,{OWL if k % 2 else TIT}" for k in range(6)]

    def given(header: str, columns: str | None = None) -> Any:
        (marks / "k.csv").write_text("\n".join([header, *lines]) + "\n")
        return inspect(flat, labels={"annotations": str(marks), "columns": columns})

    for header, columns in (
        ("filename,start_s,duration_s,label", None),
        ("IN FILE,OFFSET,DURATION,TOP1MATCH", "recording=IN FILE,start=OFFSET,duration=DURATION,label=TOP1MATCH"),
    ):
        assert labels_of(given(header, columns), "r1.wav") == (Label(OWL, 0.25, 1.75),)
    lines = [f"r{k}.wav,{OWL if k % 2 else TIT},4.0" for k in range(6)]  # how long the recording is
    assert labels_of(given("filename,label,duration_s"), "r1.wav") == (Label(OWL),)
    with pytest.raises(InputError, match=r"--labels\.columns start=OFFSET,duration=DURATION,label=species"):
        given("where,OFFSET,DURATION,species")
    with pytest.raises(InputError, match=r'Write "start_ms", "end_ms" in seconds, as start_s and end_s'):
        given("where,start_ms,end_ms,species")


def test_a_row_without_class_and_times_is_named_and_its_recording_is_no_negative(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/r0.txt").unlink()
    (flat / "data/r0.selections.txt").write_text(RAVEN.splitlines()[0] + "\n1\tSpec\n")
    dataset = inspect(flat)
    assert "r0.wav" not in {one.name for one in dataset.recordings}
    of_r0 = {one.problem: one.detail for one in dataset.problems if one.recording == "r0.wav"}
    assert of_r0["row-without-label"] == "r0.selections.txt, row 2: has no class"
    assert of_r0["no-label"].startswith("nobody knows what is in it: 1 of its rows have neither class nor times")
    assert dataset.rows["left_out"] == {"row-without-label": 1}


def test_where_there_are_too_few_classes_the_rows_are_counted_all_the_same(flat: Path) -> None:
    for k in range(6):
        (flat / f"data/r{k}.txt").write_text(track((0.5, 1.0, OWL), (1.5, 1.2, OWL)))
    assert inspect(flat).classes == (OWL,), "absent elsewhere"
    with pytest.raises(TooFewClassesError, match="only one class"):
        inspect(flat, model={"output": "softmax"})
    with pytest.raises(TooFewClassesError, match="only one class") as raised:
        inspect(flat, labels={"unlabelled": "unknown"})
    assert raised.value.rows == {"found": 12, "used": 6, "left_out": {"row-invalid": 6}}


def test_a_remark_here_and_there_is_no_class(tmp_path: Path) -> None:
    head = "Selection\tBegin Time (s)\tEnd Time (s)\tAnnotation\tSpecies\n"
    lines = [f"{k}\t{k}\t{k + 1}\t{'check again!' if k == 2 else ''}\t{OWL}\n" for k in range(4)]
    assert {row.class_name for row in read(tmp_path / "a.txt", head + "".join(lines)).rows} == {OWL}
    mostly = [f"{k}\t{k}\t{k + 1}\t{TIT if k else ''}\t{OWL}\n" for k in range(4)]
    assert [row.class_name for row in read(tmp_path / "b.txt", head + "".join(mostly)).rows] == [OWL, TIT, TIT, TIT]


def test_labels_of_audacity_with_scores_are_what_a_program_detected(flat: Path) -> None:
    file = read(flat / "r0.txt", f"0.5\t1.25\tTawny Owl, {OWL}\t0.9123\n2\t3\t{TIT}\t0.8000\n")
    assert file.is_detected and [row.score for row in file.rows] == ["0.9123", "0.8000"]
    assert [row.class_name for row in file.rows] == [f"Tawny Owl, {OWL}", TIT]
    assert not read(flat / "r1.txt", f"0.5\t1.25\t{OWL}\tsecond bird\n").is_detected


def test_files_in_a_folder_of_annotations_that_are_none_are_named(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/cut.json").write_text('{"numRecordings": "1", "recordings": [{"id": "1", "gen"')
    dataset = inspect(flat, labels={"annotations": str(flat / "data")})
    assert 'Not read, as no annotations are in them, or they are damaged: "cut.json".' in said(dataset)


def test_a_table_whose_column_of_classes_is_not_known_is_said(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/r0.txt").unlink()
    (flat / "data/r0.selections.txt").write_text(RAVEN.replace("Annotation", "Sp. Code X"))
    dataset = inspect(flat)
    assert "r0.selections.txt has no column that is known for classes" in said(dataset)
    assert '"Sp. Code X". Name it: --labels.columns label=NAME.' in said(dataset)
    dataset = inspect(flat, labels={"columns": "label=Sp. Code X"})
    assert {label.class_name for label in labels_of(dataset, "r0.wav")} == {OWL, TIT}


def given_problems(flat: Path, start: str) -> Sequence[Any]:
    columns = f"recording=associatedMedia,start={start},end=offset,label=scientificName"
    with pytest.raises(TooFewClassesError) as raised:
        inspect(flat, labels={"annotations": str(flat / "marks"), "columns": columns})
    return [one for one in raised.value.problems if one.problem == "row-invalid"]


def test_the_group_column_of_a_table_names_the_sources(flat: Path) -> None:
    rows = "".join(f"r{k}.wav,{(OWL, TIT)[k % 2]},night {k // 2}\n" for k in range(6))
    (flat / "data/labels.csv").write_text("recording,label,night\n" + rows)
    dataset = inspect(flat, split={"group_column": "night"})
    assert dataset.places["r2.wav"].group == dataset.places["r3.wav"].group == "night 1"
    assert len({place.group for place in dataset.places.values()}) == 3
    with pytest.raises(SettingsError, match="both name the sources"):
        inspect(flat, split={"group_column": "night", "group_regex": "x"})
    (flat / "data/labels.csv").write_text("recording,label,night\n" + rows + f"r0.wav,{TIT},night 9\n")
    with pytest.raises(InputError, match=r"r0\.wav stands there twice, on two values of night"):
        inspect(flat, split={"group_column": "night"})


def test_class_folders_stand_beside_annotated_recordings_as_weak_labels(flat: Path) -> None:
    all_annotated(flat)
    for name in ("Strix aluco/w1", "Strix aluco/w2", "Bubo bubo/w3", "Bubo bubo/w4", "site 1/s1", "site 1/s2"):
        write_sound(flat / f"data/{name}.wav", tone(1.0, 8000, seed=sum(name.encode())), 8000)
    (flat / "data/site 1/s1.txt").write_text(track((0.1, 0.5, OWL)))
    dataset = inspect(flat, labels={"annotations": str(flat / "data")})
    assert dataset.classes == ("Bubo bubo", TIT, OWL)
    assert labels_of(dataset, "Strix aluco/w1.wav") == (Label(OWL),)
    assert labels_of(dataset, "site 1/s1.wav") == (Label(OWL, 0.1, 0.5),)
    assert codes(dataset.problems) == {"site 1/s2.wav": "no-label"}
    assert '4 recordings without annotations, by the folders "Bubo bubo", "Strix aluco"' in said(dataset)
    names = [recording.name for recording in dataset.recordings]
    part = np.array([names.index("r0.wav"), names.index("Bubo bubo/w3.wav")])
    targets, known = dataset.targets(dataset.recordings).of(part, [0.0, 0.0], [0.9, 0.9])
    assert targets.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert known.tolist() == [[0, 1, 1], [1, 1, 1]], "nobody marked Bubo bubo, and the folder holds nothing else"


def test_annotations_in_class_folders_are_not_taken_unless_they_are_named(tmp_path: Path) -> None:
    for k in range(6):
        folder = tmp_path / "data" / (OWL if k % 2 else TIT)
        write_sound(folder / f"r{k}.wav", tone(1.0, 8000, seed=k), 8000)
        (folder / f"r{k}.txt").write_text(track((0.2, 0.6, "song")))
    dataset = inspect(tmp_path)
    assert dataset.classes == (TIT, OWL) and "6 files of annotations among the recordings are not used" in said(dataset)


def of_folders(place: Path, *folders: str, names: Sequence[str] = (OWL, TIT), marked: int = 3) -> None:
    """Three recordings in each folder, of which so many have a track with the names."""
    for folder in folders:
        for k in range(3):
            path = place / "data" / folder / f"r{k}.wav"
            write_sound(path, tone(3.0, 8000, seed=sum(folder.encode()) * 10 + k), 8000)
            if k < marked:
                spans = [(j / 2, (j + 1) / 2, name) for j, name in enumerate(names)]
                path.with_suffix(".txt").write_text(track(*spans))


@pytest.mark.parametrize("folders", [("site_A", "Forest_edge"), ("Moor", "Wytham/day 1"), ("2023-05", "2023-06")])
def test_folders_of_annotated_recordings_are_sites_and_no_classes(tmp_path: Path, folders: Sequence[str]) -> None:
    of_folders(tmp_path, *folders)
    of_folders(tmp_path, "Marsh", "noise", marked=0)
    of_folders(tmp_path, "Strix aluco", marked=0)
    dataset = inspect(tmp_path)
    assert dataset.classes == (TIT, OWL, "noise")
    assert labels_of(dataset, f"{folders[0]}/r0.wav") == (Label(OWL, 0, 0.5), Label(TIT, 0.5, 1.0))
    assert labels_of(dataset, "Strix aluco/r0.wav") == (Label(OWL),)
    assert Counter(codes(dataset.problems).values()) == {"no-label": 3}
    assert "are taken for sites, not for classes" in said(dataset) and "--labels.annotations none" in said(dataset)
    assert "--split.group-regex '^([^/]+)/'" in said(dataset)
    by_site = inspect(tmp_path, split={"group_regex": "^([^/]+)/"})
    assert by_site.places[f"{folders[0]}/r0.wav"].group == by_site.places[f"{folders[0]}/r1.wav"].group
    assert "To keep the recordings of a site" not in said(by_site)
    tops = {folder.partition("/")[0] for folder in folders}
    assert tops <= set(inspect(tmp_path, labels={"annotations": "none"}).classes)


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (("Blackbird", "Robin"), ("song", "call")), (("Turdus merula", "Parus major"), ("alarming", "begging")),
        (("Blackbird", "Robin"), ("blackbird", "Wren")), (("Blackbird", "Robin"), ("Blackbird song", "Robin song")),
        (("Blackbird", "Robin"), ("", "")),
    ],
)  # fmt: skip
def test_folders_of_species_stay_classes_whatever_is_annotated_in_them(
    tmp_path: Path, folders: Sequence[str], names: Sequence[str]
) -> None:
    of_folders(tmp_path, *folders, names=names)
    dataset = inspect(tmp_path)
    assert dataset.classes == tuple(sorted(folders)) and "are not used" in said(dataset)


def test_half_of_the_recordings_annotated_make_no_sites_and_detections_none_either(tmp_path: Path) -> None:
    of_folders(tmp_path, "Moor", "Wood", marked=1)
    assert inspect(tmp_path).classes == ("Moor", "Wood")
    of_folders(tmp_path, "Moor", "Wood", marked=0)
    for path in (tmp_path / "data").rglob("*.wav"):
        path.with_suffix(".txt").unlink(missing_ok=True)
        path.with_suffix(".BirdNET.results.csv").write_text(BIRDNET)
    assert inspect(tmp_path).classes == ("Moor", "Wood")


def test_annotated_recordings_in_sides_are_divided_so_and_one_table_may_name_them_all(tmp_path: Path) -> None:
    of_folders(tmp_path, "train", "test", marked=0)
    rows = [f"r{k}.wav,{0.1 * k},1,{name}" for k in range(3) for name in (OWL, TIT)]
    for side in ("train", "test"):
        (tmp_path / f"data/{side}/all.csv").write_text("\n".join(["recording,start_s,end_s,label", *rows, ""]))
    dataset = inspect(tmp_path)
    assert dataset.classes == (TIT, OWL) and dataset.rows == {"found": 12, "used": 12, "left_out": {}}
    assert {one: place.split for one, place in dataset.places.items() if one.startswith("test")} == {
        f"test/r{k}.wav": "test" for k in range(3)
    }
    assert "sites" not in said(dataset)


def test_a_recording_in_which_nothing_is_marked_is_a_negative(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/r0.txt").write_text("")
    dataset = inspect(flat)
    assert dataset.background == ("background",) and labels_of(dataset, "r0.wav") == (Label("background"),)
    assert "1 annotated recording in which nothing is marked, e.g. r0.wav" in said(dataset)
    dataset = inspect(flat, labels={"unlabelled": "unknown"})
    assert codes(dataset.problems) == {"r0.wav": "no-label"} and dataset.background == ()


def test_a_class_that_may_be_misspelt_is_said_by_its_labels_not_its_recordings(flat: Path) -> None:
    all_annotated(flat)
    annotate(flat, r0_txt=track((0.5, 1.0, OWL), (1.5, 2.0, TIT), (2.0, 2.5, OWL.replace("aluco", "alucco"))))
    assert '"Strix alucco" (1 label) is nearly "Strix aluco" (6)' in said(inspect(flat))
    (flat / "map.csv").write_text("label,class\nStrix alucco,Strix aluco\n")
    dataset = inspect(flat, labels={"taxonomy": str(flat / "map.csv")})
    assert "misspelt" not in said(dataset) and dataset.classes == (TIT, OWL)


def test_a_label_that_runs_past_the_end_is_trimmed_used_and_named(flat: Path) -> None:
    all_annotated(flat)
    annotate(flat, r0_txt=track((0.5, 1.0, OWL), (1.5, 3.05, TIT), (2.5, 4.5, OWL), (3.5, 4.0, OWL)))
    dataset = inspect(flat)
    assert labels_of(dataset, "r0.wav") == (Label(OWL, 0.5, 1.0), Label(TIT, 1.5, 3.05), Label(OWL, 2.5, 3.0))
    assert dataset.rows == {"found": 14, "used": 13, "trimmed": 1, "left_out": {"row-beyond-end": 1}}
    assert [(one.problem, one.used, one.detail) for one in dataset.problems if one.problem == "row-trimmed"] == [
        ("row-trimmed", True, "r0.txt, row 3: 2.5 to 4.5 s, trimmed to the end at 3.00 s"),
    ]  # fmt: skip
    assert row_books.words(dataset.rows).startswith("13 of 14 rows of labels used (1 trimmed at the end")
    assert dataset.books() == {"found": 6, "used": 6, "left_out": {}}


def test_other_views_of_a_selection_are_counted_apart_and_selections_that_restart_are_not_views(flat: Path) -> None:
    all_annotated(flat)
    head = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\n"
    rows = ("1\tWaveform 1\t0\t1\t0\t4000\tA\n", "1\tSpectrogram 1\t0\t1\t500\t2000\tA\n",
            "2\tWaveform 1\t1\t2\t\t\tA\n", "2\tSpectrogram 1\t1\t2\t500\t2000\tA\n",
            "3\tSpectrogram 1\t1\t2\t500\t2000\tA\n", "4\tWaveform 1\t2\t1\t\t\tA\n",
            "4\tSpectrogram 1\t2\t1\t5\t9\tA\n", "1\tSpectrogram 1\t2\t3\t500\t2000\tB\n")  # fmt: skip
    (flat / "data/r0.txt").write_text(head + "".join(rows))
    dataset = inspect(flat)
    assert labels_of(dataset, "r0.wav") == (
        Label("A", 0, 1, 0, 4000), Label("A", 1, 2, 500, 2000), Label("B", 2, 3, 500, 2000),
    )  # fmt: skip
    assert dataset.rows == {
        "found": 18, "used": 13, "left_out": {"repeated-view": 3, "row-invalid": 1, "row-repeated": 1},
    }  # fmt: skip
    assert row_books.words(dataset.rows) == (
        "13 of 18 rows of labels used; 3 repeat a selection in another view or channel of Raven; not used: 1 "
        "row-invalid, 1 row-repeated"
    )


def test_the_same_selection_on_another_channel_is_counted_once(flat: Path) -> None:
    all_annotated(flat)
    head = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)\tAnnotation\n"
    rows = ("1\tW\t1\t0\t1\t400\t900\tA\n", "1\tS\t1\t0\t1\t400\t900\tA\n",
            "2\tS\t1\t0\t1\t2000\t4000\tA\n",  # at the same time, and another call
            "3\tS\t2\t0\t1\t500\t1000\tA\n", "4\tS\t2\t0\t1\t2100\t4000\tA\n",
            "5\tS\t2\t1\t2\t500\t1000\tA\n", "6\tS\t2\t0\t1\t500\t1000\tB\n")  # fmt: skip
    (flat / "data/r0.txt").write_text(head + "".join(rows))
    dataset = inspect(flat)
    assert labels_of(dataset, "r0.wav") == (
        Label("A", 0, 1, 400, 900), Label("A", 0, 1, 2000, 4000), Label("A", 1, 2, 500, 1000),
        Label("B", 0, 1, 500, 1000),
    )  # fmt: skip
    assert dataset.rows == {"found": 17, "used": 14, "left_out": {"repeated-view": 3}}


def test_a_name_that_fits_several_recordings_has_a_reason_of_its_own_that_names_them(flat: Path) -> None:
    all_annotated(flat)
    for name in ("a/n.wav", "b/n.wav", "XC7 - Merle.wav", "XC7_part.wav"):
        write_sound(flat / "data" / name, tone(3.0, 8000, seed=sum(name.encode())), 8000)
        (flat / "data" / name).with_suffix(".txt").write_text(track((0, 1, OWL)))
    (flat / "data/all.csv").write_text(
        "recording,start_s,end_s,label\n" + "".join(f"{name},1,2,{TIT}\n" for name in ("n.wav", "n.wav", "XC7", "gone"))
    )
    dataset = inspect(flat, labels={"annotations": str(flat / "data")})
    assert dataset.rows["left_out"] == {"row-ambiguous": 3, "row-without-file": 1}
    details = {one.recording: one.detail for one in dataset.problems if one.problem == "row-ambiguous"}
    assert details.keys() == {"n.wav", "XC7"}
    assert "may be any of a/n.wav, b/n.wav (2 rows, e.g. all.csv, row 2)" in details["n.wav"]
    assert "may be any of XC7 - Merle.wav, XC7_part.wav (1 row" in details["XC7"]
    assert dataset.books() == {"found": 10, "used": 10, "left_out": {}}


def test_a_taxonomy_names_classes_and_what_is_not_learnt(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/r0.txt").write_text(track((0.0, 0.5, "Song"), (0.5, 1.0, ""), (1.0, 1.5, "rain"), (2.0, 2.5, "wren")))
    (flat / "map.csv").write_text(f"label,class\nsong,{OWL}\nrain,-\n")
    dataset = inspect(flat, labels={"taxonomy": str(flat / "map.csv")})
    assert labels_of(dataset, "r0.wav") == (
        Label(OWL, 0.0, 0.5), Label(IGNORED, 0.5, 1.0), Label(IGNORED, 1.0, 1.5), Label("wren", 2.0, 2.5),
    )  # fmt: skip
    assert dataset.rows == {"found": 14, "used": 12, "left_out": {"row-ignored": 1, "row-without-label": 1}}
    assert f'Not in {flat / "map.csv"}, so classes as they are called: "{TIT}", "{OWL}", "wren"' in said(dataset)
    (flat / "map.csv").write_text(f"label,class\nsong,{OWL}\n{OWL},{OWL}\n,{TIT}\n{TIT},{TIT}\n*,-\n")
    dataset = inspect(flat, labels={"taxonomy": str(flat / "map.csv")})
    assert labels_of(dataset, "r0.wav")[1] == Label(TIT, 0.5, 1.0)
    assert dataset.rows["left_out"] == {"row-ignored": 2} and dataset.classes == (TIT, OWL)
    (flat / "map.csv").write_text("label,class\nsong,a\nSong,b\n")
    with pytest.raises(InputError, match="row 3: 'Song' has another class above"):
        inspect(flat, labels={"taxonomy": str(flat / "map.csv")})


def test_what_a_program_detected_is_taken_only_by_name(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/r0.txt").unlink()
    (flat / "data/r0.BirdNET.results.csv").write_text(BIRDNET)
    dataset = inspect(flat)
    assert codes(dataset.problems)["r0.wav"] == "no-label" and "a program detected" in said(dataset)
    dataset = inspect(flat, labels={"annotations": str(flat / "data")})
    assert labels_of(dataset, "r0.wav") == (Label(OWL, 0.5, 1.25), Label(TIT, 2.0, 3.0))
    assert "is taken for true" in said(dataset)


def test_several_files_and_folders_of_annotations_are_named_with_commas(flat: Path) -> None:
    for k, folder in enumerate(("a", "b", "c,d")):
        (flat / folder).mkdir()
        (flat / folder / "all.csv").write_text(
            f"recording,start_s,end_s,label\nr{2 * k}.wav,0,1,{OWL}\nr{2 * k + 1}.wav,1,2,{TIT}\n"
        )
    named = f"{flat / 'a'}, {flat / 'b/all.csv'},{flat / 'c,d'},{flat / 'a'}"
    dataset = inspect(flat, labels={"annotations": named})
    # Rows of files that are called alike are each counted, and those of a folder that is named twice once.
    assert dataset.rows == {"found": 6, "used": 6, "left_out": {}} and dataset.problems == []
    assert labels_of(dataset, "r4.wav") == (Label(OWL, 0, 1),) and "6 rows in 3 annotation files" in said(dataset)
    for wrong, why in ((f"{flat / 'a'},{flat / 'gone'}", "gone: there is no such file"), (",", "names no file")):
        with pytest.raises((InputError, SettingsError), match=why):
            inspect(flat, labels={"annotations": wrong})
    (flat / "empty").mkdir()
    with pytest.raises(InputError, match="empty: has no annotations"):
        inspect(flat, labels={"annotations": f"{flat / 'a'},{flat / 'empty'}"})


def test_annotation_files_beside_recordings_that_are_not_read_are_counted_with_what_to_do(flat: Path) -> None:
    all_annotated(flat)
    (flat / "marks.csv").write_text(
        "recording,start_s,end_s,label\n" + "".join(f"r{k}.wav,0,1,{(OWL, TIT)[k % 2]}\n" for k in range(6))
    )
    dataset = inspect(flat, labels={"annotations": str(flat / "marks.csv")})
    both = f"{flat / 'marks.csv'},{flat / 'data'}"
    assert said(dataset).count("annotation files among the recordings") == 1 and dataset.rows["used"] == 6
    assert (
        "6 annotation files among the recordings, e.g. r0.txt, are not read, as --labels.annotations names others. To "
        f"read all: --labels.annotations {both}."
    ) in said(dataset)
    dataset = inspect(flat, labels={"annotations": both})
    assert dataset.rows == {"found": 18, "used": 17, "left_out": {"row-repeated": 1}}  # the same call in two files
    assert "among the recordings" not in said(dataset)


def test_annotations_that_cannot_be_meant_are_refused(flat: Path) -> None:
    with pytest.raises(InputError, match="there is no such file or folder"):
        inspect(flat, labels={"annotations": str(flat / "gone")})
    (flat / "marks").mkdir()
    with pytest.raises(InputError, match="has no annotations"):
        inspect(flat, labels={"annotations": str(flat / "marks")})
    (flat / "marks/other.txt").write_text(AUDACITY)
    with pytest.raises(InputError, match="lists none of the recordings"):
        inspect(flat, labels={"annotations": str(flat / "marks")})
    with pytest.raises(SettingsError, match="Give one"):
        inspect(flat, labels={"annotations": str(flat / "marks"), "table": str(flat / "marks/other.txt")})
    with pytest.raises(SettingsError, match="names a column of a table"):
        write_sound(flat / "data/A/a.wav", tone(1.0, 8000, seed=9), 8000)
        inspect(flat, split={"group_column": "site"})


def test_check_says_what_is_annotated_and_what_will_be_negatives(
    flat: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    all_annotated(flat)
    with (flat / "data/r1.txt").open("a") as file:
        file.write(track((1.2, 1.9, OWL), (9.0, 9.5, OWL)))
    monkeypatch.chdir(flat)
    given = ["check", "--input", ".", "--model.backbone", "vggish-small", "--model.checkpoint", "none"]
    given += ["--train.hop-s", "0.12", "--labels.window-rule", "centre"]
    assert main(given) == 0
    said = capsys.readouterr().out
    assert "13 of 14 rows of labels used; not used: 1 row-beyond-end" in said
    assert "\n6 files found, 6 usable" in said and "\n1 of the labels not used: row-beyond-end. " in said
    assert "annotated: 6 of 6 recordings, 0.01 h, with 13 labels" in said
    of_all = re.search(r"of 108 windows of 0.96 s, (\d+) hold a class and (\d+) hold none .*; 0 are unknown", said)
    assert of_all is not None and int(of_all[1]) + int(of_all[2]) == 108 and int(of_all[1]) >= 24
    table = {line.split()[0]: line.split()[2:] for line in said.splitlines() if line.startswith(("  Parus", "  Strix"))}
    # 18 windows a recording, centres 0.48, 0.60 … 2.52 s; of the owl 1.0 - 0.1 k and 0.7 s.
    assert table["Parus"] == ["6", "0.05", "0.50", "24", "84", "0"]
    assert table["Strix"][:1] == ["7"] and int(table["Strix"][3]) + int(table["Strix"][4]) == 108
    assert main([*given, "--labels.unlabelled", "unknown"]) == 0
    assert "So no window is a negative of all classes" in capsys.readouterr().out


PAGE = Path(__file__).parents[1] / "docs/labels.md"


def test_the_examples_of_the_page_are_read_as_it_says(tmp_path: Path) -> None:
    examples = dict(re.findall(r"^```(\S+\.\w+)\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S))
    taxonomy = examples.pop("map.csv")
    labels = {name: found(read(tmp_path / name, text)) for name, text in examples.items()}
    first = {name: some[0] for name, some in labels.items() if name not in ("train_metadata.csv", "xeno-canto.json")}
    assert {(label.class_name, label.start_s) for label in first.values()} == {
        ("Strix aluco", 12.4), ("Strix aluco", 12.0),
    }  # fmt: skip
    assert labels["raven.selections.txt"][-1] == Label("Asio otus", 13.0, 13.4, 2000, 6000)
    assert labels["own.csv"][-1] == Label("Asio otus", 13.0, 13.4, weight=0.5)
    assert labels["train_metadata.csv"] == [Label("tawowl1")] and labels["xeno-canto.json"] == [Label("Strix aluco")]
    for k in range(4):
        write_sound(tmp_path / f"data/r{k}.wav", tone(3.0, 8000, seed=k), 8000)
        (tmp_path / f"data/r{k}.txt").write_text(track((0, 1, "Alarm call"), (1, 2, "rain"), (2, 3, "wren")))
    (tmp_path / "map.csv").write_text(taxonomy)
    assert inspect(tmp_path, labels={"taxonomy": str(tmp_path / "map.csv")}).classes == ("Turdus merula", "wren")
    reasons = re.findall(r"^\| `(row-[\w-]+)`", PAGE.read_text("utf-8"), re.M)
    assert {code for code in PROBLEMS if code.startswith("row-")} <= set(reasons)


# ---- two hundred odd files --------------------------------------------------------------------------

Fault = tuple[str, str, str, str]  # start, end, label, and the reason for which it is left out
ROWS: Sequence[Fault] = (
    ("0.5", "1.5", OWL, ""), ("0.25", "2", TIT, ""), ("1.5", "1.5", OWL, "row-invalid"), ("2", "1", TIT, "row-invalid"),
    ("7", "8", OWL, "row-beyond-end"), ("x1", "2", TIT, "row-invalid"), ("0.5", "1", "", "row-without-label"),
    ("1", "2", "rain", "row-ignored"), ("-1", "1", TIT, "row-invalid"), ("nan", "1", TIT, "row-invalid"),
)  # fmt: skip


def odd_rows(rng: random.Random, number: int) -> list[Fault]:
    """Nine rows, at times that no other file has, some with decimal commas."""

    def at(cell: str) -> str:
        if not cell[0].isdigit():
            return cell
        return f"{float(cell) + number / 1000:.3f}".replace(".", rng.choice(".,"))

    return [(at(a), at(b), name, why) for a, b, name, why in rng.choices(ROWS, k=9)]


def raven(rows: Sequence[Fault], recording: str) -> str:
    head = "Selection\tView\tBegin Time (s)\tEnd Time (s)\tBegin File\tAnnotation\n"
    return head + "".join(f"{k}\tW\t{a}\t{b}\t{recording}\t{c}\n" for k, (a, b, c, _) in enumerate(rows))


def elan(rows: Sequence[Fault], recording: str) -> str:
    def slot(number: int, cell: str) -> str:
        try:
            value = f' TIME_VALUE="{round(1000 * float(cell.replace(",", ".")))}"'
        except ValueError:
            value = ""
        return f'<TIME_SLOT TIME_SLOT_ID="t{number}"{value}/>'

    slots = "".join(slot(2 * k, a) + slot(2 * k + 1, b) for k, (a, b, _, _) in enumerate(rows))
    marks = "".join(
        f'<ANNOTATION><ALIGNABLE_ANNOTATION TIME_SLOT_REF1="t{2 * k}" TIME_SLOT_REF2="t{2 * k + 1}"><ANNOTATION_VALUE>'
        f"{c}</ANNOTATION_VALUE></ALIGNABLE_ANNOTATION></ANNOTATION>" for k, (_, _, c, _) in enumerate(rows)
    )
    return (
        f'<ANNOTATION_DOCUMENT><HEADER><MEDIA_DESCRIPTOR MEDIA_URL="{recording}"/></HEADER><TIME_ORDER>{slots}'
        f'</TIME_ORDER><TIER TIER_ID="x">{marks}</TIER></ANNOTATION_DOCUMENT>'
    )


def own(rows: Sequence[Fault], recording: str) -> str:
    return "recording;start_s;end_s;label\n" + "".join(f"{recording};{a};{b};{c}\n" for a, b, c, _ in rows)


WRITERS: Sequence[tuple[str, Callable[[Sequence[Fault], str], str]]] = (
    (".selections.txt", raven), (".eaf", elan), (".csv", own),
    (".txt", lambda rows, _: "0.1\t0.2\t\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c, _ in rows)),
    (".TextGrid", lambda rows, _: '"ooTextFile"\n"TextGrid"\n0\n9\n<exists>\n1\n"IntervalTier"\n"x"\n0\n9\n'
                                  f"{len(rows)}\n" + "".join(f'{a}\n{b}\n"{c}"\n' for a, b, c, _ in rows)),
)  # fmt: skip


def reasons(rows: Sequence[Fault]) -> Counter[str]:
    """Why rows of one file are left out, or "used"; those that say the same count once."""
    found, seen = Counter[str](), set[tuple[str, str, str]]()
    for start, end, name, why in rows:
        key = (start.replace(",", "."), end.replace(",", "."), name)
        found["row-repeated" if key in seen and why in ("", "row-beyond-end") else why or "used"] += 1
        seen.add(key)
    return found


def test_of_two_hundred_odd_files_every_row_is_used_or_has_its_reason(flat: Path) -> None:
    rng = random.Random(1)
    (flat / "map.csv").write_text("label,class\nrain,-\n")
    expected, unreadable = Counter[str](), 0
    for number in range(200):
        ending, write = WRITERS[number % len(WRITERS)]
        recording = "gone" if number % 21 == 20 else f"r{number % 6}"
        rows = odd_rows(rng, number)
        if ending == ".TextGrid":  # whose empty texts are gaps, and which is damaged where a time is no number
            rows = [row for row in rows if row[2] and row[0] not in ("x1", "nan")]
        path = flat / f"marks/{number:03d}/{recording}{ending}"
        path.parent.mkdir(parents=True)
        text = write(rows, f"{recording}.wav").replace("\n", rng.choice(["\n", "\r\n"]))
        if number % 25 == 24:
            path.write_bytes(text.encode("utf-16")[:-1])  # breaks off
            unreadable += 1
            continue
        path.write_bytes(text.encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"])))
        found = reasons(rows) + Counter({"row-without-label": ending == ".txt"})
        expected += Counter({"row-without-file": found.total()}) if recording == "gone" else found
    dataset = inspect(flat, labels={"annotations": str(flat / "marks"), "taxonomy": str(flat / "map.csv")})
    used, total = expected.pop("used"), expected.total()
    assert dataset.rows == {"found": used + total, "used": used, "left_out": dict(expected)}
    listed = read_csv(flat / "out/problems.csv")
    named = Counter(row["problem"] for row in listed)
    assert named["annotation-unreadable"] == unreadable
    assert named["row-without-file"] == 2, "with the ending, and without"
    for code in ("row-invalid", "row-beyond-end", "row-without-label"):
        assert named[code] == expected[code], code
    assert any(row["detail"].startswith("000/r0.selections.txt, row ") for row in listed)


def test_tables_that_predict_writes_beside_recordings_are_no_labels_and_replace_none(flat: Path) -> None:
    assert all(".birdtune." in each for each, _ in detection_tables.ENDINGS.values())
    all_annotated(flat)
    (flat / "data/r0.txt").rename(flat / "data/r0.birdtune.txt")
    dataset = inspect(flat)
    assert codes(dataset.problems)["r0.wav"] == "no-label"
    assert 'a program detected what they say' in said(dataset) and "r0.birdtune.txt" in said(dataset)


def test_a_text_in_a_folder_of_annotations_that_cannot_be_read_is_named(flat: Path) -> None:
    all_annotated(flat)
    (flat / "data/r0.txt").unlink()
    marked = f"recording,start_s,end_s,label\nr0.wav,1,3,{OWL}\n"
    (flat / "data/r0.csv").write_bytes(marked.encode("utf-16-le"))
    dataset = inspect(flat, labels={"annotations": str(flat / "data")})
    (problem,) = [one for one in dataset.problems if one.problem == "annotation-unreadable"]
    assert "UTF-16 without a mark" in problem.detail
