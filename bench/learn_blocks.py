"""Whether training the last blocks of a backbone is worth it, and what the published classifier is worth to a head.

    five folds ─▶ `run` with the last blocks trained, at a tenth of the usual rate ─▶ accuracy, macro AP

What a frozen backbone reaches on the same folds, `learn_backbones` says. BirdNET's weights lie where BENCH_BIRDNET
says.
"""

from typing import Final

from bench.harness import Line, Result, Settings
from bench.learn_backbones import FROZEN, jobs, sets

# The last two of BirdNET's 19 blocks and of YAMNet's 14, the head at the rate that it has by itself.
LAST_FROZEN: Final = {"birdnet": "block17", "yamnet": "layer12"}
SLOWLY = {"train__learning_rate": 1e-5, "train__head_lr_multiplier": 10, "train__epochs": 12}


def measure(settings: Settings) -> Result:
    """Lines of accuracy and average precision."""
    lines: list[Line] = []
    for name, data, backbone, path in sets():
        what = f"{name}, {backbone}"
        output = settings.folder / f"{name}-{backbone}"
        flags = FROZEN | {"model__backbone": backbone, "model__checkpoint": path}
        trained = flags | SLOWLY | {"model__freeze": LAST_FROZEN[backbone]}
        lines += jobs(f"{what}, after {LAST_FROZEN[backbone]}", output, data, trained, settings, {})
        if (name, backbone) == ("warblers", "birdnet"):
            random = flags | {"model__head_weights": "random"}
            lines += jobs(f"{what}, frozen, head begins at random", output, data, random, settings, {})
    return Result("learn_blocks", lines)
