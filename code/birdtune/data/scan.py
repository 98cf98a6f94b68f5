"""Folders → sound files; every file that is passed over has a reason.

    data/<Class>/**/*.wav ─▶ scan ─▶ Listing: SoundFile | Problem

Only names and kinds of files are read here. `file_index` decodes the files; `selection` decides which are used.
"""

import contextlib
import functools
import os
import stat
import unicodedata
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from birdtune.audio.container import FOREIGN_ENDINGS, SOUND_ENDINGS
from birdtune.audio.decode import SoundFacts
from birdtune.audio.faults import SoundError, refusal
from birdtune.audio.formats import is_installed
from birdtune.data import tables
from birdtune.data.labels import Label, class_names_of
from birdtune.errors import InputError, RetryableError, shown
from birdtune.runtime.files import blocking_file
from birdtune.runtime.storage import has_failed, read_error, storage_faults

# Code → what a person can do about it.
PROBLEMS: dict[str, str] = {
    "hidden": "Nothing: names with a leading dot are not data.",
    "outside-class": "Move it into the folder of its class.",
    "no-label": "Add it to the table of labels; or annotate it: an empty track says that nothing is in it.",
    "several-labels": "Keep one class for it in the table, or train each class on its own: --model.output sigmoid.",
    "row-without-file": "Nothing, if it is meant to be missing; else restore it, or correct its name in the table.",
    "row-contradicted": "Listen again, and leave the wrong decision out of the table.",
    "row-ambiguous": "Give its path below the data folder in the table, or rename one of the recordings.",
    "annotation": "To train on it, name it or its folder: --labels.annotations. Without that, recordings in class "
    "folders are trained whole under their class.",
    "annotation-unreadable": "Correct it, or save it again as UTF-8; or take it out.",
    "row-invalid": "Correct the row: start and end in seconds from the beginning of the recording.",
    "row-without-label": "Name its class in the row; or, for all such rows, by a row with an empty label in "
    "--labels.taxonomy.",
    "row-beyond-end": "Correct the row: it begins after the end of its recording. Is it of another recording?",
    "row-trimmed": "Nothing: it is used up to the end of its recording. Is it of another recording, or was that cut?",
    "metadata": "Nothing: it is no recording.",
    "not-audio": "If it should be a recording, copy it again or convert it to WAV or FLAC; else keep it elsewhere.",
    "unsupported-format": "Install the decoder for it (./entrypoint.sh extras media), or convert it to WAV or FLAC.",
    "unreadable": "Give this user the right to read it (chmod a+r), or check the storage.",
    "vanished": "Nothing if you removed it; else restore it. It was there when its folder was listed.",
    "changed": "Run again when nothing writes to it any more: it was being changed while it was read.",
    "storage-failed": "Run again; if it stays so, the disk or the network that holds it is failing.",
    "link-outside": "Copy the file here, or point --data at the folder where it is.",
    "link-broken": "Remove the link, or restore what it points to.",
    "link-again": "Nothing, if its recordings belong to the class where they lie; else move them.",
    "link-loop": "Remove the link: it leads back to a folder that holds it.",
    "not-a-file": "Remove it: it is a device, pipe or socket.",
    "empty": "Copy it again from where it comes; the recorder may have stopped before writing.",
    "corrupt": "Copy it again; if it stays so, repair or convert it with an audio editor.",
    "truncated": "Copy it again; if this is all there is, open and save it in an audio editor.",
    "repaired": "Nothing: all of its sound is used. To mend its header, open and save it in an audio editor.",
    "not-finite": "Save it again as integer samples; it holds values that are no numbers.",
    "silent": "Check the microphone and the gain of the recorder; there is nothing to hear.",
    "too-long": "Raise --audio.max-hours, or cut it.",
    "too-short": "Use --audio.short-clips pad to fill it up with zeros.",
    "crash": "Report the file: the decoder crashed on it.",
    "duplicate-in-class": "Nothing: another copy in this class is used, and counted once.",
    "duplicate-across-classes": "Decide which class it belongs to, and remove the other copies; or, if it holds all of "
    "them, train each class on its own: --model.output sigmoid.",
    "duplicate-joined": "Nothing: the other copy is used, with the labels of both.",
    "invalid-label": "Correct the times in the table of labels: seconds from the beginning of the recording.",
    "not-in-split": "Add it to the file given as --split.file.",
    "rare-class": "Record more of it, lower --train.min-samples-per-class, or set --train.min-samples-action keep.",
    "channels-inverted": "Nothing: it is used. Check the plugs: one channel has the wrong polarity, or is delayed.",
    "channel-dead": "Nothing: it is used. Check the microphone, the cable and the gain of that channel.",
    "channel-noisy": "Nothing: it is used. Check the microphone and the cable of the noisy channel.",
    "channel-offset": "Nothing: it is used. Check the recorder: a channel has a constant offset.",
    "channel-clipped": "Nothing: it is used. Lower the gain of the channel that is too loud.",
    "offset": "Nothing: it is used, for a constant offset is inaudible. Check the recorder.",
    "clipped": "Nothing: it is used. Listen to it; lower the recorder's gain for the next ones.",
    "click": "Nothing: it is used. Listen to it: apart from one short sound it is quiet.",
    "gaps": "Listen to it: a recorder, a noise gate or an editor left parts of it empty. They are used as silence.",
    "padded": "Nothing: it is used. Cut it longer if there is more of it, or leave it out: --audio.short-clips skip.",
    "misnamed": "Nothing: it is used. Rename it to match what it holds.",
}

