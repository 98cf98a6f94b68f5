"""What augmentation of sound brings where test recordings sound otherwise: warblers, a head on BirdNET, five folds.

    `run` with each augmentation ─▶ heads;  test recordings as they are, in noise, dulled, far off, through a codec
    ─▶ BirdNET's embeddings ─▶ top-1 of each head, and the difference to the head without augmentation

Heads begin at random, as for species that BirdNET does not know, and from BirdNET's own classifier.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import learning, made_sets
from bench.harness import Line, Result, Settings
from bench.learning import birdnet
from bench.made_sets import Wave

RATE_HZ = 48_000
NOISE = {"augment__white_noise": 0.5, "augment__pink_noise": 0.5, "augment__snr_db": -5}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "noise": NOISE,
    "noise, filters, reverberation, codec": NOISE | {
        "augment__filter": 0.5, "augment__reverberation": 0.5, "augment__codec": 0.3,
    },
}  # fmt: skip
STARTS = ("random", "auto")
# Training with augmentation is not done twice, so neither is that without.
FLAGS = {"model__backbone": "birdnet", "train__refit": "false", "evaluate__label_issues": "false",
         "evaluate__rare_class_ablation": "false"}  # fmt: skip


def _far_off(sound: Wave, generator: np.random.Generator) -> Wave:
    """With the reverberation of a wood, high sounds damped, and some noise."""
    t = np.arange(round(0.8 * RATE_HZ)) / RATE_HZ
    response = generator.standard_normal(t.size) * 10.0 ** (-3.0 * t / 0.8)
    n = len(sound) + t.size
    late = np.fft.irfft(np.fft.rfft(sound, n) * np.fft.rfft(response, n), n)[: len(sound)].astype(np.float32)
    wet = sound + late * np.float32(0.7 * made_sets.rms(sound) / max(made_sets.rms(late), 1e-9))
    return made_sets.in_noise(made_sets.dulled(wet, generator, 7000.0, RATE_HZ), generator, 15.0)


PLACES: Mapping[str, Callable[..., Wave]] = {
    "as they are": lambda sound, generator: sound,
    "in pink noise, 10 dB fainter": partial(made_sets.in_noise, snr_db=10.0),
    "in pink noise, as loud": partial(made_sets.in_noise, snr_db=0.0),
    "without what is above 5 kHz": partial(made_sets.dulled, above_hz=5000.0, rate_hz=RATE_HZ),
    "far off in a wood": _far_off,
}


def measure(settings: Settings) -> Result:
    """A line for each way of augmentation and each kind of test sound."""
    clips = made_sets.clips_of(learning.place("warblers"))
    places = {name: PLACES[name] for name in list(PLACES)[: 2 if settings.quick else None]}
    heard = {name: _embedded(clips, change, settings.folder / f"place-{k}") for k, (name, change) in
             enumerate(places.items())}  # fmt: skip
    ways = dict(list(WAYS.items())[: 1 if settings.quick else None])
    plain, *augmented = (_right(flags, heard, settings) for flags in ({}, *ways.values()))
    lines: list[Line] = []
    for start in plain:
        lines += [_line(f"head from {start}, without augmentation", place, plain[start][place], None, "")
                  for place in places]  # fmt: skip
        for (way, flags), found in zip(ways.items(), augmented, strict=True):
            lines += [
                _line(f"head from {start}, {way}", place, found[start][place], plain[start][place],
                      learning.told(flags))
                for place in places
            ]
    return Result("learn_robust", lines)


def _embedded(clips: list[made_sets.Clip], change: Callable[..., Wave], folder: Path) -> Any:
    made_sets.write_changed(clips, folder / "data", change, RATE_HZ)
    return learning.embed(folder / "data", folder / "out", backbone="birdnet", checkpoint=str(birdnet()))


def _right(flags: Mapping[str, Any], heard: Mapping[str, Any], settings: Settings) -> dict[str, dict[str, Any]]:
    """Whether the best guess of each test recording is right, by the head of its fold.

    Returns:
        start → place → ([N], groups)
    """
    starts = STARTS[: 1 if settings.quick else None]
    found: dict[str, dict[str, Any]] = {
        start: {place: (np.full(len(bench.embedded.names), np.nan), bench.embedded.groups)
                for place, bench in heard.items()}
        for start in starts
    }  # fmt: skip
    for fold in range(1, 2 if settings.quick else learning.FOLDS + 1):
        for start in starts:  # one after another, as both learn from the same copies, which are embedded once
            output = settings.folder / "out"
            told = FLAGS | {"model__checkpoint": birdnet(), "model__head_weights": start} | flags
            judged = learning.job(output, fold, learning.place("warblers"), **told)
            head = _head(output / "model" / "birdtune" / str(judged.record["version"]))
            for place, bench in heard.items():
                _judge(found[start][place][0], bench, fold, *head)
    return found


def _judge(right: Any, bench: Any, fold: int, kernel: Any, bias: Any, classes: Sequence[str]) -> None:
    """Enter whether a head's best guess is right, of the test recordings of a fold. right: [N]"""
    scores = np.exp(bench.embedded.embeddings @ kernel + bias)
    scores /= scores.sum(axis=1, keepdims=True)
    recording = bench.embedded.windows.recording
    for number in np.flatnonzero(bench.fold == fold):
        best = classes[int(scores[recording == number].mean(axis=0).argmax())]
        right[number] = best == Path(bench.embedded.names[number]).parent.name


def _head(folder: Path) -> tuple[Any, Any, list[str]]:
    from birdtune.models import saved_model
    from birdtune.training import served_model

    facts = served_model.read(folder, is_own=False).facts
    arrays = saved_model.read(folder, facts.weights, facts.weights_sha256)
    kernel, bias = (
        next(value for name, value in arrays.items() if name.endswith(f"logits/{part}")) for part in ("kernel", "bias")
    )
    return kernel, bias, facts.classes


def _line(what: str, place: str, found: Any, plain: Any, note: str) -> Line:
    right, groups = found
    beside = ""
    if plain is not None:
        beside = f"{learning.text(learning.shares(right - plain[0], groups), sign=True)} beside none"
    found_text = f"{what}, test sounds {place}: top-1"
    return learning.reach(found_text, learning.shares(right, groups), beside=beside, note=note)
