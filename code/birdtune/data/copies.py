"""Augmented copies of training windows, embedded once by a frozen backbone.

    Windows, Augmenter ─▶ CopyOf(copy): the same windows, augmented ─▶ kept by the frozen layers, as others are
    kept windows and copies ─▶ Copies: a source of all of them ─▶ FromCopies: of each epoch another copy

A backbone takes a thousand times as long as a head. So windows are not augmented anew in each epoch: some copies are
made, and epochs take one after another. Copy 0 is the window as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data.augment import Augmenter
from birdtune.data.batches import Batch, Source, Windows
from birdtune.data.embedding_cache import KeptWindows
from birdtune.data.sound_changes import response_files
from birdtune.runtime.files import file_sha256, value_sha256

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class CopyOf:
    """A copy of all windows: a source of windows.

    Attributes:
        number: of the copy, from 1.
    """

    augmenter: Augmenter
    windows: Windows
    number: int

    def __len__(self) -> int:
        return len(self.windows)

    def features(self, windows: Ints, shift: Ints | None = None) -> npt.NDArray[Any]:
        """As `Windows.features`. A window is the same whatever lies beside it, and does not move."""
        assert shift is None or not shift.any(), "copies are made of windows where they lie"
        order, found = np.arange(len(self)), []
        for part in np.split(windows, np.flatnonzero(np.diff(windows) != 1) + 1):
            weights = np.ones(part.size, np.float32)
            batch = Batch(self.windows.features(part), weights, part, *self.augmenter.targets.of(part))
            found.append(self.augmenter(batch, self.number, int(part[0]), order).features)
        return np.concatenate(found)

    def digest(self) -> str:
        """SHA-256 of all that the copy depends on."""
        made = self.augmenter
        settings = made.settings.model_dump(exclude={"copies"})
        if (folder := settings.pop("impulse_responses")) is not None:  # what they are counts, not where they lie
            settings["responses"] = [file_sha256(path) for path in response_files(Path(folder))]
        return value_sha256([
            settings, made.seed, made.kind, made.background_windows.tolist(), self.number,
            list(self.windows.contents), self.windows.hop_rows,
        ])  # fmt: skip


class Copies:
    """Windows and their copies, as the frozen layers left them: a source of batches.

    As long as the windows are many; copy c of window i is number `c * len + i`.
    """

    def __init__(self, kept: Sequence[KeptWindows]) -> None:
        self.kept = kept
        self.store = kept[0].store

    def __len__(self) -> int:
        return len(self.kept[0])

    @property
    def n_rows(self) -> int:
        """All windows of all copies."""
        return len(self.kept) * len(self)

    def features(self, windows: Ints, shift: Ints | None = None) -> npt.NDArray[Any]:
        """The activations of some windows. [n, *shape]"""
        found = np.empty((windows.size, *self.store.shape), self.store.dtype)
        for number, kept in enumerate(self.kept):
            inside = windows // len(self) == number
            if inside.any():
                found[inside] = kept.features(windows[inside] % len(self), shift if shift is None else shift[inside])
        return found


@dataclass(frozen=True)
class FromCopies:
    """Gives each epoch another copy of its windows; what `Batches` takes for augmentation.

    Attributes:
        source: of `Copies`, or what lies in memory of them.
    """

    augmenter: Augmenter
    windows: Windows
    source: Source
    n_copies: int

    def __call__(self, batch: Batch, epoch: int, first: int, order: Ints) -> Batch:
        """The batch, of the epoch's copy."""
        number = epoch % (self.n_copies + 1)
        if not number:
            return batch
        features = self.source.features(batch.windows + number * len(self.windows))
        targets, known = self.augmenter.mixed_targets(batch.windows, number, np.arange(len(self.windows)))
        return replace(batch, features=features, targets=targets, known=known)
