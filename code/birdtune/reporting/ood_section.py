"""OOD rejection, for people: a sentence and a picture.

    metrics.json, Scores of a run ─▶ section ─▶ what the report says of recordings far from the training data
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from birdtune.evaluation.decision import OOD_LIMIT
from birdtune.evaluation.scores import Scores
from birdtune.reporting import figures
from birdtune.runtime.text import count, percent, some, span

Row = Mapping[str, Any]
# Every dot of the picture is one recording, as far as so many can be seen.
_MOST_DOTS = 400
_PARTS = {"test": "test", "val": "validation"}


def section(
    trust: Row | None, scores: Mapping[str, Scores], metrics: Mapping[str, Row | None], part: str | None
) -> Row:
    """`sentence` and `picture` (None where there is none).

    Args:
        trust: `ood` and `false_alarms` of metrics.json.
        scores, metrics: "val" and "test" → scores, figures.
        part: of these, the one that the report speaks of.
    """
    if not trust or part is None:
        return {"sentence": "This was not evaluated.", "picture": None}
    found, own = trust["ood"], (metrics.get(part) or {}).get("ood")
    ood_score = scores[part].ood_score if part in scores else None
    if not found["scale"] or ood_score is None or not own:
        return {"sentence": f"Nothing is rejected as out of distribution: {found['reason']}.", "picture": None}
    noises = [(row["noise"], row["ood_score"]) for row in trust["false_alarms"]["noise"]]
    sentence = _sentence(found["scale"], own, len(ood_score), part, noises)
    return {
        "sentence": " ".join(filter(None, [sentence, rests_on(found.get("rests_on"))])),
        "picture": _picture(ood_score, part, noises),
    }


def rests_on(row: Row | None) -> str:
    """What the statistics rest on where recordings have several classes, or labels times; "" where they do not.

    Args:
        row: `rests_on` of `ood` of metrics.json.
    """
    if not row:
        return ""
    found = []
    if row["left_out"]:
        found.append(
            f"{count(row['left_out'], 'training recording')} of several classes are left out of the OOD statistics, "
            "which recordings of one class make."
        )
    if row["of_several"]:
        found.append(
            f"No training recording holds only {some(row['of_several'], 8)}: recordings that hold others, too, "
            "stand for it, and the OOD score tells less there."
        )
    if row["with_times"]:
        found.append("Labels have times, but the OOD score is of whole recordings, not of the labelled seconds.")
    return " ".join(found)


def _sentence(scale: Row, own: Row, n: int, part: str, noises: Sequence[tuple[str, float]]) -> str:
    interval = f" ({span(own['accepted_ci'])})" if own["accepted_ci"] else ""
    rejected = sum(score > OOD_LIMIT for _, score in noises)
    was = "was" if rejected == 1 else "were"
    of_noise = f"Of {count(len(noises), 'synthetic noise')}, {rejected} {was} rejected. " if noises else ""
    return (
        "Whatever its scores, a recording is rejected as unknown if its OOD score is above 1: if it is farther from "
        "the training data, in distance and energy, than "
        f"{percent(scale['target_recall'])} of the validation recordings. "
        f"Of the {count(n, _PARTS[part] + ' recording')}, all of known classes, {percent(own['accepted'])}{interval} "
        f"were accepted. {of_noise}Known sounds in noise, "
        "or from recorders, that training does not contain will be rejected more often."
    )


def _picture(ood_score: npt.NDArray[np.float32], part: str, noises: Sequence[tuple[str, float]]) -> Markup:
    dots = np.sort(ood_score)[:: -(-len(ood_score) // _MOST_DOTS)]
    rows = [(f"{_PARTS[part]} recordings", dots.tolist()), *((name, [value]) for name, value in noises)]
    return figures.ood_scores(rows)
