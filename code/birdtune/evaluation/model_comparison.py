"""Model comparison: a model and the base model that its training began from, on the classes of the latter.

    Scores of both, of the same recordings ─▶ compare ─▶ a JSON-able dict
                                                └─▶ sentences, diagnose

Both are evaluated as they are served, calibration included, on test recordings of the base model's classes that it was
neither trained nor selected on. The bootstrap draws the same source recordings for both models: what one finds hard the
other mostly does, too, so the difference is more certain than either figure.

Whether a class changed significantly is tested on its sources: a sign test over those that changed, with Holm's
correction for the number of classes. Of forty classes one or two would look worse by chance alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from birdtune.evaluation import class_alignment
from birdtune.evaluation.bootstrap import Bools, Bootstrap, difference_interval
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic, Row
from birdtune.evaluation.headline import RECORDINGS, SEGMENTS, units
from birdtune.evaluation.metrics import METRICS, Estimate, estimate, predictions, view_of
from birdtune.evaluation.scores import Ints, Scores, clip_scores
from birdtune.evaluation.thresholds import decided
from birdtune.runtime.text import count, percent, plain, points, some

# Significance level: 1 - `bootstrap.CONFIDENCE`.
_ALPHA = 0.05
# A smaller loss is not reported, however certain.
_LEAST_LOSS = 0.01
# A loss of accuracy that is significantly larger than this is a reason not to replace the base model.
_LARGE_LOSS = 0.1
# Fewer changed sources than these cannot be significant: five of five come about by chance with 2 / 2^5 = 0.06.
FEWEST_CHANGED = 6
# Below so many sources a comparison is called small, as a test is.
_SMALL = 30
_ADVICE = (
    "Lower --train.learning-rate (try a tenth), warm up the head alone (--train.head-warmup-epochs), or freeze the "
    "backbone (--model.freeze all-but-head); keep training recordings of all old classes in the data."
)


def compare(
    before: Scores,
    after: Scores,
    *,
    n_bootstrap: int,
    seed: int,
    thresholds: tuple[Thresholds, Thresholds] | None = None,
    unit: str = RECORDINGS,
) -> dict[str, Any]:
    """Two models on the same recordings.

    Args:
        before: of the base model; all recordings are of its classes.
        after: of the new one, whose first columns are those of the base model.
        n_bootstrap, seed: as `part.evaluate_part`.
        thresholds: of both; None where those of the base model are not known.
        unit: what stands for a recording in the scores: `RECORDINGS` or `SEGMENTS`.

    Returns:
        `unit`; `n_recordings` (or segments that hold a class), `n_sources`; `accuracy`, `macro_ap`: each
        `before`, `after`, `difference`, `difference_ci`;
        `regressions`, `fixes` (recordings that only the base model, only the new one names correctly);
        `predicted_as_new`, of these `predicted_as_new_regressions`; `per_class`: `class`, `n_recordings`, `n_sources`,
        `recall`, `ap` (each as `accuracy`), `predicted_as_new`, `confused_with`, `p`, `change` ("worse", "better" or
        ""); `worse`, `better`: names. `decided` (None without `thresholds`): as `accuracy`, the share that gets a class
        instead of `unknown`, and of how many `n_recordings`.

    Raises:
        ValueError: other recordings, or other columns.
    """
    n_old = len(before.classes)
    if before.recordings != after.recordings or after.classes[:n_old] != before.classes:
        raise ValueError("two models can be compared on the same recordings and columns only")
    bootstrap = Bootstrap(before.groups, n_bootstrap, seed)
    right = np.stack([before.top1, _names_of_old(after, n_old, before.positive)])  # [2, N]
    highest = clip_scores(after).argmax(axis=1)  # [N]
    as_new = highest >= n_old
    rows = _class_rows(before, after, thresholds, highest, bootstrap)
    everything = before.has_class
    ap = [_average_precisions(each, n_old, before, bootstrap) for each in (before, after)]
    for row in rows:
        row["ap"] = _pair(*(each.of(row["column"]) for each in ap))
    _mark_changes(rows)
    return {
        "unit": unit,
        "n_recordings": int(everything.sum()),
        "n_sources": bootstrap.n_groups,
        "accuracy": _shares(right, everything, bootstrap),
        "macro_ap": _pair(*(each.mean(bootstrap.n_groups) for each in ap)),
        "regressions": int((right[0] & ~right[1]).sum()),
        "fixes": int((right[1] & ~right[0]).sum()),
        "predicted_as_new": int(as_new.sum()),
        "predicted_as_new_regressions": int((as_new & right[0]).sum()),
        "decided": _decided(before, after, thresholds, bootstrap) if thresholds else None,
        "per_class": [{key: value for key, value in row.items() if key != "column"} for row in rows],
        "worse": [row["class"] for row in rows if row["change"] == "worse"],
        "better": [row["class"] for row in rows if row["change"] == "better"],
    }


def _names_of_old(after: Scores, n_old: int, positive: Bools) -> Bools:
    """Whether the new model's highest score, among all its classes, is that of one of the old classes. [N]"""
    highest = clip_scores(after).argmax(axis=1)
    own = np.take_along_axis(positive, np.minimum(highest, n_old - 1)[:, None], axis=1)[:, 0]
    return np.asarray(own & (highest < n_old))


