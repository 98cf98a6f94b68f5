"""What the step and the scoring are fed with, and what is left to compute of the network.

    Classifier + Windows ─▶ Frozen ─▶ Feed: a source of batches, and the way from what it gives to embeddings

Frozen layers are computed once for each window, and their activations kept on disk; the step then begins behind
them. What is small enough lies in the memory of whatever computes, and a batch is but the numbers of its rows.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.data.batches import Source, Windows
from birdtune.data.copies import Copies, CopyOf
from birdtune.data.embedding_cache import SHARE_OF_DISK, ActivationStore, KeptWindows, fill, is_worth_keeping
from birdtune.data.frames import FrameStore
from birdtune.errors import shown
from birdtune.models import front_end_graph
from birdtune.models.classifier import Classifier
from birdtune.runtime.files import value_sha256
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import free_bytes, need_space, size_text
from birdtune.training import devices

# Counted up when the same layers with the same weights begin to compute something else.
_VERSION = 1
# What lies in main memory stays small beside TensorFlow itself.
_MOST_RESIDENT_BYTES = 256 << 20
# On a card the network needs the other half.
_SHARE_OF_GPU = 0.5
_PIECE = 8192  # windows or frames copied at a time


@dataclass(frozen=True)
class Feed:
    """A source of windows, and how to compute embeddings from what it gives."""

    source: Source
    embed: Callable[
        [Any], Any
    ]  # [n, ...] as the source gives it → [n, embedding size] float32, in TensorFlow
    flops: float  # of `embed`, for one window
    convolves: bool  # whether `embed` computes convolutions
    n_copies: int = 0  # augmented ones of each window, behind the windows


def whole(trained: Classifier, windows: Source) -> Feed:
    """Windows in, and all of the backbone to compute."""
    return Feed(windows, trained.embed, trained.backbone.window_flops(), True)


class Frozen:
    """The frozen beginning of a network, and what it makes of windows.

    Args:
        trained: with its first weights; what is frozen in it never changes.
        store: of the features; what is kept lies in folders below its own.
        most_bytes: what may be kept altogether.
        reserved_bytes: of the free disk, what checkpoints will need.
        kept: of which windows ("training", "validation") the run keeps activations or not, where it has begun
            already: either way leads to the same but for the last bits, and a run that goes on must not change them.
    """

    def __init__(
        self,
        trained: Classifier,
        *,
        store: FrameStore,
        most_bytes: float,
        reserved_bytes: float = 0,
        journal: Journal,
        interrupts: Interrupts,
        kept: Mapping[str, bool] | None = None,
    ) -> None:
        self.classifier = trained
        self.kept = dict(kept or {})
        self._features, self._left_bytes, self._reserved_bytes = store, most_bytes, reserved_bytes
        self._journal, self._interrupts = journal, interrupts
        self._is_any = trained.backbone.n_frozen(trained.network) > 0
        if self._is_any:
            backbone, network = trained.backbone, trained.network
            self._cut = backbone.cut(backbone.n_frozen(network))
            self._beginning, self._rest = backbone.split(network)
            self._key = value_sha256([_VERSION, backbone.digest(network)])[:16]

    def feed(self, windows: Windows, *, what: str, moves: str = "") -> Feed:
        """Windows as activations of the frozen layers, computed now if they are not kept yet; or as frames.

        Args:
            what: the windows, for people: "training", "validation".
            moves: what makes other windows of them each epoch, if anything does.

        Raises:
            Interrupted, RetryableError, InputError: what was finished is kept.
        """
        if not self._is_any:
            return whole(self.classifier, windows)
        self.choose(windows, what=what, moves=moves)
        if not self.kept[what]:
            return whole(self.classifier, windows)
        store = self._store(windows.hop_rows)
        self._left_bytes -= len(windows) * store.row_bytes
        self._features.in_use.add(store.folder)
        self._fill(store, windows, what)
        rest = self._rest
        embed = (lambda given: given) if rest is None else rest
        return Feed(KeptWindows(windows, store), embed, self._cut.rest_flops, self._cut.rest_convolves)

    def with_copies(self, windows: Windows, copies: Sequence[CopyOf], *, what: str, moves: str = "") -> Feed:
        """As `feed`, with augmented copies beside the windows, where what the frozen layers make is kept."""
        feed = self.feed(windows, what=what, moves=moves)
        if not copies or not isinstance(feed.source, KeptWindows):
            return feed
        kept = [feed.source]
        for copy in copies:
            store = self._store(windows.hop_rows, f"-copy-{copy.digest()[:16]}")
            self._left_bytes -= len(windows) * store.row_bytes
            self._features.in_use.add(store.folder)
            self._fill(store, windows, f"{what}, copy {copy.number} of {len(copies)}", copy)
            kept.append(KeptWindows(windows, store))
        return replace(feed, source=Copies(kept), n_copies=len(copies))

    def choose(self, windows: Windows, *, what: str, moves: str = "", times: int = 1) -> None:
        """Choose whether to keep what the frozen layers make of these windows, if that is not known; as `feed`.

        Args:
            times: how many times as much is to be kept, with copies.
        """
        if not self._is_any or what in self.kept:
            return
        why = self._why_not(self._store(windows.hop_rows), windows, moves, times)
        self.kept[what] = not why
        if why:
            self._journal.say(f"  {what}: the frozen layers are computed in each epoch, as {why}")

    def has(self, windows: Windows) -> bool:
        """Whether what the frozen layers make of these windows is kept already."""
        return self._is_any and not self._store(windows.hop_rows).lacks(windows).any()

    def _store(self, hop_rows: int, more: str = "") -> ActivationStore:
        output = self._beginning.output
        shape = tuple(int(size) for size in output.shape[1:])
        folder = self._features.folder / f"frozen-{self._key}-hop{hop_rows}{more}"
        return ActivationStore(folder, shape, tf.as_dtype(output.dtype).as_numpy_dtype)

    def _why_not(self, store: ActivationStore, windows: Windows, moves: str, times: int) -> str:
        """Why activations are not kept; "" if they are."""
        if moves:
            return f"{moves} makes other windows of the sound each time"
        if not is_worth_keeping(self._cut.frozen_flops, store.row_bytes, on_gpu=devices.has_gpu()):
            return "that is faster than reading what they would make"
        n_bytes = times * len(windows) * store.row_bytes
        if n_bytes > self._left_bytes:
            return f"what they make would take {size_text(n_bytes)} (--train.cache-gb)"
        lacking = int(store.lacks(windows).sum()) + (times - 1) * len(windows)
        left, free = lacking * store.row_bytes, free_bytes(store.folder)
        if free is not None and left > (free - self._reserved_bytes) * SHARE_OF_DISK:
            kept_free = f" ({size_text(self._reserved_bytes)} of it for checkpoints)" if self._reserved_bytes else ""
            return f"what they make would take {size_text(left)}, and {size_text(free)} are free{kept_free}"
        return ""

    def _fill(self, store: ActivationStore, windows: Windows, what: str, source: Source | None = None) -> None:
        if damaged := store.verify(windows.contents):
            self._journal.warn(
                f"{len(damaged):,} recordings had damaged numbers in {shown(store.folder)}; they are made again"
            )
        lacking = int(store.lacks(windows).sum())
        kept = f"{size_text(len(windows) * store.row_bytes)} in {store.folder.name}"
        if not lacking:
            self._journal.say(f"  {what}: what the frozen layers make is there ({kept})")
            return
        need_space(
            store.folder, lacking * store.row_bytes, f"what the frozen layers make of {lacking:,} windows"
        )
        compute = tf.function(lambda given: self._beginning(front_end_graph.as_float(given)), autograph=False)
        with self._journal.progress(f"frozen layers, {what}", lacking, "windows") as progress:
            fill(
                store,
                windows,
                lambda given: np.asarray(compute(devices.tensor(given)).numpy()),
                self.classifier.backbone.frozen_batch(),
                progress=progress,
                interrupts=self._interrupts,
                source=source,
            )
        self._journal.say(f"  {what}: the frozen layers are computed once, for {lacking:,} windows ({kept})")

    def drop_unused(self) -> None:
        """Give back what other frozen layers made: of a run that is over, or was set otherwise."""
        for folder in self._features.folder.glob("frozen-*"):
            if folder not in self._features.in_use:
                shutil.rmtree(folder, ignore_errors=True)


# ---- in memory ----------------------------------------------------------------------------------


class Resident:
    """A source that lies in the memory of whatever computes; it gives the numbers of rows of a table."""

    def __init__(self, first_row: npt.NDArray[np.int64], windows: Windows | None = None, n: int | None = None) -> None:
        self._first_row = first_row  # [windows], and of copies of them
        self._windows = windows
        self._n = first_row.size if n is None else n

    def __len__(self) -> int:
        return int(self._n)

    def features(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[np.int64]:
        """The first row of each window. [n]"""
        moves = 0 if self._windows is None else self._windows.moves(windows, shift)
        return np.asarray(self._first_row[windows] + moves, np.int64)


def in_memory(feed: Feed) -> Feed:
    """The same feed, from memory if what it is fed with fits there.

    On a CPU that are activations of some MB, from which thousands of updates a second are fed; on a card frames,
    too: whole recordings, of which windows are cut on the card.
    """
    gpu = devices.memory_bytes() * _SHARE_OF_GPU
    source = feed.source
    if isinstance(source, KeptWindows | Copies) and source.n_rows * source.store.row_bytes <= max(
        gpu, _MOST_RESIDENT_BYTES
    ):
        return _resident_rows(feed, source)
    if isinstance(source, Windows) and source.n_rows * source.store.row_bytes <= gpu:
        return resident_frames(feed, source)
    return feed


def _resident_rows(feed: Feed, source: KeptWindows | Copies) -> Feed:
    store = source.store
    # Not a tensor from one array: that would be there twice for a while.
    table = tf.Variable(tf.zeros((source.n_rows, *store.shape), store.dtype), trainable=False)
    for begin in range(0, source.n_rows, _PIECE):
        numbers = np.arange(begin, min(begin + _PIECE, source.n_rows))
        table[begin : begin + numbers.size].assign(source.features(numbers))
    resident = Resident(np.arange(source.n_rows), n=len(source))
    return replace(feed, source=resident, embed=lambda rows: feed.embed(tf.gather(table, rows)))


def resident_frames(feed: Feed, windows: Windows) -> Feed:
    """Rows of whole recordings as one table on the device, as they are stored; windows are gathered there."""
    spec = windows.store.spec
    lengths = [windows.store.entry(content).n_rows for content in windows.contents]
    starts = np.cumsum([0, *lengths])  # [recordings + 1] first row in the table
    table = tf.Variable(tf.zeros((int(starts[-1]), *spec.row_shape), spec.row_dtype), trainable=False)
    for content, start, length in zip(windows.contents, starts, lengths, strict=False):
        for first in range(0, length, _PIECE):
            frames = windows.store.rows(content, first, _PIECE)
            table[start + first : start + first + len(frames)].assign(frames)
    inside = tf.range(spec.window_rows, dtype=tf.int64)
    resident = Resident(starts[windows.recording] + windows.offset, windows)
    return replace(
        feed, source=resident, embed=lambda rows: feed.embed(tf.gather(table, rows[:, None] + inside))
    )
