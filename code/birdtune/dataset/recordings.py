"""Folders → sound files; every file that is passed over has a reason.

    data/<Class>/**/*.wav ─▶ scan ─▶ Listing: SoundFile | Problem

Only names and kinds of files are looked at here. What the files hold, `ledger` finds out; which are
used, `selection` decides.
"""

import stat
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from birdtune.errors import InputError, shown
from birdtune.sound.audio import FOREIGN_ENDINGS, SOUND_ENDINGS, SoundFacts

# Code → what a person can do about it.
PROBLEMS: dict[str, str] = {
    "hidden": "Nothing: names with a leading dot are not data.",
    "outside-class": "Move it into the folder of its class.",
    "not-audio": "Remove it, or convert it to WAV or FLAC if it should be sound.",
    "unsupported-format": "Convert it to WAV, FLAC, Ogg or MP3, for instance with ffmpeg.",
    "unreadable": "Give this user the right to read it (chmod a+r), or check the storage.",
    "link-outside": "Copy the file here, or point --data at the folder where it is.",
    "link-broken": "Remove the link, or restore what it points to.",
    "link-loop": "Remove the link: it leads back to a folder that holds it.",
    "not-a-file": "Remove it: it is a device, pipe or socket.",
    "empty": "Copy it again from where it comes; the recorder may have stopped before writing.",
    "corrupt": "Copy it again; if it stays so, repair or convert it with an audio editor.",
    "truncated": "Copy it again; if this is all there is, open and save it in an audio editor.",
    "not-finite": "Save it again as integer samples; it holds values that are no numbers.",
    "silent": "Check the microphone and the gain of the recorder; there is nothing to hear.",
    "too-long": "Raise --sound.max-hours, or cut it.",
    "too-short": "Use --sound.short pad to fill it up with zeros.",
    "crash": "Report the file: the decoder crashed on it.",
    "duplicate-in-class": "Nothing: another copy in this class is used, and counted once.",
    "duplicate-across-classes": "Decide which class it belongs to, and remove the other copies.",
    "not-in-split": "Add it to the file given as --split.file.",
    "misnamed": "Nothing: it is used. Rename it to match what it holds.",
}

PROBLEM_COLUMNS = ("recording", "class", "problem", "used", "detail", "advice")


@dataclass(frozen=True)
class SoundFile:
    """A file that claims to be sound, in a class folder; not yet opened."""

    name: str  # path below the data folder, safe to show: how every table calls it
    path: Path
    label: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Problem:
    """Why a file is not used, or is used with a remark."""

    recording: str
    label: str
    problem: str  # a key of PROBLEMS
    detail: str
    used: bool = False

    def row(self) -> dict[str, object]:
        """As a row of problems.csv."""
        return {
            "recording": self.recording, "class": self.label, "problem": self.problem,
            "used": "yes" if self.used else "no", "detail": self.detail, "advice": PROBLEMS[self.problem],
        }  # fmt: skip


@dataclass(frozen=True)
class Listing:
    """What a scan met."""

    files: list[SoundFile]
    problems: list[Problem]
    folders: list[str]  # class folders, whether or not there is sound in them


@dataclass(frozen=True)
class Recording:
    """A usable recording."""

    name: str
    path: Path
    label: str
    content: str  # SHA-256 of the file
    facts: SoundFacts
    copies: tuple[str, ...] = ()  # names of the files of its class that hold the same


def scan(folder: Path) -> Listing:
    """List the sound files below class folders, in an order that does not depend on the system.

    Raises:
        InputError: there is no such folder, it cannot be listed, or it has no class folders.
    """
    _check_folder(folder)
    root = folder.resolve()
    walker = _Walker(root)
    entries = sorted(root.iterdir())
    folders = []
    for entry in entries:
        if entry.name.startswith(".") or not _is_folder(entry):
            walker.file(entry, label=None)
            continue
        label = shown(unicodedata.normalize("NFC", entry.name))
        folders.append(label)
        walker.folder(entry, label)
    if not folders:
        raise InputError(
            f"{shown(folder)}: holds no class folders. Expected one folder a class, named after it, with its "
            f"recordings inside, e.g. {shown(folder)}/Turdus_merula/one.wav. Is --data the folder above?"
        )
    return Listing(walker.files, walker.problems, folders)


