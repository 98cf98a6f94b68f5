"""A label taxonomy: which class each label of a table or an annotation file is of, or that it is not to be learnt.

    label,class
    song,Turdus merula
    alarm call,Turdus merula
    rain,-
    *,-          all others

A label map (`label_map.py`) is another thing: it gives classes the ids that other systems know them by.
"""

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from birdtune.config import Config
from birdtune.data.class_names import quoted
from birdtune.data.labels import IGNORED, folded
from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv, require_file

_OTHERS = "*"


@dataclass(frozen=True)
class Taxonomy:
    """Label, without case, `_`, `-` and blanks, → class; `IGNORED` for what is not to be learnt."""

    classes: Mapping[str, str]
    path: Path | None = None
    notes: tuple[str, ...] = ()  # how its text was read
    unlisted: set[str] = field(default_factory=set, compare=False)  # labels that were met and are not in it

    @classmethod
    def of(cls, config: Config) -> "Taxonomy":
        """The one that the settings name. Raises InputError: it is none."""
        if config.labels.taxonomy is None:
            return cls({})
        path = Path(config.labels.taxonomy)
        require_file(path, "--labels.taxonomy", "a CSV `label,class`")
        notes = list[str]()
        return cls(_read(path, notes), path, tuple(notes))

    def knows(self, label: str) -> bool:
        """Whether it says what a label is."""
        return folded(label) in self.classes or (bool(label) and _OTHERS in self.classes)

    def class_of(self, label: str) -> str:
        """The class of a label: itself where the taxonomy does not say, `IGNORED` for none."""
        key = folded(label)
        if key in self.classes:
            return self.classes[key]
        if label and self.path is not None and _OTHERS not in self.classes:
            self.unlisted.add(label)
        return self.classes.get(_OTHERS, label) if label else IGNORED

    def notices(self) -> list[str]:
        """What is to be said of its text, and of labels that were met and are not in it."""
        found = [*self.notes]
        if self.unlisted and self.path is not None:
            found.append(f"Not in {shown(self.path)}, so classes as they are called: {quoted(sorted(self.unlisted))}.")
        return found


def _read(path: Path, notes: list[str]) -> dict[str, str]:
    rows = read_csv(path, what="a label taxonomy", notes=notes)
    if rows and len(rows[0]) < 2:
        raise InputError(f"{shown(path)}: has one column; expected two, label and class, under a header.")
    found: dict[str, str] = {}
    for number, row in enumerate(rows, start=2):
        label, name = (unicodedata.normalize("NFC", cell).strip() for cell in list(row.values())[:2])
        name = IGNORED if name == "-" else shown(name)
        if found.setdefault(folded(label), name) != name:
            raise InputError(f"{shown(path)}, row {number:,}: {shown(label)!r} has another class above. Keep one.")
    return found
