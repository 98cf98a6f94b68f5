"""birdtune.data.clips: batches of whole recordings follow from seed, epoch and step, and from nothing else."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import make_store, one_class_each

from birdtune.data import clips
from birdtune.data.batches import Batch, Windows
from birdtune.data.clips import ClipBatches

LENGTHS = {"a": 96, "b": 250, "c": 950, "d": 96, "e": 150}  # 1, 3, 10, 1, 2 windows
FIELDS = ("windows", "targets", "known", "weights", "windows", "inside")
PER_RECORDING = [1, 3, 10, 1, 2]


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    return Windows(make_store(tmp_path, LENGTHS), list(LENGTHS), hop_rows=96)


def batches_of(windows: Windows, **changes: Any) -> ClipBatches:
    targets = one_class_each(windows, [0, 1, 2, 1, 0])
    return ClipBatches(windows, targets, **{"batch_size": 20, "seed": 3, **changes})


def same(one: Batch, other: Batch) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in FIELDS)


def rows_of(batch: Batch, windows: Windows) -> list[tuple[int, list[int], int]]:
    """Of each example that counts: recording, windows that are inside, and label."""
    assert batch.inside is not None
    places = batch.windows.reshape(batch.inside.shape)
    found = []
    for row in np.flatnonzero(batch.weights):
        (recording,) = set(windows.recording[places[row]].tolist())
        inside = places[row][batch.inside[row]] - np.flatnonzero(windows.recording == recording)[0]
        found.append((recording, inside.tolist(), int(batch.targets[row].argmax())))
    return found


def test_each_recording_is_an_example_of_all_its_windows_once_an_epoch(windows: Windows) -> None:
    batches = batches_of(windows)
    assert (len(batches), batches.batch_size, batches.places) == (3, 2, 10)
    epoch = [batches.batch(0, step) for step in range(3)]
    assert all(batch.features.shape == (20, 96, 64) for batch in epoch)
    assert [batch.weights.tolist() for batch in epoch] == [[1, 1], [1, 1], [1, 0]]
    rows = sorted(row for batch in epoch for row in rows_of(batch, windows))
    assert rows == [
        (recording, list(range(PER_RECORDING[recording])), label) for recording, label in enumerate([0, 1, 2, 1, 0])
    ]


def test_of_long_recordings_windows_are_drawn_from_all_of_them_anew_each_epoch(
    windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "_MOST_WINDOWS", 4)
    batches = batches_of(windows, batch_size=20)
    drawn = [dict(row[:2] for row in rows_of(batches.batch(epoch, 0), windows))[2] for epoch in range(30)]
    assert all(len(set(some)) == 4 and some == sorted(some) for some in drawn)
    assert {window for some in drawn for window in some} == set(range(10))
    assert len({tuple(some) for some in drawn}) > 10


@pytest.mark.parametrize("jitter_rows", [0, 48])
def test_a_batch_is_a_function_of_seed_epoch_and_step(
    windows: Windows, monkeypatch: pytest.MonkeyPatch, jitter_rows: int
) -> None:
    monkeypatch.setattr(clips, "_MOST_WINDOWS", 4)
    settings = {"batch_size": 8, "jitter_rows": jitter_rows}
    one = batches_of(windows, **settings)
    expected = {(epoch, step): one.batch(epoch, step) for epoch in (0, 1) for step in range(3)}
    again = batches_of(windows, **settings)
    for (epoch, step), batch in reversed(expected.items()):
        assert same(again.batch(epoch, step), batch)
    assert not same(batches_of(windows, seed=4, **settings).batch(0, 0), expected[0, 0])
    assert not same(expected[0, 0], expected[1, 0])


def test_several_batches_in_one_are_the_same_one_after_another(windows: Windows) -> None:
    batches = batches_of(windows, jitter_rows=10)
    several, parts = batches.batch(1, 0, 2), [batches.batch(1, step) for step in (0, 1)]
    for name in FIELDS:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(several, name), joined)


def test_jitter_moves_patches_within_their_recording(windows: Windows) -> None:
    still, moved = (batches_of(windows, jitter_rows=frames).batch(0, 0) for frames in (0, 48))
    np.testing.assert_array_equal(still.windows, moved.windows)
    recordings = windows.recording[moved.windows]
    assert (moved.features[:, 0, 0] == recordings).all()
    assert (moved.features[:, 0, 1] != still.features[:, 0, 1]).any()
