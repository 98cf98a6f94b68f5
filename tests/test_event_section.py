"""birdtune.reporting.event_section: annotated over detected events of the worst and the median recordings."""

import html
import re
from typing import Any

import numpy as np
import pytest

from birdtune.audio.logmel import display
from birdtune.evaluation.decision import OWN, Thresholds
from birdtune.evaluation.event_metrics import Event
from birdtune.evaluation.recording_events import Compared
from birdtune.evaluation.scores import Scores
from birdtune.reporting.event_figure import Bar, ClassRow, draw
from birdtune.reporting.event_section import RecordingEvents, section
from birdtune.reporting.listening import Clip

CLASSES = ("Owl", "<b>Tit</b>", *(f"Finch {k}" for k in range(8)))
RATE_HZ = 16_000


def one(number: int, annotated: list[Event], detected: list[Event], duration_s: float = 20.0, **more: Any) -> Compared:
    return Compared(number, f"{number}.wav", duration_s, annotated, detected, more.get("uncounted", []))


def found(compared: list[Compared]) -> RecordingEvents:
    return RecordingEvents(CLASSES, compared, Thresholds((0.6,) * len(CLASSES), (OWN,) * len(CLASSES), "", ""), 1.0)


def scores_of(compared: list[Compared]) -> Scores:
    """Windows of a second; the score of the first class is 0.8 from second 2 to 4, else 0."""
    seconds = [int(each.duration_s) for each in compared]
    start_s = np.concatenate([np.arange(n) for n in seconds]).astype(np.float32)
    table = np.zeros((len(start_s), len(CLASSES)), np.float32)
    table[(start_s >= 2) & (start_s < 4), 0] = 0.8
    names = tuple(each.name for each in compared)
    targets = np.zeros((len(names), len(CLASSES)), np.float32)
    return Scores(CLASSES, names, names, targets, table, np.repeat(np.arange(len(names)), seconds), start_s)


def listen(_: str, start_s: float, seconds: float) -> Clip:
    time_s = start_s + np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return Clip((0.1 * np.sin(2 * np.pi * 3000 * time_s)).astype(np.float32), RATE_HZ)


def sectioned(compared: list[Compared], hear: Any = listen) -> Any:
    return section(found(compared), scores_of(compared), hear)


CALL, OTHER = Event(0, 2.0, 4.0), Event(1, 10.0, 12.0)


def test_right_missed_and_false_events_are_told_apart_without_colour_and_say_what_they_are() -> None:
    late = Event(0, 15.0, 17.0)
    (strip,) = sectioned([one(0, [CALL, OTHER], [CALL, late], uncounted=[Event(1, 18.0, 19.0)])])["strips"]
    bars = re.findall(r'<rect class="(\w+)"[^>]*><title>([^<]*)<', strip["picture"])
    assert [(kind, html.unescape(title)) for kind, title in bars] == [
        ("right", "Owl, annotated 2.0 to 4.0 s: correct"),
        ("right", "Owl, detected 2.0 to 4.0 s: correct"),
        ("false", "Owl, detected 15.0 to 17.0 s: false"),
        ("missed", "<b>Tit</b>, annotated 10.0 to 12.0 s: missed"),
        ("uncounted", "<b>Tit</b>, detected 18.0 to 19.0 s: not counted, as nobody knows what is there"),
    ]
    assert "<b>Tit" not in strip["picture"]
    assert (strip["right"], strip["annotated"], strip["missed"], strip["false"], strip["f1"]) == (1, 2, 1, 1, 0.5)
    assert strip["seconds"] == 20.0 and strip["sound"].startswith("data:audio/")
    assert "data:image/png" in strip["picture"]


def test_bars_scores_and_the_playhead_share_the_axis_of_time() -> None:
    spec = display(RATE_HZ)
    row = ClassRow("Owl", [Bar("annotated", "missed", 5.0, 10.0)], np.arange(20.0), np.full(20, 0.5), 0.6)
    picture = draw(np.zeros((2000, spec.n_mels), np.float32), spec, [row], (0.0, 20.0))
    width = float(re.search(r'viewBox="0 0 (\d+)', picture.svg)[1])  # type: ignore[index]
    left, plot = (width * share / 100 for share in (picture.box[0], picture.box[2]))
    bar = re.search(r'<rect class="missed" x="([\d.]+)".*?width="([\d.]+)"', picture.svg)
    assert bar and (float(bar[1]), float(bar[2])) == pytest.approx((left + plot / 4, plot / 4), abs=0.2)
    image = re.search(r'<image x="(\d+)" y="\d+" width="(\d+)"', picture.svg)
    assert image and (float(image[1]), float(image[2])) == pytest.approx((left, plot), abs=0.2)
    tick = re.search(r'x="([\d.]+)"[^>]*>10 s<', picture.svg)
    assert tick and float(tick[1]) == pytest.approx(left + plot / 2, abs=0.2)


def test_the_worst_by_f1_come_first_then_those_near_the_median() -> None:
    half, none = [CALL, Event(0, 15.0, 16.0)], [Event(1, 15.0, 16.0)]
    compared = [one(0, [CALL], [CALL]), one(1, [CALL], none), one(2, half, [CALL]), one(3, [CALL, OTHER], none)]
    compared += [one(number, [CALL], [CALL]) for number in range(4, 9)] + [one(9, [], [])]
    strips = sectioned(compared)["strips"]
    # Of equals the one with more errors.
    assert [strip["recording"] for strip in strips[:3]] == ["3.wav", "1.wav", "2.wav"]
    assert [strip["why"] for strip in strips] == ["one of the worst"] * 3 + ["near the median"] * 3
    # Where all are shown, none is the worst of others, nor near the median.
    assert [strip["why"] for strip in sectioned(compared[:4])["strips"]] == [""] * 4
    assert sectioned(compared)["recordings"] == 9 and len({strip["recording"] for strip in strips}) == 6
    assert sectioned([one(0, [], [CALL])]) is None


def test_of_a_long_recording_the_minute_with_most_errors_is_shown() -> None:
    early, late = [Event(0, 10.0, 11.0)], [Event(0, 400.0 + k, 400.5 + k) for k in range(0, 30, 10)]
    asked = []

    def hear(name: str, start_s: float, seconds: float) -> Clip:
        asked.append((start_s, seconds))
        return listen(name, start_s, seconds)

    (strip,) = sectioned([one(0, [*early, *late], [], 600.0)], hear)["strips"]
    assert strip["span_s"] == (398.0, 458.0) and asked == [(398.0, 60.0)] and not strip["is_whole"]
    assert strip["picture"].count('class="missed"') == 3 and ">440 s<" in strip["picture"]


def test_what_cannot_be_heard_is_drawn_without_sound_and_of_many_classes_the_rest_is_named() -> None:
    detected = [Event(column, 10.0, 12.0) for column in range(len(CLASSES))]
    (strip,) = sectioned([one(0, [CALL, OTHER], [CALL, *detected[1:]])], lambda *_: None)["strips"]
    assert strip["sound"] is None and "<image" not in strip["picture"]
    # Owl and the other are without an error, so the eight with one are drawn.
    assert strip["others"] == "2 classes with fewer errors: Owl, <b>Tit</b>"
    assert strip["picture"].count('class="name"') == 8
