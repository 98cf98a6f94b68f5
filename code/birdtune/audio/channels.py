"""Several channels → one.

    block [n, channels] int16 or float32 ─▶ mixed, or Choice.mono ─▶ [n] float32, full scale 1
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

# Samples added at once: taking the memory for more costs several times what adding them does.
_AT_ONCE = 1 << 13


def peak(block: npt.NDArray[Any]) -> float:
    """The largest magnitude in a block int16 or float32, full scale 1; NaN if there is one."""
    if block.dtype == np.int16:
        return max(int(block.max()), -int(block.min())) / 32768  # int: -32,768 has no counterpart in int16
    return float(np.abs(block).max())


def mixed(block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The mean of all channels, full scale 1. [frames, channels] → [frames]"""
    if block.dtype == np.int16:
        if block.shape[1] == 2 and block.flags.c_contiguous and sys.byteorder == "little":
            # Left and right as the halves of one integer: exact, as is the mean of floats, and twice as fast.
            return _mean_of_halves(block.view(np.int32)[:, 0])
        block = block * np.float32(1 / 32768)
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    if block.shape[1] == 2:
        # As `mean`, to the bit, in a thirtieth of the time.
        return np.asarray((block[:, 0] + block[:, 1]) * np.float32(0.5))
    return np.asarray(block.mean(axis=1, dtype=np.float32))


def _mean_of_halves(both: npt.NDArray[np.int32]) -> npt.NDArray[np.float32]:
    mean = np.empty(both.size, np.float32)
    for first in range(0, both.size, _AT_ONCE):
        some = both[first : first + _AT_ONCE]
        total = some << 16
        total >>= 16
        total += some >> 16
        np.multiply(total, np.float32(1 / 65536), out=mean[first : first + _AT_ONCE], casting="unsafe")
    return mean


@dataclass(frozen=True)
class Choice:
    """Which channels of a recording are used, where that is not all of them."""

    kept: tuple[int, ...]  # from 0; several are mixed
    # Why the others are not: "inverted", "dead", "noisy", "clipped", "offset", or "" where that was asked for.
    fault: str = ""
    faults: tuple[str, ...] = field(default=(), compare=False)  # of each channel, "" of those kept
    dead_share: float = field(default=1.0, compare=False)  # of the recording: for how much a channel that dies is dead

    def mono(self, block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """[frames, channels] → [frames]"""
        return mixed(block[:, self.kept])

    @property
    def words(self) -> str:
        """"channel 2 is used", counted from 1."""
        return f"{channel_words(self.kept)} {'is' if len(self.kept) == 1 else 'are mixed and'} used"


def channel_words(channels: Sequence[int]) -> str:
    """"channel 2", "channels 1 and 3": counted from 1."""
    numbers = [f"{channel + 1}" for channel in channels]
    if len(numbers) == 1:
        return f"channel {numbers[0]}"
    return f"channels {', '.join(numbers[:-1])} and {numbers[-1]}"
