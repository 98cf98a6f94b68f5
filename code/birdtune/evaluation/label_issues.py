"""Recordings whose label others of its class speak against.

    scores [N, C] by models that never heard the recording, labels ─▶ ranked, find ─▶ Suspect, the most suspect first

Confident learning (Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", 2021): how
sure a model usually is of a class is what its score has to be measured by, as some classes are easier than others. The
paper's own cut, another class at its usual score, lists 62 % of labels made wrong on ESC-10 (5 % of them), and nothing
else; 0.7 of it 90 %, and one in eight that was right. How many are wrong is not estimated: people listen and decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.scores import Floats, Ints
from birdtune.runtime.text import percent

COLUMNS = (
    "rank", "recording", "class", "suggested", "doubt", "class_score", "suggested_score", "group", "split", "seconds",
    "start_s", "why",
)  # fmt: skip
SHARE_OF_USUAL = 0.7
MOST_PATCHES = 16  # of each recording that are heard to judge it, evenly spread
# Of a recording, moments to listen to hold at least this share of the sound that its fullest patch holds.
_LEAST_HELD = 0.5
RULE = (
    "Each recording was judged by a classifier that heard only other sources. It stands here if another class scores "
    f"at least {SHARE_OF_USUAL:g} of what recordings of that class usually do, and is further above (or less below) "
    "its usual score than the label's own class."
)


@dataclass(frozen=True)
class Suspect:
    """A recording whose label is doubted."""

    index: int  # row of the scores
    suggested: int  # column of the class that speaks against the label
    doubt: float  # by how much the suggestion is further above its usual score than the label; 0 to 2


def usual(scores: Floats, labels: Ints, judged: npt.NDArray[np.bool_]) -> Floats:
    """What each class usually scores where it is the label; infinite where no recording tells. [C]

    Args:
        scores: [N, C]; labels: [N].
        judged: [N] of which recordings the scores tell something.
    """
    found = np.full(scores.shape[1], np.inf)
    for column in np.unique(labels[judged]):
        found[column] = scores[judged & (labels == column), column].mean()
    return found


def ranked(scores: Floats, labels: Ints, judged: npt.NDArray[np.bool_]) -> list[Suspect]:
    """All recordings that were judged, the most suspect first; `doubt` is below 0 where nothing speaks against."""
    above = scores - usual(scores, labels, judged)  # [N, C], minus infinity where nobody can tell
    rows = np.arange(len(labels))
    own = above[rows, labels]
    above[rows, labels] = -np.inf
    suggested = above.argmax(axis=1)
    doubt = np.where(judged, above[rows, suggested], 0.0) - np.where(judged, own, 0.0)
    order = [row for row in np.argsort(-doubt, kind="stable").tolist() if judged[row]]
    return [Suspect(row, int(suggested[row]), float(doubt[row])) for row in order]


def find(scores: Floats, labels: Ints, judged: npt.NDArray[np.bool_]) -> list[Suspect]:
    """The recordings that `RULE` doubts, the most suspect first; arguments as `usual`."""
    level = usual(scores, labels, judged)
    return [
        suspect
        for suspect in ranked(scores, labels, judged)
        if suspect.doubt > 0 and scores[suspect.index, suspect.suggested] >= SHARE_OF_USUAL * level[suspect.suggested]
    ]


def why(suspect: Suspect, scores: Floats, labels: Ints, level: Floats, classes: Sequence[str]) -> str:
    """The doubt in words; level: as `usual` gave it."""
    own, other = int(labels[suspect.index]), suspect.suggested
    return (
        f"other sources make it {classes[other]} with {percent(scores[suspect.index, other])} (such recordings usually "
        f"get {percent(level[other])}), {classes[own]} with {percent(scores[suspect.index, own])} "
        f"(usually {percent(level[own])})"
    )


def most_telling(lead: Floats, held: Floats) -> int:
    """Of a recording's patches, the one to listen to: most like the suggestion among those that hold sound.

    Args:
        lead: [P] by how much the suggestion scores above the label; held: [P] as `novelty.held`.
    """
    return int(np.where(held >= _LEAST_HELD * held.max(), lead, -np.inf).argmax())


def rows(
    suspects: Sequence[Suspect],
    scores: Floats,
    labels: Ints,
    level: Floats,
    *,
    classes: Sequence[str],
    recordings: Sequence[str],
    seconds: Sequence[float],
    places: Mapping[str, Any],
    start_s: Sequence[float],
) -> list[dict[str, Any]]:
    """Rows of suspect_labels.csv.

    Args:
        level: as `usual` gave it.
        recordings, seconds: [N] names and lengths.
        places: name → with `group` and `split`.
        start_s: of each suspect, where it sounds most like the suggestion rather than its label.
    """
    return [
        {
            "rank": rank,
            "recording": (name := recordings[suspect.index]),
            "class": classes[labels[suspect.index]],
            "suggested": classes[suspect.suggested],
            "doubt": round(suspect.doubt, 4),
            "class_score": round(float(scores[suspect.index, labels[suspect.index]]), 4),
            "suggested_score": round(float(scores[suspect.index, suspect.suggested]), 4),
            "group": places[name].group,
            "split": places[name].split,
            "seconds": round(seconds[suspect.index], 2),
            "start_s": round(start, 2),
            "why": why(suspect, scores, labels, level, classes),
        }
        for rank, (suspect, start) in enumerate(zip(suspects, start_s, strict=True), start=1)
    ]


# ---- patches ------------------------------------------------------------------------------------


def shares_kept(own: npt.NDArray[np.float32], recording: Ints, least: float) -> npt.NDArray[np.float32]:
    """The share of its label that each patch of a recording keeps: its score beside the highest of them. [P]

    Args:
        own: [P] score of the label, by a model that heard other sources.
        recording: [P] of each patch, numbers from 0 on.
        least: that any keeps.
    """
    highest = np.zeros(int(recording.max(initial=-1)) + 1, np.float32)
    np.maximum.at(highest, recording, own)
    return np.clip(own / np.maximum(highest[recording], 1e-12), least, 1.0).astype(np.float32)
