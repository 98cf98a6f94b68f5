"""What a classifier said about one part of the split, and how patches become recordings.

    one row of class scores per patch ─▶ Scores ─▶ clip_scores, pool_sum_squares ─▶ one row per recording
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.errors import shown
from birdtune.runtime.files import write_bytes
from birdtune.runtime.storage import read_error

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_TEXT_FIELDS = ("classes", "recordings", "groups")
_ARRAY_FIELDS = ("labels", "patch_scores", "patch_recording", "patch_start_s")
_OPTIONAL_FIELDS = ("patch_weight", "pooled", "strangeness")


@dataclass(frozen=True, eq=False)
class Scores:
    """What the classifier said about one part of the split.

    Attributes:
        classes: [C] class names, in the order of the scores.
        recordings: [N] names of the recordings.
        groups: [N] the source recording that each comes from.
        labels: [N] int64, the true class of each recording.
        patch_scores: [P, C] float32, 0…1.
        patch_recording: [P] int64, which recording a patch belongs to; every recording has a patch.
        patch_start_s: [P] float32, where the patch starts in its recording, in seconds.
        patch_weight: [P] float32, its share in the score of its recording, over whose patches they sum to 1; None:
            all patches of a recording count alike.
        pooled: [N, C] float32, the recordings' own scores; None: they are the means over their patches.
        strangeness: [N] float32, how unlike all that was trained on; above 1 there is no answer; None: not known.

    Raises:
        ValueError: shapes, labels or scores that no stage of birdtune should make.
    """

    classes: tuple[str, ...]
    recordings: tuple[str, ...]
    groups: tuple[str, ...]
    labels: Ints
    patch_scores: npt.NDArray[np.float32]
    patch_recording: Ints
    patch_start_s: npt.NDArray[np.float32]
    patch_weight: npt.NDArray[np.float32] | None = None
    pooled: npt.NDArray[np.float32] | None = None
    strangeness: npt.NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n, c, p = len(self.recordings), len(self.classes), len(self.patch_recording)
        found = (len(self.groups), self.labels.shape, self.patch_scores.shape, self.patch_start_s.shape)
        if found != (n, (n,), (p, c), (p,)):
            raise ValueError(f"scores of {n} recordings, {p} patches, {c} classes come with shapes {found}")
        if n and (self.labels.min() < 0 or self.labels.max() >= c):
            raise ValueError(f"labels {self.labels.min()}…{self.labels.max()} are not columns of {c} classes")
        if not np.array_equal(np.unique(self.patch_recording), np.arange(n)):
            raise ValueError(f"every one of {n} recordings must have a patch, and every patch a recording")
        if self.patch_weight is not None:
            sums = np.bincount(self.patch_recording, weights=self.patch_weight, minlength=n)
            if self.patch_weight.shape != (p,) or not np.allclose(sums, 1.0, atol=1e-3):
                raise ValueError(f"weights of {p} patches come as {self.patch_weight.shape}, or do not sum to 1")
        if self.pooled is not None and (self.pooled.shape != (n, c) or not np.isfinite(self.pooled).all()):
            raise ValueError(f"scores of {n} recordings, {c} classes come pooled as {self.pooled.shape}, or not finite")
        if self.strangeness is not None and self.strangeness.shape != (n,):
            raise ValueError(f"strangeness of {n} recordings comes as {self.strangeness.shape}")
        if not np.isfinite(self.patch_scores).all():
            raise ValueError(f"{int((~np.isfinite(self.patch_scores)).sum())} scores are NaN or infinite")

    def save(self, path: Path) -> None:
        """Write as .npz, whole or not at all; nothing in it is pickled."""
        # Names as JSON bytes: numpy's text arrays pad every name to the longest and eat trailing NULs.
        arrays: dict[str, Any] = {
            field: np.frombuffer(json.dumps(getattr(self, field)).encode(), np.uint8)
            for field in _TEXT_FIELDS
        }
        arrays |= {field: getattr(self, field) for field in _ARRAY_FIELDS}
        arrays |= {field: getattr(self, field) for field in _OPTIONAL_FIELDS if getattr(self, field) is not None}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or damaged.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                fields: dict[str, Any] = {field: archive[field] for field in _ARRAY_FIELDS}
                fields |= {field: archive[field] for field in _OPTIONAL_FIELDS if field in archive.files}
                fields |= {field: tuple(json.loads(archive[field].tobytes())) for field in _TEXT_FIELDS}
            return cls(**fields)
        except Exception as fault:  # whatever zipfile and numpy make of a damaged file
            message = (
                f"{shown(path)}: holds no scores that birdtune can read ({shown(str(fault)[:200])}). "
                "Delete it and run `evaluate` again."
            )
            raise read_error(fault, path, message) from fault


def with_scores(
    scores: Scores, patch_scores: npt.NDArray[np.float32], pooled: npt.NDArray[np.float32] | None
) -> Scores:
    """The same recordings with other scores."""
    return replace(scores, patch_scores=patch_scores, pooled=pooled)


def clip_scores(scores: Scores) -> Floats:
    """The recordings' scores, as they are served. [N, C], 0…1"""
    return pool_mean(scores) if scores.pooled is None else scores.pooled.astype(np.float64)


def pool_mean(scores: Scores) -> Floats:
    """Mean over the patches of a recording, weighted where they have weights. [N, C], 0…1"""
    if scores.patch_weight is not None:
        weight = scores.patch_weight.astype(np.float64)
        return _pool(scores, lambda column: weight * column)
    patches = np.bincount(scores.patch_recording, minlength=len(scores.recordings))  # [N]
    return _pool(scores) / patches[:, None]


def pool_sum_squares(scores: Scores) -> Floats:
    """Σ p² over the patches of a recording, as jibjib-query pools: the longer, the larger. [N, C]"""
    return _pool(scores, np.square)


def shares(attention: npt.NDArray[np.float32], recording: Ints) -> npt.NDArray[np.float32]:
    """Softmax over the patches of each recording: what a patch's attention makes of its share in the score. [P]

    Args:
        attention: [P] `Classifier.attend`.
        recording: [P] numbers from 0 on; each has a patch.
    """
    highest = np.full(int(recording.max(initial=-1)) + 1, -np.inf)
    np.maximum.at(highest, recording, attention)
    raised = np.exp(attention - highest[recording])
    return np.asarray(raised / np.bincount(recording, weights=raised)[recording], np.float32)


def _pool(scores: Scores, of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = np.asarray) -> Floats:
    # Column by column, because a second copy of [P, C] would be the largest thing in memory.
    n = len(scores.recordings)
    columns = [
        np.bincount(scores.patch_recording, weights=of(column), minlength=n)
        for column in scores.patch_scores.T
    ]
    return np.stack(columns, axis=1)  # [N, C]
