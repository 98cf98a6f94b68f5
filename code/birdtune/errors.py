"""What can go wrong, each with the exit code that a scheduler acts on.

    BirdtuneError              1    a defect of ours when raised bare
    ├─ UsageError              2    the command line cannot be understood
    ├─ InputError             42    the input or the settings are wrong; a retry will not help
    │  ├─ SettingsError             a setting is unknown, out of range, or fights another
    │  ├─ CheckpointError           a checkpoint is missing, damaged, or of another network
    │  └─ DivergedError             training produced NaN or infinity
    ├─ RetryableError          75    storage that is full, failing or away; a retry may help
    │  ├─ BusyError                  another job works in the output folder
    │  └─ ProcessLostError           another process of this job ended
    └─ ExportError              1    the exported model does not agree with the trained one
    Interrupted           143/130    stopped by SIGTERM or SIGINT after saving; no error at all

Every message says what was found, what was expected, the likely cause, and what to do. User faults
and our own part ways in one place: `cli.main` prints the message of a BirdtuneError on one line,
and a traceback for anything else.
"""

import contextlib
import signal
import unicodedata
from collections.abc import Iterator

EXIT_DONE = 0
EXIT_DEFECT = 1
EXIT_USAGE = 2
EXIT_INPUT = 42
EXIT_RETRY = 75


class BirdtuneError(Exception):
    """Root of all errors that birdtune raises on purpose."""

    exit_code = EXIT_DEFECT


class UsageError(BirdtuneError):
    """The command line cannot be understood."""

    exit_code = EXIT_USAGE


class InputError(BirdtuneError):
    """The input or the settings are wrong; running again unchanged will not help."""

    exit_code = EXIT_INPUT


class SettingsError(InputError):
    """A setting is unknown, has a value out of range, or contradicts another."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, or belongs to another network."""


@contextlib.contextmanager
def naming(setting: str | None) -> Iterator[None]:
    """Put the flag that named a checkpoint before what is wrong with it; None: nobody named it."""
    try:
        yield
    except CheckpointError as fault:
        if setting is None:
            raise
        raise CheckpointError(f"{setting} {fault}") from fault


class DivergedError(InputError):
    """The loss or the weights became NaN or infinite."""


class RetryableError(BirdtuneError):
    """Something outside that may be gone next time: storage, network, another job's lock."""

    exit_code = EXIT_RETRY


class BusyError(RetryableError):
    """Another job works in the output folder.

    Args:
        message: as of any error.
        who: that job, in words.
    """

    def __init__(self, message: str, who: str) -> None:
        super().__init__(message)
        self.who = who


class ProcessLostError(RetryableError):
    """Of a job of several processes one ended, or cannot be reached."""


class ExportError(BirdtuneError):
    """The exported model, loaded afresh, does not give the scores of the trained one."""


class Interrupted(BaseException):
    """A signal stopped the job, after it had saved what it had.

    Like KeyboardInterrupt it is no Exception: it may be raised anywhere, and what catches all exceptions
    to call them something else must not catch this.

    Args:
        signum: the signal, `signal.SIGTERM` (exit 143) or `signal.SIGINT` (exit 130).
        then: what is to be known now.
    """

    def __init__(self, signum: int, then: str = "run again to continue") -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {then}")
        self.signum = signum
        self.exit_code = 128 + signum


def ended_by(fault: BaseException) -> tuple[int, str]:
    """The exit code of what ended a command, and what is to be said of it."""
    if isinstance(fault, BirdtuneError | Interrupted):
        return fault.exit_code, str(fault)
    return EXIT_DEFECT, f"{type(fault).__name__}: {fault}"


# Characters that could fake or hide text in a terminal or a log: everything of Unicode's categories
# "control", "format" (which holds the bidirectional marks), "surrogate" (undecodable bytes of a file
# name), "private use", "unassigned", and the line and paragraph separators.
_UNSHOWABLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def shown(name: object) -> str:
    """A file name or other outside text, safe to print: one line, no control characters.

    Reversible enough to find the file: what is hidden appears as a backslash escape.
    """
    text = str(name)
    if text.isascii() and text.isprintable():
        return text  # as nearly all are, and a scan asks of each
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in _UNSHOWABLE else character
        for character in text
    )
