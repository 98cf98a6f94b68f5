"""Recordings through a model, window by window; the decoder works in a process of its own.

    files ─▶ Cutter.pieces (in the decoder's process) ─▶ windows, batched across files ─▶ model ─▶ Scored | Unused

While the model computes with one batch, in a thread, the next one is decoded, and what came of the last one is used.
A file that cannot be used is reported and the others go on; one on which the decoder dies is such a file.
Windows are not kept, and of files that are scored in segments nothing is: memory does not grow with their length. The
model is given as a callable, so that nothing here imports TensorFlow.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdtune.audio.decode import SoundFacts, SoundStream
from birdtune.audio.faults import SoundError
from birdtune.audio.front_end import FrontEnd
from birdtune.data.file_index import crashed
from birdtune.errors import CheckpointError, shown
from birdtune.runtime.workers import Crashed, Isolated
from birdtune.settings import AudioSettings

Floats = npt.NDArray[np.float32]


class Channel(NamedTuple):
    """One channel of a file, taken as a recording of its own."""

    path: Path
    channel: int  # from 0

    @property
    def name(self) -> str:
        return f"{shown(self.path)}#{self.channel + 1}"


class Unused(NamedTuple):
    """A file that was not used, and why."""

    name: str  # as given, or below the folder that was given; safe to show
    problem: str  # a key of scan.PROBLEMS
    detail: str
    in_part: bool = False  # what came before it breaks off was scored
    is_used: bool = False  # all of it was used, and this is a remark


@dataclass(eq=False)
class _Pending:
    """A file on its way through the model, or a segment of one."""

    name: str
    begin: int = 0  # its first frame
    first_frames: list[int] = field(default_factory=list)  # of each window cut so far
    results: list[Floats] = field(default_factory=list)  # parts of [P, K]
    sums: npt.NDArray[np.float64] | None = None  # [S]
    n_results: int = 0
    ended: bool = False
    duration_s: float = math.inf
    problem: Unused | None = None
    damage: Unused | None = None

    @property
    def is_done(self) -> bool:
        return self.ended and (self.problem is not None or self.n_results == len(self.first_frames))


class Scored(NamedTuple):
    """A file that went through the model, or a segment or part of it; `sums` are over its windows, `results` each."""

    name: str
    begin_s: float  # of the segment or part; 0 of a file
    duration_s: float  # of the file; infinite where more of it follows
    start_s: npt.NDArray[np.float64]  # [P] in the file
    results: Floats  # [P, K]
    sums: npt.NDArray[np.float64]  # [S]
    damage: Unused | None = None  # what is wrong with the file; of segments and parts, the last one has it


class _Batches:
    """Collects windows, whichever files they are of, and gives the model full batches in a thread."""

    def __init__(self, function: Callable[[Floats], Any], size: int, spec: FrontEnd, kept: int | None) -> None:
        self._function, self._kept = function, kept
        # The model has one, while the other is filled.
        self._windows, self._given = np.zeros((2, size, *spec.window_shape), np.float32)
        self._owners: list[_Pending] = []
        self._owners_given: list[_Pending] = []
        self._running: Future[Floats] | None = None
        self._thread = ThreadPoolExecutor(1, "model")

    def __enter__(self) -> "_Batches":
        return self

    def __exit__(self, *fault: object) -> None:
        self._thread.shutdown()

    def add(self, sound: _Pending, window: Floats) -> bool:
        """Take one window [window_rows, ...]; whether results of earlier ones came."""
        self._windows[len(self._owners)] = window
        self._owners.append(sound)
        return len(self._owners) == len(self._windows) and self._give()

    def flush(self) -> None:
        """Run the model over what is waiting and hand all results to the files."""
        self._give()
        self._give()

    def _give(self) -> bool:
        """Give the model what is waiting, and what came of the batch before to the files; whether there was one."""
        results, owners = self._finished(), self._owners_given
        if self._owners:
            self._running = self._thread.submit(self._run, self._windows[: len(self._owners)])
            self._owners, self._owners_given = [], self._owners
            self._windows, self._given = self._given, self._windows
        if results is None:
            return False
        self._hand_over(owners, results)
        return True

    def _finished(self) -> Floats | None:
        """What came of the batch before, once the model is done with it; None: there was none."""
        running, self._running = self._running, None
        try:
            return None if running is None else running.result()
        finally:
            del running  # what it raises would keep it, and it that, with all their frames

    def _run(self, windows: Floats) -> Floats:
        # A copy: a view of what the model was given would change when that is filled anew.
        results = np.array(self._function(windows), np.float32)  # [n, K]
        if not np.isfinite(results).all():
            raise CheckpointError(
                "the model answers NaN or infinity; its weights are broken. Train or export it again."
            )
        return results

    def _hand_over(self, owners: Sequence[_Pending], results: Floats) -> None:
        at = 0
        for sound, windows in itertools.groupby(owners, key=lambda owner: owner):
            count = len(list(windows))
            part = results[at : at + count]
            sound.results.append(part[:, : self._kept].copy())  # not a view, which would keep the rest
            sums = part[:, self._kept or part.shape[1] :].sum(axis=0, dtype=np.float64)
            sound.sums = sums if sound.sums is None else sound.sums + sums
            sound.n_results += count
            at += count


@dataclass(frozen=True)
class Cutter:
    """How recordings are cut into windows.

    Attributes:
        hop_rows: from one window to the next.
        longest_s: longer sounds are refused.
        segment_rows: each segment of this many rows, at least a window, is cut as if it were a recording of its own:
            its first window begins with it, the last ends with it. What is left behind the last one, if shorter than a
            window, is scored by a window that ends with the recording. None: the whole recording is cut.
        part_windows: so many windows of a recording come out together, each a window of the whole one, so that memory
            does not grow with its length. None: all of them.
        scored: recordings of which so many windows, in whole parts, were scored before: these are left out.
    """

    sound: AudioSettings
    hop_rows: int
    longest_s: float
    spec: FrontEnd
    segment_rows: int | None = None
    part_windows: int | None = None
    scored: Mapping[Path | Channel, int] = field(default_factory=dict)

    @property
    def by_parts(self) -> bool:
        """Whether a recording comes out part by part."""
        return self.segment_rows is not None or self.part_windows is not None

    def pieces(self, given: Path | Channel) -> Iterator["_Piece"]:
        """First row and rows [window_rows, ...] of each window of a file; its facts at last.

        Behind each whole segment or part, the row at which the next one begins.

        Raises:
            SoundError: the file cannot be used; some of them only after the last window.
        """
        path, channel = given if isinstance(given, Channel) else (given, None)
        stream = SoundStream(
            path, self.sound, rate_hz=self.spec.rate_hz, longest_s=self.longest_s,
            silent_too=self.by_parts, channel=channel,
        )  # fmt: skip
        try:
            size = self.segment_rows
            before = self.scored.get(given, 0)
            yield from self._of_parts(stream, before) if size is None else self._of_segments(stream, size)
        except OSError as fault:
            raise SoundError("unreadable", f"the storage failed ({fault.strerror})") from fault
        except (UnicodeError, TypeError) as fault:
            # soundfile opens no name that ends in .raw.
            detail = f"its name keeps it from being opened ({shown(fault)}); rename it"
            raise SoundError("unreadable", detail) from fault
        assert stream.facts is not None
        yield stream.facts

    def _cut(self, blocks: Iterable[Floats]) -> Iterator[tuple[int, Floats]]:
        return self.spec.cut(self.spec.rows_of(blocks), self.hop_rows)

    def _of_parts(self, stream: SoundStream, before: int) -> Iterator[tuple[int, Floats] | int]:
        for number, (first, window) in enumerate(self._cut(stream)):
            if number < before:
                continue
            if self.part_windows is not None and number and number % self.part_windows == 0:
                yield first
            yield first, window

    def _of_segments(self, stream: SoundStream, size: int) -> Iterator[tuple[int, Floats] | int]:
        """Windows of each segment, and where the next one begins; of what is left at the end, the last window."""
        spec, source = self.spec, _Source(stream, self.spec.window_samples)
        begin = 0
        while source.has(spec.window_rows * spec.row_hop) or not begin:
            # A few milliseconds at the end of the sound are not worth a segment of their own.
            for first, window in self._cut(source.blocks(size * spec.row_hop, slack=spec.row_hop)):
                yield begin + first, window
            begin += size
            yield begin
        if source.has(1):  # too short for a window: one that ends with the sound begins before it
            rest, earlier = source.rest(spec.window_samples, spec.row_hop)
            begin -= earlier
            yield begin
            for first, window in self._cut([rest]):
                yield begin + first, window


# First row and rows of a window; at which row the next segment begins; the facts of a file.
_Piece = tuple[int, Floats] | int | SoundFacts


class _Source:
    """A sound that is taken in segments; the last samples that were taken, `kept` at most, can be had once more."""

    def __init__(self, blocks: Iterable[Floats], kept: int) -> None:
        self._blocks, self._kept = iter(blocks), kept
        self._taken = self._waiting = np.zeros(0, np.float32)

    def has(self, n_samples: int) -> bool:
        """Whether so many samples follow at least."""
        while len(self._waiting) < n_samples:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._waiting = np.concatenate([self._waiting, block])
        return True

    def blocks(self, n_samples: int, slack: int) -> Iterator[Floats]:
        """The next so many samples, as far as there are any; and what then is left, if no more than `slack` samples."""
        while n_samples and self.has(1):
            block, self._waiting = self._waiting[:n_samples], self._waiting[n_samples:]
            n_samples -= len(block)
            self._taken = np.concatenate([self._taken, block])[-self._kept :]
            yield block
        if not self.has(slack + 1):
            rest, self._waiting = self._waiting, self._waiting[:0]
            yield rest

    def rest(self, n_samples: int, step: int) -> tuple[Floats, int]:
        """All that follows, with so many samples before it that they are `n_samples` or some fewer, and how many steps
        of `step` samples it begins earlier for that."""
        before = (n_samples - len(self._waiting)) // step
        return np.concatenate([self._taken[len(self._taken) - before * step :], self._waiting]), before


def infer(
    sounds: Sequence[Path | Channel | Unused],
    function: Callable[[Floats], Any],
    cutter: Cutter,
    batch_size: int,
    check: Callable[[], None],
    kept: int | None = None,
) -> Iterator[Scored | Unused]:
    """Every file in its order: what the model puts out for its windows, or why it was not used.

    Args:
        sounds: as `sounds.find_sounds` gives them; what is unused already comes out as it is, in its place.
        function: windows [n, window_rows, ...] float32 → results [n, K], n up to `batch_size`; called in a thread.
        check: called between files and batches; it may raise to stop.
        cutter: where it cuts segments or parts, each comes out by itself as soon as it was scored; behind them, if the
            file breaks off, why.
        kept: so many columns of the results are kept; those behind are summed over the windows of a file. None: all.

    Raises:
        CheckpointError: the model answers NaN.
        RetryableError: the decoder's process cannot be started.
    """
    queue: deque[_Pending] = deque()
    with Isolated(cutter.pieces) as decoder, _Batches(function, batch_size, cutter.spec, kept) as batches:
        for given in sounds:
            check()
            if isinstance(given, Unused):
                queue.append(_Pending(given.name, ended=True, problem=given))
            else:
                name = given.name if isinstance(given, Channel) else shown(given)
                pieces = decoder.items(given)
                for _ in _feed(name, pieces, batches, queue, cutter):
                    check()
                    yield from _done(queue, cutter.spec)
            yield from _done(queue, cutter.spec)
        batches.flush()
        check()
        yield from _done(queue, cutter.spec)


def _feed(
    name: str,
    pieces: Iterable[_Piece],
    batches: _Batches,
    queue: deque[_Pending],
    cutter: Cutter,
) -> Iterator[None]:
    """Put the windows of a file into batches, and its segments into the queue; pauses when there are results."""
    sound = _Pending(name)
    queue.append(sound)
    begin, wrong = 0, None
    try:
        for piece in pieces:
            if isinstance(piece, SoundFacts):
                sound.duration_s, sound.damage = piece.duration_s, _damage(name, piece)
                continue
            if isinstance(piece, int):
                if sound.first_frames:
                    sound.ended, begin = True, piece
                else:  # what was scored before is left out
                    sound.begin = piece
                continue
            first, window = piece
            if sound.ended:
                sound = _Pending(name, begin)
                queue.append(sound)
            sound.first_frames.append(first)
            if batches.add(sound, window):
                yield
    except SoundError as fault:
        wrong = (fault.problem, str(fault))
    except Crashed:
        wrong = (crashed().problem, crashed().detail)
    if wrong is not None:
        if sound.ended:  # it ended before, and stands
            sound = _Pending(name, begin)
            queue.append(sound)
        sound.problem = _problem(sound, *wrong, cutter.spec)
    sound.ended = True


def _problem(sound: _Pending, problem: str, detail: str, spec: FrontEnd) -> Unused:
    if not sound.begin:
        return Unused(sound.name, problem, detail)
    detail += f"; what was scored before {sound.begin / spec.rows_per_s:g} s stands"
    return Unused(sound.name, problem, detail, in_part=True)


def _damage(name: str, facts: SoundFacts) -> Unused | None:
    if not facts.damage:
        return None
    is_whole = facts.damage == "repaired"
    return Unused(name, facts.damage, facts.damage_detail, in_part=not is_whole, is_used=is_whole)


def _done(queue: deque[_Pending], spec: FrontEnd) -> Iterator[Scored | Unused]:
    while queue and queue[0].is_done:
        sound = queue.popleft()
        if sound.problem is not None:
            yield sound.problem
        else:
            assert sound.sums is not None, "a sound has a window"
            yield Scored(
                sound.name,
                sound.begin / spec.rows_per_s,
                sound.duration_s,
                np.array(sound.first_frames, np.float64) / spec.rows_per_s,
                np.concatenate(sound.results),
                sound.sums,
                sound.damage,
            )
