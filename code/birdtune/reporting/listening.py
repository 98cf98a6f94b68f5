"""A clip of a recording, to see and to hear in a page.

    listen, recording, time ─▶ Clip ─▶ clip: spectrogram and audio as data URIs, or their lack

Audio is read clip by clip, so that memory does not grow with the data.
"""

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
from markupsafe import Markup

from birdtune.audio.logmel import display, log_mel
from birdtune.audio.resample import resampled
from birdtune.reporting import figures
from birdtune.serving.inference import Channel

CLIP_S = 6.0
# Sound for listening has no more than this, which every browser plays.
_CLIP_HZ = 48_000
# Of long clips: their rate, and how coarsely they are coded (0…1).
_SMALL_HZ, _COARSE = 24_000, 0.8
# Clips are amplified up to this peak, but by no more than 30 dB: beyond is only hiss.
_PEAK, _MOST_GAIN = 0.7, 31.6


@dataclass(frozen=True, eq=False)
class Clip:
    """Some seconds of a recording."""

    waveform: npt.NDArray[np.float32]  # [samples] mono
    rate_hz: int


def clip(
    listen: Callable[[str, float, float], Clip | None], recording: str, peak_s: float, end_s: float, window_s: float
) -> dict[str, Any]:
    """What the template shows of a clip.

    Args:
        listen: (recording, start in s, length in s) → that clip, or None where it cannot be read.
        peak_s: where the window in question begins; it is framed, and in the middle where the recording allows it.
        end_s: of the recording.
        window_s: of the backbone.

    Returns:
        `peak_s`; `seconds` that are shown; `picture` and `sound`, each None where there is none.
    """
    start_s = max(0.0, min(peak_s + window_s / 2 - CLIP_S / 2, end_s - CLIP_S))
    found = listen(recording, start_s, CLIP_S)
    if found is None:
        return {"peak_s": peak_s, "seconds": 0.0, "picture": None, "sound": None}
    spec = display(found.rate_hz)
    waveform = found.waveform[: round(CLIP_S * found.rate_hz)]
    frames = log_mel(waveform, spec)  # [n, bands]
    mark = (peak_s, peak_s + window_s)
    return {
        "peak_s": peak_s,
        "seconds": len(frames) / spec.rows_per_s,
        "picture": figures.spectrogram(frames, spec, start_s, mark) if len(frames) else None,
        "sound": sound(waveform, found.rate_hz),
    }


def span_of(start_s: float, end_s: float, peak_s: float) -> tuple[float, float]:
    """What is played of a detection: all of it, or of a long one as much as a clip has, from its highest score on."""
    if end_s - start_s <= CLIP_S:
        return start_s, end_s
    start_s = min(max(start_s, peak_s), end_s - CLIP_S)
    return round(start_s, 3), round(start_s + CLIP_S, 3)


def from_file(
    given: Path | Channel, start_s: float, seconds: float, *, most_hz: int | None = _CLIP_HZ
) -> Clip | None:
    """Some seconds of a recording, which is not read up to there: it may be of twelve hours. None: it cannot be.

    Args:
        most_hz: a higher rate is reduced to it; None: none is.
    """
    path, channel = (given.path, given.channel) if isinstance(given, Channel) else (given, 0)
    try:
        with soundfile.SoundFile(path) as file:
            file.seek(min(file.frames, round(start_s * file.samplerate)))
            block = file.read(round(seconds * file.samplerate), dtype="float32", always_2d=True)
            rate_hz = int(file.samplerate)
    except (soundfile.SoundFileError, OSError, TypeError):
        return None  # what can be scored by way of its repair or by FFmpeg cannot be sought in
    mono = np.nan_to_num(block[:, channel])
    if most_hz is not None and rate_hz > most_hz:
        mono, rate_hz = np.concatenate(list(resampled(iter([mono]), rate_hz, most_hz, "soxr"))), most_hz
    return Clip(mono, rate_hz) if mono.size else None


def sound(waveform: npt.NDArray[np.float32], rate_hz: int, *, small: bool = False) -> Markup | None:
    """A clip as a data URI: MP3 (33 kB for 6 s), or FLAC where libsndfile was built without it.

    Args:
        small: up to 12 kHz, and coded more coarsely (260 kB for a minute): for long clips.
    """
    peak = float(np.abs(waveform).max(initial=0.0))
    if peak == 0.0:
        return None
    if small and rate_hz > _SMALL_HZ:
        waveform, rate_hz = np.concatenate(list(resampled(iter([waveform]), rate_hz, _SMALL_HZ, "soxr"))), _SMALL_HZ
    louder = waveform * np.float32(min(max(_PEAK / peak, 1.0), _MOST_GAIN))
    kind, mime = ("MP3", "audio/mpeg") if "MP3" in soundfile.available_formats() else ("FLAC", "audio/flac")
    buffer = io.BytesIO()
    soundfile.write(buffer, louder, rate_hz, format=kind, compression_level=_COARSE if small else None)
    return Markup(f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode()}")