# Problems of one file at one time; they say nothing about its content, of which there may be another copy.
OF_THE_FILE = frozenset({"unreadable", "vanished", "changed", "storage-failed"})
# Problems of what is not a file; the counts of files leave it out.
NO_FILE = frozenset(
    {"row-without-file", "row-ambiguous", "row-contradicted", "row-invalid", "row-without-label", "row-beyond-end",
     "row-trimmed", "annotation-unreadable"}
)  # fmt: skip
# More than this share of the files gone or changed is not tidying up.
_MOST_VANISHED = 0.1
_MOST_CRASHED = 0.1

PROBLEM_COLUMNS = ("recording", "class", "problem", "used", "detail", "advice")


@dataclass(frozen=True)
class SoundFile:
    """A file that claims to be sound, in a class folder; not yet opened."""

    name: str  # path below the data folder, safe to show: how every table calls it
    path: Path
    label: str  # the name of its class, or of several, as its folder has it
    size: int
    mtime_ns: int
    # What a copy that keeps sizes and times, or folders that change names, cannot keep.
    ctime_ns: int = 0
    inode: int = 0
    below: str | None = None  # as of a Recording
    channel: int | None = None  # as of a Recording
    labels: tuple[Label, ...] = ()  # where it has several, or times; else the class holds throughout

    @property
    def classes(self) -> tuple[str, ...]:
        """Its classes, each once."""
        # None, where all that is known is that some classes are absent from parts of it.
        return class_names_of(self.labels) or ((self.label,) if self.label else ())

    @property
    def stamp(self) -> tuple[int, int, int, int]:
        """By which a file that was read before is known to be the same."""
        return self.size, self.mtime_ns, self.ctime_ns, self.inode


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
    """The files and problems of a scan."""

    files: list[SoundFile]
    problems: list[Problem]
    folders: list[str]  # class folders, whether or not there is sound in them


@dataclass(frozen=True)
class Recording:
    """A usable recording."""

    name: str
    path: Path
    labels: tuple[Label, ...]
    content: str  # SHA-256 of the file
    facts: SoundFacts
    copies: tuple[str, ...] = ()  # names of the files of its class that hold the same
    # What of the name lies below the folders that name class and side of the split; None: all but the first folder.
    below: str | None = None
    channel: int | None = None  # the one that it is, from 0, with --audio.channels each; its name ends in "#1" for 0

    @functools.cached_property
    def classes(self) -> tuple[str, ...]:
        """Its classes, each once."""
        return class_names_of(self.labels)

    @functools.cached_property
    def label(self) -> str:
        """Its classes in one text, as tables have them."""
        return ", ".join(self.classes)

    @property
    def below_class(self) -> PurePosixPath:
        """The path below the class folder, which may name the source recording."""
        return PurePosixPath(self.name.partition("/")[2] or self.name if self.below is None else self.below)


@contextlib.contextmanager
def unchanged(file: SoundFile) -> Iterator[None]:
    """A block in which a file is read: what it finds out is true of the file that was listed.

    Raises:
        SoundError: "vanished" or "changed" since it was listed, before or during the block; also in place of
            what the block raises for a file that is being written to.
    """
    _check_unchanged(file)
    try:
        yield
    except SoundError:
        _check_unchanged(file)
        raise
    _check_unchanged(file)


