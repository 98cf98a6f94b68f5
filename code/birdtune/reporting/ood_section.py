"""How strange sounds are to a model, for people: a sentence and a picture.

    trust, Scores and figures of a run ─▶ section ─▶ what the report says of sounds that were never trained on
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

from birdtune.evaluation.decision import STRANGEST
from birdtune.evaluation.scores import Scores
from birdtune.reporting import figures
from birdtune.runtime.text import count, percent, span

Row = Mapping[str, Any]
# Every dot of the picture is one recording, as far as one can see so many.
_MOST_DOTS = 400


def section(
    trust: Row | None, scores: Mapping[str, Scores], judged: Mapping[str, Row | None], part: str | None
) -> Row:
    """`sentence` and `picture` (None where there is none).

    Args:
        trust: `novelty` and `false_alarms` of metrics.json; a run of an older birdtune has no `novelty`.
        scores, judged: "val" and "test" → scores, figures.
        part: of these, the one that the report speaks of.
    """
    found = (trust or {}).get("novelty")
    if not trust or not found or part is None:
        return {"sentence": "This was not looked at.", "picture": None}
    strangeness = scores[part].strangeness if part in scores else None
    figures_of = judged.get(part) or {}
    if not found["scale"] or strangeness is None or not figures_of.get("novelty"):
        return {"sentence": f"They are not told from others: {found['reason']}.", "picture": None}
    noises = [(row["noise"], row["strangeness"]) for row in trust["false_alarms"]["noise"]]
    return {
        "sentence": _sentence(found["scale"], figures_of["novelty"], len(strangeness), part, noises),
        "picture": _picture(strangeness, part, noises),
    }


def _sentence(scale: Row, judged: Row, n: int, part: str, noises: Sequence[tuple[str, float]]) -> str:
    said = {"test": "test", "val": "validation"}[part]
    interval = f" ({span(judged['kept_ci'])})" if judged["kept_ci"] else ""
    found = (
        "Whatever its scores, a recording is answered “none” where it is unlike everything that was trained on: by how "
        "far it is from every class and how faintly any class answers, it is stranger than "
        f"{percent(scale['keep'])} of the validation recordings are. Of the {count(n, said + ' recording')}, "
        f"{percent(judged['kept'])}{interval} were not called strange; all of them are of classes that it knows."
    )
    strange = sum(strangeness > STRANGEST for _, strangeness in noises)
    was = "was" if strange == 1 else "were"
    elsewhere = "Known sounds in noise, or from recorders, that training never heard will be called strange more often."
    return f"{found} Of {count(len(noises), 'made noise')}, {strange} {was} called strange. {elsewhere}"


def _picture(strangeness: npt.NDArray[np.float32], part: str, noises: Sequence[tuple[str, float]]) -> Markup:
    label = {"test": "test recordings", "val": "validation recordings"}[part]
    dots = np.sort(strangeness)[:: -(-len(strangeness) // _MOST_DOTS)]
    return figures.strangeness([(label, dots.tolist()), *((name, [value]) for name, value in noises)])
