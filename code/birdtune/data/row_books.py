"""The books of label rows: rows found = used + each reason why others are not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from birdtune.data.scan import Problem, Recording

# Another view or channel of a selection above it: nothing is lost.
REPEATED_VIEW = "repeated-view"
IN_ANOTHER_VIEW = "a selection in another view or channel of Raven"
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
        """Found, used (of which some may be trimmed), and left out by reason, once it is known what is used.

        Args:
            problems: of which one for each row that begins after its recording ends, or runs past that.
        """
        used = len({label.origin for one in recordings for label in one.labels if label.origin})
        late, trimmed = (sum(problem.problem == code for problem in problems) for code in (_LATE, "row-trimmed"))
        rest = sum(self.placed.values()) - used - late
        reasons = {**self.left_out, _LATE: late, _OF_UNUSED: rest}
        return {
            "found": self.found, "used": used, **({"trimmed": trimmed} if trimmed else {}),
            "left_out": {key: n for key, n in sorted(reasons.items()) if n},
        }  # fmt: skip


def words(books: Mapping[str, Any]) -> str:
    """What `balanced` counted, in a sentence."""
    left_out = dict(books["left_out"])
    said = f"{books['used']:,} of {books['found']:,} rows of labels used"
    if n := books.get("trimmed"):
        said += f" ({n:,} trimmed at the end of the recording)"
    if n := left_out.pop(REPEATED_VIEW, 0):
        said += f"; {n:,} {'repeats' if n == 1 else 'repeat'} {IN_ANOTHER_VIEW}"
    return said + (f"; not used: {', '.join(f'{n:,} {why}' for why, n in left_out.items())}" if left_out else "")
