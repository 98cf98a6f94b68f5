"""Labels: what is in a recording, and when; and classes that are never an answer.

    Label(class_name, start_s, end_s, low_hz, high_hz, weight); a recording has a tuple of them
"""

import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field

from birdtune.errors import SettingsError, shown

# What tables and predictions have in the place of a class where none is decided for.
UNKNOWN = "unknown"
# In the place of a class: something is there that is not to be learnt, so nobody knows what a window of it holds.
IGNORED = ""


@dataclass(frozen=True)
class Label:
    """One class in a recording; without times: somewhere in it, and all of it is trained on as that class."""

    class_name: str
    start_s: float = 0.0
    end_s: float = math.inf  # inf: to the end of the recording, whatever that is
    low_hz: float | None = None
    high_hz: float | None = None
    weight: float = 1.0  # how much it counts in training; 0: the class is somewhere in it, nobody knows where
    # Somebody decided on this part alone, and says nothing of the rest; of weight 0: that the class is absent there.
    is_reviewed: bool = False
    origin: str = field(default="", compare=False, repr=False)  # the row that says so, as messages name it

    @property
    def has_times(self) -> bool:
        """Whether somebody marked where in the recording it is."""
        return self.start_s > 0 or math.isfinite(self.end_s)

    @property
    def is_annotation(self) -> bool:
        """Whether it is one of the marks of somebody who went through the recording."""
        return self.has_times and not self.is_reviewed

    @property
    def is_absent(self) -> bool:
        """Whether somebody listened to this part, and the class is not there."""
        return self.is_reviewed and not self.weight


def class_names_of(labels: Iterable[Label]) -> tuple[str, ...]:
    """The classes of some labels, each once, in their order; not of what is ignored, or somewhere in the background."""
    return tuple(dict.fromkeys(label.class_name for label in labels if label.class_name != IGNORED and label.weight))


def background_of(classes: Iterable[str], names: str) -> tuple[str, ...]:
    """Those of the classes that are background: no answer, only what answers must be told from.

    Args:
        names: as in --labels.negative-classes, separated by commas; case, `_`, `-` and blanks do not matter.
    """
    wanted = {folded(name) for name in _listed(names)}
    return tuple(name for name in classes if folded(name) in wanted)


def folded(name: str) -> str:
    """A name without what makes no difference in names of background: case, `_`, `-` and blanks."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def background_class(folders: Iterable[str], names: str) -> str:
    """The class that sound without a class is put into: the first of the names, as a folder spells it if one does.

    Raises:
        SettingsError: no name is given for it.
    """
    listed = _listed(names)
    if not listed:
        raise SettingsError(
            "--labels.negative-classes names no class, and there is a folder of background sound. Give it a name, e.g. "
            "--labels.negative-classes background, or take the folder away."
        )
    return next(iter(background_of(folders, listed[0])), listed[0])


def refuse_no_answer(classes: Iterable[str], names: str, where: str, mend: str) -> None:
    """Refuse a class that is called as the answer where no class is recognised, unless it is background.

    Args:
        names: as in --labels.negative-classes.
        where: what has the classes.
        mend: how such a class can be called otherwise.

    Raises:
        SettingsError: there is one; also one that differs in case, as people and spreadsheets do not heed it.
    """
    answers = set(classes) - set(background_of(classes, names))
    if found := sorted(name for name in answers if name.strip().casefold() == UNKNOWN):
        listed = ",".join([*_listed(names), found[0].strip()])
        raise SettingsError(
            f"{where}: there is a class {shown(found[0])}, and `{UNKNOWN}` is what predictions say where no class is "
            f"recognised, so that one would be taken for the other. {mend}; or, if it is sound in which no class is to "
            f"be heard, say so, as that is never an answer: --labels.negative-classes {shown(repr(listed))}."
        )


def _listed(names: str) -> list[str]:
    return [unicodedata.normalize("NFC", name.strip()) for name in names.split(",") if name.strip()]
