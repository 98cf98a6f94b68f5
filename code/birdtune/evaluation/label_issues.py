"""Label issues: recordings whose label contradicts a model trained on other recordings.

    scores [N, C] out of fold, targets [N, C] ─▶ ranked, find ─▶ LabelIssue, the most likely error first
    where recordings have several classes, each scored on its own ─▶ find_each

Confident learning (Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021): a
score is compared with the mean score of its class, as some classes are easier than others. The paper's own cut, another
class at its mean score, lists 62 % of labels made wrong on ESC-10 (5 % of them), and nothing else; 0.7 of it 90 %, and
one in eight that was right. How many are wrong is not estimated: people listen and decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.bootstrap import divide
from birdtune.evaluation.scores import Bools, Floats, Ints
from birdtune.runtime.text import percent

TABLE_NAME, FACTS_NAME = "label_issues.csv", "label_issues.json"
COLUMNS = (
    "rank", "recording", "class", "suggested", "label_issue_score", "class_score", "suggested_score",
    "source_recording", "split", "seconds", "start_s", "why",
)  # fmt: skip
SHARE_OF_MEAN = 0.7
MOST_WINDOWS = 16  # of each recording that are embedded for this, evenly spread
# Of a recording, windows to listen to hold at least this share of the sound that its fullest window holds.
_LEAST_HELD = 0.5
RULE = (
    "Each recording was scored by a classifier trained on other sources. It is listed if another class scores at least "
    f"{SHARE_OF_MEAN:g} of what recordings of that class score on average, and is further above (or less below) its "
    "average than the label's own class."
)


# With several classes a recording, the same rule decides of each class between "present" and "absent".
RULE_OF_SEVERAL = (
    "Each recording was scored by classifiers trained on other sources, one for each class. A label is listed if its "
    "class looks absent, and a class without a label if it looks present: if that scores at least "
    f"{SHARE_OF_MEAN:g} of what it scores on average where it is true, and is further above its average than the "
    "opposite."
)


@dataclass(frozen=True)
class LabelIssue:
    """A label that may be wrong, or a class that may be missing among a recording's."""

    index: int  # row of the scores
    label: int | None  # column of the label; None: a class is missing
    suggested: int | None  # column of the class that contradicts the label, or is missing; None: the label is too much
    score: float  # by how much the suggestion is further above its mean score than the label; 0 to 2


def mean_scores(scores: Floats, positive: Bools, scored: Bools) -> Floats:
    """Mean score of each class over the recordings of it; infinite where there is none. [C]

    Args:
        scores, positive: [N, C].
        scored: [N] the recordings that have out-of-fold scores.
    """
    own = positive & scored[:, None]
    means = divide((scores * own).sum(axis=0), own.sum(axis=0))
    return np.where(np.isfinite(means), means, np.inf)


def ranked(scores: Floats, positive: Bools, scored: Bools) -> list[LabelIssue]:
    """All labels of scored recordings, the most likely error first; `score` is below 0 where nothing contradicts."""
    above = scores - mean_scores(scores, positive, scored)  # [N, C], minus infinity where a class has no mean
    others = np.where(positive, -np.inf, above)
    suggested = others.argmax(axis=1)
    index, label = np.nonzero(positive & scored[:, None])
    margin = others[index, suggested[index]] - above[index, label]
    return [
        LabelIssue(int(index[k]), int(label[k]), int(suggested[index[k]]), float(margin[k]))
        for k in np.argsort(-margin, kind="stable")
    ]


def find(scores: Floats, positive: Bools, scored: Bools) -> list[LabelIssue]:
    """The labels that `RULE` lists, the most likely error first; arguments as `mean_scores`."""
    means = mean_scores(scores, positive, scored)
    return [
        issue
        for issue in ranked(scores, positive, scored)
        if issue.score > 0 and scores[issue.index, issue.suggested] >= SHARE_OF_MEAN * means[issue.suggested]
    ]