def _check_unchanged(file: SoundFile) -> None:
    try:
        facts = file.path.stat()
    except OSError as fault:
        raise refusal(fault) from fault
    if facts.st_size != file.size:
        raise SoundError("changed", f"{file.size:,} bytes when it was listed, then {facts.st_size:,}")
    if facts.st_mtime_ns != file.mtime_ns:
        raise SoundError("changed", "written to after it was listed")


def refuse_remnant(listing: Listing, unusable: Mapping[str, Problem], folder: Path) -> None:
    """Refuse to go on with what is left when much of the data vanished or changed after it was listed.

    Args:
        unusable: name of a file → what kept it from being read.

    Raises:
        RetryableError: all of a class is concerned, or more than a tenth of all files; or the storage failed.
    """
    gone = {name for name, problem in unusable.items() if problem.problem in ("vanished", "changed")}
    by_class: dict[str, list[SoundFile]] = defaultdict(list)
    for file in listing.files:
        by_class[file.label].append(file)
    with storage_faults(folder, verb="read"):
        lost = [
            label
            for label, files in by_class.items()
            if any(file.name in gone for file in files)
            and not any(file.name not in gone and file.path.exists() for file in files)
        ]
    if lost or len(gone) > _MOST_VANISHED * len(listing.files):
        whole = f", among them all of {', '.join(lost[:3])}" if lost else ""
        raise RetryableError(
            f"{shown(folder)}: {len(gone):,} of {len(listing.files):,} sound files vanished or changed while they were "
            f"read{whole}. Is the storage still mounted, or does something move or write files? Nothing is trained on "
            "what is left: run again when all is there and at rest."
        )


def refuse_crashes(listing: Listing, problems: Sequence[Problem], folder: Path) -> None:
    """Refuse to go on without much of the data because the processes that decoded it were killed.

    Want of memory kills them as a fault in the decoder does, and then the files are fine.

    Raises:
        RetryableError: all of a class is concerned, or more than a tenth of all files or of their bytes.
    """
    names = {problem.recording for problem in problems if problem.problem == "crash"}
    crashed = [file for file in listing.files if file.name in names]
    if not crashed:
        return
    spared = {file.label for file in listing.files if file.name not in names}
    whole = sorted({file.label for file in crashed} - spared)
    n_bytes, of_bytes = (sum(file.size for file in files) for files in (crashed, listing.files))
    if whole or len(crashed) > _MOST_CRASHED * len(listing.files) or n_bytes > _MOST_CRASHED * of_bytes:
        among = f", among them all of {', '.join(whole[:3])}" if whole else ""
        raise RetryableError(
            f"{shown(folder)}: the processes that decoded {len(crashed):,} of {len(listing.files):,} sound files were "
            f"killed ({n_bytes / max(1, of_bytes):.0%} of the bytes{among}), {crashed[0].name} for one. Mostly that is "
            "want of memory: give the job more, or fewer processes (--prepare.workers 1), and run again. If it is "
            "always the same files, the decoder crashes on them: remove them. Nothing is trained on the others alone."
        )


def scan(folder: Path, *, flat: bool = False) -> Listing:
    """List the sound files below class folders, in an order that does not depend on the system.

    Args:
        flat: take files beside the class folders as well, with an empty label, where a table has their classes.

    Raises:
        InputError: there is no such folder, it cannot be listed, or it has no class folders (nor files, if flat).
        RetryableError: the storage fails, or a folder vanishes meanwhile.
    """
    give = "Give the folder above it as --input, or itself as --data"
    _check_folder(folder, f"class folders in it, e.g. {shown(folder)}/Turdus_merula/*.wav", give)
    root = folder.resolve()
    walker = _Walker(root)
    folders = walker.walk()
    if not folders and not (flat and walker.files):
        raise _no_class_folders(folder)
    files = sorted(walker.files, key=lambda file: file.path)
    found = Listing(files, walker.problems, folders)
    return found if flat else in_class_folders(found, folder)


def in_class_folders(listing: Listing, folder: Path) -> Listing:
    """A flat listing without what lies beside the class folders, which is a problem.

    Raises:
        InputError: there are no class folders.
    """
    if not listing.folders:
        raise _no_class_folders(folder)
    detail = "it lies beside the class folders, so its class is unknown"
    beside = [Problem(file.name, "", "outside-class", detail) for file in listing.files if not file.label]
    return Listing([file for file in listing.files if file.label], [*listing.problems, *beside], listing.folders)


