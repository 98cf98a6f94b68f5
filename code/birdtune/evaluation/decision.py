"""How scores become a decision: a class, several, or `unknown`.

    scores [N, C], OOD scores [N] ─▶ Thresholds.passing ─▶ the classes whose score reaches its threshold
                                  ─▶ Thresholds.decide ─▶ column of the highest of them, or UNKNOWN

`thresholds` says how they are chosen; this is all that a served model needs of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data import labels
from birdtune.runtime.parsing import finite

Ints = npt.NDArray[np.int64]

# No threshold is lower: a decision ought to be at least as likely right as wrong.
LEAST = 0.5
UNKNOWN = -1
# The same in a table; no class has that name.
UNKNOWN_NAME = labels.UNKNOWN
# Above this OOD score a recording is too far from the training data for any class (ood.py).
OOD_LIMIT = 1.0
# Where a threshold comes from.
OWN, SHARED, NOMINAL, BACKGROUND = "class", "all classes", "score", "background"


@dataclass(frozen=True)
class Thresholds:
    """From which score on each class is decided for.

    Attributes:
        values: [C] thresholds; infinite for a background class, which is never a decision.
        origins: [C] `OWN`, `SHARED`, `NOMINAL` or `BACKGROUND`.
        goal: what they were chosen for, in words.
        reason: why classes have no threshold of their own; "" where all have.
    """

    values: tuple[float, ...]
    origins: tuple[str, ...]
    goal: str
    reason: str

    def row(self, classes: Sequence[str]) -> dict[str, Any]:
        """As in metrics.json and model.json; a background class has None."""
        rows = [
            {"class": name, "threshold": None if origin == BACKGROUND else value, "from": origin}
            for name, value, origin in zip(classes, self.values, self.origins, strict=True)
        ]
        return {"goal": self.goal, "reason": self.reason, "classes": rows}

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Thresholds":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        rows = row["classes"]
        values = tuple(
            float("inf") if each["threshold"] is None else finite(each["threshold"]) for each in rows
        )
        return cls(values, tuple(str(each["from"]) for each in rows), str(row["goal"]), str(row["reason"]))

    @property
    def asked(self) -> npt.NDArray[np.bool_]:
        """Whether each class can be decided for: all but background. [C]"""
        return np.array([origin != BACKGROUND for origin in self.origins], np.bool_)

    def passing(
        self, class_scores: npt.NDArray[Any], ood_score: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[np.bool_]:
        """The classes whose score reaches its threshold. [N, C]

        Args:
            class_scores: [N, C].
            ood_score: [N]; above 1 none passes. None: it is not known.
        """
        passing = np.asarray(class_scores >= np.asarray(self.values))
        return passing if ood_score is None else passing & (ood_score <= OOD_LIMIT)[:, None]

    def decide(self, class_scores: npt.NDArray[Any], ood_score: npt.NDArray[Any] | None = None) -> Ints:
        """The class with the highest of the scores that pass, or `UNKNOWN`. [N, C] → [N]; arguments as `passing`."""
        passing = self.passing(class_scores, ood_score)
        best = np.where(passing, class_scores, -1.0).argmax(axis=1)
        return np.where(passing.any(axis=1), best, UNKNOWN).astype(np.int64)
