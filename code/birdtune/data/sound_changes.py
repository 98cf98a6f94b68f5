"""What may be done to a waveform, each as a pure function of (waveform, what is drawn).

    waveform [samples], rate, generator, settings ─▶ changed ─▶ waveform of the same length

These change sound as another place, bird or recorder would: other tempo and pitch, filtered, in a room or wood that
reverberates, clipped, through a lossy codec. Log-mel features no longer hold what they need, so they are for backbones
that take a waveform.
"""

import functools
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy  # of which `scipy.signal` is loaded when it is first used
import soundfile
import soxr

from birdtune.errors import InputError, shown
from birdtune.settings import AugmentSettings

Wave = npt.NDArray[np.float32]
Change = Callable[[Wave, int, np.random.Generator, AugmentSettings], Wave]

# Bands in which microphones and distance take sound away, Hz: a corner is drawn between them, evenly by octaves.
_LOW_PASS_HZ, _HIGH_PASS_HZ, _BAND_STOP_HZ = (2_000.0, 12_000.0), (200.0, 2_000.0), (500.0, 8_000.0)
_STOP_OCTAVES = 0.5  # width of a band-stop
_FILTER_ORDER = 4
# Time in which reverberation falls by 60 dB: open wood to hall, s; and how loud it is beside the sound.
_DECAY_S, _WET_DB = (0.1, 1.5), (-20.0, 0.0)
# Share of the samples that are clipped.
_CLIPPED = (0.0005, 0.02)
# How strongly Ogg Vorbis compresses, of 0 … 1.
_COMPRESSION = (0.4, 1.0)


