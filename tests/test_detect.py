"""`predict --format`: recordings → detections → tables that other programs read, and a summary."""

import csv
import json
import os
import re
import sys
import tracemalloc
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from makers import Here

from birdtune.audio.logmel import VGGISH
from birdtune.config import AudioSettings
from birdtune.errors import InputError
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.detections import Rule
from birdtune.models.head_kinds import Pooling
from birdtune.pipeline import detect
from birdtune.pipeline.species_list import classes_on
from birdtune.reporting import detection_summary, listening
from birdtune.serving import inference
from birdtune.serving.detect import Call, Detected, WithPublished, detect_recordings
from birdtune.serving.detection_ledger import NAME, Described, Entry, Ledger, described, newest
from birdtune.serving.detection_tables import (
    BIRDNET,
    COLUMNS,
    RAVEN,
    Listed,
    listed,
    names_of,
    table_places,
    write_table,
)
from birdtune.serving.inference import Channel, Cutter, Unused
from birdtune.serving.verify import PublishedClasses

RATE_HZ = 16_000
BAND_HZ = (125.0, 7500.0)


@pytest.fixture(autouse=True)
def _no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "Isolated", Here)


class Loud:
    """Class `a` scores 0.9 in loud windows and 0.1 in others, class `b` the other way round in what has sound."""

    classes = ("a", "b")
    front_end = VGGISH

    def scores(self, windows: Any) -> tuple[Any, Any]:
        loud = windows.mean(axis=(1, 2)) > -3
        scores = np.where(loud[:, None], [0.9, 0.1], [0.1, 0.9]).astype(np.float32)
        return scores, np.column_stack([loud, ~loud]).astype(np.float32)

    pooling = Pooling()

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        raise AssertionError

    def attend(self, embeddings: Any) -> Any:
        return np.zeros(len(embeddings), np.float32)


def write_sound(path: Path, *parts: tuple[float, float], channels: int = 1) -> Path:
    """Noise: (seconds, amplitude) one behind the other."""
    noise = np.random.default_rng(0)
    sound = np.concatenate([noise.normal(size=(int(s * RATE_HZ), channels)) * level for s, level in parts])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, RATE_HZ, subtype="PCM_16")
    return path


def detected(sounds: Any, part_windows: int | None = 4, **more: Any) -> list[Detected]:
    smooth = more.pop("smooth_windows", 1)
    rule = Rule(np.array([0.5, np.inf]), np.array([0.3, np.inf]), smooth_windows=smooth)
    scored = more.pop("scored", {})
    cutter = Cutter(AudioSettings(), VGGISH.hop(None), 1e9, VGGISH, part_windows=part_windows, scored=scored)
    return list(detect_recordings(sounds, Loud(), rule, cutter, **{"batch_size": 3, **more}))


def times(found: Detected) -> list[tuple[float, float]]:
    return [(call.start_s, call.end_s) for call in found.calls]


# ---- from recordings to detections ------------------------------------------------------------------


