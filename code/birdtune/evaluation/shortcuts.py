"""Shortcuts: how well the classes are predicted from recording conditions alone, the metadata baseline.

    Dataset, which test recordings the model predicts correctly ─▶ measure ─▶ `shortcuts` of metrics.json

Each property of the recording (sample rate, format, level, place …), and all of them together, is given to a random
forest: by cross-validation over source recordings for how much it predicts, and trained on what the model was trained
on for the very test recordings of the model. Where that comes near to the model, the test cannot tell whether the model
recognises the bird or the recorder; recordings on which the property points to a wrong class can.

Where recordings have several classes, a forest learns all of them at once, and predicts the most probable one; it is
right, as the model's highest score is, if that is one of the recording's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from birdtune.data.dataset import Dataset
from birdtune.data.properties import NO_VALUE, Property, common_bandwidth_hz, properties_of
from birdtune.evaluation.bootstrap import Bools, Bootstrap, Ints
from birdtune.evaluation.scores import Scores, clip_scores

# Recordings that forests learn from at most, as many sources as there are first: some seconds.
_MOST_RECORDINGS = 2_000
_FOLDS, _TREES = 3, 24
# Leaves of a tree at most, times classes, where there are many: a tree keeps a number of each class in each of them.
_LEAF_VALUES, _MANY_CLASSES = 600_000, 100
# Near: the model is not shown to be better by more than this share of recordings, and so much of what the model has
# over the majority baseline is reached without it. On ESC-10 all properties together are right for 0.60 of the test
# recordings, a frozen YAMNet with a new head for 0.97.
_MARGIN, _REACHED = 0.05, 2 / 3
# How sure it must be that the model sides with the truth where the shortcut points elsewhere.
_SURE = 0.95
ALL, ALL_NAME = "all", "all of these together"
# Of these, a band limit leaves nothing to hear.
_OF_BANDWIDTH: Final = frozenset({"rate", "bandwidth"})


@dataclass(frozen=True, eq=False)
class _Task:
    """What forests are trained and evaluated on."""

    positive: csr_array  # [N, C] classes of each recording
    groups: tuple[str, ...]  # [N] its source
    learn: Ints  # numbers of the recordings to learn from, not those of the part that is evaluated
    evaluated: Ints  # numbers of the recordings of that part
    validated: Ints  # numbers of those that are cross-validated
    seed: int

    def classes(self, numbers: Ints) -> Bools:
        """Those of some recordings. [n, C]"""
        return np.asarray(self.positive[numbers].toarray())


def measure(
    dataset: Dataset, scores: Scores, part: str, *, n_bootstrap: int, seed: int, check: Callable[[], None]
) -> dict[str, Any]:
    """The metadata baseline, beside the model.

    Args:
        scores: of the part that is evaluated, as they are served.
        part: "test" or "val".
        check: called now and then; raises to stop.

    Returns:
        `part`, `reason` (why nothing was measured, or ""), `common_bandwidth_hz`, `band_limit_hz` (that of the model),
        `rows` (of each property, and of all together: `property`, `name`, `biological` (it may be the species' own),
        `audible` (no band limit removes it), `accuracy` and `majority` by cross-validation, `gain_ci` (of the one over
        the other), `test_accuracy`, `model_gain_ci` (95 % interval of the model's accuracy less that), `near`,
        `values` (of the classes that it predicts best: `class`, `recall`, `value` in words), `conflict` (the
        recordings on which it points to a wrong class, as `_conflict`)), `majority`, `model` (accuracies on the part),
        and `shortcut`: the row that comes nearest to the model, or None.
    """
    recordings = dataset.recordings
    common_hz, limit_hz = common_bandwidth_hz(recordings), dataset.spec.limit_hz
    shared = {
        "part": part, "reason": "", "several": scores.is_multi_label,
        "common_bandwidth_hz": common_hz, "band_limit_hz": limit_hz, "rows": [],
        "shortcut": None, "majority": None, "model": None,
    }  # fmt: skip
    if scores.window_targets is not None:
        return {**shared, "reason": "labels have times, and what a recording is like does not say when birds call"}
    if not scores.has_class.all():
        return {**shared, "reason": f"{(~scores.has_class).sum():,} of the recordings have no class"}
    task = _task(dataset, scores, part, seed)
    if not task.learn.size or len({task.groups[k] for k in task.validated}) < 2 * _FOLDS:
        return {**shared, "reason": "there are too few source recordings to cross-validate"}
    model = scores.top1
    bootstrap = Bootstrap(scores.groups, n_bootstrap, seed)
    majority = task.classes(task.evaluated)[:, task.positive[task.learn].sum(axis=0).argmax()]
    inaudible = _OF_BANDWIDTH if limit_hz is not None and limit_hz <= common_hz else frozenset()
    comparison = _Comparison(task, bootstrap, model, majority, dataset.classes)
    rows = []
    for each in _with_all(properties_of(recordings), inaudible):
        check()
        rows.append({**comparison.row(each, scores), "audible": each.key not in inaudible})
    shortcut = _nearest(rows)
    return {
        **shared,
        "rows": rows,
        "majority": float(majority.mean()),
        "model": float(model.mean()),
        "shortcut": shortcut,
    }


def _with_all(found: Sequence[Property], inaudible: frozenset[str]) -> list[Property]:
    """The properties, and all together that are audible to the model and cannot be a species' own."""
    alien = [each for each in found if not each.own]
    audible = [each for each in alien if each.key not in inaudible]
    own = [each for each in found if each.own]
    if len(audible) < 2:
        return [*alien, *own]
    return [*alien, Property(ALL, ALL_NAME, False, np.hstack([each.columns for each in audible])), *own]


def _nearest(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the properties near to the model, the most predictive one; first those that cannot be biological."""
    near = [row for row in rows if row["near"]]
    # By cross-validation: the test would choose the luckiest. The first of equals is the plainest.
    return max(
        near,
        key=lambda row: (row["audible"] and not row["biological"], round(row["accuracy"], 2)),
        default=None,
    )


def _task(dataset: Dataset, scores: Scores, part: str, seed: int) -> _Task:
    recordings = dataset.recordings
    places = [dataset.places[recording.name] for recording in recordings]
    groups = tuple(place.group for place in places)
    number = {recording.name: k for k, recording in enumerate(recordings)}
    evaluated = np.array([number[name] for name in scores.recordings], np.int64)
    order = _by_source(groups, seed)
    # The model was not trained on what comes after the part that is evaluated, either.
    trained_on = {"test": ("train", "val"), "val": ("train",)}[part]
    learn = np.array([k for k in order if places[k].split in trained_on], np.int64)[:_MOST_RECORDINGS]
    positive = dataset.targets(recordings).positive()
    return _Task(positive, groups, learn, evaluated, order[:_MOST_RECORDINGS], seed)


def _by_source(groups: Sequence[str], seed: int) -> Ints:
    """Numbers of the recordings in a random order, a first one of each source before any second one."""
    shuffled = np.random.default_rng(seed).permutation(len(groups))
    met: dict[str, int] = {}
    place = np.zeros(len(groups), np.int64)
    for k in shuffled:
        place[k] = met.get(groups[k], 0)
        met[groups[k]] = int(place[k]) + 1
    return np.asarray(shuffled[np.argsort(place[shuffled], kind="stable")])


class _Comparison:
    """Compares the predictions of forests with the model's."""

    def __init__(
        self, task: _Task, bootstrap: Bootstrap, model: Bools, majority: Bools, classes: Sequence[str]
    ) -> None:
        self._task, self._bootstrap, self._model, self._majority = task, bootstrap, model, majority
        self._classes = classes
        chosen = [task.groups[k] for k in task.validated]
        self._validated = Bootstrap(chosen, bootstrap.n, task.seed)
        positive = task.classes(task.validated)
        self._validated_majority = positive[:, positive.sum(axis=0).argmax()]

    def row(self, property_: Property, scores: Scores) -> dict[str, Any]:
        """What a property alone predicts, as in metrics.json."""
        task = self._task
        validated = _cross_validated(property_.columns, task)
        right = task.classes(task.validated)[np.arange(len(validated)), validated]
        gain_ci = _gain(right, self._validated_majority, self._validated)
        predicted = _predict(property_.columns, task, task.learn, task.evaluated)
        on_test = task.classes(task.evaluated)[np.arange(len(predicted)), predicted]
        model_gain_ci = _gain(self._model, on_test, self._bootstrap)
        return {
            "property": property_.key, "name": property_.name, "biological": property_.own,
            "accuracy": float(right.mean()), "majority": float(self._validated_majority.mean()),
            "gain_ci": gain_ci, "test_accuracy": float(on_test.mean()), "model_gain_ci": model_gain_ci,
            "near": self._is_near(right, on_test, gain_ci, model_gain_ci),
            "values": self._values(property_, validated), "conflict": _conflict(predicted, scores),
        }  # fmt: skip

    def _is_near(
        self, right: Bools, on_test: Bools, gain_ci: Sequence[float] | None, model_gain_ci: Sequence[float] | None
    ) -> bool:
        """Whether the model is not shown to be better than this."""
        if gain_ci is None or gain_ci[0] <= 0:
            return False
        above = float(self._model.mean() - self._majority.mean())
        reached = float(on_test.mean() - self._majority.mean())
        # The test has few recordings, and may have been lucky.
        usual = float(right.mean() - self._validated_majority.mean())
        if above <= 0 or min(reached, usual) < _REACHED * above:
            return False
        return model_gain_ci is None or model_gain_ci[0] <= _MARGIN

    def _values(self, property_: Property, validated: Ints) -> list[dict[str, Any]]:
        """The values of the classes that a property predicts best, at most three."""
        task = self._task
        positive = task.classes(task.validated)
        n = positive.sum(axis=0)
        recall = {c: float((validated[positive[:, c]] == c).mean()) for c in np.flatnonzero(n).tolist()}
        best = sorted(recall, key=lambda c: (-recall[c], -int(n[c]), c))[:3]
        if property_.key == ALL:
            return []
        return [
            {"class": self._classes[c], "recall": recall[c], "value": spoken(property_, task.positive, c)}
            for c in best
        ]


def _conflict(predicted: Ints, scores: Scores) -> dict[str, Any]:
    """How the model does where a property points to a wrong class.

    Args:
        predicted: [N] class that the property points to, of each recording of the scores.

    Returns:
        `recordings`, `sources`; of the recordings `right` (the model is) and `followed` (it predicts what the
        property does); `cleared`: whether it sides with the truth, source by source, by more than luck.
    """
    named = clip_scores(scores).argmax(axis=1)
    wrong = ~scores.positive[np.arange(len(predicted)), predicted]
    right, followed = wrong & scores.top1, wrong & (named == predicted)
    by_source: dict[str, int] = {}
    for k in np.flatnonzero(right | followed):
        by_source[scores.groups[k]] = by_source.get(scores.groups[k], 0) + (1 if right[k] else -1)
    signs = [n for n in by_source.values() if n]
    return {
        "recordings": int(wrong.sum()), "sources": len({scores.groups[k] for k in np.flatnonzero(wrong)}),
        "right": int(right.sum()), "followed": int(followed.sum()),
        "cleared": _is_majority(sum(n > 0 for n in signs), len(signs)),
    }  # fmt: skip


def spoken(property_: Property, positive: csr_array, c: int) -> str:
    """What a class has of a property, in words and numbers. positive: [N, C]"""
    inside = positive[:, [c]].toarray()[:, 0]
    if property_.texts:
        texts = Counter(text for text, of in zip(property_.texts, inside, strict=True) if of)
        commonest = max(sorted(texts), key=lambda text: texts[text])
        return f"{commonest or 'nothing'} in {texts[commonest]:,} of {texts.total():,} recordings"
    columns = property_.columns
    # The column in which the classes lie farthest apart.
    row, labels = positive.nonzero()  # a recording once for each of its classes
    spread = [_between(columns[row, k], labels) for k in range(columns.shape[1])]
    k = int(np.argmax(spread))
    known = columns[inside, k][columns[inside, k] != NO_VALUE]
    if not known.size:
        return "nothing"
    low, middle, high = (f"{float(f'{value:.3g}'):,g}" for value in np.quantile(known, [0.1, 0.5, 0.9]))
    return property_.templates[k].format(middle if low == high else f"{middle} ({low} to {high})")


def _between(column: npt.NDArray[np.float64], labels: Ints) -> float:
    """Share of the variance of a column that the classes explain."""
    total = float(column.var())
    means = np.bincount(labels, column) / np.maximum(np.bincount(labels), 1)
    return float(means[labels].var()) / total if total else 0.0


def _gain(first: Bools, second: Bools, bootstrap: Bootstrap) -> list[float] | None:
    """95 % interval of the difference of two shares of the same recordings, by sources."""
    return bootstrap.difference(first, second, np.ones(len(first), np.bool_))[1]


def _is_majority(n: int, of: int) -> bool:
    """Whether n of so many are more than half of all that there could be, by the sign test."""
    from scipy.stats import binom

    return of > 0 and float(binom.sf(n - 1, of, 0.5)) < 1 - _SURE


# ---- forests ------------------------------------------------------------------------------------


def _cross_validated(columns: npt.NDArray[np.float64], task: _Task) -> Ints:
    """Predictions for each validated recording by forests trained on other sources. [n]"""
    sources = np.unique([task.groups[k] for k in task.validated], return_inverse=True)[1]
    fold = np.random.default_rng(task.seed).permutation(int(sources.max()) + 1)[sources] % _FOLDS
    found = np.zeros(len(task.validated), np.int64)
    for k in range(_FOLDS):
        held = fold == k
        found[held] = _predict(columns, task, task.validated[~held], task.validated[held])
    return found


def _predict(columns: npt.NDArray[np.float64], task: _Task, learn: Ints, evaluated: Ints) -> Ints:
    """Classes that a forest, trained on some recordings, predicts for others: one each. [n]"""
    from sklearn.ensemble import ExtraTreesClassifier

    positive = task.classes(learn)
    present = np.flatnonzero(positive.any(axis=0))
    n_classes = present.size
    leaves = _LEAF_VALUES // n_classes if n_classes > _MANY_CLASSES else None
    forest = ExtraTreesClassifier(_TREES, max_leaf_nodes=leaves, random_state=task.seed)
    if (task.positive.sum(axis=1) == 1).all():
        forest.fit(columns[learn], positive.argmax(axis=1))
        return np.asarray(forest.predict(columns[evaluated]), np.int64)
    if present.size < 2 or positive[:, present].all(axis=0).any():  # a class that all have is always right
        return np.full(len(evaluated), positive.sum(axis=0).argmax(), np.int64)
    forest.fit(columns[learn], positive[:, present])
    found = np.stack([of_class[:, 1] for of_class in forest.predict_proba(columns[evaluated])], axis=1)
    return np.asarray(present[found.argmax(axis=1)], np.int64)
