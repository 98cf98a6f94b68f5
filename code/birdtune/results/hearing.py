"""Sound files through a model, patch by patch; the decoder works in a process of its own.

    files ─▶ Cutter.pieces (in the decoder's process) ─▶ patches, batched across files ─▶ model ─▶ Heard | Unused

A file that cannot be used is reported and the others go on; one on which the decoder dies is such a file.
Memory does not grow with the length of a sound. The model is given as a callable, so that nothing here
imports TensorFlow.
"""

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from birdtune.dataset.ledger import crashed
from birdtune.errors import CheckpointError, shown
from birdtune.sound.audio import SoundError, SoundFacts, SoundStream
from birdtune.sound.logmel import FrontEnd, frames_of
from birdtune.workers import Crashed, Isolated

Floats = npt.NDArray[np.float32]


class Unused(NamedTuple):
    """A file that was not used, and why."""

    name: str  # as given, or below the folder that was given; safe to show
    problem: str  # a key of recordings.PROBLEMS
    detail: str


@dataclass(eq=False)
class _Sound:
    """A file on its way through the model."""

    name: str
    first_frames: list[int] = field(default_factory=list)  # of each patch cut so far
    results: list[Floats] = field(default_factory=list)  # parts of [P, K]
    sums: npt.NDArray[np.float64] | None = None  # [S]
    n_results: int = 0
    ended: bool = False
    duration_s: float = 0.0
    problem: Unused | None = None

    @property
    def is_done(self) -> bool:
        return self.ended and (self.problem is not None or self.n_results == len(self.first_frames))


class Heard(NamedTuple):
    """A file that went through the model; `sums` are over its patches, `results` one by one."""

    name: str
    duration_s: float
    start_s: npt.NDArray[np.float64]  # [P]
    results: Floats  # [P, K]
    sums: npt.NDArray[np.float64]  # [S]


class _Batches:
    """Collects patches, whichever files they are of, and gives the model full batches."""

    def __init__(self, function: Callable[[Floats], Any], size: int, spec: FrontEnd, kept: int | None) -> None:
        self._function, self._kept = function, kept
        self._patches = np.zeros((size, spec.patch_frames, spec.n_mels), np.float32)
        self._owners: list[_Sound] = []

    def add(self, sound: _Sound, patch: Floats) -> bool:
        """Take one patch [96, 64]; whether the model was run."""
        self._patches[len(self._owners)] = patch
        self._owners.append(sound)
        return len(self._owners) == len(self._patches) and self.flush()

    def flush(self) -> bool:
        """Run the model over what is waiting and hand the results to the files."""
        if not self._owners:
            return False
        # A copy: a view of what the model was given would change when that is filled anew.
        results = np.array(self._function(self._patches[: len(self._owners)]), np.float32)  # [n, K]
        if not np.isfinite(results).all():
            raise CheckpointError(
                "the model answers NaN or infinity; its weights are broken. Train or export it again."
            )
        at = 0
        for sound, patches in itertools.groupby(self._owners, key=lambda owner: owner):
            count = len(list(patches))
            part = results[at : at + count]
            sound.results.append(part[:, : self._kept].copy())  # not a view, which would keep the rest
            sums = part[:, self._kept or part.shape[1] :].sum(axis=0, dtype=np.float64)
            sound.sums = sums if sound.sums is None else sound.sums + sums
            sound.n_results += count
            at += count
        self._owners.clear()
        return True


@dataclass(frozen=True)
class Cutter:
    """How sound is cut into patches."""

    resampler: str
    hop_frames: int
    longest_s: float
    spec: FrontEnd

    def pieces(self, path: Path) -> Iterator[tuple[int, Floats] | SoundFacts]:
        """First frame and frames [96, 64] of each patch of a file; at last its facts.

        Raises:
            SoundError: the file cannot be used; some of them only after the last patch.
        """
        stream = SoundStream(path, resampler=self.resampler, longest_s=self.longest_s)
        try:
            yield from self._patches(stream)
        except OSError as fault:
            raise SoundError("unreadable", f"the storage failed ({fault.strerror})") from fault
        except (UnicodeError, TypeError) as fault:
            # soundfile opens no name that ends in .raw.
            detail = f"its name keeps it from being opened ({shown(fault)}); rename it"
            raise SoundError("unreadable", detail) from fault
        assert stream.facts is not None
        yield stream.facts

    def _patches(self, stream: SoundStream) -> Iterator[tuple[int, Floats]]:
        waiting = np.zeros((0, self.spec.n_mels), np.float32)
        start = 0  # frame of the sound with which `waiting` begins
        first = 0  # frame of the sound with which the next patch begins
        for frames in frames_of(stream, self.spec):
            waiting = np.concatenate([waiting, frames])
            while first + self.spec.patch_frames <= start + len(waiting):
                yield first, waiting[first - start : first - start + self.spec.patch_frames]
                first += self.hop_frames
            passed = min(first - start, len(waiting))
            waiting, start = waiting[passed:], start + passed


def hear(
    paths: Sequence[Path],
    function: Callable[[Floats], Any],
    cutter: Cutter,
    batch_size: int,
    check: Callable[[], None],
    kept: int | None = None,
) -> Iterator[Heard | Unused]:
    """Every file in its order: what the model answered to its patches, or why it was not used.

    Args:
        function: patches [n, 96, 64] float32 → results [n, K], n up to `batch_size`.
        check: called between files and batches; it may raise to stop.
        kept: so many columns of the results are kept; those behind are summed over the patches of a file. None: all.

    Raises:
        CheckpointError: the model answers NaN.
        PassingError: the decoder's process cannot be started.
    """
    batches = _Batches(function, batch_size, cutter.spec, kept)
    queue: deque[_Sound] = deque()
    with Isolated(cutter.pieces) as decoder:
        for path in paths:
            check()
            sound = _Sound(shown(path))
            queue.append(sound)
            try:
                for piece in decoder.items(path):
                    if isinstance(piece, SoundFacts):
                        sound.duration_s = piece.duration_s
                        continue
                    first, patch = piece
                    sound.first_frames.append(first)
                    if batches.add(sound, patch):
                        check()
            except SoundError as fault:
                sound.problem = Unused(sound.name, fault.problem, str(fault))
            except Crashed:
                found = crashed()
                sound.problem = Unused(sound.name, found.problem, found.detail)
            sound.ended = True
            yield from _done(queue, cutter.spec)
    batches.flush()
    check()
    yield from _done(queue, cutter.spec)


def _done(queue: deque[_Sound], spec: FrontEnd) -> Iterator[Heard | Unused]:
    while queue and queue[0].is_done:
        sound = queue.popleft()
        if sound.problem is not None:
            yield sound.problem
        else:
            start_s = np.array(sound.first_frames, np.float64) / spec.frames_per_s
            assert sound.sums is not None, "a sound has a patch"
            yield Heard(sound.name, sound.duration_s, start_s, np.concatenate(sound.results), sound.sums)
