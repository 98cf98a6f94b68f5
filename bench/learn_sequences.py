"""Heads over time and attention of each class on frozen backbones, beside linear: two sets, three seeds, five folds.

    embeddings of ESC-10 by YAMNet and of warblers by BirdNET ─▶ each head, trained on four folds and evaluated on the
    fifth ─▶ accuracy, macro AP, and its difference to linear

Heads begin at random, as for species that BirdNET does not know; one line has linear begun from BirdNET's own
classifier. BirdNET's weights lie where BENCH_BIRDNET says.
"""

import time
from dataclasses import replace
from typing import Any

import numpy as np

from bench import learning
from bench.harness import Line, Result, Settings

HEADS = ("linear", "mlp", "attention", "sed-attention", "self-attention", "lstm", "gru")
SEEDS = 3


def measure(settings: Settings) -> Result:
    """Lines of each head on each set."""
    lines: list[Line] = []
    details: dict[str, Any] = {}
    esc10 = learning.embed(learning.esc10(), settings.folder / "esc10")
    lines += _lines("ESC-10, YAMNet", esc10, HEADS, settings, details)
    if not settings.quick:
        how = {"backbone": "birdnet", "checkpoint": str(learning.birdnet()), "head_weights": "random"}
        warblers = learning.embed(learning.place("warblers"), settings.folder / "warblers", **how)
        lines += _lines("warblers, BirdNET", warblers, HEADS, settings, details)
        begun = replace(warblers, config=warblers.config.with_model(head_weights="auto"))
        what = "warblers, BirdNET, begun from its own classifier"
        lines += _lines(what, begun, HEADS[:1], settings, details)
    return Result("learn_sequences", lines, details)


def _lines(
    what: str, bench: learning.Bench, kinds: tuple[str, ...], settings: Settings, details: dict[str, Any]
) -> list[Line]:
    kinds = kinds[:1] + kinds[-2:-1] if settings.quick else kinds
    labels, groups = bench.embedded.labels, bench.embedded.groups
    right: dict[str, learning.Floats] = {}
    lines = []
    for kind in kinds:
        began = time.monotonic()
        seeds = range(settings.seed, settings.seed + (1 if settings.quick else SEEDS))
        scores = [bench.out_of_fold(kind, seed=seed) for seed in seeds]
        seconds = (time.monotonic() - began) / len(scores)
        right[kind] = np.array([table.argmax(axis=1) == labels for table in scores], float)
        precision = [learning.macro_ap(table, labels) for table in scores]
        gain = ""
        if kind != kinds[0]:
            difference = learning.shares(right[kind].mean(axis=0) - right[kinds[0]].mean(axis=0), groups)
            gain = f"{learning.text(difference, sign=True)} beside linear"
        lines.append(
            learning.reach(
                f"{what}, {kind}: accuracy", learning.shares(right[kind], groups), beside=gain,
                note=f"macro AP {np.mean(precision):.3f} ({min(precision):.3f} to {max(precision):.3f} by seed); "
                f"{len(scores)} seeds; five folds took {seconds:.0f} s each",
            )
        )  # fmt: skip
        details[f"{what}, {kind}"] = {"accuracy": right[kind].mean(axis=1).tolist(), "macro_ap": precision}
    return lines
