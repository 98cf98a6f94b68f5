"""Names of published classes: which column of a published classifier a name means.

    labels as published ─▶ Names;  a class of the data ─▶ its column, or several, or none
"""

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence

from birdtune.errors import shown

_IGNORED = re.compile(r"[\s_\-\u2010-\u2015'`\u2018\u2019\u02bc]+")
# Of difflib: a letter of ten may differ. With less, a blackbird is taken for a black sunbird.
_ALIKE = 0.85


def folded(name: str) -> str:
    """A name without what does not matter."""
    return _IGNORED.sub("", unicodedata.normalize("NFKC", name).casefold())


class Names:
    """Which columns of a published classifier a name may mean.

    A name matches a label `Genus species_Common name` if it is that label, its scientific or its common name; case,
    blanks, underscores, hyphens and apostrophes do not matter. Nothing else matches.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = labels
        self._all: dict[str, list[int]] = defaultdict(list)
        self._scientific: dict[str, list[int]] = defaultdict(list)
        for column, label in enumerate(labels):
            scientific, _, common = label.partition("_")
            for key in {folded(label), folded(scientific), folded(common)} - {""}:
                self._all[key].append(column)
            if common and " " in scientific.strip():  # Genus species; others are called `Rain_Rain`
                self._scientific[folded(scientific)].append(column)

    def columns(self, name: str) -> tuple[int, ...]:
        """All that fit; of `Genus species_Name in another language` those of that scientific name."""
        if found := self._all.get(folded(name)):
            return tuple(found)
        return tuple(self._scientific.get(folded(name.partition("_")[0]), ())) if "_" in name else ()

    def only(self, names: Iterable[str]) -> dict[str, int]:
        """The column of each name that fits one; a name that fits several fits none."""
        found = {name: self.columns(name) for name in names}
        return {name: columns[0] for name, columns in found.items() if len(columns) == 1}

    def nearest(self, name: str) -> str:
        """A hint at the label that a name may mean, one that is spelt much like it or of its genus; or nothing."""
        parts = {part.casefold(): label for label in self.labels for part in (label, *label.split("_"))}
        wanted = name.casefold()
        close = difflib.get_close_matches(wanted, parts, n=1, cutoff=_ALIKE)
        genus, _, species = wanted.partition(" ")
        if not close and species:
            of_genus = [part for part in parts if part.startswith(f"{genus} ") and "_" not in part]
            close = difflib.get_close_matches(wanted, of_genus, n=1, cutoff=0.0)
        return f" (nearest: {shown(parts[close[0]])})" if close else ""
