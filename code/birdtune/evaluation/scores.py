"""Scores of one part of the split beside its targets, and how windows become recordings.

    one row of class scores per window ─▶ Scores ─▶ clip_scores, pool_sum_squares ─▶ one row per recording
    classes of each recording ─▶ targets [N, C];  with one class each: one_hot(labels)
"""

import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.errors import shown
from birdtune.runtime.files import write_bytes
from birdtune.runtime.storage import read_error

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

# From this target on, a recording counts as one of the class.
POSITIVE = 0.5
_TEXT_FIELDS = ("classes", "recordings", "groups")
_ARRAY_FIELDS = ("targets", "window_scores", "window_recording", "window_start_s")
_OPTIONAL_FIELDS = ("mask", "window_weight", "pooled", "ood_score", "window_targets", "window_mask")


def one_hot(labels: Sequence[int] | npt.NDArray[Any], n_classes: int) -> npt.NDArray[np.float32]:
    """Targets of recordings with one class each: columns [N] → [N, C]. Raises ValueError if there is no such column."""
    columns = np.asarray(labels, np.int64)
    if columns.size and not 0 <= columns.min() <= columns.max() < n_classes:
        raise ValueError(f"labels {columns.min()}…{columns.max()} are not columns of {n_classes} classes")
    return np.eye(n_classes, dtype=np.float32)[columns]


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of the recordings of one part of the split, and their targets.

    Attributes:
        classes: [C] class names, in the order of the scores.
        recordings: [N] names of the recordings.
        groups: [N] the source recording that each comes from.
        targets: [N, C] float32, 0…1: how far a recording is of a class; a row of one 1 where it has one class.
        window_scores: [P, C] float32, 0…1.
        window_recording: [P] int64, which recording a window belongs to; every recording has a window.
        window_start_s: [P] float32, where the window starts in its recording, in seconds.
        mask: [N, C] bool, where the target is known; None: everywhere.
        window_weight: [P] float32, its weight in the score of its recording, over whose windows they sum to 1; or
            [P, C], of each class by itself; None: all windows of a recording count alike.
        pooled: [N, C] float32, the recordings' own scores; None: they are the means over their windows.
        ood_score: [N] float32, distance from the training data; above 1 a recording is rejected; None: not known.
        window_targets, window_mask: [P, C] bool, the windows' own targets, and where they are known, where labels have
            times; None: a window's targets are those of its recording.

    Raises:
        ValueError: shapes, targets or scores that no stage of birdtune should make.
    """

    classes: tuple[str, ...]
    recordings: tuple[str, ...]
    groups: tuple[str, ...]
    targets: npt.NDArray[np.float32]
    window_scores: npt.NDArray[np.float32]
    window_recording: Ints
    window_start_s: npt.NDArray[np.float32]
    mask: Bools | None = None
    window_weight: npt.NDArray[np.float32] | None = None
    pooled: npt.NDArray[np.float32] | None = None
    ood_score: npt.NDArray[np.float32] | None = None
    window_targets: Bools | None = None
    window_mask: Bools | None = None

    def __post_init__(self) -> None:
        n, c, p = len(self.recordings), len(self.classes), len(self.window_recording)
        found = (len(self.groups), self.targets.shape, self.window_scores.shape, self.window_start_s.shape)
        if found != (n, (n, c), (p, c), (p,)):
            raise ValueError(f"scores of {n} recordings, {p} windows, {c} classes come with shapes {found}")
        if not ((self.targets >= 0) & (self.targets <= 1)).all():
            raise ValueError(f"targets {self.targets.min()}…{self.targets.max()} are not all in 0…1")
        if self.mask is not None and (self.mask.shape != (n, c) or self.mask.dtype != np.bool_):
            raise ValueError(f"the mask of {n} recordings, {c} classes comes as {self.mask.dtype} {self.mask.shape}")
        if not np.array_equal(np.unique(self.window_recording), np.arange(n)):
            raise ValueError(f"every one of {n} recordings must have a window, and every window a recording")
        if self.window_weight is not None:
            sums = _sums(self.window_weight, self.window_recording) if len(self.window_weight) == p else 0.0
            if self.window_weight.shape not in ((p,), (p, c)) or not np.allclose(sums, 1.0, atol=1e-3):
                raise ValueError(f"weights of {p} windows come as {self.window_weight.shape}, or do not sum to 1")
        if self.pooled is not None and (self.pooled.shape != (n, c) or not np.isfinite(self.pooled).all()):
            raise ValueError(f"scores of {n} recordings, {c} classes come pooled as {self.pooled.shape}, or not finite")
        if self.ood_score is not None and self.ood_score.shape != (n,):
            raise ValueError(f"OOD scores of {n} recordings come as {self.ood_score.shape}")
        own = [None if each is None else (each.shape, each.dtype) for each in (self.window_targets, self.window_mask)]
        if own not in ([None] * 2, [((p, c), np.dtype(np.bool_))] * 2):
            raise ValueError(f"targets of {p} windows, {c} classes and where they are known come as {own}")
        if not np.isfinite(self.window_scores).all():
            raise ValueError(f"{int((~np.isfinite(self.window_scores)).sum())} scores are NaN or infinite")

    @cached_property
    def known(self) -> Bools:
        """Where it is known whether a recording is of a class. [N, C]"""
        return np.broadcast_to(np.True_, self.targets.shape) if self.mask is None else self.mask

    @cached_property
    def positive(self) -> Bools:
        """Where a recording is known to be of a class. [N, C]"""
        return np.asarray((self.targets >= POSITIVE) & self.known)

    @cached_property
    def labels(self) -> Ints:
        """The column of each recording's class; -1 where it has none, or several. [N]"""
        alone = self.positive.sum(axis=1) == 1
        return np.where(alone, self.positive.argmax(axis=1), -1).astype(np.int64)

    @cached_property
    def is_multi_label(self) -> bool:
        """Whether a recording has several classes, or none."""
        return bool((self.labels < 0).any())

    @cached_property
    def top1(self) -> Bools:
        """Whether the class with the highest score is one of the recording's. [N]"""
        highest = clip_scores(self).argmax(axis=1)
        return np.take_along_axis(self.positive, highest[:, None], axis=1)[:, 0]

    @cached_property
    def has_class(self) -> Bools:
        """Recordings of which at least one class is known: where top-1 accuracy is defined. [N]"""
        return np.asarray(self.positive.any(axis=1))

    def truth_of_windows(self, chosen: Any = slice(None)) -> tuple[npt.NDArray[Any], Bools]:
        """Targets of some windows, 0…1, and where they are known: their own, or those of their recordings. [n, C] each

        Args:
            chosen: which windows, as an index of numpy.
        """
        if self.window_targets is not None and self.window_mask is not None:
            return self.window_targets[chosen], self.window_mask[chosen]
        recording = self.window_recording[chosen]
        shape = (len(recording), len(self.classes))
        known = np.broadcast_to(np.True_, shape) if self.mask is None else self.mask[recording]
        return self.targets[recording], known

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
            InputError: the file is missing, damaged, or of an earlier birdtune.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                fields: dict[str, Any] = {field: archive[field] for field in _ARRAY_FIELDS}
                fields |= {field: archive[field] for field in _OPTIONAL_FIELDS if field in archive.files}
                fields |= {field: tuple(json.loads(archive[field].tobytes())) for field in _TEXT_FIELDS}
            return cls(**fields)
        except Exception as fault:  # whatever zipfile and numpy make of a damaged file
            message = (
                f"{shown(path)}: holds no scores that this version reads ({shown(str(fault)[:200])}). "
                "Delete it and run `evaluate` again."
            )
            raise read_error(fault, path, message) from fault


