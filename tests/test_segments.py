"""birdtune.evaluation.segments: windows of any length → segments of a second."""

import numpy as np
import pytest

from birdtune.data.labels import Label
from birdtune.data.targets import targets_of
from birdtune.evaluation.scores import Scores
from birdtune.evaluation.segments import by_segments

CLASSES = ("Apus", "Bubo")


def windows(window_s: float, hop_s: float, durations: tuple[float, ...]) -> Scores:
    """The score of the first class is the number of the window, as hundredths; recordings of one source each."""
    counts = [max(1, int((seconds - window_s) // hop_s) + 1) for seconds in durations]
    recording = np.repeat(np.arange(len(counts)), counts)
    start_s = np.concatenate([np.arange(n) * hop_s for n in counts]).astype(np.float32)
    table = np.column_stack([np.arange(len(recording)) / 100, np.zeros(len(recording))]).astype(np.float32)
    names = tuple(f"{k}.wav" for k in range(len(counts)))
    targets = np.zeros((len(counts), 2), np.float32)
    return Scores(CLASSES, names, tuple(f"source {k}" for k in range(len(counts))), targets, table, recording, start_s)


def test_a_segment_has_the_scores_of_the_window_around_whose_centre_it_lies_and_its_own_targets() -> None:
    labels = [[Label("Apus", 1.0, 2.6)], [Label("Bubo", 0.0, 1.0)]]
    durations = (6.0, 2.5)
    found = by_segments(windows(3.0, 1.5, durations), targets_of(labels, CLASSES), durations, 3.0)
    assert found.recordings[:2] == ("0.wav, 0 s", "0.wav, 1 s") and found.recordings[6] == "1.wav, 0 s"
    assert found.groups == ("source 0",) * 6 + ("source 1",) * 3
    # Centres at 1.5, 3 and 4.5 s: the middle one speaks for 2.25 to 3.75.
    assert found.window_scores[:6, 0].tolist() == pytest.approx([0, 0, 0.01, 0.01, 0.02, 0.02])
    assert found.window_scores[6:, 0].tolist() == pytest.approx([0.03] * 3), "its only window, up to its end"
    assert found.targets[:, 0].tolist() == [0, 1, 1, 0, 0, 0, 0, 0, 0]
    assert found.targets[6:, 1].tolist() == [1, 0, 0]


def test_what_shares_too_little_with_a_label_is_unknown() -> None:
    labels = [[Label("Apus", 1.8, 4.0)]]
    found = by_segments(windows(1.0, 1.0, (5.0,)), targets_of(labels, CLASSES), (5.0,), 1.0)
    assert found.targets[:, 0].tolist() == [0, 0, 1, 1, 0]
    assert found.known[:, 0].tolist() == [True, False, True, True, True]


def test_models_with_other_windows_have_the_same_segments() -> None:
    labels, durations = [[Label("Apus", 1.0, 2.0)]] * 2, (7.3, 3.0)
    targets = targets_of(labels, CLASSES)
    long, short = (by_segments(windows(w, h, durations), targets, durations, w) for w, h in ((3.0, 1.5), (0.96, 0.48)))
    assert long.recordings == short.recordings and long.groups == short.groups
    assert np.array_equal(long.targets, short.targets) and np.array_equal(long.known, short.known)
