"""What frozen layers make of windows is computed once, kept, and found again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from makers import StopAt, make_store, quiet

from birdtune.data import shard_writer
from birdtune.data.batches import Windows
from birdtune.data.embedding_cache import ActivationStore, KeptWindows, fill
from birdtune.errors import Interrupted
from birdtune.runtime.signals import Interrupts

LENGTHS = {"a": 96, "b": 250, "c": 950, "d": 96, "e": 150}  # 1 + 3 + 10 + 1 + 2 windows
BATCH = 4


class Layers:
    """Stands in for frozen layers: tells recording and first frame of each window, and counts its batches."""

    def __init__(self) -> None:
        self.batches: list[npt.NDArray[Any]] = []

    def __call__(self, features: npt.NDArray[np.float16]) -> npt.NDArray[Any]:
        self.batches.append(features[:, 0, :2].copy())
        return np.stack(
            [features[:, 0, 0], features[:, 0, 1], features.sum((1, 2), dtype="<f4")], axis=1
        ).astype("<f4")


@pytest.fixture
def windows(tmp_path: Path) -> Windows:
    return Windows(make_store(tmp_path, LENGTHS), list(LENGTHS), hop_rows=96)


def kept(folder: Path, dtype: Any = "<f4") -> ActivationStore:
    return ActivationStore(folder / "frozen", (3,), dtype)


def run(
    store: ActivationStore,
    windows: Windows,
    layers: Callable[[npt.NDArray[np.float16]], npt.NDArray[Any]],
    interrupts: Interrupts | None = None,
) -> int:
    """Fill the store. Returns how many windows were said to be done."""
    with quiet().progress("", 0, "") as progress:
        fill(store, windows, layers, BATCH, progress=progress, interrupts=interrupts or Interrupts())
        return progress._done


def test_each_window_gets_what_was_made_of_it(tmp_path: Path, windows: Windows) -> None:
    store = kept(tmp_path)
    assert run(store, windows, Layers()) == 17
    numbers = np.array([16, 3, 4, 5, 0, 3, 13])
    for whose in (store, kept(tmp_path)):
        found = KeptWindows(windows, whose)
        assert found.features(numbers)[:, :2].tolist() == [
            [windows.recording[number], windows.offset[number]] for number in numbers
        ]
        np.testing.assert_array_equal(
            found.features(numbers)[:, 2], windows.features(numbers).sum((1, 2), dtype="<f4")
        )
        assert len(found) == 17


def test_what_is_there_is_not_computed_again(tmp_path: Path, windows: Windows) -> None:
    run(kept(tmp_path), windows, Layers())
    layers = Layers()
    assert run(kept(tmp_path), windows, layers) == 0
    assert layers.batches == []


def test_only_batches_with_a_new_recording_are_computed(tmp_path: Path, windows: Windows) -> None:
    fewer = Windows(windows.store, ["a", "b", "d", "e"], hop_rows=96)
    run(kept(tmp_path), fewer, Layers())
    layers = Layers()
    assert run(kept(tmp_path), windows, layers) == 10
    # Windows 4 to 13 are new: the batches that begin at 4, 8 and 12.
    assert [batch[0].tolist() for batch in layers.batches] == [[2, 0], [2, 384], [2, 768]]
    assert (
        KeptWindows(windows, kept(tmp_path)).features(np.arange(17))[:, 0].tolist()
        == windows.recording.tolist()
    )


@pytest.mark.parametrize("stop_at", [1, 3, 5])
def test_a_stopped_job_goes_on_with_the_same_batches(tmp_path: Path, windows: Windows, stop_at: int) -> None:
    straight, stopped = Layers(), Layers()
    run(kept(tmp_path / "straight"), windows, straight)
    with pytest.raises(Interrupted):
        run(kept(tmp_path / "stopped"), windows, stopped, StopAt(stop_at))
    left = kept(tmp_path / "stopped")
    done = [number for number, content in enumerate(LENGTHS) if content in left]
    assert done == [[], [0, 1], [0, 1, 2, 3]][(stop_at - 1) // 2]
    run(left, windows, stopped)
    before = {batch.tobytes() for batch in straight.batches}
    assert {batch.tobytes() for batch in stopped.batches} == before
    both = [
        KeptWindows(windows, kept(tmp_path / name)).features(np.arange(17)) for name in ("straight", "stopped")
    ]
    np.testing.assert_array_equal(*both)
    sizes = [path.stat().st_size for path in (tmp_path / "stopped/frozen").glob("shard-*")]
    assert sum(sizes) == 17 * 12  # nothing of the interrupted recording is left behind


def test_damaged_rows_are_found_and_made_again(tmp_path: Path, windows: Windows) -> None:
    store = kept(tmp_path)
    run(store, windows, Layers())
    entry = store.entry("c")
    with (store.folder / entry.shard).open("r+b") as file:
        file.seek(entry.start * 12 + 5)
        file.write(b"\xff")
    store = kept(tmp_path)
    assert store.verify(windows.contents) == ["c"]
    assert run(store, windows, Layers()) == 10


def test_other_counts_of_windows_are_not_taken_for_these(tmp_path: Path, windows: Windows) -> None:
    run(kept(tmp_path), windows, Layers())
    denser = Windows(windows.store, list(LENGTHS), hop_rows=48)
    assert kept(tmp_path).lacks(denser).tolist() == [False, *[True] * (5 + 19), False, *[True] * 3]


def test_bfloat16_is_kept_as_it_is(tmp_path: Path, windows: Windows) -> None:
    store = kept(tmp_path, ml_dtypes.bfloat16)
    run(store, windows, lambda features: Layers()(features).astype(ml_dtypes.bfloat16))
    found = KeptWindows(windows, store).features(np.arange(17))
    assert found.dtype == ml_dtypes.bfloat16 and store.row_bytes == 6
    assert found[:, 0].astype(int).tolist() == windows.recording.tolist()


def test_a_full_shard_is_followed_by_another(
    tmp_path: Path, windows: Windows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard_writer, "_SHARD_BYTES", 40)
    store = kept(tmp_path)
    run(store, windows, Layers())
    assert len(list(store.folder.glob("shard-*"))) > 2
    assert KeptWindows(windows, store).features(np.arange(17))[:, 0].tolist() == windows.recording.tolist()


def test_windows_that_move_are_refused(tmp_path: Path, windows: Windows) -> None:
    store = kept(tmp_path)
    run(store, windows, Layers())
    with pytest.raises(AssertionError, match="windows that move"):
        KeptWindows(windows, store).features(np.array([0]), np.array([1]))
