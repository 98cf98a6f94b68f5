"""What a run that began from a served model did to that model's classes.

    Scores of the old model and of the new one, of the same recordings ─▶ compare ─▶ a JSON-able dict
                                                                            └─▶ sentences, of_succession (doubts)

Both are judged as they are served, calibration included, on test recordings of the old classes that the old model
neither learnt from nor was chosen by. What is drawn again and again for the intervals are source recordings, the same
for both models: most of what one finds hard the other does, too, and the difference is surer than either figure.

Whether a class got worse beyond chance is asked of its sources: a sign test over those that changed, with Holm's
correction for the number of classes asked about. Of forty classes one or two would look worse by luck alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
from sklearn.metrics import average_precision_score

from birdtune.evaluation import class_alignment
from birdtune.evaluation.decision import BACKGROUND, NONE, Thresholds
from birdtune.evaluation.diagnostics import MILD, STRONG, Doubt, Row
from birdtune.evaluation.metrics import Draws, difference_interval, ranking_replicates
from birdtune.evaluation.scores import Floats, Ints, Scores, clip_scores
from birdtune.runtime.text import count, percent, plain, points, some

# As `metrics.CONFIDENCE`: what counts as luck.
_LUCK = 0.05
# Nobody needs to be told of less, however sure it is.
_LEAST_LOSS = 0.01
# A loss of accuracy that is this sure and this large is a reason not to put the new model in the old one's place.
_LARGE_LOSS = 0.1
# Fewer changed sources than these cannot show anything: five of five come about by chance with 2 / 2^5 = 0.06.
FEWEST_CHANGED = 6
# Below so many sources a comparison is called small, as a test is.
_SMALL = 30
_ADVICE = (
    "Lower --train.learning-rate (try a tenth), let the head begin alone (--train.head-warmup-epochs), or freeze the "
    "backbone (--model.freeze all-but-head); keep training recordings of all old classes in the data."
)


def compare(
    before: Scores,
    after: Scores,
    *,
    n_bootstrap: int,
    seed: int,
    thresholds: tuple[Thresholds, Thresholds] | None = None,
) -> dict[str, Any]:
    """Two models on the same recordings.

    Args:
        before: of the old model; all recordings are of its classes.
        after: of the new one, whose first columns are those of the old.
        n_bootstrap, seed: as `metrics.judge`.
        thresholds: of both; None where those of the old one are not known.

    Returns:
        `n_recordings`, `n_groups`; `accuracy`, `macro_ap`: each `before`, `after`, `difference`, `difference_ci`;
        `lost`, `gained` (recordings that only the old, only the new model names rightly); `answered_as_new`, of these
        `answered_as_new_lost`; `per_class`: `class`, `n_recordings`, `n_groups`, `found`, `ap` (each as `accuracy`),
        `answered_as_new`, `taken_for`, `p`, `change` ("worse", "better" or ""); `worse`, `better`: names.
        `answered` (None without `thresholds`): as `accuracy`, the share that is served with an answer instead of
        `none`, and of how many `n_recordings`.

    Raises:
        ValueError: other recordings, or other columns.
    """
    n_old = len(before.classes)
    if before.recordings != after.recordings or after.classes[:n_old] != before.classes:
        raise ValueError("two models can be compared on the same recordings and columns only")
    draws = Draws(before.groups, n_bootstrap, seed)
    old, new = clip_scores(before), clip_scores(after)  # [N, C], [N, C + n]
    labels, said = before.labels, new.argmax(axis=1)
    right = np.stack([old.argmax(axis=1) == labels, said == labels])  # [2, N]
    as_new = said >= n_old
    rows = [_class_row(c, before.classes, labels, right, as_new, draws) for c in np.unique(labels)]
    aps, ap_draws = _average_precisions(old, new[:, :n_old], labels, draws)
    for row, ap, drawn, c in zip(rows, aps, ap_draws, np.unique(labels), strict=True):
        row["ap"] = _pair(*ap, drawn[1] - drawn[0], row["n_groups"])
        wrong = said[(labels == c) & (said != labels)]
        row["taken_for"] = after.classes[int(np.bincount(wrong).argmax())] if wrong.size else None
    _tell_apart(rows)
    old_ap, new_ap = (float(np.mean(column)) for column in zip(*aps, strict=True))
    everything = np.ones(len(labels), np.bool_)
    return {
        "n_recordings": len(labels),
        "n_groups": draws.n_groups,
        "accuracy": _shares(right, everything, draws),
        "macro_ap": _pair(
            old_ap, new_ap, _mean_known(np.stack([drawn[1] - drawn[0] for drawn in ap_draws])), draws.n_groups
        ),
        "lost": int((right[0] & ~right[1]).sum()),
        "gained": int((right[1] & ~right[0]).sum()),
        "answered_as_new": int(as_new.sum()),
        "answered_as_new_lost": int((as_new & right[0]).sum()),
        "answered": _answered(before, after, thresholds, draws) if thresholds else None,
        "per_class": rows,
        "worse": [row["class"] for row in rows if row["change"] == "worse"],
        "better": [row["class"] for row in rows if row["change"] == "better"],
    }


def _class_row(
    c: int,
    classes: Sequence[str],
    labels: Ints,
    right: npt.NDArray[np.bool_],
    as_new: npt.NDArray[np.bool_],
    draws: Draws,
) -> dict[str, Any]:
    inside = labels == c
    change = right[1].astype(np.int64) - right[0]  # [N] -1 lost, 1 gained
    by_source = np.sign(draws.per_group(change * inside, draws.index))
    worse, better = int((by_source < 0).sum()), int((by_source > 0).sum())
    return {
        "class": classes[c],
        "n_recordings": int(inside.sum()),
        "n_groups": len(np.unique(draws.index[inside])),
        "found": _shares(right, inside, draws),
        "answered_as_new": int((as_new & inside).sum()),
        "sources_worse": worse,
        "sources_better": better,
        "p": float(scipy.stats.binomtest(worse, worse + better).pvalue) if worse + better else 1.0,
    }


def _answered(
    before: Scores, after: Scores, thresholds: tuple[Thresholds, Thresholds], draws: Draws
) -> dict[str, Any] | None:
    """Share that gets an answer at all, right or wrong: past the thresholds, and not strange."""
    pairs = list(zip((before, after), thresholds, strict=True))
    given = np.stack([each.answers(clip_scores(heard), heard.strangeness) != NONE for heard, each in pairs])
    never = [[c for c, origin in enumerate(each.origins) if origin == BACKGROUND] for each in thresholds]
    asked = ~np.isin(before.labels, never[0] + never[1])
    return {"n_recordings": int(asked.sum()), **_shares(given, asked, draws)} if asked.any() else None


def _shares(right: npt.NDArray[np.bool_], inside: npt.NDArray[np.bool_], draws: Draws) -> dict[str, Any]:
    """Share of right (or whatever) answers among some recordings, before and after."""
    before, after = (float(answers[inside].mean()) for answers in right)
    changed = draws.per_group((right[1].astype(np.int64) - right[0]) * inside, draws.index)
    drawn = draws.ratio(changed, draws.per_group(inside, draws.index))
    n_groups = len(np.unique(draws.index[inside]))
    return _pair(before, after, drawn, n_groups)


def _pair(before: float, after: float, drawn: Floats, n_groups: int) -> dict[str, Any]:
    """A figure of both models, and the difference with its interval."""
    return {
        "before": before,
        "after": after,
        "difference": after - before,
        "difference_ci": difference_interval(drawn, n_groups, centre=after - before),
    }


def _average_precisions(
    old: Floats, new: Floats, labels: Ints, draws: Draws
) -> tuple[list[tuple[float, float]], list[list[Floats]]]:
    """AP of each class that there is, of both models, and its replicates."""
    values, replicates = [], []
    for c in np.unique(labels):
        positive = labels == c
        values.append(
            (float(average_precision_score(positive, old[:, c])), float(average_precision_score(positive, new[:, c])))
        )
        several = len(np.unique(draws.index[positive])) > 1
        drawn = [ranking_replicates(table[:, c], positive, draws.index, draws)[0] for table in (old, new)]
        replicates.append(drawn if several else [np.full_like(drawn[0], np.nan)] * 2)
    return values, replicates


def _mean_known(replicates: Floats) -> Floats:
    """Mean over the classes that a replicate holds. [classes, n] → [n]"""
    known = np.isfinite(replicates)
    n = known.sum(axis=0)
    total = np.where(known, replicates, 0.0).sum(axis=0)
    return np.asarray(np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0))


def _tell_apart(rows: list[dict[str, Any]]) -> None:
    """Which classes changed beyond chance: Holm's procedure over all of them."""
    for row in rows:
        row["change"] = ""
    for place, row in enumerate(sorted(rows, key=lambda row: row["p"])):
        if row["p"] > _LUCK / (len(rows) - place):
            return
        row["change"] = "worse" if row["sources_worse"] > row["sources_better"] else "better"


