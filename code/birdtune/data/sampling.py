"""How often each class is trained on, and how much each recording counts.

windows per class + settings ─▶ quotas ─▶ Sampler: the order of an epoch;  quality.csv ─▶ weight of each recording
"""

import functools
import math
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.data.scan import Problem, Recording
from birdtune.data.targets import BLOCK, Array, WindowTargets
from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv
from birdtune.settings import TrainSettings

QUALITY_NAME = "quality.csv"
# Not 0: a batch of nothing but that would have no mean.
_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 0.01, 100.0
_NAMES_IN_A_NOTICE = 8

Ints = npt.NDArray[np.int64]


# ---- classes ------------------------------------------------------------------------------------


def quotas(counts: npt.ArrayLike, power: float, at_least: int = 0) -> Ints:
    """How many windows of each class an epoch has. [C]

    In all as many as there are, shared out by count^(1 - power): 0 leaves the classes as they were found, 1 makes all
    alike. Then classes that have fewer than `at_least` are given so many, and the epoch grows by that. A class without
    a window gets none.

    Args:
        counts: [C] windows of each class.
    """
    found = np.asarray(counts, np.float64)
    shares = np.where(found > 0, np.maximum(found, 1.0) ** (1.0 - power), 0.0)
    exact = shares * found.sum() / max(shares.sum(), 1.0)
    whole = np.floor(exact).astype(np.int64)
    # The largest remainders are rounded up; among equals the first, so that it is the same on every machine.
    lacking = int(found.sum()) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:lacking]] += 1
    return np.where(found > 0, np.maximum(whole, max(at_least, 1)), 0)


@dataclass(frozen=True, eq=False)
class Examples:
    """What the loss averages over: windows, or recordings where the head weighs their windows.

    Attributes:
        of_recordings: [R] how much each recording counts; None: all alike.
        by_recording: whether examples are recordings.
    """

    targets: WindowTargets
    of_recordings: npt.NDArray[np.float32] | None = None
    by_recording: bool = False

    @functools.cached_property
    def recording(self) -> Ints:
        """[examples] which recording each is of."""
        recording = self.targets.windows.recording
        return np.unique(recording) if self.by_recording else recording

    @property
    def weights(self) -> npt.NDArray[np.float32] | None:
        """[examples] how much each counts, by its recording; None: all alike."""
        return None if self.of_recordings is None else self.of_recordings[self.recording]

    def blocks(self) -> Iterable[tuple[Ints, Array, Array]]:
        """Numbers [n] of examples, their targets [n, C] and how much these count [n, C], block by block."""
        if not self.by_recording:
            return self.targets.blocks()
        return self._blocks_of_recordings()

    def _blocks_of_recordings(self) -> Iterable[tuple[Ints, Array, Array]]:
        for start in range(0, len(self.recording), BLOCK):
            numbers = np.arange(start, min(start + BLOCK, len(self.recording)))
            yield numbers, *self.targets.labels.some(self.recording[numbers]).of_recordings()

    @functools.cached_property
    def stratum(self) -> npt.NDArray[np.int32]:
        """[examples] the rarest class that each holds, by which it is sampled; C where it holds none."""
        n_classes = self.targets.labels.n_classes
        counts = np.zeros(n_classes)
        for _, targets, _ in self.blocks():
            counts += (targets > 0).sum(axis=0)
        found = np.full(len(self.recording), n_classes, np.int32)
        for numbers, targets, _ in self.blocks():
            rarest = np.where(targets > 0, counts, np.inf).argmin(axis=1)
            found[numbers] = np.where((targets > 0).any(axis=1), rarest, n_classes)
        return found


