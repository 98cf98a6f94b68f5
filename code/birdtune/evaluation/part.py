"""All figures about the scores of one part of the split.

    Scores (one row of class scores per window) ─▶ pooled per recording ─▶ evaluate_part ─▶ a JSON-able dict

The metrics are those of `metrics.METRICS`, their intervals those of `bootstrap`. The accuracy is compared with the
majority baseline: what "always the most frequent class" would reach.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.bootstrap import Bootstrap, Ints, divide
from birdtune.evaluation.metrics import (
    Estimate,
    View,
    binary_log_loss,
    chance_ap,
    estimates,
    log_loss,
    names,
    predictions,
    summary,
    view_of,
    windows_of,
)
from birdtune.evaluation.scores import Scores, clip_scores, pool_sum_squares
from birdtune.evaluation.window_answers import right_answers, window_answers, with_class

MOST_PAIRS = 100


def evaluate_part(
    scores: Scores,
    *,
    train_counts: Ints,
    n_bootstrap: int,
    seed: int,
    thresholds: npt.NDArray[Any] | float = 0.5,
) -> dict[str, Any]:
    """The figures of validation or test, as plain JSON values.

    Args:
        scores: one part of the split, at least one recording.
        train_counts: [C] recordings of each class in training.
        n_bootstrap: replicates for the intervals; 1,000 is customary, 0 leaves them out (None).
        seed: for the bootstrap.
        thresholds: [C] from which score on a class is predicted, where recordings have several classes.

    Returns:
        `n_recordings`, `n_sources`, `n_windows`, `multi_label`; `window_targets`: where those of windows come from,
        the "times" of labels or "recordings"; `majority_class`, `majority_baseline` (+ `_ci`),
        `accuracy_gain` (+ `_ci`: clip accuracy less the baseline, drawn in pairs); `macro_ap_chance`; `clip`,
        `clip_sum_squares`, `window`, each with the summary of every metric (+ `_ci` each) and `log_loss`;
        `window_answers` as of `window_answers`, `window_macro_ap_chance` and `windows_per_class` (`class`, `windows`,
        and metrics that have a value per class), None where labels have no times; `per_class`;
        `confusion` (rows are true; of recordings with one class), `confusion_pairs` (the 100 most frequent),
        `never_predicted`. What is undefined is None.

    Raises:
        ValueError: no recordings, or train_counts of another number of classes.
    """
    if not scores.recordings or len(train_counts) != len(scores.classes):
        raise ValueError(
            f"cannot evaluate {len(scores.recordings)} recordings of {len(scores.classes)} classes "
            f"with {len(train_counts)} training counts"
        )
    bootstrap = Bootstrap(scores.groups, n_bootstrap, seed)
    pooled = clip_scores(scores)  # [N, C]
    predicted = predictions(scores, thresholds)
    clip = View(pooled, scores.positive, scores.known, bootstrap, predicted)
    squares = View(pool_sum_squares(scores), scores.positive, scores.known, bootstrap)
    window, window_targets = windows_of(scores, bootstrap)
    by_metric, by_window, with_times = estimates(clip), estimates(window), scores.window_targets is not None
    confusion = _confusion(scores.labels, pooled)
    return {
        "n_recordings": len(scores.recordings),
        "n_sources": bootstrap.n_groups,
        "n_windows": len(scores.window_recording),
        "window_targets": "recordings" if scores.window_targets is None else "times",
        "multi_label": scores.is_multi_label,
        **_against_baseline(scores, train_counts, bootstrap),
        "clip": _summary(clip, by_metric, scores.targets),
        "macro_ap_chance": chance_ap(scores.positive.sum(axis=0), scores.known.sum(axis=0)),
        "clip_sum_squares": _summary(squares, estimates(squares), scores.targets),
        "window": _summary(window, by_window, window_targets),
        "window_answers": window_answers(window, scores.classes) if with_times else None,
        "window_macro_ap_chance": _chance_of_windows(window) if with_times else None,
        "windows_per_class": _windows_per_class(window, by_window, scores.classes) if with_times else None,
        "per_class": _per_class(scores, predicted, train_counts, by_metric, bootstrap),
        "confusion": confusion.tolist(),
        "confusion_pairs": _confusion_pairs(confusion, scores.classes),
        "never_predicted": [scores.classes[c] for c in np.flatnonzero(~predicted.any(axis=0))],
    }


def quick_look(scores: Scores, kind: str, *, of_windows: bool = False) -> dict[str, float | None]:
    """Figures of an epoch without intervals: `loss`, of the kind that is trained with, and every metric's summary.

    Args:
        kind: "softmax" or "sigmoid".
        of_windows: by windows, of which those that hold no class are negatives: accuracy is that of `window_answers`,
            and predictions are scores from 0.5 on; else by recordings, scored by the means over their windows.
    """
    bootstrap, targets = Bootstrap(scores.groups, 0, 0), scores.targets
    view = view_of(scores, bootstrap)
    if of_windows:
        view, targets = windows_of(scores, bootstrap)
        view = replace(view, predictions=np.asarray(view.scores >= 0.5))
    rows = summary(estimates(view), view.bootstrap.n_groups)
    found = {key: rows[key] for key in rows if not key.endswith("_ci")}
    if of_windows:
        # Softmax is not trained on windows without a class, and always gives one.
        counted = view.known & with_class(view.positive, view.known) if kind == "softmax" else view.known
        found["accuracy"] = view.bootstrap.share(*right_answers(replace(view, known=counted)))[0]
        del found["top3"]
    loss = log_loss if kind == "softmax" else binary_log_loss
    return {"loss": loss(view.scores, targets, view.known), **found}


def _summary(view: View, found: dict[str, Estimate], targets: npt.NDArray[Any]) -> dict[str, Any]:
    rows = summary(found, view.bootstrap.n_groups)
    return {**rows, "log_loss": log_loss(view.scores, targets, view.known)}


def _against_baseline(scores: Scores, train_counts: Ints, bootstrap: Bootstrap) -> dict[str, Any]:
    majority = int(np.argmax(train_counts))
    asked = scores.has_class
    found: dict[str, Any] = {"majority_class": scores.classes[majority]}
    if not asked.any():
        return found | dict.fromkeys(
            ("majority_baseline", "majority_baseline_ci", "accuracy_gain", "accuracy_gain_ci")
        )
    baseline = scores.positive[:, majority]
    share, share_ci = bootstrap.share(baseline, asked)
    gain, gain_ci = bootstrap.difference(scores.top1, baseline, asked)
    if gain_ci and (names(clip_scores(scores))[asked].argmax(axis=1) == majority).all():
        gain_ci = [0.0, 0.0]  # it is the baseline: no doubt about that
    return found | {
        "majority_baseline": share, "majority_baseline_ci": share_ci, "accuracy_gain": gain, "accuracy_gain_ci": gain_ci
    }  # fmt: skip


def _per_class(
    scores: Scores, predicted: npt.NDArray[Any], train_counts: Ints, found: dict[str, Estimate], bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    by_class = {name: each for name, each in found.items() if each.is_per_class}
    support, given = scores.positive.sum(axis=0), predicted.sum(axis=0)
    sources = (bootstrap.per_group(scores.positive) > 0).sum(axis=0)
    rows = []
    for c, name in enumerate(scores.classes):
        row = {
            "class": name,
            "support": int(support[c]),
            "n_sources": int(sources[c]),
            "train_recordings": int(train_counts[c]),
            "predicted": int(given[c]),
        }
        for metric, each in by_class.items():
            row |= each.of(c).row(metric)
        rows.append(row)
    return rows


def _chance_of_windows(view: View) -> float | None:
    positives = (view.positive & view.known).sum(axis=0)
    known = np.broadcast_to(view.known, view.positive.shape).sum(axis=0)
    return chance_ap(positives, known) if positives.any() else None


def _windows_per_class(view: View, found: dict[str, Estimate], classes: Sequence[str]) -> list[dict[str, Any]]:
    by_class = {metric: each for metric, each in found.items() if each.is_per_class}
    n = (view.positive & view.known).sum(axis=0)
    rows: list[dict[str, Any]] = [{"class": name, "windows": int(n[c])} for c, name in enumerate(classes)]
    for metric, each in by_class.items():
        for c, row in enumerate(rows):
            row |= each.of(c).row(metric)
    return rows


def _confusion(labels: Ints, pooled: npt.NDArray[Any]) -> Ints:
    """Recordings with one class, by that class and by the one with the highest score. [C, C]"""
    counts = np.zeros((pooled.shape[1],) * 2, np.int64)
    np.add.at(counts, (labels[labels >= 0], pooled.argmax(axis=1)[labels >= 0]), 1)
    return counts


def _confusion_pairs(confusion: Ints, classes: Sequence[str]) -> list[dict[str, Any]]:
    wrong = confusion - np.diag(np.diag(confusion))
    share = divide(wrong, confusion.sum(axis=1, keepdims=True))  # of the recordings of the true class
    true, predicted = np.nonzero(wrong)
    order = np.lexsort((predicted, true, -share[true, predicted], -wrong[true, predicted]))[:MOST_PAIRS]
    return [
        {
            "true": classes[true[k]],
            "predicted": classes[predicted[k]],
            "count": int(wrong[true[k], predicted[k]]),
            "share": float(share[true[k], predicted[k]]),
        }
        for k in order
    ]
