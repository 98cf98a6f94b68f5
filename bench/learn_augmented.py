"""What augmentation brings where there are few recordings to fine-tune on.

    each kind of augmentation at a moderate strength, and all of them ─▶ accuracy, beside none
"""

from collections.abc import Mapping
from typing import Any

from bench import few
from bench.harness import Result, Settings

WAYS: Mapping[str, Mapping[str, Any]] = {
    "mixup": {"augment__mixup": 0.5},
    "gain and noise": {"augment__gain_db": 6, "augment__white_noise": 0.3, "augment__pink_noise": 0.3},
    "masks": {"augment__time_mask_s": 0.24, "augment__band_mask": 8},
    "shift in pitch": {"augment__pitch_shift": 2},
    "jitter": {"train__jitter_s": 0.24},
}
ALL = {"all of these": {name: value for flags in WAYS.values() for name, value in flags.items()}}


def measure(settings: Settings) -> Result:
    """A line each."""
    return Result("learn_augmented", few.beside("without augmentation", WAYS | ALL, settings))
