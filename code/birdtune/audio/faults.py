"""Why a sound file cannot be used.

    OSError, or what a decoder says ─▶ SoundError(problem, detail)
"""

import math
from dataclasses import dataclass
from pathlib import Path

from birdtune.errors import BirdtuneError
from birdtune.runtime.storage import has_failed

_READ_BYTES = 1 << 20
# Of a recording that breaks off: whichever is less. A second is the window of a backbone.
LEAST_S, LEAST_SHARE = 1.0, 0.5


class SoundError(BirdtuneError):
    """A sound file cannot be used: `problem` is a code of `scan.PROBLEMS`, the text says why."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem

    def __reduce__(self) -> tuple[type["SoundError"], tuple[str, str]]:
        return SoundError, (self.problem, str(self))  # so that it crosses from a worker whole


@dataclass(frozen=True)
class Damage:
    """What is wrong with a sound file of which something can be decoded.

    Attributes:
        problem: a code of `scan.PROBLEMS`.
        why: in words.
        promised_s: seconds that there should be; None: unknown.
        is_loss: whether sound is missing; else only its header is wrong.
    """

    problem: str
    why: str
    promised_s: float | None = None
    is_loss: bool = True

    def describe(self, used_s: float) -> str:
        """The damage, and how much of what was promised is used."""
        if not self.is_loss:
            return f"{self.why}; all {_length(used_s)} are used"
        if self.promised_s is None:
            return f"{self.why}; {_length(used_s)} are used, how much is missing is not known"
        share = math.floor(1000 * used_s / self.promised_s) / 10
        return f"{self.why}; {_length(used_s)} of {_length(self.promised_s)} ({share:g} %) are used"


def repaired(why: str) -> Damage:
    """A header that is wrong, and nothing else."""
    return Damage("repaired", why, is_loss=False)


def _length(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 3600 else f"{seconds / 3600:,.2f} h"


def check_damage(damage: Damage, used_s: float, truncated: str) -> None:
    """Refuse a recording of which too little can be decoded.

    Args:
        used_s: seconds that can be decoded.
        truncated: the setting.

    Raises:
        SoundError: it says "refuse" and something is missing; or there is less than a second, and less than half.
    """
    if not damage.is_loss:
        return
    if truncated == "refuse":
        raise SoundError(damage.problem, f"{damage.why}; {used_s:.2f} s can be decoded, but audio.truncated is refuse")
    if used_s < LEAST_S and not (damage.promised_s is not None and 0 < LEAST_SHARE * damage.promised_s <= used_s):
        raise SoundError(damage.problem, f"{damage.why}; {used_s:.2f} s can be decoded, too little to be used")


def refusal(fault: OSError) -> SoundError:
    """The problem of a file that the system does not open or read."""
    if isinstance(fault, FileNotFoundError | NotADirectoryError):
        return SoundError("vanished", "it is not there any more")
    if has_failed(fault):
        return SoundError("storage-failed", f"the storage failed ({fault.strerror})")
    return SoundError("unreadable", f"the system refuses to open it ({fault.strerror})")


def read_through(path: Path) -> None:
    """Read a whole file, as a decoder does not distinguish faults of the disk from those of the content.

    Raises SoundError where the system does not give all of it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as fault:
        raise refusal(fault) from fault
