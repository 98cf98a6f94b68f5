"""Sound file → mono float32 waveform at any rate: the only decoder in birdtune.

    path, rate ─▶ SoundStream ─▶ blocks [n] float32, mono at that rate ─▶ .facts once all is read

Files are read in blocks of some seconds, so a 24-hour recording needs no more memory than a short
one. Formats are libsndfile's: WAV in all its encodings, FLAC, Ogg Vorbis and Opus, MP3,
AIFF, AU, CAF and W64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from birdtune.audio.channels import Choice, choice_of, mixed
from birdtune.audio.channels import peak as peak_of
from birdtune.audio.container import (
    Decoder,
    Opened,
    check_header,
    check_length,
    continued,
    damage_behind,
    damage_of,
    open_sound,
)
from birdtune.audio.faults import Damage, SoundError, check_damage, read_through, refusal
from birdtune.audio.measures import Measures, Meter
from birdtune.audio.origin import Origin, read_origin
from birdtune.audio.resample import resampled

# Below this peak a recording is silent: one step of 16-bit audio is -90.3 dB of full scale.
SILENCE_DB: Final = -90.0

# The apparent problem of a file of which the system stops giving the bytes half-way.
_LIKE_UNREAD = frozenset({"empty", "not-audio", "corrupt", "truncated"})
# Values in one block at most, of all channels together: what is made of them stays in the processor's cache.
_BLOCK_VALUES = 1 << 18
# A recording of several channels with no more values than this is in memory while its channels are compared: 16 MB.
_SHORT_VALUES = 1 << 22
# Above this, sums over channels and over a spectrum may leave float32; 32-bit integers in a float
# file, the loudest that can be meant, reach 2e9.
_LOUDEST = 1e12
# This share of a block may be invalid samples; with more, nothing from the first of them on is used.
_FEW = 1e-3


class Decoding(Protocol):
    """How sound is decoded: the settings of `settings.AudioSettings` that decide it, which is one of these."""

    @property
    def resampler(self) -> str: ...
    @property
    def channels(self) -> str: ...
    @property
    def truncated(self) -> str: ...


@dataclass(frozen=True)
class PlainDecoding:
    """A `Decoding` for workers: to load all settings takes as long as to decode a hundred clips."""

    resampler: str = "soxr"
    channels: str = "best"
    truncated: str = "use"

    @classmethod
    def of(cls, sound: Decoding) -> "PlainDecoding":
        """As some settings say."""
        return cls(sound.resampler, sound.channels, sound.truncated)


DEFAULT: Final[Decoding] = PlainDecoding()


@dataclass(frozen=True)
class SoundFacts:
    """Properties of a decoded sound file."""

    rate_hz: int
    channels: int
    duration_s: float
    peak_db: float  # of full scale, before mixing; -inf would not be JSON, so silence is -999
    format: str
    samples: str = ""  # digest of the decoded samples, whatever file they are in; "": not measured
    measures: Measures | None = None
    origin: Origin | None = None  # what the file says of the recording that it is from
    damage: str = ""  # a code of `scan.PROBLEMS`, of what is used though it is damaged; else ""
    damage_detail: str = ""
    choice: Choice | None = None  # of the channels; None: all are mixed


class SoundStream:
    """One sound file as blocks of mono float32 samples.

    Iterate over it once; then `facts` is set.

    Args:
        path: the file.
        sound: how it is decoded.
        rate_hz: of the blocks; None: the file's own.
        measured: fill in `samples` and `measures` of the facts.
        longest_s: seconds above which the file is refused before it is read.
        silent_too: do not refuse silence, where parts of a recording are evaluated and not the whole.
        channel: read this one alone (from 0), as if there were no other; None: as `sound` says.

    What is damaged is used as far as it can be decoded, unless that is too little (`faults.check_damage`).

    Raises:
        SoundError: with the problem "vanished", "storage-failed", "unreadable", "empty", "not-audio", "corrupt",
            "truncated", "silent", "too-long" or "not-finite"; some only when the last block has been asked for.
    """

    def __init__(
        self, path: Path, sound: Decoding = DEFAULT, *, rate_hz: int | None = None, longest_s: float = math.inf,
        silent_too: bool = False, measured: bool = False, channel: int | None = None,
    ) -> None:
        self.path, self.sound, self.rate_hz, self.channel = path, sound, rate_hz, channel
        self.longest_s, self.silent_too, self.measured = longest_s, silent_too, measured
        self.facts: SoundFacts | None = None

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        try:
            yield from self._blocks()
        except OSError as fault:
            raise refusal(fault) from fault
        except SoundError as fault:
            if fault.problem in _LIKE_UNREAD:
                read_through(self.path)
            raise

    def _blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        with open_sound(self.path) as file:
            check_header(self.path, file, self.longest_s)
            known = file.damage
            if known is not None:
                check_damage(known, file.seconds(file.frames), self.sound.truncated)  # before gigabytes are read
            meter = Meter(file.samplerate, file.channels if self.channel is None else 1) if self.measured else None
            compared = self.channel is None and file.channels > 1 and self.sound.channels == "best"
            whole = _whole(file) if compared else None
            choice = choice_of(self.path, file, self.sound.channels, whole) if self.channel is None else None
            source = _Source(self.path, file, self.longest_s, meter, choice, self.channel, whole)
            to_hz = self.rate_hz or file.samplerate
            yield from resampled(source.mono(), file.samplerate, to_hz, self.sound.resampler)
            damage = source.damage()
            if damage is not None and damage is not known:
                if damage.problem in _LIKE_UNREAD:
                    read_through(self.path)
                check_damage(damage, file.seconds(source.frames_read), self.sound.truncated)
            if source.peak_db < SILENCE_DB and not self.silent_too:
                loudest = f"no sample is louder than {source.peak_db:.0f} dB of full scale"
                raise SoundError("silent", loudest if source.peak_db > -999.0 else "every sample is zero")
            duration_s = file.seconds(source.frames_read)
            tags = {name: str(getattr(file, name, "") or "") for name in ("comment", "title")}
            self.facts = SoundFacts(
                rate_hz=file.samplerate,
                channels=file.channels,
                duration_s=duration_s,
                peak_db=round(source.peak_db, 1),
                format=f"{file.format} {file.subtype}",
                samples=meter.sample_digest() if meter else "",
                measures=meter.measures() if meter else None,
                origin=read_origin(self.path, tags, file.samplerate) if meter else None,
                damage=damage.problem if damage else "",
                damage_detail=damage.describe(duration_s) if damage else "",
                choice=choice,
            )


def examine(
    path: Path, sound: Decoding = DEFAULT, *, longest_s: float = math.inf, channel: int | None = None
) -> SoundFacts:
    """Decode a whole file for its facts. Raises SoundError as `SoundStream`."""
    stream = SoundStream(path, sound, longest_s=longest_s, measured=True, channel=channel)
    for _ in stream:
        pass
    assert stream.facts is not None
    return stream.facts


def read(
    path: Path, sound: Decoding = DEFAULT, *, rate_hz: int, start_s: float = 0.0, longest_s: float = math.inf,
    channel: int | None = None,
) -> npt.NDArray[np.float32]:
    """Part of a recording as one array: [samples] float32 mono at `rate_hz`, full scale 1.

    Args:
        start_s: seconds from the beginning; sound before it is skipped without being kept.
        longest_s: seconds to read at most.
        channel: as `SoundStream`.

    Raises:
        SoundError: the file cannot be decoded as far as asked for.
    """
    first = round(start_s * rate_hz)
    last = math.inf if math.isinf(longest_s) else first + round(longest_s * rate_hz)
    parts: list[npt.NDArray[np.float32]] = []
    at = 0
    for block in SoundStream(path, sound, rate_hz=rate_hz, channel=channel):
        if at + block.size > first:
            parts.append(block[max(0, first - at) : None if math.isinf(last) else max(0, int(last) - at)])
        at += block.size
        if at >= last:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


@dataclass
class _Source:
    """Blocks of an open file, mixed to mono at the file's own rate; peak, length and damage as far as it was read."""

    path: Path
    file: Opened
    longest_s: float
    meter: Meter | None
    choice: Choice | None
    channel: int | None
    whole: npt.NDArray[Any] | None = None  # all of it, if that was read before
    frames_read: int = 0
    _peak: float = 0.0
    _damage: Damage | None = None
    _n_zeroed: int = 0

    @property
    def peak_db(self) -> float:
        return 20 * math.log10(self._peak) if self._peak > 0 else -999.0

    def damage(self) -> Damage | None:
        """What is wrong with the file, once all is read."""
        damage = self._damage or damage_of(self.path, self.file, self.frames_read)
        if self._n_zeroed and (damage is None or not damage.is_loss):
            samples = "a sample that is" if self._n_zeroed == 1 else f"{self._n_zeroed:,} samples that are"
            why = f"{samples} NaN, infinite or above {_LOUDEST:.0e}, taken as zero"
            return Damage("not-finite", why, is_loss=False)
        return damage

    def mono(self) -> Iterator[npt.NDArray[np.float32]]:
        yield from self._mono(self.file, self.whole)
        counted_s = self.file.seconds(self.frames_read)
        if (more := continued(self.path, self.file)) is not None:
            with more:
                yield from self._mono(more)
                self._damage = self._damage or damage_behind(self.path, more, counted_s, self.frames_read)

    def _mono(
        self, file: Opened, begin: npt.NDArray[Any] | None = None
    ) -> Iterator[npt.NDArray[np.float32]]:
        for block in _pieces(file, begin):
            if self._damage is not None:
                return
            if self.channel is not None:
                block = np.ascontiguousarray(block[:, self.channel : self.channel + 1])
            peak = peak_of(block)
            if not peak <= _LOUDEST:  # or NaN
                block = self._finite(block)
                if not len(block):
                    return
                peak = peak_of(block)
            self._peak = max(self._peak, peak)
            self.frames_read += len(block)
            # Checked again, as not every header has the length.
            check_length(file.seconds(self.frames_read), self.longest_s)
            mono = mixed(block) if self.choice is None else self.choice.mono(block)
            if self.meter is not None:
                self.meter.feed(block, mono, peak)
            yield mono

    def _finite(self, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """With a few invalid samples taken as zero; with many, the frames before the first of them."""
        is_sound = np.abs(block) <= _LOUDEST  # NaN is not, either
        n_bad = block.size - int(is_sound.sum())
        if n_bad > _FEW * block.size:
            return self._before_break(block)
        self._n_zeroed += n_bad
        return np.where(is_sound, block, np.float32(0.0))

    def _before_break(self, block: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The frames before the first invalid one; what follows is not read."""
        loudest = np.abs(block).max(axis=1)
        n_good = int(np.argmin(loudest <= _LOUDEST))  # NaN is not, either
        value = loudest[n_good]
        loud = f"samples of {value:.0e}, where full scale is 1,"
        invalid = loud if math.isfinite(value) else "NaN or infinite samples"
        why = f"{invalid} after {self.frames_read + n_good:,} good ones"
        promised_s = None if self.file.promised is None else self.file.seconds(self.file.promised)
        self._damage = Damage("not-finite", why, promised_s)
        return block[:n_good]


def _whole(file: Opened) -> npt.NDArray[Any] | None:
    """All of a short recording, as to seek in it, too, takes long where it is compressed. [frames, channels]"""
    if isinstance(file, Decoder) and file.promised is not None and file.promised * file.channels <= _SHORT_VALUES:
        return _read(file, file.promised)
    return None


def _pieces(file: Opened, begin: npt.NDArray[Any] | None) -> Iterator[npt.NDArray[Any]]:
    """Blocks of a file, of which the beginning may have been read before. [frames, channels] each"""
    size = max(1, _BLOCK_VALUES // file.channels)
    for first in range(0, 0 if begin is None else len(begin), size):
        assert begin is not None
        yield begin[first : first + size]
    while file.fault is None:  # what is decoded behind a fault has a wrong time
        block = _read(file, size)
        if not len(block):
            return
        yield block


def _read(file: Opened, size: int) -> npt.NDArray[Any]:
    """The next frames: float32 of full scale 1, or int16 where the file holds that. [frames, channels]"""
    if file.format == "MP3" and isinstance(file, Decoder):
        # With a fault, libsndfile reports that it gave nothing, but has given what it had.
        block = np.zeros((size, file.channels), np.float32)
        read = np.asarray(file.read(size, out=block))
        return block[: np.flatnonzero(block.any(axis=1))[-1] + 1] if file.fault and block.any() else read
    # The same numbers as libsndfile's own floats in the end, in a fifth of the time.
    dtype = "int16" if file.subtype == "PCM_16" else "float32"
    return np.asarray(file.read(size, dtype=dtype, always_2d=True))
