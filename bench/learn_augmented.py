"""Fine-tuning with augmentation, beside fine-tuning without: two folds, the same seed.

    `run` with each kind of augmentation at a moderate strength ─▶ accuracy on test, and the difference to none
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bench import learning
from bench.harness import Line, Result, Settings

WAYS: Mapping[str, Mapping[str, Any]] = {
    "mixup": {"augment__mixup": 0.5},
    "gain and noise": {"augment__gain_db": 6, "augment__white_noise": 0.3, "augment__pink_noise": 0.3},
    "masks": {"augment__time_mask": 24, "augment__band_mask": 8},
    "shift in pitch": {"augment__shift_bands": 2},
    "jitter": {"train__jitter_frames": 24},
}


def measure(settings: Settings) -> Result:
    """A line each."""
    folds = (1,) if settings.quick else (1, 2)
    if settings.quick:
        return Result("learn_augmented", [])
    lines: list[Line] = []
    plain = [learning.job(settings.folder / "out", fold) for fold in folds]
    of_plain, labels, groups = learning.clip_rows(plain)
    right = (of_plain.argmax(axis=1) == labels).astype(float)
    lines.append(learning.reach("none: test accuracy", learning.shares(right, groups), note=f"folds {folds}"))
    for way, flags in WAYS.items():
        scores, _, _ = learning.clip_rows([learning.job(settings.folder / "out", fold, **flags) for fold in folds])
        found = (scores.argmax(axis=1) == labels).astype(float)
        gain = learning.shares(found - right, groups)
        lines.append(
            learning.reach(f"{way}: test accuracy", learning.shares(found, groups), note=learning.told(flags),
                           beside=f"{learning.text(gain, sign=True)} beside none")
        )  # fmt: skip
    return Result("learn_augmented", lines, {"labels": np.bincount(labels).tolist()})
