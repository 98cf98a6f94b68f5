"""Folders → recordings; every file that is not used has a reason.

    data/<Class>/**/*.wav ─▶ scan ─▶ SoundFile ─▶ examined by content ─▶ select ─▶ Recording
                              └─ Problem ◀─────────────┴──────────────────┘

The books always balance: files found = recordings used + problems with `used` False.
"""

import json
import stat
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from birdtune.errors import InputError, shown
from birdtune.events import Interrupts, Journal
from birdtune.files import file_sha256, read_json, write_text
from birdtune.sound.audio import FOREIGN_ENDINGS, SOUND_ENDINGS, SoundError, SoundFacts, examine
from birdtune.sound.logmel import FrontEnd
from birdtune.workers import Crashed, run_tasks, worker_count

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

# What may be gone next time, or depend on a setting: not believed for longer than the run that met it.
_PASSING_PROBLEMS = frozenset({"crash", "too-long", "unreadable"})

PROBLEM_COLUMNS = ("recording", "class", "problem", "used", "detail", "advice")

# libsndfile's names of formats → endings that announce them.
_ENDINGS = {
    "FLAC": {".flac"}, "OGG": {".ogg", ".oga", ".opus"}, "MP3": {".mp3"}, "MPEG": {".mp3"},
    "AIFF": {".aif", ".aiff", ".aifc"},
    "WAV": {".wav", ".wave", ".bwf"}, "WAVEX": {".wav", ".wave", ".bwf"},
}  # fmt: skip


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


@dataclass(frozen=True)
class Examined:
    """What one file's content turned out to be: facts, or a problem."""

    facts: SoundFacts | None
    problem: str = ""
    detail: str = ""


class Ledger:
    """What is known of files by their content, kept between runs so that nothing is found out twice.

    A file of unchanged path, size and time is taken to hold what it held; what was found out about a
    content holds for every file that has it.
    """

    _SAVE_EVERY = 500  # results between saves, so that a killed run need not begin anew

    def __init__(self, path: Path | None, resampler: str) -> None:
        self._path = path
        self.resampler = resampler
        known = read_json(path) if path is not None else None
        if not isinstance(known, dict):
            known = {}
        self._stats: dict[str, list[Any]] = known.get("stats", {})
        self._all_facts: dict[str, dict[str, Any]] = known.get("facts", {})
        # The number of samples at 16 kHz depends on the resampler, so facts do.
        self._facts: dict[str, Any] = self._all_facts.setdefault(resampler, {})
        for content in [
            key for key, entry in self._facts.items() if entry.get("problem") in _PASSING_PROBLEMS
        ]:
            del self._facts[content]
        self._unsaved = 0

    def content(self, file: SoundFile) -> str | None:
        """SHA-256 of the file's content, if it was read before and looks unchanged."""
        entry = self._stats.get(str(file.path))
        return str(entry[2]) if entry and entry[:2] == [file.size, file.mtime_ns] else None

    def set_content(self, file: SoundFile, content: str) -> None:
        self._stats[str(file.path)] = [file.size, file.mtime_ns, content]
        self._count()

    def examined(self, content: str) -> Examined | None:
        """What is known of a content."""
        entry = self._facts.get(content)
        if entry is None:
            return None
        return Examined(SoundFacts(**entry)) if "n_samples" in entry else Examined(None, **entry)

    def set_examined(self, content: str, found: Examined) -> None:
        self._facts[content] = (
            asdict(found.facts) if found.facts else {"problem": found.problem, "detail": found.detail}
        )
        self._count()

    def _count(self) -> None:
        self._unsaved += 1
        if self._unsaved >= self._SAVE_EVERY:
            self.save()

    def save(self) -> None:
        """Write the ledger, if there is a place for it. Raises as files.storage_faults."""
        if self._path is not None and self._unsaved:
            # Without indentation: 20,000 files make 6 MB, read in a tenth of a second.
            write_text(self._path, json.dumps({"stats": self._stats, "facts": self._all_facts}))
            self._unsaved = 0


