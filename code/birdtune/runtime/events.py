"""What a run says while it works, and how it is told to stop.

    Journal      lines for people (terminal and run.log), objects for machines (events.jsonl)
    Interrupts   SIGTERM and SIGINT, turned into an exception

All starts of a run write to the same events.jsonl, one after the other. Of a start that was killed the last
events may be missing (`stage` … `end`, `end`), but no epoch: the next start tells those that were saved and not
told. After `resumed` {epoch: E, step: S} come the epochs from E + 1 on; if some of them stand above it, too,
their checkpoints were damaged, and what comes later counts.

On a terminal, progress is a bar; elsewhere a plain line now and then. Nothing else in the house prints.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from birdtune.errors import EXIT_DEFECT, BirdtuneError, Interrupted, shown
from birdtune.runtime.files import make_folder
from birdtune.runtime.storage import gone, storage_faults

# Without a terminal a progress line appears at most this often.
_PLAIN_PROGRESS_S = 15.0
# How often an interruption that was swallowed is raised again.
_REMINDER_S = 0.5
_EVENTS_NAME = "events.jsonl"


class Progress:
    """Advances a bar on a terminal, or prints a plain line from time to time."""

    def __init__(self, journal: "Journal", what: str, total: int, unit: str) -> None:
        self._journal, self._what, self._total, self._unit = journal, what, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=what, unit=f" {unit}", leave=False, file=sys.stderr, dynamic_ncols=True)
            if journal.terminal
            else None
        )

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more; `note` is shown behind the bar, e.g. the loss."""
        self._done += n
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(n)
            return
        now = time.monotonic()
        if now - self._said >= _PLAIN_PROGRESS_S and self._done < self._total:
            self._said = now
            tail = f", {note}" if note else ""
            self._journal.say(
                f"  {self._what}: {self._done:,} of {self._total:,} {self._unit}{self._left(now)}{tail}"
            )

    def _left(self, now: float) -> str:
        # The first few carry the workers' start, from which nothing can be foretold.
        if self._done < max(3, self._total // 20):
            return ""
        left_s = (now - self._began) / self._done * (self._total - self._done)
        return f", about {duration(left_s)} left"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


def _has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal of some size; `docker run -t` without a window has none."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).lines > 1
    except OSError:
        return True  # it does not say


class Journal:
    """Where a run speaks. Without a folder it speaks to the terminal only."""

    def __init__(self, folder: Path | None = None, *, quiet: bool = False) -> None:
        self._quiet = quiet
        # Why standard output cannot be written any more, where that is so.
        self.unheard: str | None = None
        self._log: TextIO | None = None
        self._events: TextIO | None = None
        # What was said before a run has its folder; it goes there first.
        self._early: list[tuple[str, str]] = []
        self.terminal = not quiet and _has_room_for_a_bar()
        if folder is not None:
            self.write_to(folder)

    def write_to(self, folder: Path) -> None:
        """From now on also append to run.log and events.jsonl in `folder`. Raises as storage_faults."""
        self.close()
        make_folder(folder)
        with storage_faults(folder):
            self._log = _open_to_append(folder / "run.log")
            self._events = _open_to_append(folder / _EVENTS_NAME)
        early, self._early = self._early, []
        for file, line in early:
            self._write(file, line)

    def say(self, line: str) -> None:
        """A line for people."""
        if not self._quiet:
            with tqdm.external_write_mode(file=sys.stdout) if self.terminal else contextlib.nullcontext():
                self._print(line)
        self.log(line)

    def log(self, line: str) -> None:
        """A line for run.log alone: it is told in another way, too."""
        self._write("log", f"{clock()} {line}")

    def _print(self, line: str) -> None:
        # A terminal that cannot show a letter gets an escape, not an exception.
        encoding = sys.stdout.encoding or "utf-8"
        try:
            print(line.encode(encoding, "backslashreplace").decode(encoding), flush=True)
        except BrokenPipeError:
            # Whoever listened went away, as `head` does: that is no reason to stop working.
            self._say_no_more()
        except OSError as fault:
            # Neither is a log file on a full disk, or a terminal that was closed: the job has its own log.
            self._say_no_more()
            self.unheard = str(fault.strerror)
            tell(
                f"note: standard output cannot be written ({fault.strerror}); what is said from here on is lost"
            )

    def _say_no_more(self) -> None:
        self._quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def event(self, kind: str, **fields: Any) -> None:
        """An object for machines: one JSON line with `time` (UTC) and `event`."""
        record = _finite({"time": clock(), "event": kind, **fields})
        self._write("events", json.dumps(record, ensure_ascii=False, default=str))

    def told(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind that stand in the folder's events.jsonl, of earlier starts too."""
        if self._events is None:
            return []
        found = []
        for line in Path(self._events.name).read_text("utf-8", "replace").splitlines():
            with contextlib.suppress(ValueError):  # cut off when the machine lost power
                found.append(json.loads(line))
        return [record for record in found if isinstance(record, dict) and record.get("event") == kind]

    def _write(self, which: str, line: str) -> None:
        file = self._log if which == "log" else self._events
        if file is None:
            self._early.append((which, line))
            return
        path, text = Path(file.name), f"{line}\n"
        with storage_faults(path, needed=len(text)):
            # Writing to a file that was deleted succeeds, and nobody will ever read it.
            if os.fstat(file.fileno()).st_nlink == 0:
                raise gone(path)
            file.write(text)
            file.flush()

    def warn(self, line: str, *, word: str = "note", **fields: Any) -> None:
        """A line for people that matters, behind `word`; also an event, with `fields` in it."""
        self.say(f"{word}: {line}")
        self.event("warning", text=shown(line), **fields)

    @contextlib.contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator[Progress]:
        """Progress over `total` things, for as long as the block lasts."""
        progress = Progress(self, what, total, unit)
        try:
            yield progress
        finally:
            progress.close()

    def close(self) -> None:
        """Close the files; speaking to the terminal goes on."""
        for file in (self._log, self._events):
            if file is not None:
                # What could not be written was told when it could not; closing would try once more.
                with contextlib.suppress(OSError):
                    file.close()
        self._log = self._events = None


def tell(line: str, descriptor: int | None = None) -> None:
    """One line to standard error; where that cannot be written either, there is nobody left to tell.

    Args:
        descriptor: of standard error as it was, for whom it may have been led elsewhere meanwhile (quiet.py).
    """
    if descriptor is not None:
        with contextlib.suppress(OSError):
            os.write(descriptor, f"birdtune: {line}\n".encode("utf-8", "backslashreplace"))
        return
    try:
        print(f"birdtune: {line}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _open_to_append(path: Path) -> TextIO:
    file = path.open("a", encoding="utf-8", errors="backslashreplace")
    # A line that a kill or a full disk cut short must not swallow the next one.
    with path.open("rb") as before:
        before.seek(-min(1, before.seek(0, os.SEEK_END)), os.SEEK_END)
        if before.read(1) not in (b"", b"\n"):
            file.write("\n")
    return file


def _finite(value: Any) -> Any:
    """A value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def clock() -> str:
    """Now in UTC, ISO 8601, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def duration(seconds: float) -> str:
    """Seconds as people say them: "8 s", "4 min 10 s", "3 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Interrupts:
    """Turns SIGTERM and SIGINT into `Interrupted`.

    The first signal raises at once, wherever the main thread is; within `held` it waits for the block's end or
    the next `check`. Python drops what is raised in a destructor or a callback, and a library may catch it, so
    that a timer raises again until it has got out. A second signal ends the process. Everything that matters
    is on the disk whole or not at all, so neither breaks anything.
    """

    def __init__(self) -> None:
        self._signum: int | None = None
        self._holds = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator["Interrupts"]:
        """Listen for the two signals while the block lasts."""
        handlers = {signal.SIGTERM: self._note, signal.SIGINT: self._note, signal.SIGALRM: self._remind}
        before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
        tell_unraisable = sys.unraisablehook
        sys.unraisablehook = lambda report: None if _is_stop(report.exc_value) else tell_unraisable(report)
        try:
            yield self
        finally:
            with self.held():
                signal.setitimer(signal.ITIMER_REAL, 0)
                sys.unraisablehook = tell_unraisable
                for signum, handler in before.items():
                    signal.signal(signum, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait while the block lasts: it changes several things that belong together."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1

    def _note(self, signum: int, frame: types.FrameType | None) -> None:
        del frame
        if self._signum is not None:
            os._exit(128 + signum)
        self._signum = signum
        signal.setitimer(signal.ITIMER_REAL, _REMINDER_S, _REMINDER_S)
        if not self._holds:
            raise Interrupted(signum)

    def _remind(self, signum: int, frame: types.FrameType | None) -> None:
        del signum, frame
        # While it is on its way out, what cleans up behind it must not be disturbed.
        if self._signum is not None and not self._holds and not _is_stop(sys.exception(), GeneratorExit):
            raise Interrupted(self._signum)

    def check(self) -> None:
        """Raise Interrupted if a signal has come; the quickest way to notice after `held`, and the only one in
        other threads."""
        if self._signum is not None:
            raise Interrupted(self._signum)

    def unmasked(self, fault: BaseException) -> BaseException:
        """What really happened: the Interrupted that a library made an error of its own of, or the fault itself."""
        if self._signum is None or isinstance(fault, Interrupted):
            return fault
        # C code that is interrupted while it imports or calls back knows only that it failed. What is not a
        # defect (a full disk, say) was found by birdtune, and is told.
        is_defect = not isinstance(fault, BirdtuneError) or fault.exit_code == EXIT_DEFECT
        return Interrupted(self._signum) if is_defect or _is_stop(fault) else fault


def _is_stop(fault: BaseException | None, *kinds: type[BaseException]) -> bool:
    """Whether an exception is an Interrupted (or of one of the kinds), or came of handling one."""
    seen: set[int] = set()
    while fault is not None and id(fault) not in seen:
        if isinstance(fault, (Interrupted, *kinds)):
            return True
        seen.add(id(fault))
        fault = fault.__cause__ or fault.__context__
    return False
