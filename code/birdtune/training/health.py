"""Signs of life: do the sounds hold anything, do the weights move, does the embedding depend on the sound?

    FrameStore ─▶ class_inputs ─▶ rows;  weights before, after ─▶ distances;  embeddings ─▶ LiveUnits

Only numbers come from here; what they mean is said in one place, `results/doubts.py`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from birdtune.data.frames import FrameStore

# Enough to see that a class is dead; a look at all frames would cost as much as an epoch's reading.
_RECORDINGS_A_CLASS = 16
_LOOKS_A_RECORDING = 4
_SAMPLES = 4096


def class_inputs(
    store: FrameStore, classes: Sequence[str], contents: Sequence[str], positive: csr_array
) -> list[dict[str, Any]]:
    """Whether the recordings of each class hold anything, from a look at some of them.

    Args:
        contents: [N] of the training recordings; positive: [N, C] their classes.

    Returns:
        A row a class: `class`, `recordings` looked at, how many of them are `silent` (in no stretch looked at
        does anything change), and how many `distinct` sounds all of the class's recordings are.
    """
    rows = []
    by_class = positive.tocsc()
    for name, numbers in zip(classes, np.split(by_class.indices, by_class.indptr[1:-1]), strict=True):
        inside = [contents[number] for number in numbers.tolist()]
        looked_at = [inside[place] for place in _spread(len(inside), _RECORDINGS_A_CLASS)]
        sums = {(store.entry(content).crc, store.entry(content).n_rows) for content in inside}
        silent = sum(_is_still(store, content) for content in looked_at)
        rows.append({"class": name, "recordings": len(looked_at), "silent": silent, "distinct": len(sums)})
    return rows


def _spread(n: int, most: int) -> list[int]:
    """At most so many of the numbers below n, evenly spread, first and last among them."""
    return sorted({round(place) for place in np.linspace(0, n - 1, min(n, most))})


def _is_still(store: FrameStore, content: str) -> bool:
    length = store.spec.window_rows
    last = max(0, store.entry(content).n_rows - length)
    for first in _spread(last + 1, _LOOKS_A_RECORDING):
        if not store.spec.is_still(store.rows(content, first, length)):
            return False
    return True


def sampled(arrays: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[np.float32]]:
    """Some values of each kernel, evenly spread: 16 kB each, however large the network.

    Args:
        arrays: as `classifier.weights` gives them; biases are passed over, which move even where no sound reaches.
    """
    return {
        name.removesuffix("/kernel"): array.reshape(-1)[:: max(1, array.size // _SAMPLES)].copy()
        for name, array in arrays.items()
        if name.endswith("/kernel")
    }


def distances(
    before: Mapping[str, npt.NDArray[np.float32]], after: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, float]:
    """How far each layer has moved, relative to its size before. Takes two results of `sampled`."""
    found = {}
    for layer, first in before.items():
        size = max(float(np.linalg.norm(first)), float(np.finfo(np.float32).tiny))
        found[layer] = float(np.linalg.norm(after[layer] - first)) / size
    return found


class LiveUnits:
    """Counts the embedding's units that differ between any two of the windows that were noted."""

    def __init__(self) -> None:
        self._lowest: npt.NDArray[np.float32] | None = None
        self._highest: npt.NDArray[np.float32] | None = None

    def note(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Take embeddings [n, units]."""
        lowest, highest = embeddings.min(axis=0), embeddings.max(axis=0)  # [units] each
        self._lowest = lowest if self._lowest is None else np.minimum(self._lowest, lowest)
        self._highest = highest if self._highest is None else np.maximum(self._highest, highest)

    def count(self) -> int | None:
        """How many units are alive; None if nothing was noted."""
        if self._lowest is None or self._highest is None:
            return None
        # Arithmetic in another order moves the last digits of one and the same value.
        size = np.maximum(np.abs(self._lowest), np.abs(self._highest))
        return int((self._highest - self._lowest > 1e-4 * size).sum())
