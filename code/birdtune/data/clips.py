"""(seed, epoch, step) → one batch of whole recordings, as several windows each; no other state.

    Windows, source of their patches ─▶ ClipBatches.batch(epoch, step) ─▶ Batch with `inside`

For heads that learn from the label of a recording which of its patches it is true of. All recordings of a batch have
the same number of places: a shorter one leaves some empty, of a longer one as many windows are drawn, anew each epoch.
"""

import numpy as np
import numpy.typing as npt

from birdtune.data.batches import Batch, Source, Windows
from birdtune.data.sampling import Sampler

# Of longer recordings as many windows are drawn: 15 s of VGGish's or YAMNet's patches one after another, or the same
# from anywhere in them.
_MOST_PATCHES = 32


class ClipBatches:
    """Training batches of recordings: each once an epoch, in an order of its own each epoch.

    Args:
        windows: all windows of the recordings.
        source: what gives their patches, or what was made of them.
        batch_size: patches of a batch, about; it holds so many recordings that their places come near it.
        jitter_frames, sampler: as `Batches`; weights: [recordings].
    """

    def __init__(
        self,
        windows: Windows,
        source: Source,
        *,
        batch_size: int,
        seed: int,
        jitter_frames: int = 0,
        sampler: Sampler | None = None,
        weights: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.windows = source
        self.places = min(int(windows.per_recording.max()), _MOST_PATCHES)
        self.batch_size = max(1, round(batch_size / self.places))  # recordings
        self._counts = windows.per_recording  # [recordings]
        self._first = np.cumsum(self._counts) - self._counts  # [recordings] first window
        self._label = windows.label[self._first]  # [recordings]
        self._sampler = sampler
        self._weights = np.ones(self._counts.size, np.float32) if weights is None else weights
        self._seed, self._jitter_frames = seed, jitter_frames
        nothing = np.zeros(0, np.int64)
        self._plan_of: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] = (-1, nothing, nothing)

    def __len__(self) -> int:
        """Batches in an epoch; the last may be filled up."""
        return -(-(self._counts.size if self._sampler is None else len(self._sampler)) // self.batch_size)

    def batch(self, epoch: int, step: int, n: int = 1) -> Batch:
        """Batch `step` (from 0) of an epoch, or that and the next ones, `n` in all, one after another.

        Its `patches` and `windows` are [batch · places, ...], its `labels` and `weights` [batch].
        """
        order, shift = self._plan(epoch)
        chosen = order[step * self.batch_size : (step + n) * self.batch_size]
        size = n * self.batch_size
        recordings = np.resize(chosen, size)  # all batches have one shape
        drawn = [self._windows_of(int(recording), epoch) for recording in recordings]
        windows, inside = (np.stack(arrays) for arrays in zip(*drawn, strict=True))  # [batch, places]
        rows = windows.reshape(-1)
        return Batch(
            self.windows.patches(rows, shift[rows]),
            self._label[recordings],
            (np.arange(size) < chosen.size) * self._weights[recordings],
            rows,
            inside,
        )

    def _plan(self, epoch: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Order of the recordings in an epoch, and shift of the windows: [recordings], [windows]."""
        if self._plan_of[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self._seed, epoch]))
            sampler, reach = self._sampler, self._jitter_frames
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