def _is_folder(path: Path) -> bool:
    """Whether it is a folder; one that must not be looked at is taken for a file, whose problem is then told."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _check_folder(folder: Path) -> None:
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError as fault:
        raise InputError(
            f"{shown(folder)}: there is no such folder. Expected class folders in it, e.g. "
            f"{shown(folder)}/Turdus_merula/*.wav. Give the folder above it as --input, or itself as --data; "
            "in a container, mount it (-v /your/input:/model/input:ro)."
        ) from fault
    except NotADirectoryError as fault:
        raise InputError(f"{shown(folder)}: is a file; expected a folder of class folders.") from fault
    except OSError as fault:
        raise InputError(
            f"{shown(folder)}: cannot be listed ({fault.strerror}). Check its rights."
        ) from fault


# Nobody sorts recordings this deep; below it Python's own limits are near.
_DEEPEST = 100


class _Walker:
    """Collects files and problems below a root; links are followed inside it only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: list[SoundFile] = []
        self.problems: list[Problem] = []

    def folder(self, path: Path, label: str, above: tuple[Path, ...] = ()) -> None:
        real = self._real(path, label)
        if real is None:
            return
        if real in above or real == self.root:
            self._problem(path, label, "link-loop", f"leads back to {self._name(real) or 'the data folder'}")
            return
        if len(above) >= _DEEPEST:
            self._problem(path, label, "unreadable", f"it is nested more than {_DEEPEST} folders deep")
            return
        try:
            entries = sorted(path.iterdir())
        except OSError as fault:
            self._problem(path, label, "unreadable", f"the folder cannot be listed ({fault.strerror})")
            return
        for entry in entries:
            if not entry.name.startswith(".") and _is_folder(entry):
                self.folder(entry, label, (*above, real))
            else:
                self.file(entry, label)

    def file(self, path: Path, label: str | None) -> None:
        """Take a file, or say why not. `label` None: it lies beside the class folders."""
        ending = path.suffix.lower()
        if path.name.startswith("."):
            self._problem(path, label or "", "hidden", "its name begins with a dot")
        elif label is None:
            self._problem(
                path, "", "outside-class", "it lies beside the class folders, so its class is unknown"
            )
        elif ending in FOREIGN_ENDINGS:
            self._problem(path, label, "unsupported-format", f"{ending} cannot be read")
        elif ending not in SOUND_ENDINGS:
            self._problem(
                path, label, "not-audio", f"its ending {shown(ending) or '(none)'} is not one of sound"
            )
        elif self._real(path, label) is not None:
            self._take(path, label)

    def _take(self, path: Path, label: str) -> None:
        try:
            facts = path.stat()
        except OSError as fault:
            self._problem(path, label, "unreadable", f"the system refuses to look at it ({fault.strerror})")
            return
        if not stat.S_ISREG(facts.st_mode):
            self._problem(path, label, "not-a-file", "it is no regular file")
            return
        self.files.append(SoundFile(self._name(path), path, label, facts.st_size, facts.st_mtime_ns))

    def _real(self, path: Path, label: str) -> Path | None:
        """Where a path leads, if that is inside the root; else None, and the problem is noted."""
        try:
            real = path.resolve(strict=True)
        except FileNotFoundError:
            self._problem(path, label, "link-broken", "it is a link to nothing")
            return None
        except PermissionError as fault:
            self._problem(path, label, "unreadable", f"the system refuses to look at it ({fault.strerror})")
            return None
        except (OSError, RuntimeError):  # RuntimeError: a link that leads to itself
            self._problem(path, label, "link-loop", "its links lead nowhere")
            return None
        if not real.is_relative_to(self.root):
            self._problem(path, label, "link-outside", "it is a link out of the data folder")
            return None
        return real

    def _name(self, path: Path) -> str:
        # A backslash of the name itself is doubled: so no two files share a name in the tables.
        below = path.relative_to(self.root).as_posix().replace("\\", "\\\\")
        return shown(below) if path != self.root else ""

    def _problem(self, path: Path, label: str, problem: str, detail: str) -> None:
        self.problems.append(Problem(self._name(path), label, problem, detail))