def _no_class_folders(folder: Path) -> InputError:
    return InputError(
        f"{shown(folder)}: holds no class folders. Expected one folder a class, named after it, with its "
        f"recordings inside, e.g. {shown(folder)}/Turdus_merula/one.wav. Is --data the folder above? Where a table "
        "says what each file holds, name it: --labels.table CSV; where annotations do: --labels.annotations FOLDER."
    )


def with_background(listing: Listing, folder: Path, label: str) -> Listing:
    """The same listing and all sound below a folder of its own, as one class.

    Its recordings are called as if the folder lay among the class folders; with a plus sign, if one of its name does.

    Raises: as `scan`.
    """
    give = "Give another folder as --background; without that setting it is background/ in the input folder, if there"
    _check_folder(folder, f"sound without any class in it, e.g. {shown(folder)}/night.wav", give)
    shelf = shown(unicodedata.normalize("NFC", folder.name)) or label
    taken = {*listing.folders, *(entry.name.partition("/")[0] for entry in listing.files)}
    while shelf in taken:
        shelf += "+"
    walker = _Walker(folder.resolve(), shelf)
    walker.walk_as(label)
    files = sorted(walker.files, key=lambda file: file.path)
    folders = [*listing.folders, *([] if label in listing.folders else [label])]
    return Listing([*listing.files, *files], [*listing.problems, *walker.problems], folders)


def _check_folder(folder: Path, expected: str, give: str) -> None:
    """Refuse a folder that cannot be listed.

    Args:
        expected, give: what it should hold, and which setting names it.
    """
    try:
        next(folder.iterdir(), None)
    except FileNotFoundError as fault:
        raise InputError(
            f"{shown(folder)}: there is no such folder. Expected {expected}. {give}; "
            "in a container, mount it (-v /your/input:/model/input:ro)."
        ) from fault
    except NotADirectoryError as fault:
        place = blocking_file(folder)
        below = f", for {shown(folder)}," if place != folder else ""
        raise InputError(f"{shown(place)}: is a file; expected a folder{below} with {expected}. {give}.") from fault
    except OSError as fault:
        message = f"{shown(folder)}: cannot be listed ({fault.strerror}). Check its rights."
        raise read_error(fault, folder, message) from fault


def name_below(path: Path, root: Path) -> str:
    """How a file is called in the listing of a folder; "" outside of it."""
    real = Path(os.path.realpath(path))
    return shown(real.relative_to(root)) if real.is_relative_to(root := Path(os.path.realpath(root))) else ""


def _vanished(folder: Path) -> RetryableError:
    return RetryableError(
        f"{shown(folder)}: the folder vanished while the data were listed. Is the storage still mounted? Run again "
        "when all is there."
    )


# Nobody sorts recordings this deep; below it Python's own limits are near.
_DEEPEST = 100


