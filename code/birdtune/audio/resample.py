"""Blocks of sound at one rate → blocks at another.

    blocks [n] float32 at rate_hz ─▶ resampled ─▶ blocks [m] float32 at to_hz

soxr does it as a stream; resampy, what the published VGGish used, in blocks that overlap.
"""

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soxr

# resampy works on blocks of this length.
_BLOCK_S = 10.0
# resampy's kaiser_best filter reaches 64 zero crossings to each side at the lower of the two rates.
_RESAMPY_ZERO_CROSSINGS = 64


def resampled(
    blocks: Iterator[npt.NDArray[np.float32]], rate_hz: int, to_hz: int, resampler: str
) -> Iterator[npt.NDArray[np.float32]]:
    """The same sound at another rate.

    Args:
        blocks: [n] each, mono at `rate_hz`.
        resampler: "soxr" (HQ) or "resampy" (kaiser_best).
    """
    if rate_hz == to_hz:
        return blocks
    resample = _resample_soxr if resampler == "soxr" else _resample_resampy
    return resample(blocks, rate_hz, to_hz)


def _resample_soxr(
    blocks: Iterator[npt.NDArray[np.float32]], rate_hz: int, to_hz: int
) -> Iterator[npt.NDArray[np.float32]]:
    stream = soxr.ResampleStream(rate_hz, to_hz, 1, dtype="float32", quality="HQ")
    for block in blocks:
        # HQ overshoots full scale by a little at clipped peaks; that is sound, not a fault.
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _resample_resampy(
    blocks: Iterator[npt.NDArray[np.float32]], rate_hz: int, to_hz: int
) -> Iterator[npt.NDArray[np.float32]]:
    """resampy knows no streams: work on blocks that overlap by more than its filter reaches.

    Blocks begin where an input and an output sample fall together (every rate/gcd input samples), so
    the joined blocks are what one call over the whole sound gives.
    """
    import resampy  # brings numba, which takes half a second

    common = math.gcd(rate_hz, to_hz)
    step_in, step_out = rate_hz // common, to_hz // common
    reach = math.ceil((_RESAMPY_ZERO_CROSSINGS + 2) * max(1.0, rate_hz / to_hz) / step_in)  # steps
    length = math.ceil(_BLOCK_S * rate_hz / step_in)  # steps
    waiting = np.zeros(0, np.float32)
    lead = 0  # steps of context before what is still to be given out
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while waiting.size >= (lead + length + reach) * step_in:
            taken = waiting[: (lead + length + reach) * step_in]
            made = resampy.resample(taken, rate_hz, to_hz, filter="kaiser_best")
            yield made[lead * step_out : (lead + length) * step_out].astype(np.float32)
            kept = min(reach, lead + length)
            waiting = waiting[(lead + length - kept) * step_in :]
            lead = kept
    if waiting.size > lead * step_in:
        # At least one output sample must come of it, else resampy refuses.
        padded = np.pad(waiting, (0, max(0, math.ceil(rate_hz / to_hz) - waiting.size)))
        made = resampy.resample(padded, rate_hz, to_hz, filter="kaiser_best")
        yield made[lead * step_out :].astype(np.float32)
