"""What a run reports while it works: lines for people (terminal and run.log), events for machines (events.jsonl).

All starts of a run append to the same files. Of a start that was killed the last events may be missing (`stage` …
`end`, `end`), but no epoch: the next start writes those that were saved and not reported. After `resumed`
{epoch: E, step: S} come the epochs from E + 1 on; if some of them are above it, too, their checkpoints were damaged,
and what comes later counts.

On a terminal, progress is a bar; elsewhere a plain line now and then. Nothing else in the package prints.
"""

import contextlib
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from birdtune.errors import shown
from birdtune.runtime.files import make_folder
from birdtune.runtime.rank import is_chief
from birdtune.runtime.storage import gone, storage_faults

LOG_NAME, EVENTS_NAME = "run.log", "events.jsonl"
# Without a terminal a progress line appears at most this often.
_PLAIN_PROGRESS_S = 15.0
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class Journal:
    """Where a run reports. Without a folder it reports to the terminal only.

    Args:
        folder: as `write_to`.
        quiet: nothing goes to the terminal.
    """

    def __init__(self, folder: Path | None = None, *, quiet: bool = False) -> None:
        self._terminal, self._files = _Terminal(quiet), _Files()
        self._logger = logging.Logger("birdtune")  # not that of the process: several do not mix
        self._logger.addHandler(self._terminal)
        self._logger.addHandler(self._files)
        if folder is not None:
            self.write_to(folder)

    @property
    def has_bar(self) -> bool:
        """Whether progress is a bar on a terminal."""
        return self._terminal.has_bar

    @property
    def stdout_error(self) -> str | None:
        """Why standard output cannot be written any more, where that is so."""
        return self._terminal.error

    def write_to(self, folder: Path) -> None:
        """From now on also append to run.log and events.jsonl in `folder`, first what was reported before it was known.

        Of a distributed job the chief alone writes. Raises as `storage_faults`.
        """
        if is_chief():
            self._files.open(folder)

    def say(self, line: str) -> None:
        """A line for people."""
        self._logger.info("%s", line)

    def log(self, line: str) -> None:
        """A line for run.log alone: it is reported in another way, too."""
        self._logger.debug("%s", line)

    def event(self, kind: str, **fields: Any) -> None:
        """An object for machines: one JSON line with `time` (UTC) and `event`."""
        self._logger.debug("%s", kind, extra={"fields": fields})

    def warn(self, line: str, *, word: str = "note", **fields: Any) -> None:
        """A line for people that matters, behind `word`; also an event, with `fields` in it."""
        self.say(f"{word}: {line}")
        self.event("warning", text=shown(line), **fields)

    def follow(self, take: Callable[[str, dict[str, Any]], None]) -> None:
        """Call a function with the kind and the fields of each event from now on, once it is written."""
        self._logger.addHandler(_Follower(take))

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind in the folder's events.jsonl, of earlier starts too."""
        records = self._files.events()
        return [record for record in records if isinstance(record, dict) and record.get("event") == kind]

    @contextlib.contextmanager
    def progress(self, what: str, total: int, unit: str) -> Iterator["Progress"]:
        """Progress over `total` things, for as long as the block lasts."""
        progress = Progress(self, what, total, unit)
        try:
            yield progress
        finally:
            progress.close()

    def close(self) -> None:
        """Close the files; reporting to the terminal goes on."""
        self._files.close()


