"""Why a sound file cannot be used.

    OSError, or what a decoder says ─▶ SoundError(problem, detail)
"""

from pathlib import Path

from birdtune.errors import BirdtuneError
from birdtune.storage import has_failed

_READ_BYTES = 1 << 20


class SoundError(BirdtuneError):
    """A sound file cannot be used: `problem` is a code of `recordings.PROBLEMS`, the text says why."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem

    def __reduce__(self) -> tuple[type["SoundError"], tuple[str, str]]:
        return SoundError, (self.problem, str(self))  # so that it crosses from a worker whole


def refusal(fault: OSError) -> SoundError:
    """Why the system gives nothing of a file."""
    if isinstance(fault, FileNotFoundError | NotADirectoryError):
        return SoundError("vanished", "it is not there any more")
    if has_failed(fault):
        return SoundError("storage-failed", f"the storage failed ({fault.strerror})")
    return SoundError("unreadable", f"the system refuses to open it ({fault.strerror})")


def read_through(path: Path) -> None:
    """Read a file for nothing: the decoder does not tell a fault of the disk from one of the content.

    Raises:
        SoundError: the system does not give all of it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as fault:
        raise refusal(fault) from fault