def with_scores(
    scores: Scores, window_scores: npt.NDArray[np.float32], pooled: npt.NDArray[np.float32] | None
) -> Scores:
    """The same recordings with other scores."""
    return replace(scores, window_scores=window_scores, pooled=pooled)


def clip_scores(scores: Scores) -> Floats:
    """The recordings' scores, as they are served. [N, C], 0…1"""
    return pool_mean(scores) if scores.pooled is None else scores.pooled.astype(np.float64)


def pool_mean(scores: Scores) -> Floats:
    """Mean over the windows of a recording, weighted where they have weights. [N, C], 0…1"""
    if scores.window_weight is not None:
        weight = scores.window_weight.astype(np.float64)
        if weight.ndim == 2:
            return _sums(weight * scores.window_scores, scores.window_recording)
        return _pool(scores, lambda column: weight * column)
    windows = np.bincount(scores.window_recording, minlength=len(scores.recordings))  # [N]
    return _pool(scores) / windows[:, None]


def pool_sum_squares(scores: Scores) -> Floats:
    """Σ p² over the windows of a recording, as jibjib-query pools: the longer, the larger. [N, C]"""
    return _pool(scores, np.square)


def shares(attention: npt.NDArray[np.float32], recording: Ints) -> npt.NDArray[np.float32]:
    """Softmax over the windows of each recording: a window's attention → its weight in the score. [P] or [P, C]

    Args:
        attention: [P] or [P, C] `Classifier.attend`.
        recording: [P] numbers from 0 on; each has a window.
    """
    highest = np.full((int(recording.max(initial=-1)) + 1, *attention.shape[1:]), -np.inf)
    np.maximum.at(highest, recording, attention)
    raised = np.exp(attention - highest[recording])
    return np.asarray(raised / _sums(raised, recording)[recording], np.float32)


