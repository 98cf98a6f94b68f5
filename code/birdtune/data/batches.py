"""(seed, epoch, step) → one batch; no other state.

    recordings + FrameStore ─▶ Windows ─┬▶ Batches.batch(epoch, step) ─▶ Batch
              labels ─▶ WindowTargets ─┘

Nothing is remembered from batch to batch, so a job that resumes at (epoch, step) sees exactly what it
would have seen, and several workers could each take their slice of the same global batch.
"""

import queue
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from birdtune.data.frames import FrameStore
from birdtune.data.sampling import Sampler
from birdtune.data.targets import WindowTargets

Item = TypeVar("Item")
# A jitter that moves more windows than these to the ends of their recordings hardly makes others of them.
_MOST_CONFINED = 0.5


@dataclass(frozen=True)
class Rows:
    """What the network is given of some windows; rows that only fill up have weight 0."""

    features: npt.NDArray[Any]  # [batch, window_rows, ...] as they are stored, or what another source gives
    weights: npt.NDArray[np.float32]  # [batch]
    windows: npt.NDArray[np.int64]  # [batch] which window each row is


@dataclass(frozen=True)
class Batch(Rows):
    """Windows and their targets for one training step, or for several one after another."""

    targets: npt.NDArray[np.float32]  # [batch, C] 0…1
    known: npt.NDArray[np.float32]  # [batch, C] how much each target counts; 0 where nobody knows
    # Where an example is several windows (clips.py), `windows` and `windows` have all, one example after another.
    inside: npt.NDArray[np.bool_] | None = None  # [batch, places] which are not only there to fill up


