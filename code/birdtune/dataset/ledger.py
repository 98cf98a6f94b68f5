"""What is known of files by their content, kept between runs so that nothing is found out twice.

SoundFile ─▶ identify ─▶ content (SHA-256) ─▶ examine_all ─▶ Examined: facts | problem
"""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from birdtune.dataset.recordings import Problem, SoundFile
from birdtune.events import Interrupts, Journal
from birdtune.files import file_sha256, read_json, write_text
from birdtune.sound.audio import SoundError, SoundFacts, examine
from birdtune.workers import Crashed, run_tasks, worker_count

# What may be gone next time, or depend on a setting: not believed for longer than the run that met it.
_PASSING_PROBLEMS = frozenset({"crash", "too-long", "unreadable"})


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