def _sums(values: npt.NDArray[Any], recording: Ints) -> Floats:
    """Sums over the windows of each recording. [P, …] → [N, …]"""
    found = np.zeros((int(recording.max(initial=-1)) + 1, *values.shape[1:]))
    np.add.at(found, recording, values)
    return found


def _pool(scores: Scores, of: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] = np.asarray) -> Floats:
    # Column by column, because a second copy of [P, C] would be the largest thing in memory.
    n = len(scores.recordings)
    columns = [
        np.bincount(scores.window_recording, weights=of(column), minlength=n)
        for column in scores.window_scores.T
    ]
    return np.stack(columns, axis=1)  # [N, C]


def subset(scores: Scores, chosen: Bools) -> Scores:
    """Some of the recordings. chosen: [N]"""
    number = np.cumsum(chosen) - 1
    windows = chosen[scores.window_recording]
    rows = np.flatnonzero(chosen)

    def of(values: Any, which: Any) -> Any:
        return None if values is None else values[which]

    return Scores(
        classes=scores.classes,
        recordings=tuple(scores.recordings[k] for k in rows),
        groups=tuple(scores.groups[k] for k in rows),
        targets=scores.targets[rows],
        window_scores=scores.window_scores[windows],
        window_recording=number[scores.window_recording[windows]],
        window_start_s=scores.window_start_s[windows],
        mask=of(scores.mask, rows),
        window_weight=of(scores.window_weight, windows),
        pooled=of(scores.pooled, rows),
        ood_score=of(scores.ood_score, rows),
        window_targets=of(scores.window_targets, windows),
        window_mask=of(scores.window_mask, windows),
    )


def joined(parts: Sequence[Scores]) -> Scores:
    """The recordings of several parts, one part after another; all have the same optional fields, or none has."""
    first = np.cumsum([0, *(len(part.recordings) for part in parts)])

    def of(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if any(value is None for value in values) else np.concatenate(values)

    known = None if all(part.mask is None for part in parts) else np.concatenate([part.known for part in parts])
    return Scores(
        classes=parts[0].classes,
        recordings=tuple(name for part in parts for name in part.recordings),
        groups=tuple(group for part in parts for group in part.groups),
        **{name: of(name) for name in (*_ARRAY_FIELDS, *_OPTIONAL_FIELDS)}
        | {
            "window_recording": np.concatenate(
                [part.window_recording + at for part, at in zip(parts, first, strict=False)]
            ),
            "mask": known,
        },
    )
