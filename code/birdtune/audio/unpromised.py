"""Whether bytes behind the sound that a header promises are sound, too.

    parts of a file ─▶ is_sound ─▶ True, False, or None: nothing but silence

A recorder that lost its power wrote more than its header knows. But programs that were interrupted also leave
texts, pictures and filling there.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import soundfile

# Random bytes read as samples have a root mean square of 0.58 of full scale (uniform), text more. Sound that is as
# loud follows sound that is nearly so.
_LOUD, _TIMES_LOUDER = 0.4, 1.5
_PROBES, _PROBE_FRAMES = 8, 4096
_SILENT = 3e-5


_Opened = Callable[[int, int], soundfile.SoundFile]


def is_sound(opened: _Opened, promised: int, there: int, frame_bytes: int) -> bool | None:
    """Compare what was promised with what follows, at some places of both.

    Args:
        opened: bytes of the samples from … to, opened.
        promised, there: bytes.
        frame_bytes: of one sample of all channels.
    """
    before = _levels(opened, 0, promised, frame_bytes)
    behind = _levels(opened, promised, there, frame_bytes)
    if max(behind) < _SILENT:
        return None
    return float(np.median(behind)) <= max(_LOUD, _TIMES_LOUDER * max(before))


def _levels(opened: _Opened, begin: int, end: int, frame_bytes: int) -> list[float]:
    """Root mean squares at some places; infinite where there are no numbers."""
    levels = []
    places = np.linspace(begin, end, _PROBES + 1).astype(np.int64) // frame_bytes * frame_bytes
    for at, following in pairwise(places.tolist()):
        until = min(following, at + _PROBE_FRAMES * frame_bytes)
        if until <= at:
            continue
        with opened(at, until) as file:
            samples = file.read(_PROBE_FRAMES, dtype="float64")
        with np.errstate(all="ignore"):
            level = float(np.sqrt(np.mean(np.square(samples)))) if samples.size else 0.0
        levels.append(level if np.isfinite(level) else np.inf)
    return levels or [0.0]
