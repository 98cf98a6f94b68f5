"""What five heads served as one are worth beside one head, and what they cost: warblers with BirdNET, five folds.

    `run` as it is; `run --train.ensemble 5` ─▶ accuracy, macro AP, and their differences; seconds of training

Heads begin from BirdNET's own classifier, and at random, as for species that BirdNET does not know. BirdNET's weights
lie where BENCH_BIRDNET says.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench import learning
from bench.harness import Line, Result, Settings
from bench.learn_backbones import FROZEN
from bench.learning import Judged, macro_ap

MEMBERS = 5
STARTS = ("auto", "random")
WAYS = {"one head": {}, f"ensemble of {MEMBERS}": {"train__ensemble": MEMBERS}}


def measure(settings: Settings) -> Result:
    """Lines of each start of the head: both ways, their difference, and how many times as long training takes."""
    lines: list[Line] = []
    details: dict[str, Any] = {}
    data, output = learning.place("warblers"), settings.folder / "out"
    flags = FROZEN | {
        "model__backbone": "birdnet", "model__checkpoint": learning.birdnet(), "train__refit": "auto",
    }  # fmt: skip
    folds = (1,) if settings.quick else range(1, learning.FOLDS + 1)
    # Embeddings of all recordings lie there once; what is timed is training alone.
    learning.job(output, 1, data, **flags, train__epochs=1)
    for start in STARTS[: 1 if settings.quick else None]:
        begun = flags | {"model__head_weights": start}
        found = {
            way: [learning.job(output, fold, data, **begun, **more) for fold in folds] for way, more in WAYS.items()
        }
        lines += _lines(f"head from {start}", *found.values())
        details[start] = {way: [one.record["stages"] for one in judged] for way, judged in found.items()}
        details[start]["members"] = [one.metrics["ensemble"] for one in list(found.values())[1]]
    return Result("learn_ensemble", lines, details)


def _lines(what: str, single: Sequence[Judged], ensemble: Sequence[Judged]) -> list[Line]:
    rows = [learning.clip_rows(judged) for judged in (single, ensemble)]
    labels, groups = rows[0][1:]
    right = [scores.argmax(axis=1) == labels for scores, _, _ in rows]
    lines = []
    for way, (scores, _, _), is_right in zip(WAYS, rows, right, strict=True):
        lines += [
            learning.reach(f"{what}, {way}: accuracy", learning.shares(is_right, groups)),
            learning.reach(
                f"{what}, {way}: macro AP", learning.drawn(_ap(scores, labels), groups),
                note=f"log loss {_log_loss(scores, labels):.3f}",
            ),
        ]  # fmt: skip
    gained = learning.shares(right[1].astype(float) - right[0], groups)
    of_ap = [_ap(scores, labels) for scores, _, _ in rows]
    risen = learning.drawn(lambda chosen: of_ap[1](chosen) - of_ap[0](chosen), groups)
    for name, difference in (("accuracy", gained), ("macro AP", risen)):
        gain = learning.text(difference, sign=True)
        lines.append(Line(f"{what}: gain in {name}", gain, target="> 0", reached=difference[0] > 0))
    for title, stages in (("training", ("train",)), ("a job after preparation", ("train", "evaluate", "export"))):
        times = [
            [sum(one.record["stages"][name] for name in stages) for one in judged] for judged in (single, ensemble)
        ]
        ratio = statistics.median(longer / shorter for shorter, longer in zip(*times, strict=True))
        lines.append(
            Line(
                f"{what}: {title}", f"{statistics.median(times[1]):.0f} s", f"{statistics.median(times[0]):.0f} s",
                ratio, f"≤ {MEMBERS}×" if stages == ("train",) else "",
                ratio <= MEMBERS if stages == ("train",) else None,
                note=f"medians of {len(single)}; how many times as long; embeddings are there",
            )
        )  # fmt: skip
    return lines


def _ap(scores: learning.Floats, labels: learning.Ints) -> Any:
    return lambda chosen: macro_ap(scores[chosen], labels[chosen])


def _log_loss(scores: learning.Floats, labels: learning.Ints) -> float:
    share = scores / scores.sum(axis=1, keepdims=True)
    return float(-np.log(np.maximum(share[np.arange(len(labels)), labels], 1e-12)).mean())
