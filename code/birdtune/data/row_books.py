"""The books of label rows: rows found = used + each reason why others are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from birdtune.data.scan import Problem, Recording

_LATE = "row-beyond-end"
_OF_UNUSED = "row-of-unused"


@dataclass(frozen=True)
class RowBooks:
    """What became of the rows of tables and annotation files when they met the files.

    Attributes:
        found: rows in all.
        left_out: reason → rows that are no label, or of no file.
        placed: name of a file → rows that are labels of it.
    """

    found: int
    left_out: Mapping[str, int]
    placed: Mapping[str, int]

    def balanced(self, recordings: Sequence[Recording], problems: Sequence[Problem]) -> dict[str, Any]:
        """Found, used, and left out by reason, once it is known which recordings are used.

        Args:
            problems: of which one for each label that begins after its recording ends.
        """
        used = len({label.origin for one in recordings for label in one.labels if label.origin})
        late = sum(problem.problem == _LATE for problem in problems)
        rest = sum(self.placed.values()) - used - late
        reasons = {**self.left_out, _LATE: late, _OF_UNUSED: rest}
        return {"found": self.found, "used": used, "left_out": {key: n for key, n in sorted(reasons.items()) if n}}
