"""Clips shorter than a window: where in it they should lie. Warblers, BirdNET.

    1.2 s around the loudest second of each recording ─▶ five ways to make 3 s of it ─▶ embeddings
    ─▶ logistic regression on five folds, and BirdNET's own classifier ─▶ accuracy, macro AP beside the way of birdtune
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bench import learning
from bench.backbone_speed import loaded
from bench.harness import Line, Result, Settings
from bench.learning import birdnet, macro_ap

RATE_HZ, CLIP, WINDOW = 48_000, 57_600, 144_000  # samples


def _padded(clips: Any, begin: Any) -> Any:
    """Zeros around clips [N, CLIP], of which each begins at its sample. [N, WINDOW]"""
    found = np.zeros((len(clips), WINDOW), np.float32)
    for row, clip, first in zip(found, clips, np.broadcast_to(begin, len(clips)), strict=True):
        row[first : first + CLIP] = clip
    return found


def _at_random(clips: Any) -> Any:
    return _padded(clips, np.random.default_rng(0).integers(0, WINDOW - CLIP + 1, len(clips)))


WAYS: Mapping[str, Callable[[Any], Any]] = {
    "at the beginning of the window": partial(_padded, begin=0),  # as birdtune does it
    "in its middle": partial(_padded, begin=(WINDOW - CLIP) // 2),
    "at its end": partial(_padded, begin=WINDOW - CLIP),
    "anywhere in it": _at_random,
    "repeated until it is full": lambda clips: np.tile(clips, (1, 3))[:, :WINDOW],
}


def measure(settings: Settings) -> Result:
    """A line for each way and classifier."""
    data = learning.place("warblers")
    folds = learning.folds_of(data)
    names = sorted(folds)[:: 4 if settings.quick else 1]
    classes = sorted({Path(name).parent.name for name in names})
    labels = np.array([classes.index(Path(name).parent.name) for name in names])
    fold, clips = np.array([folds[name] for name in names]), np.stack([_cut(data / name) for name in names])
    backbone, compute = loaded()
    arrays, columns = backbone.arrays(), _columns(backbone, classes)
    scores: dict[str, dict[str, Any]] = {}
    for way, placed in WAYS.items():
        windows = placed(clips).reshape(-1, *backbone.front_end.window_shape)
        found = np.concatenate([compute(windows[begin : begin + 8]).numpy() for begin in range(0, len(windows), 8)])
        scores[way] = {
            "logistic regression": _out_of_fold(found, labels, fold),
            "BirdNET's own classifier": (found @ arrays["logits/kernel"] + arrays["logits/bias"])[:, columns],
        }
    return Result("learn_short", [line for way in WAYS for line in _lines(way, scores, labels, names)])


def _cut(path: Path) -> Any:
    """1.2 s around the loudest second of a recording."""
    from birdtune.audio import decode

    waveform = decode.read(path, rate_hz=RATE_HZ)
    energy = np.cumsum(np.r_[0.0, waveform.astype(np.float64) ** 2])
    middle = int((energy[RATE_HZ:] - energy[:-RATE_HZ]).argmax()) + RATE_HZ // 2
    first = min(max(0, middle - CLIP // 2), waveform.size - CLIP)
    return waveform[first : first + CLIP]


def _columns(backbone: Any, classes: list[str]) -> list[int]:
    from birdtune.models.published_names import Names

    found = Names(backbone.published.read_classes(birdnet())).only(classes)
    return [found[name] for name in classes]


def _out_of_fold(embeddings: Any, labels: Any, fold: Any) -> Any:
    scores = np.zeros((len(labels), labels.max() + 1))
    for number in np.unique(fold):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(embeddings[fold != number], labels[fold != number])
        rows = np.flatnonzero(fold == number)
        scores[np.ix_(rows, model.classes_)] = model.predict_proba(embeddings[rows])
    return scores


def _lines(way: str, scores: Mapping[str, Mapping[str, Any]], labels: Any, names: list[str]) -> list[Line]:
    first = next(iter(scores))
    lines = []
    for kind, own in scores[way].items():
        other = scores[first][kind]

        def ap(rows: Any, scores: Any = own) -> float:
            return macro_ap(scores[rows], labels[rows])

        def more(rows: Any, ap: Any = ap, other: Any = other) -> float:
            return float(ap(rows) - ap(rows, other))

        right = learning.shares(own.argmax(axis=1) == labels, names)
        beside = learning.text(learning.drawn(more, names, 100), sign=True)
        note = "" if way == first else f"macro AP beside {first}: {beside}"
        figure = f"accuracy {learning.text(right)}, macro AP {learning.text(learning.drawn(ap, names, 100))}"
        lines.append(Line(f"1.2 s {way}: {kind}", figure, note=note))
    return lines
