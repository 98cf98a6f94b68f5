"""What the settings of fine-tuning bring where there are few recordings: each is taken away or added.

    the recipe of learn_jobs, and others ─▶ accuracy, beside that recipe
"""

from collections.abc import Mapping
from typing import Any

from bench import few
from bench.harness import Result, Settings

WAYS: Mapping[str, Mapping[str, Any]] = {
    "frozen, the head alone": {"model__freeze": "all-but-head", "train__head_warmup_epochs": 0,
                               "train__head_lr_multiplier": 10,
                               "train__learning_rate": 1e-4},
    "averaged weights": {"train__ema_decay": 0.98},
    "deeper layers slower": {"train__layer_decay": 0.8},
    "the head not by itself first": {"train__head_warmup_epochs": 0},
    "the rates as they are by default": {"train__learning_rate": 1e-4, "train__head_lr_multiplier": 10},
}  # fmt: skip


def measure(settings: Settings) -> Result:
    """A line each."""
    return Result("learn_finetuned", few.beside("head first, then all slowly", WAYS, settings))