def _class_rows(
    before: Scores,
    after: Scores,
    thresholds: tuple[Thresholds, Thresholds] | None,
    highest: Ints,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """A row for each class that there are recordings of."""
    at: list[Any] = [np.asarray(each.values) for each in thresholds] if thresholds else [0.5, 0.5]
    predicted = [predictions(scores, own) for scores, own in zip((before, after), at, strict=True)]
    from scipy.stats import binomtest

    rows = []
    for c in np.flatnonzero(before.positive.any(axis=0)).tolist():
        inside = before.positive[:, c]
        right = np.stack([each[:, c] for each in predicted])  # [2, N]
        change = right[1].astype(np.int64) - right[0]  # [N] -1 regression, 1 fix
        by_source = np.sign(bootstrap.per_group(change * inside))
        worse, better = int((by_source < 0).sum()), int((by_source > 0).sum())
        wrong = highest[inside & ~right[1] & (highest != c)]
        rows.append({
            "column": c,
            "class": before.classes[c],
            "n_recordings": int(inside.sum()),
            "n_sources": bootstrap.n_groups_of(inside),
            "recall": _shares(right, inside, bootstrap),
            "predicted_as_new": int((highest[inside] >= len(before.classes)).sum()),
            "confused_with": after.classes[int(np.bincount(wrong).argmax())] if wrong.size else None,
            "sources_worse": worse,
            "sources_better": better,
            "p": float(binomtest(worse, worse + better).pvalue) if worse + better else 1.0,
        })  # fmt: skip
    return rows


def _decided(
    before: Scores, after: Scores, thresholds: tuple[Thresholds, Thresholds], bootstrap: Bootstrap
) -> dict[str, Any] | None:
    """Share that gets a class, right or wrong: above the thresholds, and not rejected as OOD."""
    given = np.stack([
        decided(scores, each).any(axis=1) for scores, each in zip((before, after), thresholds, strict=True)
    ])  # fmt: skip
    both = thresholds[0].asked & thresholds[1].asked[: len(before.classes)]
    asked = np.asarray((before.positive & both).any(axis=1))
    return {"n_recordings": int(asked.sum()), **_shares(given, asked, bootstrap)} if asked.any() else None


def _shares(right: Bools, inside: Bools, bootstrap: Bootstrap) -> dict[str, Any]:
    """Share of right (or other) predictions among some recordings, before and after. right: [2, N]"""
    difference, ci = bootstrap.difference(right[1], right[0], inside)
    before, after = (float(each[inside].mean()) for each in right)
    return {"before": before, "after": after, "difference": difference, "difference_ci": ci}


def _average_precisions(scores: Scores, n_old: int, before: Scores, bootstrap: Bootstrap) -> Estimate:
    """AP of each old class; without replicates where a class has one source only."""
    seen = view_of(before, bootstrap)
    found = estimate(METRICS["ap"], replace(seen, scores=clip_scores(scores)[:, :n_old]))
    return replace(found, drawn=np.where(found.n_groups > 1, found.drawn, np.nan))


def _pair(before: Estimate, after: Estimate) -> dict[str, Any]:
    """A figure of both models, and the difference with its interval."""
    difference = float(after.value - before.value)
    return {
        "before": float(before.value),
        "after": float(after.value),
        "difference": difference,
        "difference_ci": difference_interval(after.drawn - before.drawn, int(after.n_groups), centre=difference),
    }


def _mark_changes(rows: list[dict[str, Any]]) -> None:
    """Which classes changed significantly: Holm's procedure over all of them."""
    for row in rows:
        row["change"] = ""
    for place, row in enumerate(sorted(rows, key=lambda row: row["p"])):
        if row["p"] > _ALPHA / (len(rows) - place):
            return
        row["change"] = "worse" if row["sources_worse"] > row["sources_better"] else "better"


# ---- words --------------------------------------------------------------------------------------


def sentences(found: Row) -> list[str]:
    """What became of the classes of the base model, for people; `found`: `model_comparison` of metrics.json."""
    compared = found["comparison"]
    if compared is None:
        return [f"Its classes were not compared: {found['reason']}."]
    accuracy, sources = compared["accuracy"], count(compared["n_sources"], "source recording")
    before, after = percent(accuracy["before"]), percent(accuracy["after"])
    parts = [
        f"On {units(compared, 'test ')} of the old classes ({sources}) that neither model was "
        f"trained on, {found['title']} names {before} correctly and this model {after}: {_difference(accuracy)}. "
        f"Regressions: {compared['regressions']:,}; fixes: {compared['fixes']:,}."
    ]
    if found["new"]:
        as_new, lost = compared["predicted_as_new"], compared["predicted_as_new_regressions"]
        parts.append(
            f"{as_new:,} of them {'is' if as_new == 1 else 'are'} now predicted as a new class"
            + (f", {lost:,} of which {found['title']} named correctly." if as_new else ".")
        )
    if compared["worse"]:
        parts.append(f"Significantly worse: {some(compared['worse'])}.")
    elif any(_is_loss(compared[key]) for key in ("accuracy", "macro_ap")):
        parts.append("Together they are significantly worse, though no single class is.")
    else:
        parts.append("No class is significantly worse.")
    parts.append(_of_decisions(compared["decided"], found["title"], compared.get("unit")))
    if compared["n_sources"] < _SMALL:
        parts.append(
            "So few sources show large changes only; for a single class, a change in at least "
            f"{FEWEST_CHANGED} sources."
        )
    if found["left_out"]:
        parts.append(
            f"{count(found['left_out'], 'test recording')} of the old classes {_were(found['left_out'])} left out: "
            f"{found['title']} was trained or selected on them, or on another clip of their source. The split has "
            "changed."
        )
    else:
        parts.append(f"The split was kept: nothing that {found['title']} was trained or selected on is in the test.")
    return parts


def _of_decisions(decided: Row | None, title: str, unit: str | None) -> str:
    """How many recordings, or segments, get a class at all."""
    if decided is None:
        return "All this is of the classes with the highest score; decisions by the thresholds were not compared."
    before, after = percent(decided["before"]), percent(decided["after"])
    how, of = ("the thresholds of detections", "segments") if unit == SEGMENTS else (
        "thresholds and OOD rejection, as served", "recordings"
    )  # fmt: skip
    return (
        f"All this is of the classes with the highest score. With {how}, {title} decides for a class in {before} of "
        f"the {of} and this model in {after}: {_difference(decided)}."
    )


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _difference(pair: Row) -> str:
    ends = f" (95 % interval: {points(pair['difference_ci'])})" if pair["difference_ci"] else ""
    if pair["difference"] == 0.0:
        return f"no difference{ends}"
    return f"a difference of {100 * pair['difference']:+.0f} percentage points{ends}"


def _is_loss(pair: Row) -> bool:
    """Whether a figure fell significantly, and by more than is negligible."""
    ends: Sequence[float] = pair["difference_ci"] or (0.0, 0.0)
    return ends[1] < 0.0 and bool(pair["difference"] <= -_LEAST_LOSS)


def diagnose(found: Row | None) -> Iterator[Diagnostic]:
    """Warnings about the new model, and about replacing the base model by it.

    Args:
        found: as `sentences`; None: there was no base model.
    """
    if found is None:
        return
    if n := found["left_out"] or found["unknown"]:
        was = "was trained on" if found["left_out"] else "may have been trained on"
        yield Diagnostic(
            "test-seen-before",
            MILD,
            f"The test is not independent: {found['title']}, whose weights training began from, {was} "
            f"{count(n, 'test recording')}, or selected on them.",
            "The figures are optimistic. Keep split.csv from version to version; where the model comes from another "
            "output folder, begin with a copy of that folder's split.csv and logs.",
        )
    for row in found.get("moved", []):
        yield Diagnostic("old-class-moved", STRONG, class_alignment.moved_sentence(row), class_alignment.MOVED_ADVICE)
    if found.get("unreachable"):
        yield _unreachable(found)
    compared = found["comparison"]
    if compared is None:
        return
    yield from _fewer_decisions(compared, found["title"])
    names = {"accuracy": "accuracy", "macro_ap": "average precision"}
    losses = {key: compared[key] for key in names if _is_loss(compared[key])}
    if not losses and not compared["worse"]:
        return
    figures = [
        f"{names[key]} {plain(percent(pair['before']))} before, {plain(percent(pair['after']))} now, "
        f"{points(pair['difference_ci'])}"
        for key, pair in losses.items()
    ]
    worse = [f"significantly worse: {some(compared['worse'])}"] if compared["worse"] else []
    large = "accuracy" in losses and losses["accuracy"]["difference_ci"][1] < -_LARGE_LOSS
    yield Diagnostic(
        "old-classes-worse",
        STRONG if large else MILD,
        f"On the classes of {found['title']}, this model is worse: {'; '.join([*figures, *worse])} "
        f"({count(compared['n_sources'], 'source recording')}).",
        _ADVICE,
    )


def _unreachable(found: Row) -> Diagnostic:
    """Old classes that the OOD model holds nothing of."""
    why = (
        f"{found['title']} does not say where they lie among embeddings"
        if found["backbone_kept"]
        else "the backbone was trained further, so their old embeddings are void"
    )
    freeze = "" if found["backbone_kept"] else "freeze the backbone (--model.freeze all-but-head), "
    return Diagnostic(
        "old-classes-unreachable",
        STRONG,
        f"Classes of {found['title']} without training recordings will be rejected as unknown: "
        f"{some(found['unreachable'])}. Their columns are kept, but their recordings are far from the training data of "
        f"this model: {why}.",
        f"Put recordings of them back, {freeze}or reject nothing as OOD (--ood.target-recall 1).",
    )


def _fewer_decisions(compared: Row, title: str) -> Iterator[Diagnostic]:
    decided = compared["decided"]
    if decided and decided["difference_ci"] and decided["difference_ci"][1] < -_LARGE_LOSS:
        yield Diagnostic(
            "old-classes-rejected",
            STRONG,
            f"Recordings of the classes of {title} are rejected as unknown far more often: a class is decided for "
            f"{plain(percent(decided['before']))} before, {plain(percent(decided['after']))} now, "
            f"{points(decided['difference_ci'])} ({count(compared['n_sources'], 'source recording')}).",
            "Compare the thresholds of both in labels.csv: a lower --evaluate.precision lowers them, a higher "
            "--ood.target-recall rejects less as OOD. More validation recordings make both less strict.",
        )


def rows_of_new(evaluated: Mapping[str, Any] | None, classes: Sequence[str], n_old: int) -> list[dict[str, Any]]:
    """How good the new classes are: rows of `class`, `column`, and the figures of `per_class`.

    Args:
        evaluated: `part.evaluate_part` of test, if there is one.
        classes: of the new model; the first `n_old` are the base model's.
    """
    per_class = {row["class"]: row for row in (evaluated or {"per_class": []})["per_class"]}
    return [
        {"column": column, **per_class.get(name, {"class": name})}
        for column, name in enumerate(classes)
        if column >= n_old
    ]
