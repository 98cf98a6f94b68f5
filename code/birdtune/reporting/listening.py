"""A moment of a recording, to see and to hear in a page.

    listen, recording, moment ─▶ Clip ─▶ heard: spectrogram and sound as data URIs, or their lack

Sound is asked for clip by clip, so that memory does not grow with the data.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from markupsafe import Markup

from birdtune.audio.logmel import VGGISH
from birdtune.reporting import figures

CLIP_S = 6.0
# Clips are amplified up to this peak, but by no more than 30 dB: beyond is only hiss.
_PEAK, _MOST_GAIN = 0.7, 31.6


@dataclass(frozen=True, eq=False)
class Clip:
    """A stretch of a recording, to see and to hear."""

    waveform: npt.NDArray[np.float32]  # [samples] mono, 16 kHz
    frames: npt.NDArray[np.floating[Any]]  # [n, 64] log-mel, 100 a second


def heard(
    listen: Callable[[str, float, float], Clip | None], recording: str, at_s: float, end_s: float
) -> dict[str, Any]:
    """What the template shows of a moment.

    Args:
        listen: (recording, start in s, length in s) → that stretch, or None when it cannot be had.
        at_s: where the patch in question begins; it is framed, and in the middle where the recording allows it.
        end_s: of the recording.

    Returns:
        `at_s`; `seconds` that are shown; `picture` and `sound`, each None where there is none.
    """
    start_s = max(0.0, min(at_s + VGGISH.patch_s / 2 - CLIP_S / 2, end_s - CLIP_S))
    clip = listen(recording, start_s, CLIP_S)
    frames = clip.frames[: round(CLIP_S * VGGISH.frames_per_s)] if clip else np.zeros((0, VGGISH.n_mels))
    mark = (at_s, at_s + VGGISH.patch_s)
    return {
        "at_s": at_s,
        "seconds": len(frames) / VGGISH.frames_per_s,
        "picture": figures.spectrogram(frames, start_s, mark) if len(frames) else None,
        "sound": _sound(clip.waveform[: round(CLIP_S * VGGISH.rate_hz)]) if clip else None,
    }


def _sound(waveform: npt.NDArray[np.float32]) -> Markup | None:
    """The clip as a data URI: MP3 (33 kB for 6 s), or FLAC where libsndfile was built without it."""
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak == 0.0:
        return None
    louder = waveform * np.float32(min(max(_PEAK / peak, 1.0), _MOST_GAIN))
    kind, mime = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "audio/flac")
    buffer = io.BytesIO()
    soundfile.write(buffer, louder, VGGISH.rate_hz, format=kind)
    return Markup(f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}")
