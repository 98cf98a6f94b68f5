"""Several channels → one: which of them are used, and their mean.

    an open file ─▶ sample_spectra (of some excerpts) ─▶ Spectra ─▶ choose ─▶ Choice, or None: all are mixed
    block [n, channels] int16 or float32 ─▶ mixed, or Choice.mono ─▶ [n] float32, full scale 1

Decided once for a recording, by excerpts at fixed places of it, whatever the size of the blocks that are read.
Compared are the third octaves from 125 Hz to 8 kHz, the band of most backbones. Ordinary stereo is mixed: a panned
singer, other noise on each channel, microphones some way apart. The limits lie where mixing costs a song clearly more
than choosing does.
"""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

from birdtune.audio.container import Opened, open_sound
from birdtune.audio.faults import SoundError
from birdtune.audio.fft import rfft
from birdtune.audio.formats import MediaDecoder
from birdtune.audio.measures import ones

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
        if block.shape[1] == 2:
            return _mean_of_two(block)
        block = block * np.float32(1 / 32768)
    if block.shape[1] == 1:
        return np.ascontiguousarray(block[:, 0])
    if block.shape[1] == 2:
        # As `mean`, to the bit, in a thirtieth of the time.
        return np.asarray((block[:, 0] + block[:, 1]) * np.float32(0.5))
    return np.asarray(block.mean(axis=1, dtype=np.float32))