class _Walker:
    """Collects files and problems below a root. Links are followed inside it only, and each folder is read once.

    Folders that link to each other would otherwise be walked along every way through them: twenty folders
    with links to all the others have more ways than any machine can walk.
    """

    def __init__(self, root: Path, shelf: str = "") -> None:
        self.root = root
        self._shelf = shelf  # what names begin with, for a folder that is a class itself
        self._above = len(str(root / "x")) - 1  # characters before what is below it
        self.files: list[SoundFile] = []
        self.problems: list[Problem] = []
        # Folders that were read: where they are → by which name.
        self._read: dict[Path, str] = {}
        self._links: deque[tuple[Path, str]] = deque()

    def walk(self) -> list[str]:
        """Read all below the root; the classes of the folders in it.

        What lies in a folder belongs to it, and only what is nowhere else is reached by a link: so links
        wait until all folders were read.
        """
        folders = []
        for entry in self._folders(self.root, label=""):
            folders.append(shown(unicodedata.normalize("NFC", entry.name)))
            self._enter(entry, folders[-1], depth=0)
        self._follow_all()
        return folders

    def walk_as(self, label: str) -> None:
        """Read all below the root as one class."""
        self._list(self.root, self.root, label, depth=0)
        self._follow_all()

    def _follow_all(self) -> None:
        while self._links:
            self._follow(*self._links.popleft())

    def _enter(self, path: Path, label: str, depth: int) -> None:
        if path.is_symlink():
            self._links.append((path, label))
        elif depth >= _DEEPEST:
            self._problem(path, label, "unreadable", f"it is nested more than {_DEEPEST} folders deep")
        elif (real := self._real(path, label)) is not None:
            self._list(path, real, label, depth)
        elif not path.exists():
            raise _vanished(path)

    def _follow(self, path: Path, label: str) -> None:
        real = self._real(path, label)
        if real is None:
            return
        if real == self.root or path.parent.resolve().is_relative_to(real):
            self._problem(path, label, "link-loop", f"leads back to {self._name(real) or 'the data folder'}")
        else:
            self._list(path, real, label, depth=0)

    def _list(self, path: Path, real: Path, label: str, depth: int) -> None:
        if real in self._read:
            self._problem(path, label, "link-again", f"leads to the folder {self._read[real]}, which is read as such")
            return
        self._read[real] = self._name(path)
        try:
            folders = self._folders(path, label)
        except FileNotFoundError as fault:
            raise _vanished(path) from fault
        except OSError as fault:
            self._pass_on(path, fault)
            self._problem(path, label, "unreadable", f"the folder cannot be listed ({fault.strerror})")
            return
        for folder in folders:
            self._enter(folder, label, depth + 1)

    def _folders(self, folder: Path, label: str) -> list[Path]:
        """The folders in a folder; all else in it is taken, or its problem noted."""
        folders = []
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith("."):
                self._problem(entry, label, "hidden", "its name begins with a dot")
                continue
            try:
                is_folder = entry.is_dir()
            except OSError as fault:
                self._refused(entry, label, fault)
                continue
            folders.append(entry) if is_folder else self._file(entry, label)
        return folders

    def _file(self, path: Path, label: str) -> None:
        """Take a file, or say why not. An empty label: it lies beside the class folders."""
        ending = path.suffix.lower()
        if ending in FOREIGN_ENDINGS and not is_installed():
            self._problem(path, label, "unsupported-format", f"{ending} files need the decoder of `extras media`")
        elif ending in SOUND_ENDINGS | FOREIGN_ENDINGS:
            self._take(path, label)
        elif (known := tables.describe(path)) is not None:
            self._problem(path, label, *known)
        else:
            detail = f"its ending {shown(ending) or '(none)'} is not one of sound"
            self._problem(path, label, "not-audio", detail)

    def _take(self, path: Path, label: str) -> None:
        try:
            facts = path.lstat()
            # What is no link is where its folder is, which is known to be inside the root.
            if stat.S_ISLNK(facts.st_mode):
                if self._real(path, label) is None:
                    return
                facts = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._problem(path, label, "vanished", "it is not there any more")
            return
        except OSError as fault:
            self._refused(path, label, fault)
            return
        if not stat.S_ISREG(facts.st_mode):
            self._problem(path, label, "not-a-file", "it is no regular file")
            return
        stamp = facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino
        self.files.append(SoundFile(self._name(path), path, label, *stamp))

    def _real(self, path: Path, label: str) -> Path | None:
        """Where a path leads, if that is inside the root; else None, and the problem is noted."""
        try:
            real = path.resolve(strict=True)
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                self._problem(path, label, "link-broken", "it is a link to nothing")
            else:
                self._problem(path, label, "vanished", "it is not there any more")
            return None
        except RuntimeError:  # a link that leads to itself
            self._problem(path, label, "link-loop", "its links lead nowhere")
            return None
        except OSError as fault:
            self._refused(path, label, fault)
            return None
        if not real.is_relative_to(self.root):
            self._problem(path, label, "link-outside", "it is a link out of the data folder")
            return None
        return real

    def _pass_on(self, path: Path, fault: OSError) -> None:
        """Storage that fails says nothing about the data: what it still shows may be the smaller part."""
        if has_failed(fault):
            raise RetryableError(
                f"{shown(path)}: the storage failed ({fault.strerror}) when {len(self.files):,} sound files had been "
                "listed. Nothing is trained on those alone: run again when it is back."
            ) from fault

    def _refused(self, path: Path, label: str, fault: OSError) -> None:
        self._pass_on(path, fault)
        self._problem(path, label, "unreadable", f"the system refuses to look at it ({fault.strerror})")

    def _name(self, path: Path) -> str:
        # A backslash of the name itself is doubled: so no two files share a name in the tables.
        below = str(path)[self._above :].replace("\\", "\\\\")
        return f"{self._shelf}/{shown(below)}" if self._shelf else shown(below)

    def _problem(self, path: Path, label: str, problem: str, detail: str) -> None:
        self.problems.append(Problem(self._name(path), label, problem, detail))
