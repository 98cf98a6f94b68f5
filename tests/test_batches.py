"""birdtune.data.batches: a batch follows from seed, epoch and step, and from nothing else."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_store, one_class_each

from birdtune.data.batches import Batch, Batches, Windows, in_order, prefetched
from birdtune.data.labels import Label
from birdtune.data.targets import WindowTargets, targets_of


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    lengths = {"a": 96, "b": 250, "c": 950, "d": 96, "e": 150}
    return Windows(make_store(tmp_path, lengths), list(lengths), hop_rows=96)


def batches_of(windows: Windows, **how: Any) -> Batches:
    return Batches(windows, one_class_each(windows, [0, 1, 2, 1, 0]), **how)


def starts(batch: Batch) -> list[tuple[int, int]]:
    """Recording and first frame of each row, as its content tells."""
    return [(int(patch[0, 0]), int(patch[0, 1])) for patch in batch.features]


def test_windows_lie_side_by_side_and_the_last_ends_with_its_recording(windows: Windows) -> None:
    assert len(windows) == 1 + 3 + 10 + 1 + 2
    assert windows.recording.tolist() == [0] + [1] * 3 + [2] * 10 + [3] + [4] * 2
    assert windows.offset.tolist()[:6] == [0, 0, 96, 154, 0, 96]
    assert windows.offset.tolist()[12:] == [768, 854, 0, 0, 54]
    assert windows.start_s[:4] == pytest.approx([0, 0, 0.96, 1.54])
    start_s, end_s = windows.seconds(np.array([2, 3]), np.array([-10, 10]))
    assert start_s == pytest.approx([0.86, 1.54]) and end_s == pytest.approx([1.82, 2.5]), "none leaves its recording"


def test_a_shorter_hop_makes_more_windows(tmp_path: Path) -> None:
    store = make_store(tmp_path, {"a": 200, "b": 96})
    windows = Windows(store, ["a", "b"], hop_rows=48)
    assert windows.offset.tolist() == [0, 48, 96, 104, 0]


def test_patches_are_the_frames_of_their_recording(windows: Windows) -> None:
    features = windows.features(np.arange(len(windows)))
    assert features.shape == (17, 96, 64)
    assert features.dtype == np.float16
    for window, patch in enumerate(features):
        assert (patch[:, 0] == windows.recording[window]).all()
        assert (patch[:, 1] == windows.offset[window] + np.arange(96)).all()


def test_no_recordings_make_no_windows(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, {"a": 96}), [], hop_rows=96)
    assert len(windows) == 0
    assert list(in_order(windows, 4)) == []
    assert len(batches_of(windows, batch_size=4, seed=0)) == 0


@pytest.mark.parametrize("jitter_rows", [0, 48])
def test_a_batch_is_a_function_of_seed_epoch_and_step(windows: Windows, jitter_rows: int) -> None:
    def batches(seed: int) -> Batches:
        return batches_of(windows, batch_size=4, seed=seed, jitter_rows=jitter_rows)

    straight = batches(7)
    epochs = [[straight.batch(epoch, step) for step in range(len(straight))] for epoch in range(3)]
    for epoch, step in ((2, 4), (0, 0), (1, 3), (0, 2)):
        # As after a restart at that very place, and in any order.
        for resumed in (straight.batch(epoch, step), batches(7).batch(epoch, step)):
            for name in ("windows", "targets", "known", "weights", "windows"):
                assert np.array_equal(getattr(resumed, name), getattr(epochs[epoch][step], name)), name
    assert not np.array_equal(epochs[0][0].windows, epochs[1][0].windows)
    assert not np.array_equal(epochs[0][0].windows, batches(8).batch(0, 0).windows)


@pytest.mark.parametrize("batch_size", [1, 4, 16, 17, 40])
def test_every_window_comes_once_an_epoch(windows: Windows, batch_size: int) -> None:
    batches = batches_of(windows, batch_size=batch_size, seed=1)
    assert len(batches) == -(-17 // batch_size)
    for epoch in range(3):
        made = [batches.batch(epoch, step) for step in range(len(batches))]
        counted = np.concatenate([batch.windows[batch.weights == 1] for batch in made])
        assert sorted(counted) == list(range(17))
        assert {batch.features.shape for batch in made} == {(batch_size, 96, 64)}
        assert sum(batch.weights.sum() for batch in made) == 17
        for batch in made:
            assert set(batch.weights) <= {0.0, 1.0}
            column = np.array([0, 1, 2, 1, 0])[windows.recording[batch.windows]]
            assert np.array_equal(batch.targets, np.eye(3)[column]) and (batch.known == 1).all()
            assert starts(batch) == [(windows.recording[w], windows.offset[w]) for w in batch.windows]


def test_judging_goes_through_all_windows_as_they_lie(windows: Windows) -> None:
    made = list(in_order(windows, 5))
    assert [batch.weights.sum() for batch in made] == [5, 5, 5, 2]
    assert np.concatenate([batch.windows[batch.weights > 0] for batch in made]).tolist() == list(range(17))
    assert {batch.features.shape for batch in made} == {(5, 96, 64)}
    assert [start for batch in made for start in starts(batch)][:17] == [
        (windows.recording[w], windows.offset[w]) for w in range(17)
    ]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(jitter_rows=st.integers(1, 200), epoch=st.integers(0, 1000))
def test_jitter_moves_within_the_recording_and_within_its_reach(
    tmp_path_factory: pytest.TempPathFactory, jitter_rows: int, epoch: int
) -> None:
    lengths = {"a": 96, "b": 130, "c": 1000}
    windows = Windows(make_store(tmp_path_factory.mktemp("store"), lengths), list(lengths), 96)
    batch = batches_of(windows, batch_size=len(windows), seed=3, jitter_rows=jitter_rows).batch(epoch, 0)
    for window, patch, (number, start) in zip(batch.windows, batch.features, starts(batch), strict=True):
        assert number == windows.recording[window], "a window stays in its recording"
        assert (patch[:, 0] == number).all()
        assert (patch[:, 1] == start + np.arange(96)).all()
        assert 0 <= start <= list(lengths.values())[number] - 96
        assert abs(start - windows.offset[window]) <= jitter_rows


def test_jitter_reaches_both_ends_and_differs_between_epochs(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, {"a": 5000}), ["a"], 96)
    batches = batches_of(windows, batch_size=len(windows), seed=3, jitter_rows=10)
    shifts = []
    for epoch in range(40):
        batch = batches.batch(epoch, 0)
        shifts.append([start - windows.offset[w] for w, (_, start) in zip(batch.windows, starts(batch), strict=True)])
    assert {shift for epoch in shifts for shift in epoch} == set(range(-10, 11))
    assert shifts[0] != shifts[1]


def test_a_jitter_that_moves_most_patches_to_the_ends_of_their_recordings_is_told(windows: Windows) -> None:
    assert windows.jitter_remark(0.0) == windows.jitter_remark(0.96) == ""
    told = windows.jitter_remark(96.0)
    assert told.startswith("--train.jitter-s 96: the recordings are too short")
    offset, room = windows.offset, windows.moves(np.arange(len(windows)), np.full(len(windows), 9600))
    shift = np.arange(-9600, 9601)[:, None]  # all that may be drawn
    share = float(((shift < -offset) | (shift > room)).mean())
    assert f"{share:.0%} of the windows are moved" in told and "half a window (0.48 s)" in told


def test_jitter_does_not_change_the_order(windows: Windows) -> None:
    still = batches_of(windows, batch_size=17, seed=5)
    moved = batches_of(windows, batch_size=17, seed=5, jitter_rows=20)
    assert np.array_equal(still.batch(2, 0).windows, moved.batch(2, 0).windows)


def test_targets_go_by_where_a_window_is_after_its_start_has_moved(tmp_path: Path) -> None:
    windows = Windows(make_store(tmp_path, {"a": 2000}), ["a"], 96)
    labels = targets_of([[Label("Tit", 5.0, 8.0)]], ["Tit"])
    batches = Batches(windows, WindowTargets(labels, windows), batch_size=len(windows), seed=3, jitter_rows=200)
    seen = set()
    for epoch in range(20):
        batch = batches.batch(epoch, 0)
        for target, known, (_, first) in zip(batch.targets[:, 0], batch.known[:, 0], starts(batch), strict=True):
            overlap = min(first / 100 + 0.96, 8.0) - max(first / 100, 5.0)
            expected = (1, 1) if overlap >= 0.48 - 1e-9 else (0, 0) if overlap > 1e-9 else (0, 1)
            assert (target, known) == expected
            seen.add(expected)
    assert len(seen) == 3


# ---- making ahead -------------------------------------------------------------------------------


def prefetchers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def gone() -> bool:
    """Whether the threads end by themselves; they look every tenth of a second."""
    for thread in prefetchers():
        thread.join(timeout=10)
    return not prefetchers()


def test_prefetching_changes_neither_items_nor_order() -> None:
    assert list(prefetched(range(100))) == list(range(100))
    assert list(prefetched([])) == []
    assert list(prefetched([None, False, 0])) == [None, False, 0]
    assert gone()


def test_items_are_made_ahead_but_not_without_limit() -> None:
    made = []

    def items() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    results = prefetched(items(), depth=3)
    next(results)
    while len(made) < 5:
        time.sleep(0.01)  # hangs if nothing is made ahead
    time.sleep(0.3)
    assert len(made) == 5, "one taken, three waiting, one in hand"
    results.close()
    assert gone()


class _Fault(BaseException):
    pass


@pytest.mark.parametrize("fault", [ValueError, _Fault])
def test_what_goes_wrong_ahead_is_raised_where_it_would_have_been(fault: type[BaseException]) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise fault("broken shard")

    taken = []
    with pytest.raises(fault, match="broken shard"):
        for item in prefetched(items()):
            taken.append(item)
    assert taken == [1, 2]
    assert gone()


def test_a_consumer_that_stops_stops_the_thread() -> None:
    def endless() -> Iterator[int]:
        k = 0
        while True:
            yield k
            k += 1

    for item in prefetched(endless()):
        if item == 5:
            break
    assert gone()
    results = prefetched(endless())
    next(results)
    with pytest.raises(RuntimeError):
        results.throw(RuntimeError)
    assert gone()


def test_the_work_is_done_by_another_thread() -> None:
    names = list(prefetched(threading.current_thread().name for _ in range(2)))
    assert names == ["prefetch", "prefetch"]