@dataclass(frozen=True)
class Sampler:
    """Draws the examples of an epoch, those of each stratum as often as its quota says.

    Attributes:
        stratum: [examples] as `Examples.stratum`.
        quotas: [strata] examples of each in an epoch.
    """

    stratum: npt.NDArray[np.int32]
    quotas: Ints

    def __len__(self) -> int:
        """Examples in an epoch."""
        return int(self.quotas.sum())

    def order(self, generator: np.random.Generator) -> Ints:
        """The examples of an epoch. Those of one stratum come equally often, but for one; which, is drawn anew."""
        drawn = []
        ends = np.cumsum(np.bincount(self.stratum, minlength=self.quotas.size))
        members = np.split(np.argsort(self.stratum, kind="stable"), ends[:-1])
        for inside, quota in zip(members, self.quotas.tolist(), strict=True):
            if not inside.size:
                continue
            whole, rest = divmod(quota, inside.size)
            drawn += [np.tile(inside, whole), generator.permutation(inside)[:rest]]
        return generator.permutation(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


def sampler(examples: Examples, settings: TrainSettings) -> Sampler | None:
    """The sampler of these settings; None: every example once an epoch.

    Examples without a class are never resampled; softmax cannot express them and leaves them out.
    """
    n_classes = examples.targets.labels.n_classes
    counts = np.bincount(examples.stratum, minlength=n_classes + 1)
    of_none = 0 if examples.targets.kind == "softmax" else counts[n_classes]
    wanted = np.append(quotas(counts[:-1], settings.sampling_power, settings.min_samples_per_class), of_none)
    return None if np.array_equal(wanted, counts) else Sampler(examples.stratum, wanted)


@dataclass(frozen=True, eq=False)
class Totals:
    """Sums over the examples of an epoch, each by its weight: what a constant answer would be right about."""

    positive: npt.NDArray[np.float64]  # [C] of targets
    known: npt.NDArray[np.float64]  # [C] of how much the targets count
    examples: float


def totals(examples: Examples, settings: TrainSettings, class_weights: Array | None = None) -> Totals:
    """Sum targets over the examples of an epoch, as often as the sampler draws them.

    Args:
        class_weights: [C] by which examples count as well (`losses.class_weights`).
    """
    n_classes = examples.targets.labels.n_classes
    weights = often(examples, settings) * weighed(examples, class_weights)
    positive, known = np.zeros(n_classes), np.zeros(n_classes)
    for numbers, targets, counted in examples.blocks():
        positive += weights[numbers] @ (targets * (counted > 0))
        known += weights[numbers] @ counted
    return Totals(positive, known, float(weights.sum()))


def often(examples: Examples, settings: TrainSettings) -> npt.NDArray[np.float64]:
    """How often each example comes in an epoch, on average. [examples]"""
    drawn = sampler(examples, settings)
    if drawn is None:
        return np.ones(len(examples.recording))
    counts = np.bincount(examples.stratum, minlength=drawn.quotas.size)
    return np.asarray((drawn.quotas / np.maximum(counts, 1))[examples.stratum])


def weighed(examples: Examples, class_weights: Array | None = None) -> Array:
    """How much each example counts: by its recording, and by the mean weight of its classes. [examples]

    Args:
        class_weights: [C] as `losses.class_weights`; None: all 1.
    """
    found = np.ones(len(examples.recording), np.float32) if examples.weights is None else examples.weights
    if class_weights is None:
        return found
    of_classes = np.ones(len(found), np.float32)
    for numbers, targets, _ in examples.blocks():
        total = targets.sum(axis=1)
        some = total > 0
        of_classes[numbers[some]] = targets[some] @ class_weights / total[some]
    return found * of_classes


def windows_per_class(
    recordings: Sequence[Recording], spec: FrontEnd, hop_s: float | None
) -> Counter[str]:
    """How many windows of each class some recordings give."""
    found: Counter[str] = Counter()
    for recording in recordings:
        for name in recording.classes:
            found[name] += spec.windows_in(recording.facts.duration_s, hop_s)
    return found


def rare_classes(
    recordings: Sequence[Recording], trained: Sequence[Recording], spec: FrontEnd, settings: TrainSettings
) -> tuple[list[str], list[str]]:
    """The classes with fewer training windows than `train.min-samples-per-class`, and a sentence about them, if any.

    Args:
        recordings, trained: all, and those of them that are trained on.
    """
    if not settings.min_samples_per_class:
        return [], []
    counts = windows_per_class(trained, spec, settings.hop_s)
    labels = sorted({name for recording in recordings for name in recording.classes})
    rare = [label for label in labels if counts[label] < settings.min_samples_per_class]
    if not rare:
        return [], []
    listed = ", ".join(f"{name} ({counts[name]:,})" for name in rare[:_NAMES_IN_A_NOTICE])
    more = f" and {len(rare) - _NAMES_IN_A_NOTICE:,} more" if len(rare) > _NAMES_IN_A_NOTICE else ""
    done = "they are left out" if settings.min_samples_action == "leave-out" else "their windows come more often"
    words = f"Classes with fewer than {settings.min_samples_per_class:,} training windows: {listed}{more}; {done}."
    return rare, [words]


def without(
    recordings: Sequence[Recording], rare: Sequence[str], settings: TrainSettings
) -> tuple[list[Recording], list[Problem]]:
    """The recordings without labels of rare classes, and a problem for each that has no other."""
    detail = f"its class has fewer than {settings.min_samples_per_class:,} training windows"
    kept: list[Recording] = []
    problems: list[Problem] = []
    for recording in recordings:
        labels = tuple(label for label in recording.labels if label.class_name not in rare)
        if labels:
            kept.append(recording if labels == recording.labels else replace(recording, labels=labels))
        else:
            problems.append(Problem(recording.name, recording.label, "rare-class", detail))
    return kept, problems


# ---- recordings ---------------------------------------------------------------------------------


def recording_weights(config: Config, recordings: Sequence[Recording]) -> tuple[dict[str, float], list[str]]:
    """How much each recording counts in training, as quality.csv says: name → weight, only where it is not 1.

    Returns:
        the weights, and sentences about what the file says of recordings that are not there, or does not say.

    Raises:
        InputError: the file cannot be used; a weight is no number from 0.01 to 100.
    """
    given = config.train.sample_weights
    path = Path(given) if given else config.input / QUALITY_NAME
    if not given and not os.path.lexists(path):  # also what a mount that failed leaves: reading it will say so
        return {}, []
    listed = _read_weights(path)
    # By the last part of the name: one look-up for each recording, whatever the length of the list.
    by_file_name: dict[str, list[str]] = {}
    for name in listed:
        by_file_name.setdefault(PurePosixPath(name).name, []).append(name)
    weights: dict[str, float] = {}
    used: set[str] = set()
    for recording in recordings:
        names = [unicodedata.normalize("NFC", name) for name in (recording.name, *recording.copies)]
        found = next((entry for name in names if (entry := _entry(name, listed, by_file_name))), None)
        if found is not None:
            used.add(found)
            weights[recording.name] = listed[found]
    if not used:
        example = shown(recordings[0].name) if recordings else "Class/recording.wav"
        raise InputError(
            f"{shown(path)}: lists none of the recordings that were found. Expected names like {example} (path below "
            "the data folder), or the end of such a path."
        )
    notices = [f"{shown(path)} weighs {len(used):,} of {len(recordings):,} recordings; the others weigh 1."]
    if unknown := [name for name in listed if name not in used]:
        more = f" and {len(unknown) - _NAMES_IN_A_NOTICE:,} more" if len(unknown) > _NAMES_IN_A_NOTICE else ""
        notices.append(
            f"{shown(path)} names recordings that are missing, unusable or ambiguous: "
            f"{', '.join(map(shown, unknown[:_NAMES_IN_A_NOTICE]))}{more}."
        )
    return {name: weight for name, weight in weights.items() if weight != 1.0}, notices


def _entry(name: str, listed: Mapping[str, float], by_file_name: Mapping[str, list[str]]) -> str | None:
    """How a list calls a recording: by its path, or by an end of it that no other entry has."""
    if name in listed:
        return name
    possible = [
        entry for entry in by_file_name.get(PurePosixPath(name).name, ()) if f"/{name}".endswith(f"/{entry}")
    ]
    return possible[0] if len(possible) == 1 else None


def _read_weights(path: Path) -> dict[str, float]:
    rows = read_csv(path, what="a table of weights")
    if not rows or not {"recording", "weight"} <= set(rows[0]):
        raise InputError(
            f"{shown(path)}: its columns are {shown(', '.join(sorted(rows[0]))) if rows else '(none)'}; expected "
            "`recording,weight`: a path below the data folder, and 1 for a recording that counts like any other, 0.5 "
            "for half as much."
        )
    found: dict[str, float] = {}
    for number, row in enumerate(rows, start=2):
        name, weight = unicodedata.normalize("NFC", row["recording"].strip()), _weight(row["weight"])
        if weight is None:
            raise InputError(
                f"{shown(path)}, row {number}: the weight of {shown(name)} is {shown(row['weight'])!r}; expected a "
                f"number from {_SMALLEST_WEIGHT:g} to {_LARGEST_WEIGHT:g}. What shall not be trained on is taken out "
                "of the data folder."
            )
        if found.setdefault(name, weight) != weight:
            raise InputError(
                f"{shown(path)}, row {number}: {shown(name)} stands there twice. Keep one of both."
            )
    return found


def _weight(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) and _SMALLEST_WEIGHT <= value <= _LARGEST_WEIGHT else None
