"""birdtune.evaluation.recording_events: detections in the test beside its labels with times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from birdtune.audio.decode import SoundFacts
from birdtune.data.labels import IGNORED, Label
from birdtune.data.scan import Recording
from birdtune.evaluation.decision import BACKGROUND, OWN, Thresholds
from birdtune.evaluation.recording_events import compare, measure
from birdtune.evaluation.scores import Scores

CLASSES = ("Owl", "Tit", "background")
THRESHOLDS = Thresholds((0.6, 0.6, np.inf), (OWN, OWN, BACKGROUND), "", "")


def measured(labels: list[tuple[Label, ...]], heard: list[list[tuple[int, int]]], **changes: Any) -> Any:
    """Recordings of ten seconds; windows of a second in which the score of a class is 0.8, by recording."""
    recordings = [Recording(f"{k}.wav", Path(f"{k}.wav"), own, str(k), SoundFacts(16_000, 1, 10.0, -3.0, "WAV"))
                  for k, own in enumerate(labels)]  # fmt: skip
    scores = np.zeros((len(labels) * 10, 3), np.float32)
    for k, own in enumerate(heard):
        for second, column in own:
            scores[10 * k + second, column] = 0.8
    each = np.arange(len(labels))
    table = Scores(
        CLASSES, tuple(one.name for one in recordings), tuple(f"site {k}" for k in each),
        np.zeros((len(labels), 3), np.float32), scores, np.repeat(each, 10), np.tile(np.arange(10.0), len(labels)),
    )  # fmt: skip
    given = {"marked": ("Owl", "Tit"), "window_s": 1.0, **changes}
    compared = compare(table, recordings, THRESHOLDS, ("background",), **given)
    return measure(*compared, table.groups, n_bootstrap=50, seed=1)


def test_detections_at_the_thresholds_meet_annotated_events() -> None:
    found = measured(
        [(Label("Owl", 2.0, 4.0), Label("Tit", 7.0, 8.0)), (Label("Owl", 1.0, 2.0),)], [[(2, 0), (3, 0)], [(5, 0)]]
    )
    events = found["events"]
    assert (events["events"], events["detections"], events["precision"], events["recall"]) == (3, 2, 0.5, 1 / 3)
    assert events["f1"] == pytest.approx(0.4) and events["f1_ci"][0] < 0.4 < events["f1_ci"][1]
    assert [row["class"] for row in events["per_class"]] == ["Owl", "Tit"]
    assert (found["segments"]["recall"], found["recordings"]) == (0.5, 2)


def test_what_nobody_knows_is_left_out_and_background_has_false_ones() -> None:
    call = Label("Owl", 2.0, 3.0)
    labels = [
        (call,), (Label("Owl"),), (Label("background"),), (call, Label(IGNORED, 5.0, 6.0)),
        (call, Label("Tit", weight=0.0)),
    ]  # fmt: skip
    found = measured(labels, [[(2, 0)], [(7, 1)], [(7, 1)], [(2, 0), (5, 1)], [(2, 0), (5, 1), (5, 0)]])
    # Of the five, one is of background, and one of another class than the one that may be anywhere.
    assert (found["events"]["events"], found["events"]["detections"]) == (3, 5)
    assert (found["recordings"], found["recordings_left_out"]) == (4, 1)


def test_without_an_event_there_are_no_figures() -> None:
    assert measured([(Label("Owl"),)], [[(2, 0)]]) is None
    assert measured([(Label("Owl", 1.0, 2.0),)], [[(2, 0)]], marked=("Tit",)) is None
