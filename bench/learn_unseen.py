"""Classes that were never learnt from, recognised by their vectors: taxonomy, words, a few recordings.

    warblers by BirdNET, ESC-10 by YAMNet ─▶ `unseen`, classes held out by seeds ─▶ recognised at rank 1, beside chance

BirdNET's weights lie where BENCH_BIRDNET says, word vectors (GloVe's text format) where BENCH_WORDS says; without
these, the lines of words are left out. Of ESC-50, only the ten classes of ESC-10 are here.
"""

import json
import os
from typing import Any

from bench import learning
from bench.harness import Line, Result, Settings, birdtune

SEEDS = 40
TO_REACH = {"taxonomy": 0.40, "3 recordings": 0.50}  # of warblers, the best map of each


def measure(settings: Settings) -> Result:
    """Lines of recognised recordings, mean ± standard deviation over draws."""
    seeds = 2 if settings.quick else SEEDS
    birds = {"data": learning.place("warblers"), "model.backbone": "birdnet", "model.checkpoint": learning.birdnet()}
    sounds = {"data": learning.esc10(), "model.backbone": "yamnet", "model.checkpoint": learning.yamnet()}
    if words := os.environ.get("BENCH_WORDS"):
        sounds |= {"unseen.words": words}
    sets: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, float]]] = [
        ("warblers, BirdNET, 5 of 14 species", birds, {"split.hold-out-classes": 5, "unseen.seeds": seeds}, TO_REACH),
        ("ESC-10, YAMNet, 3 of 10 classes", sounds, {"split.hold-out-classes": 3, "unseen.seeds": seeds}, {}),
        ("ESC-10, YAMNet, what it has of ESC-50's test partition", sounds,
         {"split.hold-out-classes": "esc50-test", "unseen.seeds": min(seeds, 10)}, {}),
    ]  # fmt: skip
    lines, details = list[Line](), dict[str, Any]()
    for what, data, how, to_reach in sets:
        output = settings.folder / str(data["model.backbone"])
        birdtune("unseen", "--output", str(output), *(f"--{name}={value}" for name, value in (data | how).items()))()
        found = json.loads((output / "unseen.json").read_text("utf-8"))
        proof = {name: found["proof"][name] for name in ("shared_contents", "shared_sources")}
        details[what] = {"rows": found["rows"]} | proof
        lines += [_line(what, row, found, how["unseen.seeds"], to_reach) for row in found["rows"]]
    return Result("learn_unseen", lines, details)


def _line(
    what: str, row: dict[str, Any], found: dict[str, Any], seeds: int, to_reach: dict[str, float]
) -> Line:
    """One kind of vectors with one map; what is to be reached counts for the best map of its kind."""
    rows = [other for other in found["rows"] if other["vectors"] == row["vectors"]]
    target = to_reach.get(row["vectors"]) if row is max(rows, key=lambda other: other["top1"]) else None
    both = ", ".join(f"{name} {row[name]:.3f} ± {row[f'{name}_sd']:.3f}" for name in ("seen", "unseen", "harmonic"))
    return Line(
        f"{what}, by {row['vectors']}, {row['map']}: at rank 1 among the unseen",
        f"{row['top1']:.3f} ± {row['top1_sd']:.3f}", f"chance {row['chance']:.3f}; vectors allow {row['ceiling']:.3f}",
        None, "" if target is None else f"≥ {target:g}", None if target is None else row["top1"] >= target,
        f"mean ± standard deviation over {seeds} draws; among all classes, calibrated: {both}",
    )  # fmt: skip