# ---- words --------------------------------------------------------------------------------------


def sentences(found: Row) -> list[str]:
    """What was done to the old classes, for people; `found`: `init_from` of metrics.json."""
    judged = found["comparison"]
    if judged is None:
        return [f"What became of its classes was not measured: {found['reason']}."]
    accuracy, sources = judged["accuracy"], count(judged["n_groups"], "source")
    before, after = percent(accuracy["before"]), percent(accuracy["after"])
    told = [
        f"On {count(judged['n_recordings'], 'test recording')} of the old classes ({sources}) that neither learnt "
        f"from, {found['title']} named {before} rightly and this one {after}: "
        f"{_difference(accuracy)}. Right before and wrong now: {judged['lost']:,}; the other way round: "
        f"{judged['gained']:,}."
    ]
    if found["new"]:
        as_new, lost = judged["answered_as_new"], judged["answered_as_new_lost"]
        told.append(
            f"{as_new:,} of them {'is' if as_new == 1 else 'are'} now answered as a new class"
            + (f", of which {lost:,} had the right answer before." if as_new else ".")
        )
    if judged["worse"]:
        told.append(f"Worse beyond chance: {some(judged['worse'])}.")
    elif any(_is_loss(judged[key]) for key in ("accuracy", "macro_ap")):
        told.append("Together they got worse beyond chance, though it can be said of no class by itself.")
    else:
        told.append("No class got worse beyond chance.")
    told.append(_of_answers(judged.get("answered"), found["title"]))
    if judged["n_groups"] < _SMALL:
        told.append(
            f"So few sources show large changes only; of a class by itself, a change in {FEWEST_CHANGED} sources at "
            "the very least."
        )
    if found["left_out"]:
        told.append(
            f"{count(found['left_out'], 'test recording')} of the old classes {_were(found['left_out'])} left out: "
            f"{found['title']} had learnt from them, or was chosen by them, or may have been. The split is another "
            "than it had."
        )
    else:
        told.append(f"The split was kept: nothing that {found['title']} learnt from or was chosen by is test now.")
    return told