def _speed(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """Tempo and pitch alike, as a tape that runs faster or slower."""
    factor = 1.0 + generator.uniform(-settings.speed, settings.speed)
    return _of_length(np.asarray(soxr.resample(wave, rate_hz * factor, rate_hz), np.float32), len(wave))


def _pitch(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """Pitch alone."""
    semitones = generator.uniform(-settings.pitch_semitones, settings.pitch_semitones)
    return _of_length(_stretched(wave, rate_hz, 1.0, 2.0 ** (semitones / 12)), len(wave))


def _tempo(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """Tempo alone."""
    factor = 1.0 + generator.uniform(-settings.tempo, settings.tempo)
    return _of_length(_stretched(wave, rate_hz, factor, 1.0), len(wave))


def _filter(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """One of a low-pass, a high-pass and a band-stop, from a corner on that is drawn."""
    kind = ("lowpass", "highpass", "bandstop")[int(generator.integers(3))]
    low, high = {"lowpass": _LOW_PASS_HZ, "highpass": _HIGH_PASS_HZ, "bandstop": _BAND_STOP_HZ}[kind]
    top = 0.45 * rate_hz
    corner = min(_evenly_by_octaves(generator, low, high), top / 2**_STOP_OCTAVES)
    edges: Any = corner if kind != "bandstop" else (corner, corner * 2**_STOP_OCTAVES)
    sections = scipy.signal.butter(_FILTER_ORDER, edges, kind, fs=rate_hz, output="sos")
    return np.asarray(scipy.signal.sosfilt(sections, wave), np.float32)


def _reverberation(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """In a place that reverberates: an impulse response of the folder, else noise that decays exponentially.

    Such noise is what many late reflections add up to (J. A. Moorer, "About this reverberation business", 1979).
    """
    if settings.impulse_responses is not None:
        choices = impulse_responses(Path(settings.impulse_responses), rate_hz)
        response = choices[int(generator.integers(len(choices)))]
        wet = scipy.signal.fftconvolve(wave, response)[: len(wave)]
        return _as_loud(wet, wave)
    decay_s = _evenly_by_octaves(generator, *_DECAY_S)
    t = np.arange(round(decay_s * rate_hz)) / rate_hz
    decaying = generator.standard_normal(t.size) * 10.0 ** (-3.0 * t / decay_s)
    wet = _as_loud(scipy.signal.fftconvolve(wave, decaying)[: len(wave)], wave)
    return _as_loud(wave + wet * np.float32(10.0 ** (generator.uniform(*_WET_DB) / 20)), wave)


def _clipping(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """Too loud for the recorder."""
    limit = np.quantile(np.abs(wave), 1.0 - _evenly_by_octaves(generator, *_CLIPPED))
    return np.clip(wave, -limit, limit) if limit > 0 else wave


def _codec(wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings) -> Wave:
    """Through a lossy codec and back."""
    peak = max(float(np.abs(wave).max()), 1.0)
    kept = io.BytesIO()
    with soundfile.SoundFile(
        kept, "w", rate_hz, 1, format="OGG", subtype="VORBIS", compression_level=generator.uniform(*_COMPRESSION)
    ) as file:
        file.write(wave / peak)
    kept.seek(0)
    back, _ = soundfile.read(kept, dtype="float32")
    return _of_length(np.asarray(back, np.float32) * np.float32(peak), len(wave))


# Setting → what it does. Those of which the value is a share are done to so many windows, the others to all.
CHANGES: Mapping[str, Change] = {
    "speed": _speed, "tempo": _tempo, "pitch_semitones": _pitch, "reverberation": _reverberation, "filter": _filter,
    "clipping": _clipping, "codec": _codec,
}  # fmt: skip
SHARES = ("reverberation", "filter", "clipping", "codec")


def changed(
    wave: Wave, rate_hz: int, generator: np.random.Generator, settings: AugmentSettings
) -> Wave:
    """A waveform after all that is on, in the order of `CHANGES`. [samples], finite, not limited to full scale

    Args:
        wave: [samples] float32, full scale 1.
        generator: draws the same numbers for the same window.

    Raises:
        InputError: the folder of impulse responses has none, or one that cannot be read.
    """
    for name, change in CHANGES.items():
        strength = getattr(settings, name)
        if strength and (name not in SHARES or generator.random() < strength):
            wave = change(wave, rate_hz, generator, settings)
    return wave


@functools.cache
def impulse_responses(folder: Path, rate_hz: int) -> tuple[Wave, ...]:
    """Impulse responses of a folder at a rate, mono, each from its loudest sample on.

    Raises:
        InputError: there is none, or one that cannot be read.
    """
    paths = response_files(folder)
    if not paths:
        raise InputError(
            f"{shown(folder)}: no impulse responses. Expected WAV or FLAC files, one response each "
            "(--augment.impulse-responses FOLDER); without the setting, reverberation is made."
        )
    return tuple(_response(path, rate_hz) for path in paths)


def response_files(folder: Path) -> list[Path]:
    """The files in a folder that are taken for impulse responses, by name."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in (".wav", ".flac"))


def _response(path: Path, rate_hz: int) -> Wave:
    try:
        sound, own_hz = soundfile.read(path, dtype="float32", always_2d=True)
        mono = soxr.resample(sound.mean(axis=1), own_hz, rate_hz)
        if not np.abs(mono).max(initial=0.0) > 0:
            raise ValueError("it is silent")
    except (soundfile.SoundFileError, ValueError, OSError) as fault:
        raise InputError(
            f"{shown(path)}: cannot be used as an impulse response ({shown(str(fault))}). Take it out of the folder, "
            "or put a whole WAV or FLAC file in its place."
        ) from fault
    return np.asarray(mono[int(np.abs(mono).argmax()) :], np.float32)


def _stretched(wave: Wave, rate_hz: int, tempo: float, pitch: float) -> Wave:
    """So many times as fast, and as high."""
    import python_stretch

    stretch = python_stretch.Signalsmith.Stretch()
    stretch.preset(1, rate_hz)
    stretch.setTimeFactor(tempo)
    stretch.setTransposeFactor(pitch)
    return np.asarray(stretch.process(wave[None]), np.float32).reshape(-1)


def _of_length(wave: Wave, n: int) -> Wave:
    """Cut at the end, or repeated from the beginning."""
    return wave[:n] if len(wave) >= n else np.resize(wave, n)


def _as_loud(wave: npt.NDArray[np.floating[Any]], beside: Wave) -> Wave:
    power, wanted = (float(np.mean(np.square(each, dtype=np.float64))) for each in (wave, beside))
    return np.asarray(wave * math.sqrt(wanted / power) if power > 0 else wave, np.float32)


def _evenly_by_octaves(generator: np.random.Generator, low: float, high: float) -> float:
    return float(low * (high / low) ** generator.random())