def _mean_of_two(block: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    mean = np.empty(len(block), np.float32)
    for first in range(0, len(block), _AT_ONCE):
        some = block[first : first + _AT_ONCE].astype(np.float32)
        np.add(some[:, 0], some[:, 1], out=mean[first : first + _AT_ONCE])
    mean *= np.float32(1 / 65536)  # exact, as all of it is
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


# ---- which channels -----------------------------------------------------------------------------

Floats = npt.NDArray[np.float32]

# A frame is about so long; so many follow one another in an excerpt, for each of which the file is sought in once.
_FRAME_S, _IN_AN_EXCERPT = 0.02, 6
# An excerpt for so many seconds, at least and at most so many excerpts.
_EXCERPT_EACH_S, _FEWEST, _MOST = 2.0, 5, 64
# Where a file cannot be sought in, its beginning.
_BEGINNING_S = 5.0
_EDGES_HZ: Final = 125.0 * 2.0 ** (np.arange(19) / 3)
# The faintest power of a band that counts: below the noise of 16-bit audio, -98 dB in all bands together.
_FAINTEST = 1e-11
# Of a channel, dead: its loudest frames are below this, or this much below another's and no clearer.
_DEAD_DB, _FAR_BELOW_DB = -85.0, 24.0
# In a frame, a channel is gone: below the limit of the dead, and this far below another. Where that is so for more than
# this share of the frames in which there is any sound, it is dead if another channel is not.
_GONE_DB, _MOST_GONE = 12.0, 0.1
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
class Spectra:
    """Some frames of a recording."""

    spectra: npt.NDArray[np.complex64]  # [frames, channels, bins], full scale 1, only the bins of the bands
    indices: npt.NDArray[np.int64]  # first bin of each band
    offset: npt.NDArray[np.float64]  # [channels] mean
    clipped: npt.NDArray[np.float64]  # [channels] share of samples at the end of their range

    @property
    def channels(self) -> list[int]:
        return list(range(self.offset.size))

    @functools.cached_property
    def alone(self) -> list[Floats]:
        """Power of each channel in each band. [frames, bands] each"""
        return [self.power([channel]) for channel in self.channels]

    def power(self, channels: list[int]) -> Floats:
        """Power of the mean of some channels in each band. [frames, bands]"""
        mean = functools.reduce(np.add, (self.spectra[:, channel] for channel in channels)) / np.float32(len(channels))
        return np.asarray(np.add.reduceat(np.square(mean.real) + np.square(mean.imag), self.indices, axis=1))


@dataclass
class Whole:
    """All samples of a recording, sought in as a file is."""

    samples: npt.NDArray[Any]  # [n, channels] int16, or float32 of full scale 1
    samplerate: int
    _at: int = 0

    @property
    def promised(self) -> int:
        return len(self.samples)

    @property
    def channels(self) -> int:
        return int(self.samples.shape[1])

    def seek(self, frame: int) -> None:
        self._at = frame

    def read(self, n: int) -> npt.NDArray[Any]:
        """The next frames, none at the end. [n, channels]"""
        self._at += n
        return self.samples[self._at - n : self._at]


def choice_of(path: Path, file: Opened, how: str, whole: npt.NDArray[Any] | None = None) -> Choice | None:
    """Which channels of an open file are used; None: all are mixed.

    Args:
        path: the file, which is opened once more: it can be read from its beginning to its end only.
        how: "best", "mix" or "first"; "each" is as "mix", of the one channel that is read.
        whole: all of it, if it was read already: then nothing is decoded twice. [n, channels]
    """
    if file.channels == 1 or how in ("mix", "each"):
        return None
    if how == "first":
        return Choice((0,))
    # Samples that are too loud are refused later, when all are read.
    with np.errstate(over="ignore", invalid="ignore"):
        spectra = sample_spectra(path, None if whole is None else Whole(whole, file.samplerate))
        return None if spectra is None else choose(spectra)


def count(path: Path) -> int:
    """How many channels a file has; 1 where it cannot be opened, which is reported when it is read."""
    try:
        with open_sound(path) as file:
            return max(1, file.channels)
    except (SoundError, OSError, UnicodeError, TypeError):
        return 1


def sample_spectra(path: Path, whole: Whole | None = None) -> Spectra | None:
    """Take some excerpts of a file; None where that fails, which is reported when all of it is read.

    Args:
        whole: what is in it, if that was read already.
    """
    for excerpts_of in (_excerpts, _loud_excerpts):  # the second where all excerpts of the first are silent
        if whole is not None:
            whole.seek(0)
        opened = open_sound(path) if whole is None else contextlib.nullcontext(whole)
        with contextlib.suppress(SoundError, OSError), opened as file:
            size = 1 << max(4, round(math.log2(_FRAME_S * file.samplerate)))
            excerpts = [excerpt for excerpt in excerpts_of(file, size * _IN_AN_EXCERPT) if np.isfinite(excerpt).all()]
            if any(map(_has_sound, excerpts)):
                return _spectra(excerpts, file.samplerate, size)
    return None


def _has_sound(excerpt: Floats) -> bool:
    return bool((excerpt.max(axis=1) - excerpt.min(axis=1)).max() > _SILENT)


def _excerpts(file: Opened | Whole, length: int) -> list[Floats]:
    """Pieces of a file, spread over it. [channels, samples] each"""
    whole = file.promised
    if whole is None or isinstance(file, MediaDecoder):
        n = max(1, round(_BEGINNING_S * file.samplerate) // length)
        return list(itertools.islice(_in_a_row(file, length), n))
    n = min(max(_FEWEST, round(whole / file.samplerate / _EXCERPT_EACH_S)), _MOST)
    if whole <= n * length:
        return list(_in_a_row(file, length))
    excerpts = []
    with contextlib.suppress(soundfile.LibsndfileError):
        for start in np.linspace(0, whole - length, n).astype(np.int64).tolist():
            file.seek(start)
            excerpts.append(_read(file, length))
    return [excerpt for excerpt in excerpts if excerpt.size]


def _loud_excerpts(file: Opened | Whole, length: int) -> list[Floats]:
    """The first excerpts that are not silent."""
    return list(itertools.islice(filter(_has_sound, _in_a_row(file, length)), _MOST))


def _in_a_row(file: Opened | Whole, length: int) -> Iterator[Floats]:
    while (excerpt := _read(file, length)).size:
        yield excerpt


def _read(file: Opened | Whole, n: int) -> Floats:
    """The next samples, none at the end. [channels, n]"""
    if isinstance(file, Whole):
        part = file.read(n).T
        scale = np.float32(1 / 32768 if part.dtype == np.int16 else 1.0)
        return np.asarray(np.multiply(part, scale, dtype=np.float32, order="C"))
    try:
        if file.subtype == "PCM_16":  # the same numbers as libsndfile's own floats, in a fifth of the time
            whole = file.read(n, dtype="int16", always_2d=True).T
            return np.multiply(whole, np.float32(1 / 32768), dtype=np.float32, order="C")
        return np.ascontiguousarray(file.read(n, dtype="float32", always_2d=True).T)
    except (soundfile.LibsndfileError, SoundError):
        return np.zeros((file.channels, 0), np.float32)


def _spectra(excerpts: list[Floats], rate_hz: int, size: int) -> Spectra:
    """What is compared of some excerpts. [channels, samples] each"""
    window, first, last, indices = _grid(rate_hz, size)
    n_channels = len(excerpts[0])
    clipped = np.zeros(n_channels)
    wholes = []  # [channels, frames, size] each
    for excerpt in excerpts:
        short = -excerpt.shape[1] % size
        whole = np.pad(excerpt, ((0, 0), (0, short)), mode="edge") if short else excerpt
        wholes.append(whole.reshape(n_channels, -1, size))
        if excerpt.max() >= _FULL_SCALE or excerpt.min() <= -_FULL_SCALE:
            clipped += (np.abs(excerpt) >= _FULL_SCALE).sum(axis=1)
    n = sum(excerpt.shape[1] for excerpt in excerpts)
    offset = np.array([excerpt @ ones(excerpt.shape[1]) for excerpt in excerpts], np.float64).sum(axis=0) / n
    frames = np.concatenate(wholes, axis=1)
    frames *= window  # what a constant offset leaves is below the lowest band
    spectra = rfft(frames.reshape(-1, size)).reshape(n_channels, frames.shape[1], -1)[:, :, first:last]
    return Spectra(spectra.swapaxes(0, 1), indices, offset, clipped / n)


@functools.lru_cache(maxsize=4)
def _grid(rate_hz: int, size: int) -> tuple[Floats, int, int, npt.NDArray[np.int64]]:
    """Window that makes powers those of full scale, first bin and end of all bands, first bin of each among them."""
    window = np.hanning(size + 1)[:-1]
    window *= np.sqrt(2.0 / (size * np.square(window).sum()))
    edges = np.searchsorted(np.fft.rfftfreq(size, 1 / rate_hz), _EDGES_HZ)
    first, last = int(edges[0]), max(int(edges[0]) + 1, int(edges[-1]))
    starts = np.unique(edges[:-1][edges[:-1] < last]) - first
    return window.astype(np.float32), first, last, starts if starts.size else np.zeros(1, np.int64)


def choose(spectra: Spectra) -> Choice | None:
    """Which channels are used; None: all are mixed."""
    gone, share = _gone(spectra)
    dead = share > _MOST_GONE if share.min() <= _MOST_GONE else np.zeros(share.size, bool)
    # A floor is that of a microphone only where there is one: what is compared are frames in which all others live.
    alive = ~gone[:, ~dead].any(axis=1)
    if not alive.any():  # each where no other is: nothing is lost by mixing them
        return None
    if not alive.all():
        spectra = replace(spectra, spectra=spectra.spectra[alive])
    clear = np.array([_clarity(power) for power in spectra.alone])
    loud = np.array([_loudest(power) for power in spectra.alone])
    faults = _faults(spectra, loud, clear, dead)
    dead_share = float(share[dead].min()) if dead.any() else 1.0
    good = [channel for channel in spectra.channels if not faults[channel]] or spectra.channels
    why = next(filter(None, faults), "")
    lost = _lost(spectra, good, clear)
    if not lost:
        return None if len(good) == len(spectra.channels) else Choice(tuple(good), why, tuple(faults), dead_share)
    best = _best(good, clear, loud)
    # Of more than two, those are mixed that agree with the best one.
    alike = [channel for channel in good if channel == best or not _lost(spectra, sorted([best, channel]), clear)]
    kept = alike if len(alike) > 1 and not _lost(spectra, alike, clear) else [best]
    for channel in good:
        if channel not in kept:
            faults[channel] = _lost(spectra, sorted([best, channel]), clear) or lost
    return Choice(tuple(kept), why or lost, tuple(faults), dead_share)


def _gone(spectra: Spectra) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Where channels are gone while another is not, [frames, channels]; and for what share of the frames with sound."""
    levels = np.stack([_decibels(power.sum(axis=1)) for power in spectra.alone], axis=1)
    loudest = levels.max(axis=1, keepdims=True)
    gone = (levels < _DEAD_DB) & (levels < loudest - _GONE_DB)
    n_sounding = int(((loudest[:, 0] >= _DEAD_DB) | gone.any(axis=1)).sum())
    return gone, gone.sum(axis=0) / max(1, n_sounding)


# A song is in about so many bands.
_BANDS = 3


def _decibels(power: Floats) -> Floats:
    return np.asarray(10 * np.log10(np.maximum(power, _FAINTEST)), np.float32)


def _clarity(power: Floats) -> float:
    """By how many decibels a song is above its noise floor."""
    return float(np.sort(_over_floor(power))[-_BANDS:].mean())


def _over_floor(power: Floats) -> Floats:
    """By how many decibels the loudest frames are above the quietest, in each band. [bands]"""
    ordered = np.sort(_decibels(power), axis=0)
    return np.asarray(ordered[-max(1, len(ordered) // 16) :].mean(axis=0) - ordered[len(ordered) // 8])


def _loudest(power: Floats) -> float:
    """Level of the loudest frames, decibels."""
    levels = np.sort(power.sum(axis=1))
    return float(_decibels(levels[-max(1, levels.size // 16) :].mean()))


def _faults(
    spectra: Spectra, loud: npt.NDArray[Any], clear: npt.NDArray[Any], dead: npt.NDArray[np.bool_]
) -> list[str]:
    """What is wrong with each channel by itself, beside the others; "" where nothing is."""
    offset, clipped = np.abs(spectra.offset), spectra.clipped
    faults = [
        "dead" if dead[channel]
        else "offset" if offset[channel] > max(_OFFSET, 4 * offset.min())
        else "clipped" if clipped[channel] > max(_CLIPPED, 10 * clipped.min())
        else ""
        for channel in spectra.channels
    ]  # fmt: skip
    whole = [channel for channel in spectra.channels if not faults[channel]] or spectra.channels
    loudest = max(whole, key=lambda channel: float(loud[channel]))
    for channel in spectra.channels:
        below = loud[channel] < loud[loudest] - _FAR_BELOW_DB and clear[channel] <= clear[loudest] + _AS_CLEAR_DB
        if below or loud[channel] < _DEAD_DB < loud[loudest]:
            faults[channel] = "dead"
    return faults


def _lost(spectra: Spectra, channels: list[int], clear: npt.NDArray[Any]) -> str:
    """What mixing does to some channels: "inverted", they cancel each other; "noisy", one drowns the others; or ""."""
    if len(channels) == 1:
        return ""
    mean = np.mean([spectra.alone[channel] for channel in channels], axis=0)
    mixture = spectra.power(channels)
    best = max(channels, key=lambda channel: float(clear[channel]))
    song = np.argsort(_over_floor(spectra.alone[best]))[-_BANDS:]
    in_song = 10 * math.log10((mixture[:, song].sum() + _FAINTEST) / (mean[:, song].sum() + _FAINTEST))
    everywhere = (_decibels(mixture.mean(axis=0)) - _decibels(mean.mean(axis=0))).mean()
    if in_song < -_MOST_LOST_DB or everywhere < -_MOST_LOST_EVERYWHERE_DB:
        return "inverted"
    return "noisy" if clear[best] - _clarity(mixture) > _MOST_NOISE_DB else ""


def _best(channels: list[int], clear: npt.NDArray[Any], loud: npt.NDArray[Any]) -> int:
    """The channel with most signal over its noise floor; of equal ones the louder, of equally loud ones the first."""
    clearest = clear[channels].max()
    among = [channel for channel in channels if clear[channel] >= clearest - _AS_CLEAR_DB]
    loudest = loud[among].max()
    return next(channel for channel in among if loud[channel] >= loudest - _AS_LOUD_DB)