@dataclass(frozen=True)
class Part:
    """Which rows of each batch a process computes: one part of several of the same length.

    Attributes:
        number: of the part, from 0.
        parts: how many there are.
    """

    number: int = 0
    parts: int = 1

    def rows(self, n: int) -> npt.NDArray[np.int64]:
        """Numbers of its rows in a batch of `n`; what fills up the part repeats the last. [ceil(n / parts)]"""
        return np.minimum(self._places(n), n - 1)

    def real(self, n: int) -> npt.NDArray[np.float32]:
        """1 for each of its rows; 0 for what only fills up. [ceil(n / parts)]"""
        return (self._places(n) < n).astype(np.float32)

    def _places(self, n: int) -> npt.NDArray[np.int64]:
        length = -(-n // self.parts)
        return self.number * length + np.arange(length)


WHOLE = Part()


class Augment(Protocol):
    """What may be done to a batch before it is trained on (augment.py)."""

    def __call__(self, batch: Batch, epoch: int, first: int, order: npt.NDArray[np.int64]) -> Batch:
        """The batch, changed; `first`: place of its first row in the epoch, of which `order` has all."""
        ...


class Source(Protocol):
    """Where batches take their windows from: the frame store, or what was made of its windows."""

    def __len__(self) -> int:
        """How many windows there are."""
        ...

    def features(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[Any]:
        """What the network is given for some windows, each moved by so many frames. [n, ...]"""
        ...


class Windows:
    """Every window of some recordings, as places in the frame store.

    Args:
        contents: of the recordings, in their order.
        hop_rows: from the start of one window to the next.
    """

    def __init__(self, store: FrameStore, contents: Sequence[str], hop_rows: int) -> None:
        self.store = store
        self.contents = tuple(contents)
        self.hop_rows = hop_rows
        spec = store.spec
        entries = [store.entry(content) for content in contents]
        starts = [spec.starts(entry.n_rows, hop_rows) for entry in entries]
        self.per_recording = np.array([some.size for some in starts], np.int64)  # [recordings] windows of each
        self.recording = np.repeat(np.arange(len(entries)), self.per_recording)  # [windows]
        self.offset = np.concatenate([np.zeros(0, np.int64), *starts])  # [windows] frames
        self._shards = sorted({entry.shard for entry in entries})
        position = {name: number for number, name in enumerate(self._shards)}
        shard_of = np.array([position[entry.shard] for entry in entries], np.int32)
        start_of = np.array([entry.start for entry in entries], np.int64)
        self._shard = shard_of[self.recording]  # [windows]
        self._row = start_of[self.recording] + self.offset  # [windows] first frame within the shard
        lengths = np.array([entry.n_rows for entry in entries], np.int64)
        self._room = lengths[self.recording] - spec.window_rows - self.offset  # [windows] frames behind it

    def __len__(self) -> int:
        return int(self.recording.size)

    @property
    def n_rows(self) -> int:
        """Rows of all recordings together."""
        return sum(self.store.entry(content).n_rows for content in self.contents)

    @property
    def start_s(self) -> npt.NDArray[np.float32]:
        """Where each window begins in its recording, in seconds. [windows]"""
        return (self.offset / self.store.spec.rows_per_s).astype(np.float32)

    def seconds(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Start and end of some windows in their recordings, moved as `windows` moves them. [n] each"""
        spec = self.store.spec
        first = self.offset[windows] + self.moves(windows, shift)
        return first / spec.rows_per_s, (first + spec.window_rows) / spec.rows_per_s

    def features(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None = None
    ) -> npt.NDArray[Any]:
        """The rows of some windows. [n, window_rows, ...]

        Args:
            windows: [n] which ones.
            shift: [n] frames to move each by; none leaves its recording.

        Raises:
            RetryableError: the frames are not there any more.
        """
        spec = self.store.spec
        rows = self._row[windows] + self.moves(windows, shift)
        gathered = np.empty((windows.size, *spec.window_shape), spec.row_dtype)
        for position, (window, row) in enumerate(zip(windows, rows, strict=True)):
            self.store.read_into(gathered[position], self._shards[self._shard[window]], int(row))
        return gathered

    def moves(
        self, windows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64] | None
    ) -> npt.NDArray[np.int64]:
        """By how many frames each of some windows is moved, so that none leaves its recording. [n]"""
        if shift is None:
            return np.zeros(windows.size, np.int64)
        return np.clip(shift, -self.offset[windows], self._room[windows])

    def jitter_remark(self, jitter_s: float) -> str:
        """What to tell people of a start jitter longer than a window, where recordings are too short for it; or ""."""
        jitter_rows = self.store.spec.rows(jitter_s)
        if jitter_rows <= self.store.spec.window_rows:
            return ""
        beyond = sum(np.maximum(0, jitter_rows - room) for room in (self.offset, self._room))  # [windows]
        share = float(np.mean(beyond) / (2 * jitter_rows + 1))
        if share < _MOST_CONFINED:
            return ""
        return (
            f"--train.jitter-s {jitter_s:g}: the recordings are too short for so much. {share:.0%} of the "
            "windows are moved to the very beginning or end of theirs, and so are the same again and again; half a "
            f"window ({self.store.spec.window_s / 2:g} s) suits any."
        )


class Batches:
    """Training batches: every window once an epoch, in an order of its own each epoch.

    Args:
        windows: what gives their windows, or what was made of them.
        targets: of the same windows.
        jitter_rows: each window starts up to so many frames earlier or later, anew each epoch.
        augment: what is done to each batch.
        sampler: draws the windows of an epoch; None: every window once.
        weights: [windows] how much each counts; None: all alike.
        part: of each batch, what is made. Augmentation mixes rows: it is done to the whole batch first.
    """

    places = 1  # windows of an example

    def __init__(
        self,
        windows: Source,
        targets: WindowTargets,
        *,
        batch_size: int,
        seed: int,
        jitter_rows: int = 0,
        augment: Augment | None = None,
        sampler: Sampler | None = None,
        weights: npt.NDArray[np.float32] | None = None,
        part: Part = WHOLE,
    ) -> None:
        self.windows, self._targets = windows, targets
        self.batch_size, self._part = batch_size, part
        self._augment, self._sampler, self._weights = augment, sampler, weights
        self._seed = seed
        self._jitter_rows = jitter_rows
        nothing = np.zeros(0, np.int64)
        self._plan_of: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] = (-1, nothing, nothing)

    def __len__(self) -> int:
        """Batches in an epoch; the last may be filled up."""
        return -(-len(self.windows if self._sampler is None else self._sampler) // self.batch_size)

    def plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Order and shift of the windows in an epoch, a function of seed and epoch alone. [windows drawn] each"""
        if self._plan_of[0] != epoch:
            # Philox is counter-based and keyed: streams of different (seed, epoch) are independent.
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            sampler = self._sampler
            order = generator.permutation(len(self.windows)) if sampler is None else sampler.order(generator)
            reach = self._jitter_rows
            self._plan_of = (epoch, order, generator.integers(-reach, reach + 1, order.size))
        return self._plan_of[1], self._plan_of[2]

    def batch(self, epoch: int, step: int, n: int = 1) -> Batch:
        """Batch `step` (from 0) of an epoch, or that and the next ones, `n` in all, one after another."""
        part = slice(step * self.batch_size, (step + n) * self.batch_size)
        order, shift = self.plan(epoch)
        own = WHOLE if self._augment is not None else self._part
        made = self._rows(order[part], shift[part], n * self.batch_size, own)
        if self._augment is None:
            return made
        return part_of(self._augment(made, epoch, part.start, order), self._part)

    def _rows(
        self, chosen: npt.NDArray[np.int64], shift: npt.NDArray[np.int64], size: int, part: Part
    ) -> Batch:
        """A part of the batch of some windows, filled up to `size`."""
        rows = part.rows(size)
        windows, moved = np.resize(chosen, size)[rows], np.resize(shift, size)[rows]
        weights = (rows < chosen.size) * part.real(size)
        if self._weights is not None:
            weights = weights * self._weights[windows]
        features = self.windows.features(windows, moved)
        return Batch(features, weights, windows, *self._targets.of(windows, moved))


def part_of(batch: Batch, part: Part) -> Batch:
    """A part of a batch whose examples are windows."""
    if part.parts == 1:
        return batch
    size = len(batch.weights)
    rows = part.rows(size)
    return Batch(
        batch.features[rows], batch.weights[rows] * part.real(size), batch.windows[rows], batch.targets[rows],
        batch.known[rows],
    )


def in_order(windows: Source, batch_size: int) -> Iterator[Rows]:
    """All windows once, as they lie, for evaluation."""
    for start in range(0, len(windows), batch_size):
        yield batch_of(windows, np.arange(start, min(start + batch_size, len(windows))), batch_size)


def batch_of(
    windows: Source,
    chosen: npt.NDArray[np.int64],
    batch_size: int,
    shift: npt.NDArray[np.int64] | None = None,
) -> Rows:
    """All batches have one shape: another would be compiled and planned for anew."""
    filled = np.resize(chosen, batch_size)
    weights = (np.arange(batch_size) < chosen.size).astype(np.float32)
    moved = None if shift is None else np.resize(shift, batch_size)
    return Rows(windows.features(filled, moved), weights, filled)


def prefetched(items: Iterable[Item], depth: int = 4) -> Iterator[Item]:
    """The same items, made ahead by a thread, so that the disk works while the network does."""
    waiting: queue.Queue[Item | _End] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: "Item | _End") -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def produce() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_End(None))
        except BaseException as fault:  # handed to the consumer, which raises it
            put(_End(fault))

    threading.Thread(target=produce, name="prefetch", daemon=True).start()
    try:
        while not isinstance(item := waiting.get(), _End):
            yield item
        if item.fault is not None:
            raise item.fault
    finally:
        stop.set()


@dataclass(frozen=True)
class _End:
    fault: BaseException | None