def _of_answers(answered: Row | None, title: str) -> str:
    """How many get an answer; metrics.json of an older birdtune does not tell."""
    if answered is None:
        return "All this is of the names with the highest score; how many answers pass the thresholds was not compared."
    before, after = percent(answered["before"]), percent(answered["after"])
    return (
        "All this is of the names with the highest score, before thresholds. As served, with “none” for what is below "
        f"them or strange, {title} answered {before} and this one {after}: {_difference(answered)}."
    )


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _difference(pair: Row) -> str:
    ends = f" (95 % interval: {points(pair['difference_ci'])})" if pair["difference_ci"] else ""
    if pair["difference"] == 0.0:
        return f"no difference{ends}"
    return f"a difference of {100 * pair['difference']:+.0f} percentage points{ends}"


def _is_loss(pair: Row) -> bool:
    """Whether a figure fell beyond chance, and by more than nobody minds."""
    ends: Sequence[float] = pair["difference_ci"] or (0.0, 0.0)
    return ends[1] < 0.0 and bool(pair["difference"] <= -_LEAST_LOSS)


def of_succession(found: Row | None) -> Iterator[Doubt]:
    """What it says against the new model, and against putting it in the old one's place.

    Args:
        found: as `sentences`; None: the run began from no other.
    """
    if found is None:
        return
    if n := found["left_out"] or found["unknown"]:
        had = "had learnt from" if found["left_out"] else "may have learnt from"
        yield Doubt(
            "test-heard-before",
            MILD,
            f"The test is not independent: {found['title']}, whose weights this model began with, {had} "
            f"{count(n, 'test recording')}, or was chosen by them.",
            "The figures are too kind. Keep split.csv from version to version; where the model comes from another "
            "output folder, begin with a copy of that folder's split.csv and logs.",
        )
    for row in found.get("moved", []):
        yield Doubt("old-class-moved", STRONG, class_alignment.moved_sentence(row), class_alignment.MOVED_ADVICE)
    if found.get("unreachable"):
        yield _of_strange(found)
    judged = found["comparison"]
    if judged is None:
        return
    yield from _of_unanswered(judged, found["title"])
    names = {"accuracy": "accuracy", "macro_ap": "average precision"}
    sure = {key: judged[key] for key in names if _is_loss(judged[key])}
    if not sure and not judged["worse"]:
        return
    figures = [
        f"{names[key]} {plain(percent(pair['before']))} before, {plain(percent(pair['after']))} now, "
        f"{points(pair['difference_ci'])}"
        for key, pair in sure.items()
    ]
    worse = [f"worse beyond chance: {some(judged['worse'])}"] if judged["worse"] else []
    large = "accuracy" in sure and sure["accuracy"]["difference_ci"][1] < -_LARGE_LOSS
    yield Doubt(
        "old-classes-worse",
        STRONG if large else MILD,
        f"On the classes that {found['title']} knew, this model is worse: {'; '.join([*figures, *worse])} "
        f"({count(judged['n_groups'], 'source')}).",
        _ADVICE,
    )


