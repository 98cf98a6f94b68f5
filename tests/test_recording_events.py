"""birdtune.evaluation.recording_events, event_thresholds: detections beside labels with times."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from birdtune.audio.decode import SoundFacts
from birdtune.data.labels import IGNORED, Label
from birdtune.data.scan import Recording
from birdtune.evaluation.decision import BACKGROUND, OWN, SHARED, Thresholds
from birdtune.evaluation.event_thresholds import FEWEST_EVENTS, choose
from birdtune.evaluation.recording_events import Compared, compare, measure
from birdtune.evaluation.scores import Scores

CLASSES = ("Owl", "Tit", "background")
THRESHOLDS = Thresholds((0.6, 0.6, np.inf), (OWN, OWN, BACKGROUND), "", "")


Heard = list[list[tuple[int, int] | tuple[int, int, float]]]


def compared(
    labels: list[tuple[Label, ...]], heard: Heard, thresholds: Thresholds = THRESHOLDS, **changes: Any
) -> tuple[list[str], list[Compared]]:
    """Recordings of ten seconds; windows of a second with the score of a class, 0.8 if none is given, by recording."""
    recordings = [Recording(f"{k}.wav", Path(f"{k}.wav"), own, str(k), SoundFacts(16_000, 1, 10.0, -3.0, "WAV"))
                  for k, own in enumerate(labels)]  # fmt: skip
    scores = np.zeros((len(labels) * 10, 3), np.float32)
    for k, own in enumerate(heard):
        for second, column, *score in own:
            scores[10 * k + second, column] = score[0] if score else 0.8
    each = np.arange(len(labels))
    table = Scores(
        CLASSES, tuple(one.name for one in recordings), tuple(f"site {k}" for k in each),
        np.zeros((len(labels), 3), np.float32), scores, np.repeat(each, 10), np.tile(np.arange(10.0), len(labels)),
    )  # fmt: skip
    given = {"marked": ("Owl", "Tit"), "window_s": 1.0, "smooth_windows": 1, **changes}
    return compare(table, recordings, thresholds, ("background",), **given)


def measured(labels: list[tuple[Label, ...]], heard: Heard, **changes: Any) -> Any:
    groups = [f"site {k}" for k in range(len(labels))]
    return measure(*compared(labels, heard, **changes), groups, n_bootstrap=50, seed=1)


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


def test_recordings_that_were_reviewed_and_no_more_are_left_out_as_calls_beside_are_not_known() -> None:
    call, reviewed = Label("Owl", 2.0, 3.0), Label("Owl", 2.0, 3.0, is_reviewed=True)
    labels = [
        (call,), (reviewed,), (Label("Owl", 2.0, 3.0, weight=0.0, is_reviewed=True),), (Label("Owl"), reviewed),
        (Label("background"), reviewed), (call, Label("Tit", 7.0, 8.0, is_reviewed=True)),
    ]  # fmt: skip
    found = measured(labels, [[(2, 0), (5, 0)]] * 6)
    # A folder says that its class holds throughout, or that there is none; annotators marked all there is.
    assert (found["recordings"], found["recordings_left_out"]) == (3, 3)
    assert (found["events"]["events"], found["events"]["detections"]) == (4, 6)
    # Nor are thresholds chosen on them: what is false in them alone would raise that of Owl.
    alone = chosen([(call,), *[(reviewed,)] * 9], [[(2, 0, 0.3)], *[[(5, 0, 0.5)]] * 9])
    assert alone.values[0] < 0.3


def test_without_an_event_there_are_no_figures() -> None:
    assert measured([(Label("Owl"),)], [[(2, 0)]]) is None
    assert measured([(Label("Owl", 1.0, 2.0),)], [[(2, 0)]], marked=("Tit",)) is None


# ---- thresholds of detections -----------------------------------------------------------------------

OWL, TIT = (Label("Owl", 2.0, 3.0),), (Label("Tit", 7.0, 8.0),)


def chosen(labels: list[tuple[Label, ...]], heard: Heard, per_hour: float | None = None, **changes: Any) -> Any:
    return choose(
        lambda tried: compared(labels, heard, tried, **changes), CLASSES, THRESHOLDS, false_alarms_per_hour=per_hour
    )


def owls(n: int, score: float, false: float) -> tuple[list[tuple[Label, ...]], Heard]:
    """Recordings with an owl each, found with a score, and a false one with another; and one with a tit."""
    return [OWL] * n + [TIT], [[(2, 0, score), (8, 0, false)]] * n + [[(7, 1, 0.7)]]


def test_the_threshold_of_detections_is_that_with_the_highest_f1_and_may_be_below_a_half() -> None:
    found = chosen(*owls(3, 0.3, false=0.1))
    assert found.goal == "the highest F1 of events" and 0.1 < found.values[0] == found.values[1] < 0.3
    assert found.origins == (SHARED, SHARED, BACKGROUND) and "2 of 2 classes have too few" in found.reason
    assert measured(*owls(3, 0.3, false=0.1), thresholds=found)["events"]["f1"] == 1.0


def test_of_thresholds_that_are_nearly_as_good_the_middle_one_is_taken() -> None:
    heard = [[(2, 0, 0.9)]] * 19 + [[(2, 0, 0.9), (8, 0, 0.1)]]  # the false one costs 0.024 of F1, which may be chance
    found = chosen([OWL] * 20, heard)
    assert found.values[0] == 0.268941  # the middle of all that are tried from 0.018 to 0.881


def test_a_class_with_enough_events_has_a_threshold_of_its_own() -> None:
    found = chosen(*owls(FEWEST_EVENTS, 0.9, false=0.75))
    assert found.origins == (OWN, SHARED, BACKGROUND) and "1 of 2 classes have too few" in found.reason
    assert 0.75 < found.values[0] < 0.9
    assert chosen(*owls(FEWEST_EVENTS - 1, 0.9, false=0.75)).origins[0] == SHARED


def test_false_detections_an_hour_are_kept_where_validation_is_long_enough_to_show_it() -> None:
    few = chosen(*owls(3, 0.3, false=0.1), 5.0)
    assert few.goal == "the highest F1 of events" and "have 0.7 annotated min" in few.reason
    hours = 110 / 3600
    for allowed, lowest in ((2, 0.6), (10.5, 0.6), (11.5, 0.0)):  # one more than the ten must be allowed
        found = chosen(*owls(10, 0.9, false=0.6), allowed / hours)
        assert found.goal.startswith("at most") and lowest < found.values[0] < lowest + 0.1


def test_without_events_thresholds_of_recordings_stay() -> None:
    assert chosen([(Label("background"),)], [[(2, 0)]]) is None
    assert chosen([OWL], [[(2, 0)]], marked=()) is None
    found = chosen([OWL], [[(2, 0)]], marked=("Owl",))
    assert found.values[1:] == THRESHOLDS.values[1:] and found.origins[1] == OWN and found.values[0] < 0.8
