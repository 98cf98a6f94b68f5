"""Thresholds, and the answers that pass them: a class, or none.

scores [N, C] ─▶ Thresholds.answers ─▶ column of the answer, or NONE

How they are chosen stands in `thresholds`; this is all that a served model needs of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data import labels
from birdtune.runtime.parsing import finite

Ints = npt.NDArray[np.int64]

NONE = -1
# From here on a recording is too unlike all that was trained on for any answer (novelty.py).
STRANGEST = 1.0
# The same in a table; no class has that name.
NO_ANSWER = labels.NO_ANSWER
# Where a threshold comes from.
OWN, SHARED, NOMINAL, BACKGROUND = "class", "all classes", "score", "background"


@dataclass(frozen=True)
class Thresholds:
    """From which score on each class counts.

    Attributes:
        values: [C] thresholds; above 1 for a background class, which is never an answer.
        origins: [C] `OWN`, `SHARED`, `NOMINAL` or `BACKGROUND`.
        wish: what they were chosen for, in words.
        reason: why classes have no threshold of their own; "" where all have.
    """

    values: tuple[float, ...]
    origins: tuple[str, ...]
    wish: str
    reason: str

    def row(self, classes: Sequence[str]) -> dict[str, Any]:
        """As it stands in metrics.json and model.json; a background class has None."""
        rows = [
            {"class": name, "threshold": None if origin == BACKGROUND else value, "from": origin}
            for name, value, origin in zip(classes, self.values, self.origins, strict=True)
        ]
        return {"wish": self.wish, "reason": self.reason, "classes": rows}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Thresholds":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        rows = row["classes"]
        values = tuple(
            float("inf") if each["threshold"] is None else finite(each["threshold"]) for each in rows
        )
        return cls(values, tuple(str(each["from"]) for each in rows), str(row["wish"]), str(row["reason"]))

    def answers(self, class_scores: npt.NDArray[Any], strangeness: npt.NDArray[Any] | None = None) -> Ints:
        """The class with the highest of the scores that pass, or `NONE`. [N, C] → [N]

        Args:
            strangeness: [N] of the recordings; above 1 none passes. None: it is not known.
        """
        passing = class_scores >= np.asarray(self.values)
        if strangeness is not None:
            passing &= (strangeness <= STRANGEST)[:, None]
        best = np.where(passing, class_scores, -1.0).argmax(axis=1)
        return np.where(passing.any(axis=1), best, NONE).astype(np.int64)