def _of_strange(found: Row) -> Doubt:
    """Old classes that nothing is known of by which a sound is strange."""
    why = (
        f"{found['title']} does not tell what they sound like"
        if found["backbone_kept"]
        else "the backbone was trained further, so what they sounded like before says nothing now"
    )
    freeze = "" if found["backbone_kept"] else "freeze the backbone (--model.freeze all-but-head), "
    return Doubt(
        "old-classes-strange",
        STRONG,
        f"Classes of {found['title']} without training recordings will be answered “none”: "
        f"{some(found['unreachable'])}. Their columns are kept, but their sounds are unlike all that this model was "
        f"trained on: {why}.",
        f"Put recordings of them back, {freeze}or call nothing strange (--ood.target-recall 1).",
    )


def _of_unanswered(judged: Row, title: str) -> Iterator[Doubt]:
    answered = judged.get("answered")
    if answered and answered["difference_ci"] and answered["difference_ci"][1] < -_LARGE_LOSS:
        yield Doubt(
            "old-classes-unanswered",
            STRONG,
            f"Recordings of the classes that {title} knew get an answer far less often: "
            f"{plain(percent(answered['before']))} before, {plain(percent(answered['after']))} now, "
            f"{points(answered['difference_ci'])} ({count(judged['n_groups'], 'source')}); the others “none”.",
            "Compare the thresholds of both in labels.csv: a lower --evaluate.precision lowers them, a higher "
            "--ood.target-recall lets less be strange. More validation recordings make both less strict.",
        )


def row_of_new(judged: Mapping[str, Any] | None, classes: Sequence[str], n_old: int) -> list[dict[str, Any]]:
    """How good the new classes are: rows of `class`, `column`, and of `metrics.judge`'s `per_class` what is said of it.

    Args:
        judged: of the test part, if there is one.
        classes: of the new model; the first `n_old` are the old one's.
    """
    kept = ("support", "groups", "recall", "recall_ci", "precision", "ap", "ap_ci", "train_recordings")
    per_class = {row["class"]: row for row in (judged or {"per_class": []})["per_class"]}
    return [
        {"class": name, "column": column, **{key: per_class.get(name, {}).get(key) for key in kept}}
        for column, name in enumerate(classes)
        if column >= n_old
    ]
