"""(seed, epoch, step) → one batch of whole recordings, as several windows each; no other state.

    WindowTargets, source of their windows ─▶ ClipBatches.batch(epoch, step) ─▶ Batch with `inside`

For heads that learn which windows of a recording its labels are true of. All recordings of a batch
have the same number of places: a shorter one leaves some empty, of a longer one as many windows are drawn, anew each
epoch.
A class is in an example if it is in one of its windows; where it is in none, and not known in all, it is unknown.
"""

import numpy as np
import numpy.typing as npt

from birdtune.data.batches import WHOLE, Batch, Part, Source
from birdtune.data.sampling import Sampler
from birdtune.data.targets import WindowTargets

# Of longer recordings as many windows are drawn: 15 s of VGGish's or YAMNet's windows one after another, or the same
# from anywhere in them.
_MOST_WINDOWS = 32


class ClipBatches:
    """Training batches of recordings: each once an epoch, in an order of its own each epoch.

    Args:
        source: what gives the windows of all windows of the recordings, or what was made of them.
        targets: of the same windows.
        batch_size: windows of a batch, about; it holds so many recordings that their places come near it.
        jitter_rows, sampler, part: as `Batches`; weights: [recordings].
    """

    def __init__(
        self,
        source: Source,
        targets: WindowTargets,
        *,
        batch_size: int,
        seed: int,
        jitter_rows: int = 0,
        sampler: Sampler | None = None,
        weights: npt.NDArray[np.float32] | None = None,
        part: Part = WHOLE,
    ) -> None:
        self.windows, self._part = source, part
        self._targets = targets
        self._counts = np.bincount(targets.windows.recording)  # [recordings] windows of each
        self.places = min(int(self._counts.max()), _MOST_WINDOWS)
        self.batch_size = max(1, round(batch_size / self.places))  # recordings
        self._first = np.cumsum(self._counts) - self._counts  # [recordings] first window
        self._sampler = sampler
        self._weights = np.ones(self._counts.size, np.float32) if weights is None else weights
        self._seed, self._jitter_rows = seed, jitter_rows
        nothing = np.zeros(0, np.int64)
        self._plan_of: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] = (-1, nothing, nothing)

    def __len__(self) -> int:
        """Batches in an epoch; the last may be filled up."""
        return -(-(self._counts.size if self._sampler is None else len(self._sampler)) // self.batch_size)

    def batch(self, epoch: int, step: int, n: int = 1) -> Batch:
        """Batch `step` (from 0) of an epoch, or that and the next ones, `n` in all, one after another.

        Its `features` and `windows` are [batch · places, ...], its `targets` and `weights` [batch, ...].
        """
        order, shift = self._plan(epoch)
        chosen = order[step * self.batch_size : (step + n) * self.batch_size]
        size = n * self.batch_size
        own = self._part.rows(size)
        recordings = np.resize(chosen, size)[own]  # all batches have one shape
        drawn = [self._windows_of(int(recording), epoch) for recording in recordings]
        windows, inside = (np.stack(arrays) for arrays in zip(*drawn, strict=True))  # [batch, places]
        rows = windows.reshape(-1)
        return Batch(
            self.windows.features(rows, shift[rows]),
            (own < chosen.size) * self._part.real(size) * self._weights[recordings],
            rows,
            *self._joined(rows, shift[rows], inside),
            inside,
        )

    def _joined(
        self, rows: npt.NDArray[np.int64], shift: npt.NDArray[np.int64], inside: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Targets of examples, and how much they count, by those of their windows. [batch, C] each"""
        of_windows = self._targets.of(rows, shift)
        targets, known = (array.reshape(*inside.shape, -1) for array in of_windows)  # [batch, places, C]
        holds = (targets > 0) & inside[:, :, None]
        counts_if_in = np.where(holds, known, 0.0).max(axis=1)
        counts_if_not = np.where(inside[:, :, None], known, np.inf).min(axis=1)
        is_in = holds.any(axis=1)
        return (
            np.where(holds, targets, 0.0).max(axis=1).astype(np.float32),
            np.where(is_in, counts_if_in, counts_if_not).astype(np.float32),
        )

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Order of the recordings in an epoch, and shift of the windows: [recordings], [windows]."""
        if self._plan_of[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            sampler, reach = self._sampler, self._jitter_rows
            order = generator.permutation(self._counts.size) if sampler is None else sampler.order(generator)
            self._plan_of = (epoch, order, generator.integers(-reach, reach + 1, len(self.windows)))
        return self._plan_of[1], self._plan_of[2]

    def _windows_of(self, recording: int, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Windows of a recording, as they lie; empty places repeat the first. [places] each"""
        count = int(self._counts[recording])
        within = np.zeros(self.places, np.int64)
        if count > self.places:
            # Counters of their own, so that a recording's windows do not depend on what else is in its batch.
            draw = np.random.Generator(np.random.Philox(key=[self._seed, epoch], counter=[0, 0, 1, recording]))
            within = np.sort(draw.choice(count, self.places, replace=False))
        else:
            within[:count] = np.arange(count)
        return self._first[recording] + within, np.arange(self.places) < count
