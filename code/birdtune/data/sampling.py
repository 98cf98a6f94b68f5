"""How often each class is trained on, and how much each recording counts.

windows per class + settings ─▶ quotas ─▶ Sampler: the order of an epoch;  quality.csv ─▶ weight of each recording
"""

import math
import os
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from birdtune.audio.logmel import FrontEnd
from birdtune.config import Config, TrainSettings
from birdtune.data.scan import Problem, Recording
from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv

QUALITY_NAME = "quality.csv"
# Not 0: a batch of nothing but that would have no mean.
_SMALLEST_WEIGHT, _LARGEST_WEIGHT = 0.01, 100.0
_NAMES_IN_A_NOTICE = 8

Ints = npt.NDArray[np.int64]


# ---- classes ------------------------------------------------------------------------------------


def quotas(counts: npt.ArrayLike, power: float, at_least: int = 0) -> Ints:
    """How many patches of each class an epoch has. [C]

    In all as many as there are, shared out by count^(1 - power): 0 leaves the classes as they were found, 1 makes all
    alike. Then classes that have fewer than `at_least` are given so many, and the epoch grows by that. A class without
    a patch gets none.

    Args:
        counts: [C] patches of each class.
    """
    found = np.asarray(counts, np.float64)
    shares = np.where(found > 0, np.maximum(found, 1.0) ** (1.0 - power), 0.0)
    exact = shares * found.sum() / max(shares.sum(), 1.0)
    whole = np.floor(exact).astype(np.int64)
    # The largest remainders are rounded up; among equals the first, so that it is the same on every machine.
    lacking = int(found.sum()) - int(whole.sum())
    whole[np.argsort(whole - exact, kind="stable")[:lacking]] += 1
    return np.where(found > 0, np.maximum(whole, max(at_least, 1)), 0)


@dataclass(frozen=True)
class Sampler:
    """Draws the windows of an epoch, each class as often as its quota says.

    Attributes:
        label: [windows] class of each.
        quotas: [C] windows of each class in an epoch.
    """

    label: npt.NDArray[np.int32]
    quotas: Ints

    def __len__(self) -> int:
        """Windows in an epoch."""
        return int(self.quotas.sum())

    def order(self, generator: np.random.Generator) -> Ints:
        """The windows of an epoch. Those of one class come equally often, but for one; which, is drawn anew."""
        drawn = []
        for label, quota in enumerate(self.quotas.tolist()):
            inside = np.flatnonzero(self.label == label)
            if not inside.size:
                continue
            whole, rest = divmod(quota, inside.size)
            drawn += [np.tile(inside, whole), generator.permutation(inside)[:rest]]
        return generator.permutation(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


def sampler(label: npt.NDArray[np.int32], n_classes: int, settings: TrainSettings) -> Sampler | None:
    """The sampler of these settings; None: every window once an epoch, as they were found."""
    counts = np.bincount(label, minlength=n_classes)
    wanted = quotas(counts, settings.sampling_power, settings.min_samples_per_class)
    return None if np.array_equal(wanted, counts) else Sampler(label, wanted)


def seen(
    label: npt.NDArray[np.int32],
    weights: npt.NDArray[np.float32] | None,
    n_classes: int,
    settings: TrainSettings,
) -> npt.NDArray[np.float64]:
    """Examples of each class in an epoch, each by its weight. [C]

    Args:
        label, weights: of each example; None: all weigh 1.
    """
    found = np.bincount(label, minlength=n_classes)
    weighed = np.bincount(label, weights, n_classes)
    drawn = sampler(label, n_classes, settings)
    return np.asarray((found if drawn is None else drawn.quotas) * weighed / np.maximum(found, 1), np.float64)


def patches_per_class(
    recordings: Sequence[Recording], spec: FrontEnd, hop_frames: int | None
) -> Counter[str]:
    """How many patches of each class some recordings give."""
    found: Counter[str] = Counter()
    for recording in recordings:
        found[recording.label] += spec.patches_in(recording.facts.n_samples, hop_frames)
    return found


def rare_classes(
    recordings: Sequence[Recording], trained: Sequence[Recording], spec: FrontEnd, settings: TrainSettings
) -> tuple[list[str], list[str]]:
    """The classes with fewer training patches than `train.min-samples-per-class`, and a sentence about them, if any.

    Args:
        recordings, trained: all, and those of them that are trained on.
    """
    if not settings.min_samples_per_class:
        return [], []
    counts = patches_per_class(trained, spec, settings.hop_frames)
    labels = sorted({recording.label for recording in recordings})
    rare = [label for label in labels if counts[label] < settings.min_samples_per_class]
    if not rare:
        return [], []
    listed = ", ".join(f"{name} ({counts[name]:,})" for name in rare[:_NAMES_IN_A_NOTICE])
    more = f" and {len(rare) - _NAMES_IN_A_NOTICE:,} more" if len(rare) > _NAMES_IN_A_NOTICE else ""
    done = "they are left out" if settings.min_samples_action == "leave-out" else "their patches come more often"
    words = f"Classes with fewer than {settings.min_samples_per_class:,} training patches: {listed}{more}; {done}."
    return rare, [words]


def left_out(recordings: Sequence[Recording], rare: Sequence[str], settings: TrainSettings) -> list[Problem]:
    """Why the recordings of rare classes are not used."""
    detail = f"its class has fewer than {settings.min_samples_per_class:,} training patches"
    return [
        Problem(recording.name, recording.label, "rare-class", detail)
        for recording in recordings
        if recording.label in rare
    ]


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