def _hash(file: SoundFile) -> str | SoundError:
    try:
        return file_sha256(file.path)
    except OSError as fault:
        return SoundError("unreadable", f"the system refuses to read it ({fault.strerror})")


def identify(
    files: Sequence[SoundFile], ledger: Ledger, *, journal: Journal, interrupts: Interrupts
) -> dict[str, Problem]:
    """Make sure that the ledger knows the content of every file; return those that cannot be read, by name.

    Raises:
        Interrupted: what was read is kept.
    """
    unknown = [file for file in files if ledger.content(file) is None]
    unreadable: dict[str, Problem] = {}
    # Threads are enough: hashing and reading both let go of the interpreter.
    with journal.progress("reading", len(unknown), "files") as progress, ThreadPoolExecutor() as threads:
        try:
            for file, result in zip(unknown, threads.map(_hash, unknown), strict=True):
                interrupts.check()
                progress.advance()
                if isinstance(result, str):
                    ledger.set_content(file, result)
                else:
                    unreadable[file.name] = Problem(file.name, file.label, *_problem_of(result))
        finally:
            threads.shutdown(cancel_futures=True)
            ledger.save()
    return unreadable


def _problem_of(fault: SoundError | Crashed) -> tuple[str, str]:
    if isinstance(fault, SoundError):
        return fault.problem, str(fault)
    return "crash", "the process that decoded it was killed; by a fault in the decoder, or for want of memory"


def unexamined(files: Sequence[SoundFile], ledger: Ledger) -> Iterator[SoundFile]:
    """One file for each content of which the ledger knows nothing yet."""
    seen: set[str] = set()
    for file in files:
        content = ledger.content(file)
        if content is not None and content not in seen and ledger.examined(content) is None:
            seen.add(content)
            yield file


@dataclass(frozen=True)
class _ExamineTask:
    file: SoundFile
    resampler: str
    longest_s: float


def _examine(task: _ExamineTask) -> Examined:
    try:
        return Examined(examine(task.file.path, resampler=task.resampler, longest_s=task.longest_s))
    except SoundError as fault:
        return Examined(None, fault.problem, str(fault))


def examine_all(
    files: Sequence[SoundFile],
    ledger: Ledger,
    *,
    longest_s: float,
    workers: int,
    journal: Journal,
    interrupts: Interrupts,
) -> None:
    """Decode every content that is not known yet, keeping only what was learnt: for `check`."""
    tasks = [_ExamineTask(file, ledger.resampler, longest_s) for file in unexamined(files, ledger)]
    with journal.progress("listening", len(tasks), "files") as progress:
        for task, result in run_tasks(
            _examine, tasks, n_workers=worker_count(workers, len(tasks)), interrupts=interrupts
        ):
            progress.advance()
            content = ledger.content(task.file)
            assert content is not None
            ledger.set_examined(content, crashed() if isinstance(result, Crashed) else result)
    ledger.save()


def crashed() -> Examined:
    """What is noted of a content that killed its decoder."""
    return Examined(None, *_problem_of(Crashed()))


def select(
    listing: Listing,
    ledger: Ledger,
    unreadable: Mapping[str, Problem],
    *,
    spec: FrontEnd,
    short: str,
    longest_s: float,
) -> tuple[list[Recording], list[Problem]]:
    """Decide for every file whether it is used.

    Args:
        short: "pad" or "skip", for sounds shorter than a patch of `spec`.

    Returns:
        recordings sorted by name, and the problems of all others (remarks on used ones included).
    """
    problems = [*listing.problems, *unreadable.values()]
    usable: list[Recording] = []
    for file in listing.files:
        content = ledger.content(file)
        if file.name in unreadable or content is None:
            continue
        judged = _judge(file, ledger.examined(content), spec, short, longest_s)
        if isinstance(judged, Problem):
            problems.append(judged)
        else:
            usable.append(Recording(file.name, file.path, file.label, content, judged))
    usable, doubled = _without_duplicates(sorted(usable, key=lambda recording: recording.name))
    misnamed = [problem for recording in usable if (problem := _misnamed(recording)) is not None]
    return usable, sorted([*problems, *doubled, *misnamed], key=lambda problem: problem.recording)


