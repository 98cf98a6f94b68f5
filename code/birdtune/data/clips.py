"""(seed, epoch, step) → one batch of whole recordings, as several windows each; no other state.

    WindowTargets, source of their windows ─▶ ClipBatches.batch(epoch, step) ─▶ Batch with `inside`

For heads that learn which windows of a recording its labels are true of, or see several windows at once. All
recordings of a batch have the same number of places: a shorter one leaves some empty, of a longer one as many windows
are drawn, anew each epoch; for a head over time, consecutive ones.
A class is in an example if it is in one of its windows; where it is in none, and not known in all, it is unknown. Where
windows are augmented, each is by itself, and with softmax an example has of each class what its windows have of it.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from birdtune.data.batches import WHOLE, Augment, Batch, Part, Source
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
        jitter_rows, augment, sampler, part: as `Batches`; weights: [recordings].
        context: consecutive windows of an example, for a head over time; 0: from anywhere in the recording.
    """

    def __init__(
        self,
        source: Source,
        targets: WindowTargets,
        *,
        batch_size: int,
        seed: int,
        jitter_rows: int = 0,
        augment: Augment | None = None,
        sampler: Sampler | None = None,
        weights: npt.NDArray[np.float32] | None = None,
        part: Part = WHOLE,
        context: int = 0,
    ) -> None:
        self.windows, self._part, self._augment, self._context = source, part, augment, context
        self._targets = targets
        self._counts = np.bincount(targets.windows.recording)  # [recordings] windows of each
        self.places = min(int(self._counts.max()), context or _MOST_WINDOWS)
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
        # What augmentation draws for a row depends on its place in the whole batch.
        made = own if self._augment is None else np.arange(size)
        recordings = np.resize(chosen, size)  # all batches have one shape
        drawn = [self._windows_of(int(recording), epoch) for recording in recordings[made]]
        windows, inside = (np.stack(arrays) for arrays in zip(*drawn, strict=True))  # [made, places]
        rows = windows.reshape(-1)
        single = Batch(
            self.windows.features(rows, shift[rows]), np.ones(rows.size, np.float32), rows,
            *self._targets.of(rows, shift[rows]),
        )  # fmt: skip
        if self._augment is not None:
            first = step * self.batch_size * self.places
            single = self._augment(single, epoch, first, self._order_of_windows(order))
            chosen_rows = (own[:, None] * self.places + np.arange(self.places)).reshape(-1)
            single = replace(
                single, features=single.features[chosen_rows], windows=rows[chosen_rows],
                targets=single.targets[chosen_rows], known=single.known[chosen_rows],
            )  # fmt: skip
            inside = inside[own]
        weights = (own < chosen.size) * self._part.real(size) * self._weights[recordings[own]]
        return Batch(single.features, weights, single.windows, *self._joined(single, inside), inside)

    def _order_of_windows(self, order: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The windows of recordings in an order, all of each."""
        counts = self._counts[order]
        return np.repeat(self._first[order] - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())

    def _joined(
        self, single: Batch, inside: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Targets of examples, and how much they count, by those of their windows. [batch, C] each"""
        targets, known = (each.reshape(*inside.shape, -1) for each in (single.targets, single.known))  # [.., places, C]
        holds = (targets > 0) & inside[:, :, None]
        counts_if_in = np.where(holds, known, 0.0).max(axis=1)
        counts_if_not = np.where(inside[:, :, None], known, np.inf).min(axis=1)
        is_in = holds.any(axis=1)
        joined = np.where(holds, targets, 0.0).max(axis=1)
        if self._augment is not None and self._targets.kind == "softmax":
            shares = np.where(holds, targets, 0.0).sum(axis=1)
            joined = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-9)
        return (
            joined.astype(np.float32),
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
            if self._context:
                within = int(draw.integers(count - self.places + 1)) + np.arange(self.places)
            else:
                within = np.sort(draw.choice(count, self.places, replace=False))
        else:
            within[:count] = np.arange(count)
        return self._first[recording] + within, np.arange(self.places) < count
