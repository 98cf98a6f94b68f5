"""What the frozen layers of a network make of each window, kept on disk so that it is computed once.

    Windows, function ─▶ fill ─▶ ActivationStore (shards and their index: shards.py)
    Windows + ActivationStore ─▶ KeptWindows ─▶ batches of activations

One row a window, all windows of a recording together, by the recording's content; so what is new is computed
and nothing else. The numbers are kept in the type in which the network computes them there: nothing is lost.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from birdtune.data.batches import Rows, Source, Windows, batch_of, prefetched
from birdtune.data.shard_writer import ShardWriter
from birdtune.data.shards import ShardStore
from birdtune.runtime.files import make_folder
from birdtune.runtime.log import Progress
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults

# Of the disk's free space, what is kept may take this share.
SHARE_OF_DISK = 0.8
# Operations spared for each byte read below which reading takes longer than computing: a disk gives some GB/s, two
# cores compute some 500 GFLOP/s, a card some 500 TFLOP/s. Behind VGGish's conv1 alone a window spares 36 a byte.
_WORTH_ON_CPU, _WORTH_ON_GPU = 400.0, 40_000.0

Compute = Callable[[npt.NDArray[np.float16]], npt.NDArray[Any]]


class ActivationStore(ShardStore):
    """Activations by content, one row a window; args as `ShardStore`."""

    def __init__(self, folder: Path, shape: Sequence[int], dtype: npt.DTypeLike) -> None:
        super().__init__(folder, shape, dtype, what="what the frozen layers made")

    def lacks(self, windows: Windows) -> npt.NDArray[np.bool_]:
        """Of which windows the activations are not there. [windows]"""
        lacking = [
            content not in self or self.entry(content).n_rows != n
            for content, n in zip(windows.contents, windows.per_recording, strict=True)
        ]
        return np.repeat(lacking, windows.per_recording)


def is_worth_keeping(flops: float, row_bytes: int, *, on_gpu: bool) -> bool:
    """Whether reading a window's activations takes less time than computing them.

    Args:
        flops: floating-point operations to compute them.
        row_bytes: what they take.
        on_gpu: where they would be computed.
    """
    return flops / row_bytes >= (_WORTH_ON_GPU if on_gpu else _WORTH_ON_CPU)


class KeptWindows:
    """The same windows, as the frozen layers left them: a source of batches.

    Args:
        windows: all of their recordings are in the store.
    """

    def __init__(self, windows: Windows, store: ActivationStore) -> None:
        self.store = store
        entries = [store.entry(content) for content in windows.contents]
        first = np.cumsum(windows.per_recording) - windows.per_recording  # [recordings] first window
        within = np.arange(len(windows)) - first[windows.recording]  # [windows] number within the recording
        self._shards = sorted({entry.shard for entry in entries})
        number = {name: number for number, name in enumerate(self._shards)}
        self._shard = np.array([number[entry.shard] for entry in entries], np.int32)[windows.recording]
        self._row = np.array([entry.start for entry in entries], np.int64)[windows.recording] + within

    def __len__(self) -> int:
        return int(self._row.size)

    @property
    def n_rows(self) -> int:
        """As many as windows."""
        return len(self)

    def features(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[Any]:
        """The activations of some windows. [n, *shape]

        Args:
            shift: must be zero: what a moved window would come to, nobody computed.

        Raises:
            RetryableError: they are not there any more.
        """
        assert shift is None or not shift.any(), "windows that move cannot be kept"
        found = np.empty((windows.size, *self.store.shape), self.store.dtype)
        rows, shards = self._row[windows], self._shard[windows]
        # Neighbours on the disk are read together.
        begins = np.flatnonzero((np.diff(rows, prepend=-2) != 1) | (np.diff(shards, prepend=-1) != 0))
        for begin, end in zip(begins, [*begins[1:], windows.size], strict=True):
            self.store.read_into(found[begin:end], self._shards[shards[begin]], int(rows[begin]))
        return found


def fill(
    store: ActivationStore,
    windows: Windows,
    compute: Compute,
    batch_size: int,
    *,
    progress: Progress,
    interrupts: Interrupts,
    source: Source | None = None,
) -> None:
    """Compute and keep the activations of all recordings that lack them.

    Which windows share a batch depends on the list of windows alone, not on what is there already: so a job that
    was stopped in the middle ends with the same bits as one that was not.

    Args:
        compute: windows [batch, 96, 64] → activations [batch, *shape].
        source: of what is computed from in place of the windows themselves.

    Raises:
        Interrupted: the recordings that were finished are kept.
        RetryableError, InputError: the storage refuses; likewise.
    """
    wanted = store.lacks(windows)  # [windows]
    make_folder(store.folder)
    store.drop_leftovers()
    with (
        storage_faults(store.folder, "what the frozen layers make", int(wanted.sum()) * store.row_bytes),
        store.appending() as index,
        _Writer(store, index) as writer,
    ):
        for batch in prefetched(_batches(windows, wanted, batch_size, source or windows)):
            real = batch.windows[: int(batch.weights.sum())]
            rows = compute(batch.features)[: real.size]  # [n, *shape]
            interrupts.check()  # before anything counts that an interruption may have spoilt
            for recording in np.unique(windows.recording[real[wanted[real]]]):
                inside = windows.recording[real] == recording
                writer.write(windows.contents[recording], rows[inside], int(windows.per_recording[recording]))
            progress.advance(int(wanted[real].sum()))
    store.note_whole()


def _batches(windows: Windows, wanted: npt.NDArray[np.bool_], batch_size: int, source: Source) -> Iterator[Rows]:
    """Those batches of all windows, as they lie, in which one is wanted."""
    for start in range(0, len(windows), batch_size):
        numbers = np.arange(start, min(start + batch_size, len(windows)))
        if wanted[numbers].any():
            yield batch_of(source, numbers, batch_size)


class _Writer:
    """Appends the windows of contents, which come one after another; a content counts once all of its are there."""

    def __init__(self, store: ActivationStore, index: IO[bytes]) -> None:
        self._store, self._index = store, index
        self._shard = ShardWriter(store.folder, store.row_bytes)
        self._content = ""

    def write(self, content: str, rows: npt.NDArray[Any], n_rows: int) -> None:
        """Append some rows of a content, `n_rows` altogether."""
        if content != self._content:
            self._shard.begin()
            self._content = content
        if self._shard.write(rows) == n_rows:
            self._store.add(self._shard.end(content), self._index)

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._shard.close()