class Progress:
    """Advances a bar on a terminal, or prints a plain line from time to time."""

    def __init__(self, journal: Journal, what: str, total: int, unit: str) -> None:
        self._journal, self._what, self._total, self._unit = journal, what, total, unit
        self._done = 0
        self._began = self._said = time.monotonic()
        self._bar = (
            tqdm(total=total, desc=what, unit=f" {unit}", leave=False, file=sys.stderr, dynamic_ncols=True)
            if journal.has_bar
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
        # The first few include the workers' start, from which nothing can be predicted.
        if self._done < max(3, self._total // 20):
            return ""
        left_s = (now - self._began) / self._done * (self._total - self._done)
        return f", about {duration(left_s)} left"

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()


class _Terminal(logging.Handler):
    """Prints lines for people, beside a bar if there is one, as long as standard output can be written."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(logging.INFO)
        self._quiet = quiet
        self.has_bar = not quiet and _has_room_for_a_bar()
        self.error: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        if self._quiet:
            return
        # A terminal that cannot show a letter gets an escape, not an exception.
        encoding = sys.stdout.encoding or "utf-8"
        line = record.getMessage().encode(encoding, "backslashreplace").decode(encoding)
        try:
            with tqdm.external_write_mode(file=sys.stdout) if self.has_bar else contextlib.nullcontext():
                print(line, flush=True)
        except OSError as fault:
            # Neither a reader that went away, as `head` does, nor a full disk is a reason to stop working.
            self._quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if not isinstance(fault, BrokenPipeError):
                self.error = str(fault.strerror)
                print_error(f"note: standard output cannot be written ({fault.strerror}); further lines are lost")


def _has_room_for_a_bar() -> bool:
    """Whether stderr is a terminal of some size; `docker run -t` without a window has none."""
    if not sys.stderr.isatty():
        return False
    try:
        return os.get_terminal_size(sys.stderr.fileno()).lines > 1
    except OSError:
        return True  # it does not say


class _Files(logging.Handler):
    """Writes run.log and events.jsonl; keeps what comes before it has a folder."""

    def __init__(self) -> None:
        super().__init__()
        self._early: list[logging.LogRecord] = []
        self._log: TextIO | None = None
        self._events: TextIO | None = None

    def open(self, folder: Path) -> None:
        """Begin to append to the files in a folder. Raises as `storage_faults`."""
        self.close()
        make_folder(folder)
        with storage_faults(folder):
            self._log = _open_to_append(folder / LOG_NAME)
            self._events = _open_to_append(folder / EVENTS_NAME)
        early, self._early = self._early, []
        for record in early:
            self.emit(record)

    def emit(self, record: logging.LogRecord) -> None:
        is_event = hasattr(record, "fields")
        file = self._events if is_event else self._log
        if file is None:
            self._early.append(record)
            return
        path, text = Path(file.name), f"{_as_json(record) if is_event else _as_line(record)}\n"
        with storage_faults(path, needed=len(text)):
            # Writing to a file that was deleted succeeds, and nobody will ever read it.
            if os.fstat(file.fileno()).st_nlink == 0:
                raise gone(path)
            file.write(text)
            file.flush()

    def events(self) -> Iterator[Any]:
        """What events.jsonl holds."""
        if self._events is not None:
            for line in Path(self._events.name).read_text("utf-8", "replace").splitlines():
                with contextlib.suppress(ValueError):  # cut off when the machine lost power
                    yield json.loads(line)

    def close(self) -> None:
        for file in (self._log, self._events):
            if file is not None:
                # What could not be written was reported when it could not; closing would try once more.
                with contextlib.suppress(OSError):
                    file.close()
        self._log = self._events = None


class _Follower(logging.Handler):
    """Passes events on."""

    def __init__(self, take: Callable[[str, dict[str, Any]], None]) -> None:
        super().__init__()
        self._take = take

    def emit(self, record: logging.LogRecord) -> None:
        if hasattr(record, "fields"):
            self._take(record.getMessage(), record.fields)


def _as_line(record: logging.LogRecord) -> str:
    return f"{clock(record.created)} {record.getMessage()}"


def _as_json(record: logging.LogRecord) -> str:
    fields = {"time": clock(record.created), "event": record.getMessage(), **vars(record)["fields"]}
    return json.dumps(_finite(fields), ensure_ascii=False, default=str)


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


def print_error(line: str) -> None:
    """One line to standard error; where that cannot be written either, nobody reads it."""
    try:
        print(f"birdtune: {line}", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def clock(seconds: float | None = None) -> str:
    """A time, or now, in UTC, ISO 8601, to the second."""
    return time.strftime(_TIME, time.gmtime(seconds))


def duration(seconds: float) -> str:
    """Seconds as people say them: "8 s", "4 min 10 s", "3 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if seconds >= 1 else f"{seconds:.1f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
