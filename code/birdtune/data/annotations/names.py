"""Which recording an annotation file, or a row of one, names.

A file is named after its recording: `night1.wav` has `night1.txt`, `night1.wav.eaf`, `night1.Table.1.selections.txt`,
`night1_labels.txt`.
"""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath, PureWindowsPath

from birdtune.data.scan import SoundFile

# What people and programs add to the name of a recording with a stroke; a dot may be followed by anything.
_ADDED = re.compile(
    r"[ _-]+(?:labels?|label[ _-]?track|annotations?|selections?|calls|events|segments|raven|audacity|birdnet)\b.*",
    re.IGNORECASE,
)
_XENO_CANTO = re.compile(r"XC\d+")


class Names:
    """The names of the recordings of a listing, as annotation files are called after them."""

    def __init__(self, files: Iterable[SoundFile]) -> None:
        self._by_name: dict[str, list[str]] = defaultdict(list)  # last part, with its ending and without → names
        self._all = set[str]()
        self._xeno_canto: dict[str, list[str]] = defaultdict(list)
        for file in files:
            last = PurePosixPath(file.name)
            self._all.add(file.name)
            for key in {last.name, last.stem}:
                self._by_name[key].append(file.name)
            if match := re.match(r"XC\d+(?!\d)", last.name):
                self._xeno_canto[match[0]].append(file.name)

    def of_file(self, below: str) -> str:
        """The recording that an annotation file is named after.

        Args:
            below: its path, below the data folder where it lies in that, else below the folder of annotations.

        Returns:
            the recording's name; of several of that name the one in the same folder, or in the folder that ends alike;
            or how it would be called, where there is none.
        """
        path = PurePosixPath(below)
        for name in shorter(path.name):
            if found := self._by_name.get(name):
                nearest = _nearest(found, path.parent)
                return nearest[0] if len(nearest) == 1 else name
        return path.stem

    def has(self, below: str) -> bool:
        """Whether a file is named after a recording, as of `of_file`."""
        return self.of_file(below) in self._all

    def of_row(self, below: str, recording: str, path: str) -> str:
        """The recording that a row names.

        Args:
            below: path of its file, as in `of_file`.
            recording, path: as of a Row.
        """
        if _XENO_CANTO.fullmatch(recording) and (found := self._xeno_canto.get(recording)):
            return found[0] if len(found) == 1 else recording
        if is_relative(path):
            return path
        beside = (PurePosixPath(below).parent / recording).as_posix()
        if beside in self._all:
            return beside
        nearest = _nearest(self._by_name.get(recording, []), PurePosixPath(below).parent)
        if path:
            return recording if len(self._by_name.get(recording, ())) == 1 else path
        return nearest[0] if len(nearest) == 1 else recording


def is_relative(path: str) -> bool:
    """Whether a path has folders and no beginning on some machine, which is another one perhaps."""
    parts = PureWindowsPath(path)
    return len(parts.parts) > 1 and not parts.anchor


def _nearest(names: list[str], folder: PurePosixPath) -> list[str]:
    """Those of the names in the folder, else in the folders that end most like it, as annotations kept apart may be."""

    def shared(name: str) -> int:
        alike = zip(reversed(PurePosixPath(name).parent.parts), reversed(folder.parts), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], alike))

    if inside := [name for name in names if PurePosixPath(name).parent == folder]:
        return inside
    most = max(map(shared, names), default=0)
    return [name for name in names if shared(name) == most]


def shorter(name: str) -> Iterator[str]:
    """A file's name without one ending after another, and without what is added behind strokes."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name
        if (match := _ADDED.search(name)) and match.start():
            yield name[: match.start()]
