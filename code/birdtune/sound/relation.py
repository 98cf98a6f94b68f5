"""Whether the channels of a recording agree, and which are used where they do not.

    an open file ─▶ look (some pieces of it) ─▶ Look ─▶ choose ─▶ Choice, or None: all are mixed

Decided once for a recording, from what lies at the same places of it whoever reads it and in blocks of whatever size.
Compared is what a model hears: third octaves from 125 Hz to 8 kHz. Ordinary stereo is mixed: a panned singer, other
noise on each channel, microphones some way apart. The limits lie where mixing costs a song clearly more than choosing
does. Measured on the 542 recordings of ESC-10, warblers and BioDCASE made stereo by panning up to 12 dB, a delay of
up to 3 ms and noise of its own on each channel: all are mixed. (tests/test_relation.py does the same with made songs.)
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

from birdtune.sound.channels import Choice
from birdtune.sound.container import Decoder, open_sound
from birdtune.sound.faults import SoundError
from birdtune.sound.media import MediaDecoder

Floats = npt.NDArray[np.float32]

# A frame is about so long; so many lie one behind the other in a piece, for each of which a file is sought in once.
_FRAME_S, _IN_A_PIECE = 0.04, 4
# A piece for each second, at least and at most so many.
_FEWEST, _MOST = 6, 64
# Where a file cannot be sought in, its beginning.
_BEGINNING_S = 5.0
_EDGES_HZ: Final = 125.0 * 2.0 ** (np.arange(19) / 3)
# The faintest power of a band that counts: below the noise of 16-bit audio, -98 dB in all bands together.
_FAINTEST = 1e-11
# Of a channel, dead: its loudest frames are below this, or this much below another's and no clearer.
_DEAD_DB, _FAR_BELOW_DB = -85.0, 24.0
_OFFSET = 0.1
_CLIPPED = 1e-3
_FULL_SCALE = 0.9995
# From the least to the greatest sample: two steps of 16-bit audio.
_SILENT = 2 / 32768
# Mixing loses more than this: of the power of the song, against the mean of the channels, where channels that have
# nothing in common lose 3 dB; in the mean of all bands; or of the song over its noise floor, against the best channel.
_MOST_LOST_DB, _MOST_LOST_EVERYWHERE_DB, _MOST_NOISE_DB = 10.0, 6.0, 8.0
# Channels whose songs stand so nearly as far above their floors are equally good; of those the louder, or the first.
_AS_CLEAR_DB, _AS_LOUD_DB = 3.0, 1.0


@dataclass(frozen=True, eq=False)
class Look:
    """Some frames of a recording."""

    spectra: npt.NDArray[np.complex64]  # [frames, channels, bins], full scale 1, only the bins of the bands
    indices: npt.NDArray[np.int64]  # first bin of each band
    offset: npt.NDArray[np.float64]  # [channels] mean
    clipped: npt.NDArray[np.float64]  # [channels] share of samples at the end of their range

    @property
    def channels(self) -> list[int]:
        return list(range(self.offset.size))

    def power(self, channels: list[int]) -> Floats:
        """Power of the mean of some channels in each band. [frames, bands]"""
        mean = self.spectra[:, channels[0]] if len(channels) == 1 else self.spectra[:, channels].mean(axis=1)
        return np.asarray(np.add.reduceat(np.square(mean.real) + np.square(mean.imag), self.indices, axis=1))


def choice_of(path: Path, file: Decoder | MediaDecoder, how: str) -> Choice | None:
    """Which channels of an open file are used; None: all are mixed.

    Args:
        path: the file, which is opened once more: it can be read from its beginning to its end only.
        how: "best", "mix" or "first".
    """
    if file.channels == 1 or how == "mix":
        return None
    if how == "first":
        return Choice((0,))
    found = look(path)
    return None if found is None else choose(found)


def look(path: Path) -> Look | None:
    """Read some pieces of a file, or None where nothing can be had of it; why not is for who reads it to say."""
    for pieces_of in (_pieces, _loud_pieces):  # the second where all pieces of the first are silent
        with contextlib.suppress(SoundError, OSError), open_sound(path) as file:
            size = 1 << max(4, round(math.log2(_FRAME_S * file.samplerate)))
            pieces = [piece for piece in pieces_of(file, size * _IN_A_PIECE) if np.isfinite(piece).all()]
            if any(map(_is_heard, pieces)):
                return _look(pieces, file.samplerate, size)
    return None


def _is_heard(piece: Floats) -> bool:
    return bool(np.ptp(piece, axis=0).max() > _SILENT)


def _pieces(file: Decoder | MediaDecoder, length: int) -> list[Floats]:
    """Pieces of a file, spread over it. [frames, channels] each"""
    whole = file.promised
    if whole is None or isinstance(file, MediaDecoder):
        n = max(1, round(_BEGINNING_S * file.samplerate) // length)
        return list(itertools.islice(_in_a_row(file, length), n))
    n = min(max(_FEWEST, round(whole / file.samplerate)), _MOST)
    if whole <= n * length:
        return list(_in_a_row(file, length))
    found = []
    with contextlib.suppress(soundfile.LibsndfileError):
        for start in np.linspace(0, whole - length, n).astype(np.int64).tolist():
            file.seek(start)
            found.append(_read(file, length))
    return [piece for piece in found if len(piece)]


def _loud_pieces(file: Decoder | MediaDecoder, length: int) -> list[Floats]:
    """The first pieces that are not silent."""
    return list(itertools.islice(filter(_is_heard, _in_a_row(file, length)), _MOST))


def _in_a_row(file: Decoder | MediaDecoder, length: int) -> Iterator[Floats]:
    while len(piece := _read(file, length)):
        yield piece


def _read(file: Decoder | MediaDecoder, n: int) -> Floats:
    try:
        return np.asarray(file.read(n, dtype="float32", always_2d=True))
    except (soundfile.LibsndfileError, SoundError):
        return np.zeros((0, file.channels), np.float32)


def _look(pieces: list[Floats], rate_hz: int, size: int) -> Look:
    window, first, last, indices = _grid(rate_hz, size)
    spectra = []
    for piece in pieces:
        if short := -len(piece) % size:
            piece = np.pad(piece, ((0, short), (0, 0)), mode="edge")
        frames = np.ascontiguousarray(piece.T).reshape(piece.shape[1], -1, size)  # [channels, frames, size]
        frames = (frames - frames.mean(axis=2, keepdims=True)) * window
        spectra.append(np.fft.rfft(frames, axis=2)[:, :, first:last].swapaxes(0, 1))
    n = sum(map(len, pieces))
    offset = np.array([_ones(len(piece)) @ piece for piece in pieces], np.float64).sum(axis=0) / n
    clipped = np.array([(np.abs(piece) >= _FULL_SCALE).sum(axis=0) for piece in pieces]).sum(axis=0) / n
    return Look(np.concatenate(spectra).astype(np.complex64), indices, offset, clipped)


@functools.lru_cache(maxsize=4)
def _ones(n: int) -> Floats:
    return np.ones(n, np.float32)


@functools.lru_cache(maxsize=4)
def _grid(rate_hz: int, size: int) -> tuple[Floats, int, int, npt.NDArray[np.int64]]:
    """Window that makes powers those of full scale, first bin and end of all bands, first bin of each among them."""
    window = np.hanning(size + 1)[:-1]
    window *= np.sqrt(2.0 / (size * np.square(window).sum()))
    edges = np.searchsorted(np.fft.rfftfreq(size, 1 / rate_hz), _EDGES_HZ)
    first, last = int(edges[0]), max(int(edges[0]) + 1, int(edges[-1]))
    starts = np.unique(edges[:-1][edges[:-1] < last]) - first
    return window.astype(np.float32), first, last, starts if starts.size else np.zeros(1, np.int64)


def choose(found: Look) -> Choice | None:
    """Which channels are used; None: all are mixed."""
    powers = [_decibels(found.power([channel])) for channel in found.channels]  # [frames, bands] each
    clear = np.array([float(np.sort(_over_floor(power))[-_BANDS:].mean()) for power in powers])
    loud = np.array([_loudest(found.power([channel])) for channel in found.channels])
    faults = _faults(found, loud, clear)
    good = [channel for channel in found.channels if not faults[channel]] or found.channels
    why = next(filter(None, faults), "")
    lost = _lost(found, good, clear)
    if not lost:
        return None if len(good) == len(found.channels) else Choice(tuple(good), why)
    best = _best(good, clear, loud)
    # Of more than two, those are mixed that agree with the best one.
    alike = [channel for channel in good if channel == best or not _lost(found, sorted([best, channel]), clear)]
    kept = alike if len(alike) > 1 and not _lost(found, alike, clear) else [best]
    return Choice(tuple(kept), why or lost)


# A song is in about so many bands.
_BANDS = 3


def _decibels(power: Floats) -> Floats:
    return np.asarray(10 * np.log10(np.maximum(power, _FAINTEST)), np.float32)


def _over_floor(decibels: Floats) -> Floats:
    """By how much the loudest frames are above the quietest, in each band. [bands]"""
    ordered = np.sort(decibels, axis=0)
    return np.asarray(ordered[-max(1, len(ordered) // 16) :].mean(axis=0) - ordered[len(ordered) // 8])


def _loudest(power: Floats) -> float:
    """Level of the loudest frames, decibels."""
    levels = np.sort(power.sum(axis=1))
    return float(_decibels(levels[-max(1, levels.size // 16) :].mean()))


def _faults(found: Look, loud: npt.NDArray[Any], clear: npt.NDArray[Any]) -> list[str]:
    """What is wrong with each channel by itself, beside the others; "" where nothing is."""
    offset, clipped = np.abs(found.offset), found.clipped
    faults = [
        "offset" if offset[channel] > max(_OFFSET, 4 * offset.min())
        else "clipped" if clipped[channel] > max(_CLIPPED, 10 * clipped.min())
        else ""
        for channel in found.channels
    ]  # fmt: skip
    whole = [channel for channel in found.channels if not faults[channel]] or found.channels
    loudest = max(whole, key=lambda channel: float(loud[channel]))
    for channel in found.channels:
        below = loud[channel] < loud[loudest] - _FAR_BELOW_DB and clear[channel] <= clear[loudest] + _AS_CLEAR_DB
        if below or loud[channel] < _DEAD_DB < loud[loudest]:
            faults[channel] = "dead"
    return faults


def _lost(found: Look, channels: list[int], clear: npt.NDArray[Any]) -> str:
    """What mixing does to some channels: "inverted", they cancel each other; "noisy", one drowns the others; or ""."""
    if len(channels) == 1:
        return ""
    mean = np.mean([found.power([channel]) for channel in channels], axis=0)
    mixture = found.power(channels)
    best = max(channels, key=lambda channel: float(clear[channel]))
    song = np.argsort(_over_floor(_decibels(found.power([best]))))[-_BANDS:]
    in_song = 10 * math.log10((mixture[:, song].sum() + _FAINTEST) / (mean[:, song].sum() + _FAINTEST))
    everywhere = (_decibels(mixture.mean(axis=0)) - _decibels(mean.mean(axis=0))).mean()
    if in_song < -_MOST_LOST_DB or everywhere < -_MOST_LOST_EVERYWHERE_DB:
        return "inverted"
    after = float(np.sort(_over_floor(_decibels(mixture)))[-_BANDS:].mean())
    return "noisy" if clear[best] - after > _MOST_NOISE_DB else ""


def _best(channels: list[int], clear: npt.NDArray[Any], loud: npt.NDArray[Any]) -> int:
    """The channel with most signal over its noise floor; of equal ones the louder, of equally loud ones the first."""
    clearest = clear[channels].max()
    among = [channel for channel in channels if clear[channel] >= clearest - _AS_CLEAR_DB]
    loudest = loud[among].max()
    return next(channel for channel in among if loud[channel] >= loudest - _AS_LOUD_DB)