def test_detections_have_the_times_at_which_they_can_be_heard(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", (9.6, 0.001), (2.88, 0.2), (4.8, 0.001), (0.96, 0.2))
    (found,) = detected([path])
    assert times(found) == [pytest.approx((9.6, 12.48), abs=0.5), pytest.approx((17.28, 18.24), abs=0.5)]
    assert {(call.class_name, call.decision, call.score) for call in found.calls} == {("a", "a", 0.9)}
    assert (found.problem, found.duration_s) == (None, pytest.approx(18.24))


@pytest.mark.parametrize("part_windows", [1, 2, 5, 1000])
def test_parts_of_any_size_give_the_same_detections(tmp_path: Path, part_windows: int) -> None:
    path = write_sound(tmp_path / "a.wav", (5, 0.001), (7, 0.2), (5, 0.001), (1, 0.2), (3, 0.001))
    (whole,), (parts,) = detected([path], None), detected([path], part_windows)
    assert whole == parts and len(whole.calls) == 2


def test_a_recording_that_was_scored_in_part_goes_on_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", (5, 0.001), (7, 0.2), (5, 0.001), (1, 0.2), (3, 0.001), (2, 0.2))
    states: list[dict[str, Any]] = []
    how: dict[str, Any] = {"ood_score": lambda pooled: pooled[:, 0], "smooth_windows": 3}
    (whole,) = detected([path], keep=lambda given, state: states.append(json.loads(json.dumps(state()))), **how)
    assert len(whole.calls) == 3 and len(states) >= 4
    for state in states:
        again: list[int] = []
        more = {"unfinished": {path: state}, "keep": lambda given, later, to=again: to.append(later()["windows"])}
        assert detected([path], scored={path: state["windows"]}, **more, **how) == [whole]
        assert again == [each["windows"] for each in states if each["windows"] > state["windows"]]
    # What breaks off behind the part that was scored before is used as far as it goes.
    cut = tmp_path / "cut.wav"
    cut.write_bytes(path.read_bytes()[: -2 * RATE_HZ * 2])
    states.clear()
    (broken,) = detected([cut], keep=lambda given, state: states.append(state()), **how)
    assert broken.problem is not None and broken.windows
    assert detected([cut], scored={cut: states[-1]["windows"]}, unfinished={cut: states[-1]}, **how) == [broken]


def test_each_recording_comes_out_whatever_state_it_is_in_and_silence_is_no_sound(tmp_path: Path) -> None:
    loud = write_sound(tmp_path / "loud.wav", (12, 0.2))
    quiet = write_sound(tmp_path / "quiet.wav", (12, 0.0))
    (tmp_path / "text.wav").write_text("no sound at all")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(loud.read_bytes()[:200_000])
    unused = Unused("gone.wav", "unreadable", "it is away")
    found = detected([quiet, tmp_path / "text.wav", cut, unused, loud])
    problems = ["" if each.problem is None else each.problem.problem for each in found]
    assert problems == ["silent", "not-audio", "truncated", "unreadable", ""]
    assert [len(each.calls) for each in found] == [0, 0, 1, 0, 1]
    assert [each.windows > 0 for each in found] == [True, False, True, False, True]


def test_what_is_unlike_the_training_data_is_unknown_by_the_mean_embedding_of_the_detection(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", (5, 0.001), (5, 0.2), (5, 0.001))
    given = []

    def ood_score(pooled: Any) -> Any:
        given.append(pooled)
        return np.full(len(pooled), 1.5)

    (found,) = detected([path], ood_score=ood_score)
    assert [(call.class_name, call.decision, call.ood_score) for call in found.calls] == [("a", "unknown", 1.5)]
    np.testing.assert_allclose(np.concatenate(given), [[1.0, 0.0]], atol=1e-5)
    assert listed(found.calls, unknown=False) == () and listed(found.calls, unknown=True) == found.calls


def test_published_classes_are_detected_behind_own_ones_and_never_rejected_as_unknown(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", (5, 0.001), (5, 0.2), (5, 0.001))
    kept = PublishedClasses(("c", "d"), lambda embeddings: 0.8 * embeddings[:, ::-1], Calibration("sigmoid"))
    rule = Rule(np.array([0.5, np.inf, np.inf, 0.7]), np.array([0.3, np.inf, np.inf, 0.4]))
    cutter = Cutter(AudioSettings(), VGGISH.hop(None), 1e9, VGGISH, part_windows=4)
    (found,) = detect_recordings(
        [path], WithPublished(Loud(), kept), rule, cutter, ood_score=lambda pooled: np.full(len(pooled), 2.0), n_own=2
    )
    assert [(call.class_name, call.decision, call.score, call.ood_score) for call in found.calls] == [
        ("a", "unknown", 0.9, 2.0), ("d", "d", 0.8, None)
    ]  # fmt: skip
    assert found.calls[0].start_s == found.calls[1].start_s


def test_memory_does_not_grow_with_a_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long.wav"
    with soundfile.SoundFile(path, "w", RATE_HZ, 1, "PCM_16") as file:
        for _ in range(20):
            file.write(np.random.default_rng(0).normal(size=60 * RATE_HZ) * 0.2)
    wide = np.ones((1, 4096), np.float32)
    scores = Loud.scores
    monkeypatch.setattr(Loud, "scores", lambda self, given: (scores(self, given)[0], wide.repeat(len(given), axis=0)))
    tracemalloc.start()
    (found,) = detected([path], part_windows=64, batch_size=16, ood_score=lambda pooled: np.zeros(len(pooled)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (found.windows, times(found)) == (1250, [(0.0, pytest.approx(1200.0))])
    assert peak < 15e6  # of 20 MB of embeddings, and 77 MB of samples


# ---- tables -----------------------------------------------------------------------------------------

CALLS = (
    Call(1.5, 4.5, "Turdus merula_Common Blackbird", 0.93, "Turdus merula_Common Blackbird", 0.4, 2.0),
    Call(61.0, 64.0, "=cmd|' /C calc'!A0", 0.8, "unknown", None, 61.0),
)
DAWN, LATER = datetime(2024, 5, 17, 4, 30), datetime(2024, 5, 17, 5, 10)
FIRST = Listed("in/a.wav", "a.wav", 1, 120.0, DAWN, CALLS)
SECOND = Listed("in/b\t.wav", "b\t.wav", 2, 60.0, None, CALLS[:1])


def table(tmp_path: Path, kind: str) -> Path:
    assert write_table(tmp_path / "x", kind, [FIRST, SECOND], BAND_HZ) == 3
    return tmp_path / "x"


def test_ravens_table_has_its_columns_and_times_that_run_on_over_the_files(tmp_path: Path) -> None:
    header, *rows = [line.split("\t") for line in table(tmp_path, "raven").read_text().splitlines()]
    assert tuple(header) == RAVEN and all(len(row) == len(RAVEN) for row in rows)
    assert rows[0] == [
        "1", "Spectrogram 1", "1", "1.500", "4.500", "125", "7500", "a.wav", "in/a.wav", "1.500",
        "Turdus merula_Common Blackbird", "0.9300", "0.4000",
    ]  # fmt: skip
    assert rows[2][:5] == ["3", "Spectrogram 1", "2", "121.500", "124.500"]
    assert rows[2][7:10] == ["b\\t.wav", "in/b\\t.wav", "1.500"]


def test_audacitys_labels_are_begin_end_and_the_class(tmp_path: Path) -> None:
    lines = table(tmp_path, "audacity").read_text().splitlines()
    assert lines[:2] == ["1.500000\t4.500000\tTurdus merula_Common Blackbird", "61.000000\t64.000000\tunknown"]


def test_csv_json_and_birdnets_table_say_the_same(tmp_path: Path) -> None:
    with table(tmp_path, "csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[1]["start_time"], rows[2]["start_time"]) == ("2024-05-17T04:31:01", "")
    assert '"=cmd' in (tmp_path / "x").read_text()  # quoted, as in all tables
    made = json.loads(table(tmp_path, "json").read_text())
    assert [row["start_s"] for row in made] == [float(row["start_s"]) for row in rows]
    assert (made[0]["class"], made[1]["ood_score"], made[1]["decision"]) == (CALLS[0].class_name, None, "unknown")
    write_table(tmp_path / "none", "json", [Listed("a", "a", 1, 1.0, None, ())], BAND_HZ)
    assert json.loads((tmp_path / "none").read_text()) == []
    with table(tmp_path, "birdnet").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == BIRDNET
    assert list(rows[0].values()) == ["1.5", "4.5", "Turdus merula", "Common Blackbird", "0.93", "in/a.wav"]


def test_parquet_needs_its_package_or_holds_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="extras parquet"):
        table(tmp_path, "parquet")
    assert not (tmp_path / "x").exists()
    monkeypatch.undo()
    parquet = pytest.importorskip("pyarrow.parquet")
    assert parquet.read_table(table(tmp_path, "parquet")).to_pylist()[0]["class"] == CALLS[0].class_name


@pytest.mark.parametrize("name", ["Turdus_merula", "Blackbird", "Rain_Rain", "_x", "Turdus merula"])
def test_a_class_that_is_no_pair_of_names_is_both(name: str) -> None:
    assert names_of(name) == (name, name)


def test_tables_lie_as_the_recordings_do_and_none_takes_the_place_of_another(tmp_path: Path) -> None:
    given = [tmp_path / "A/1.WAV", tmp_path / "B/1.WAV", tmp_path / "B/1.flac", Channel(tmp_path / "B/2.wav", 1)]
    out = tmp_path / "out"
    places = table_places(given, out, "raven", beside=False)
    assert list(places.values()) == [
        out / "A/1.birdtune.selections.txt", out / "B/1.WAV.birdtune.selections.txt",
        out / "B/1.flac.birdtune.selections.txt", out / "B/2.channel2.birdtune.selections.txt",
    ]  # fmt: skip
    assert table_places(given[:1], out, "audacity", beside=False)[given[0]] == out / "1.birdtune.txt"
    assert table_places(given[:1], out, "audacity", beside=True)[given[0]] == tmp_path / "A/1.birdtune.txt"
    assert table_places([], out, "csv", beside=False) == {}


# ---- what a stopped run goes on with ----------------------------------------------------------------


def entry(path: Path, ledger: Ledger, sha256: str) -> Entry:
    facts = path.stat()
    return Entry(str(path), str(path), 1, facts.st_size, facts.st_mtime_ns, sha256, ledger.made_by, 120.0, 9, DAWN,
                 "", "", CALLS)  # fmt: skip


def test_a_recording_is_known_again_by_its_content_for_the_same_model_alone(tmp_path: Path) -> None:
    from birdtune.runtime.files import file_sha256

    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    ledger = Ledger(tmp_path, "model")
    assert ledger.find(path) is None
    ledger.add(made := entry(path, ledger, file_sha256(path)))
    ledger.close()
    path = path.rename(tmp_path / "b.wav")
    os.utime(path, (0, 0))
    again = Ledger(tmp_path, "model")
    assert again.find(path) == made and again.find(Channel(path, 1)) is None
    assert list(again.entries({path: (made.sha256, 1)})) == [(path, made)]
    again.close()
    other = Ledger(tmp_path, "another model")
    assert other.find(path) is None
    other.close()
    path.write_bytes(b"other")  # of the same size
    last = Ledger(tmp_path, "model")
    assert last.find(path) is None
    last.close()


def test_a_line_that_was_cut_short_is_not_there_and_the_next_one_is(tmp_path: Path) -> None:
    paths = [tmp_path / "a.wav", tmp_path / "b.wav"]
    for path in paths:
        path.write_bytes(path.name.encode())
    ledger = Ledger(tmp_path, "model")
    for path in paths:
        ledger.add(entry(path, ledger, path.name))
    ledger.close()
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[:-20])
    ledger = Ledger(tmp_path, "model")
    assert ledger.find(paths[0]) is not None and ledger.find(paths[1]) is None
    ledger.add(entry(paths[1], ledger, "b.wav"))
    ledger.close()
    assert (tmp_path / NAME).read_bytes() == content


def test_how_far_a_recording_has_come_is_kept_each_minute_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, other = tmp_path / "a.wav", tmp_path / "b.wav"
    for each in (path, other):
        each.write_bytes(b"sound")
    now = [1000.0]
    monkeypatch.setattr("birdtune.serving.detection_ledger.time.monotonic", lambda: now[0])
    ledger = Ledger(tmp_path, "model")
    ledger.keep_part(path, lambda: {"windows": 1})
    now[0] += 61
    ledger.keep_part(path, lambda: {"windows": 2})
    ledger.keep_part(path, lambda: {"windows": 3})
    ledger.close()
    again = Ledger(tmp_path, "model")
    assert again.part(path) == {"windows": 2}
    assert again.part(Channel(path, 1)) is None and again.part(other) is None
    again.add(entry(path, again, "a"))
    again.close()
    for made_by in ("model", "another model"):
        last = Ledger(tmp_path, made_by)
        assert last.part(path) is None
        last.close()


def test_what_tables_need_of_a_model_is_kept_for_those_who_ask_the_same(tmp_path: Path) -> None:
    assert described(tmp_path, "asked") is None
    model = Described("model", 3, BAND_HZ)
    ledger = Ledger(tmp_path, "model")
    ledger.describe("asked", model)
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    ledger.add(entry(path, ledger, "a"))
    ledger.describe("other", replace(model, made_by="other"))
    ledger.close()
    again = Ledger(tmp_path, "model")
    assert again.find(path) is not None
    again.close()
    assert described(tmp_path, "asked") == model and described(tmp_path, "other") != model
    assert described(tmp_path, "") is None and [one.name for one in newest(tmp_path)] == [str(path)]
    (tmp_path / NAME).write_text('{"asked": "asked", "n_classes": 3}\n{"asked"')
    assert described(tmp_path, "asked") is None


# ---- the summary ------------------------------------------------------------------------------------


def test_the_summary_counts_by_hour_of_the_clock_and_knows_how_much_was_recorded(tmp_path: Path) -> None:
    name = "a</script>"
    calls = tuple(Call(at, at + 1, name, score, name, None, at) for at, score in ((0, 0.6), (1700, 0.9), (1900, 0.7)))
    path = write_sound(tmp_path / "a.wav", (4, 0.1))
    night = Listed("a.wav", "a.wav", 1, 5400.0, DAWN, calls)
    undated = Listed("u.wav", "u.wav", 1, 60.0, None, calls[:1])
    detection_summary.write(tmp_path, [night, undated], {"a.wav": path, "u.wav": tmp_path / "gone.wav"})
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        (name, "2024-05-17", "4", "2", "30.0", "4.0"), (name, "2024-05-17", "5", "1", "60.0", "1.0"),
        (name, "undated", "", "1", "1.0", ""),
    ]  # fmt: skip
    page = (tmp_path / "summary.html").read_text()
    assert "2024-05-17, 04 to 05 h: 2 detections in 30 min recorded" in page
    assert "Darkest cell: 4 an hour." in page
    assert "4 detections, 2.64 an hour." in page and "1.5 hours were scored." in page and ">an hour<" in page
    assert page.count("<audio") == 0  # at 1,700 s there is no sound in that file
    assert "a</script>" not in page and "Of 1 recording neither name nor metadata" in page
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", page)


def test_of_less_than_an_hour_detections_and_minutes_are_said_and_no_number_an_hour(tmp_path: Path) -> None:
    calls = tuple(Call(at, at + 1, "a", 0.9, "a", None, at) for at in range(0, 120, 10))
    short = Listed("a.wav", "a.wav", 1, 240.0, DAWN, calls)
    detection_summary.write(tmp_path, [short], {"a.wav": tmp_path / "gone.wav"})
    page = (tmp_path / "summary.html").read_text()
    assert "12 detections in 4.0 minutes." in page and "4.0 minutes were scored. That is too little" in page
    assert "180" not in re.sub(r"<(style|script)>.*?</\1>|<svg.*?</svg>", "", page, flags=re.DOTALL)
    assert ">an hour<" not in page and "Darkest cell" not in page


def test_of_minutes_of_an_hour_there_is_no_number_an_hour_nor_the_darkest_cell(tmp_path: Path) -> None:
    calls = (Call(0, 1, "a", 0.9, "a", None, 0),)
    recordings = [Listed("s.wav", "s.wav", 1, 3.0, DAWN, calls), Listed("l.wav", "l.wav", 1, 300.0, LATER, calls * 2)]
    detection_summary.write(tmp_path, recordings, {"s.wav": tmp_path / "gone.wav", "l.wav": tmp_path / "gone.wav"})
    with (tmp_path / "summary.csv").open(newline="") as file:
        rows = [tuple(row.values())[2:] for row in csv.DictReader(file)]
    assert rows == [("4", "1", "0.05", ""), ("5", "2", "5.0", "24.0")]
    page = (tmp_path / "summary.html").read_text()
    cells = re.findall(r"<title>.*?, (\d\d) to .*?fill-opacity=\"(.*?)\"", page)
    assert dict(cells) == {"04": "0.57", "05": "1.00"}


def test_days_have_their_year_and_the_second_one_of_a_night_its_name(tmp_path: Path) -> None:
    calls = (Call(0, 1, "a", 0.9, "a", None, 0),)

    def days(*began: datetime) -> list[str]:
        summary = detection_summary.Summary()
        for time in began:
            summary.add(Listed("a.wav", "a.wav", 1, 7200.0, time, calls))
        text = re.sub(r"<title>.*?</title>", "", str(detection_summary.heat_map(summary, "a")))
        return re.findall(r'<text x="\d+" y="3\d\d">(.*?)</text>', text)

    assert days(datetime(2024, 5, 17, 23)) == ["05-17", "2024", "05-18"]
    assert days(datetime(2024, 12, 31, 23)) == ["12-31", "2024", "01-01", "2025"]
    many = days(datetime(2023, 7, 1), datetime(2024, 6, 30))
    assert many[:2] == ["07-01", "2023"] and many.count("2024") == 1 and 20 < len(many) < 40


def test_the_frame_of_an_example_is_that_of_the_detection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "a.wav", (30, 0.1))
    framed = []
    drawn = listening.figures.spectrogram
    monkeypatch.setattr(listening.figures, "spectrogram", lambda *given: (framed.append(given[3]), drawn(*given))[1])
    calls = (Call(10.0, 13.5, "a", 0.9, "a", None, 12.0), Call(2.0, 20.0, "b", 0.8, "b", None, 9.0))
    detection_summary.write(tmp_path, [Listed("a.wav", "a.wav", 1, 30.0, None, calls)], {"a.wav": path})
    assert framed == [(10.0, 13.5), (9.0, 15.0)]


def test_the_best_detections_can_be_listened_to_each_of_another_recording(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", (9, 0.1), channels=2)
    recordings = [
        Listed(
            f"{k}.wav", "a.wav", 1, 9.0, None, tuple(Call(at, at + 1, "a", k / at, "a", None, at) for at in (2, 4))
        )
        for k in range(1, 6)
    ]  # fmt: skip
    summary = detection_summary.write(tmp_path, recordings, {f"{k}.wav": path for k in range(6)})
    assert [name for _, name, _ in summary.best["a"]] == ["5.wav", "4.wav", "3.wav"]
    assert (tmp_path / "summary.html").read_text().count("<audio controls") == 3


def test_without_any_detection_there_is_a_page_that_says_so(tmp_path: Path) -> None:
    detection_summary.write(tmp_path, [Listed("a", "a", 1, 60.0, DAWN, ())], {})
    assert "0 detections of 0 classes in 1 recording" in (tmp_path / "summary.html").read_text()


# ---- the list of species ----------------------------------------------------------------------------


def test_a_list_of_species_is_matched_by_either_name(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    classes = ("Turdus_merula", "Common Chaffinch", "Parus major_Great Tit", "Turdus_philomelos")
    path.write_text("Turdus merula_Amsel\n\nFringilla coelebs_Common Chaffinch\nno such bird\nparus major\n")
    assert classes_on(path, classes) == ([0, 1, 2], ["no such bird"])
    path.write_text("Turdus\n")
    assert classes_on(path, classes) == ([0, 3], [])
    path.write_text("Fringilla coelebs\n")
    published = {"Common Chaffinch": "Fringilla coelebs_Common Chaffinch"}
    assert classes_on(path, classes, published) == ([1], [])
    path.write_text("no such bird\n")
    with pytest.raises(InputError, match="none of its 1 name is a class"):
        classes_on(path, classes)
    with pytest.raises(InputError, match="--species-list"):
        classes_on(tmp_path / "gone.txt", classes)


def test_progress_comes_to_the_megabytes_of_all_recordings(tmp_path: Path) -> None:
    shown: list[int] = []

    class Shown:
        def advance(self, n: int, note: str = "") -> None:
            shown.append(n)

    meter = detect._Meter(Shown(), [tmp_path / "a.wav"] * 3, [10.0, 5.5, 4.5])  # type: ignore[arg-type]
    for _ in range(3):
        meter.next()
    assert shown == [10, 6, 4]