def _judge(
    file: SoundFile, found: Examined | None, spec: FrontEnd, short: str, longest_s: float
) -> Problem | SoundFacts:
    assert found is not None, f"{file.name} was never examined"
    if found.facts is None:
        return Problem(file.name, file.label, found.problem, found.detail)
    if found.facts.duration_s > longest_s:
        detail = f"{found.facts.duration_s / 3600:,.1f} h, more than sound.max-hours = {longest_s / 3600:g}"
        return Problem(file.name, file.label, "too-long", detail)
    if short == "skip" and found.facts.n_samples < spec.patch_samples:
        needed_s = spec.patch_samples / spec.rate_hz
        detail = f"{found.facts.duration_s:.2f} s, a patch needs {needed_s:g} s"
        return Problem(file.name, file.label, "too-short", detail)
    return found.facts


def _without_duplicates(recordings: list[Recording]) -> tuple[list[Recording], list[Problem]]:
    copies: dict[str, list[Recording]] = defaultdict(list)
    for recording in recordings:
        copies[recording.content].append(recording)
    kept: list[Recording] = []
    problems: list[Problem] = []
    for recording in recordings:
        same = copies[recording.content]
        labels = sorted({copy.label for copy in same})
        if len(labels) > 1:
            others = ", ".join(copy.name for copy in same if copy is not recording)
            detail = f"the same sound stands under {len(labels)} classes: also {others}"
            problems.append(Problem(recording.name, recording.label, "duplicate-across-classes", detail))
        elif recording is not same[0]:
            detail = f"the same content as {same[0].name}"
            problems.append(Problem(recording.name, recording.label, "duplicate-in-class", detail))
        else:
            kept.append(recording)
    return kept, problems


def _misnamed(recording: Recording) -> Problem | None:
    held = recording.facts.format.split()[0]
    ending = recording.path.suffix.lower()
    announced = {kind for kind, endings in _ENDINGS.items() if ending in endings}
    if held in _ENDINGS and announced and held not in announced:
        return Problem(
            recording.name, recording.label, "misnamed", f"named {ending} but holds {held}", used=True
        )
    return None


def class_names(recordings: Sequence[Recording]) -> tuple[str, ...]:
    """The classes that have usable recordings, sorted: their order is the order of the logits."""
    return tuple(sorted({recording.label for recording in recordings}))


def check_enough(recordings: Sequence[Recording], folder: Path, problems: Sequence[Problem]) -> None:
    """Refuse data from which nothing can be told apart.

    Raises:
        InputError: fewer than two classes have usable recordings.
    """
    classes = class_names(recordings)
    if len(classes) >= 2:
        return
    reasons = Counter(
        problem.problem for problem in problems if not problem.used and problem.problem != "hidden"
    )
    counted = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common()) or "no sound files"
    found = (
        f"only one class with usable recordings ({classes[0]})" if classes else "no usable recording at all"
    )
    raise InputError(
        f"{shown(folder)}: {found}; at least two classes are needed to tell anything apart. Not used: {counted}. "
        "`birdtune check` names every file and its reason."
    )


def books(recordings: Sequence[Recording], problems: Sequence[Problem]) -> dict[str, Any]:
    """Found, used, and how many were left out for each reason; found = used + all reasons."""
    left_out = Counter(problem.problem for problem in problems if not problem.used)
    return {
        "found": len(recordings) + left_out.total(),
        "used": len(recordings),
        "left_out": dict(sorted(left_out.items())),
    }