def find_each(scores: Floats, positive: Bools, known: Bools, scored: Bools) -> list[LabelIssue]:
    """Labels that may be wrong and classes that may be missing, by `RULE_OF_SEVERAL`; the most likely error first.

    Args:
        scores: [N, C] each class on its own: p for present, 1 - p for absent.
        positive, known: [N, C] the classes of each recording, and where that is known.
        scored: [N] the recordings that have out-of-fold scores.
    """
    present, absent = mean_scores(scores, positive, scored), mean_scores(scores, ~positive & known, scored)
    defined = np.isfinite(present) & np.isfinite(absent)
    present, absent = np.where(defined, present, 0.0), np.where(defined, absent, 0.0)
    # (p - its mean) - ((1 - p) - its mean)
    lead = np.where(defined & known & scored[:, None], 2 * scores - present - absent, 0.0)
    margin = np.where(positive, -lead, lead)  # by how much the opposite of what is labelled is further above its mean
    enough = np.where(positive, 1 - scores >= SHARE_OF_MEAN * (1 - absent), scores >= SHARE_OF_MEAN * present)
    index, column = np.nonzero((margin > 0) & enough)
    return [
        LabelIssue(int(row), c if positive[row, c] else None, None if positive[row, c] else c, float(margin[row, c]))
        for k in np.argsort(-margin[index, column], kind="stable")
        for row, c in [(index[k], int(column[k]))]
    ]


def why_each(issue: LabelIssue, scores: Floats, present: Floats, absent: Floats, classes: Sequence[str]) -> str:
    """As `why`, of what `find_each` lists.

    Args:
        present, absent: [C] mean scores of the recordings of each class, and of the others.
    """
    column = issue.label if issue.label is not None else issue.suggested
    assert column is not None, "an issue is of a class"
    return (
        f"by other sources {classes[column]} scores {percent(scores[issue.index, column])} (its recordings average "
        f"{percent(present[column])}, others {percent(absent[column])})"
    )


def why(issue: LabelIssue, scores: Floats, means: Floats, classes: Sequence[str]) -> str:
    """The contradiction in words; means: as `mean_scores`."""
    own, other = issue.label, issue.suggested
    assert own is not None and other is not None, "one class contradicts another"
    return (
        f"by other sources {classes[other]} scores {percent(scores[issue.index, other])} (its recordings average "
        f"{percent(means[other])}), {classes[own]} {percent(scores[issue.index, own])} "
        f"(average {percent(means[own])})"
    )


def clearest_window(lead: Floats, held: Floats) -> int:
    """Of a recording's windows, the one to listen to: most like the suggestion among those that hold sound.

    Args:
        lead: [P] by how much the suggestion scores above the label; held: [P] as `FrontEnd.held`.
    """
    return int(np.where(held >= _LEAST_HELD * held.max(), lead, -np.inf).argmax())


def rows(
    issues: Sequence[LabelIssue],
    scores: Floats,
    means: Floats,
    *,
    classes: Sequence[str],
    recordings: Sequence[str],
    seconds: Sequence[float],
    places: Mapping[str, Any],
    start_s: Sequence[float],
    others: Floats | None = None,
) -> list[dict[str, Any]]:
    """Rows of label_issues.csv; `class` is empty where one is missing, `suggested` where nothing takes its place.

    Args:
        means: as `mean_scores`; others: [C] of the recordings that are not of each class, where it was scored on its
            own.
        recordings, seconds: [N] names and lengths.
        places: name → with `group` and `split`.
        start_s: of each issue, where it is most like the suggestion rather than its label.
    """
    return [
        {
            "rank": rank,
            "recording": (name := recordings[issue.index]),
            "class": "" if issue.label is None else classes[issue.label],
            "suggested": "" if issue.suggested is None else classes[issue.suggested],
            "label_issue_score": round(issue.score, 4),
            "class_score": _rounded(scores, issue.index, issue.label),
            "suggested_score": _rounded(scores, issue.index, issue.suggested),
            "source_recording": places[name].group,
            "split": places[name].split,
            "seconds": round(seconds[issue.index], 2),
            "start_s": round(start, 2),
            "why": why(issue, scores, means, classes) if others is None
            else why_each(issue, scores, means, others, classes),
        }
        for rank, (issue, start) in enumerate(zip(issues, start_s, strict=True), start=1)
    ]


def _rounded(scores: Floats, row: int, column: int | None) -> float | None:
    return None if column is None else round(float(scores[row, column]), 4)


# ---- label refinement ---------------------------------------------------------------------------


def refined_targets(own: npt.NDArray[np.float32], recording: Ints, least: float) -> npt.NDArray[np.float32]:
    """The share of its label that each window of a recording keeps: its score over the highest of them. As `own`.

    Args:
        own: [P] score of the label, by a model trained on other sources; [P, C] of each class, where there are several.
        recording: [P] of each window, numbers from 0 on.
        least: share that any window keeps.
    """
    highest = np.zeros((int(recording.max(initial=-1)) + 1, *own.shape[1:]), np.float32)
    np.maximum.at(highest, recording, own)
    return np.clip(own / np.maximum(highest[recording], 1e-12), least, 1.0).astype(np.float32)
