"""Sound file → mono float32 waveform at 16 kHz: the only decoder in the house.

    path ─▶ SoundStream ─▶ blocks [n] float32, 16 kHz mono ─▶ .facts once all is read

Files are read in blocks of some seconds, so a 24-hour recording needs no more memory than a short
one. Formats are libsndfile's: WAV in all its encodings, FLAC, Ogg Vorbis and Opus, MP3,
AIFF, AU, CAF and W64.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile

from birdtune.config import SoundSettings
from birdtune.sound.channels import mixed
from birdtune.sound.channels import peak as peak_of
from birdtune.sound.container import Decoder, check_header, check_length, check_ogg, open_sound, reason
from birdtune.sound.faults import SoundError, read_through, refusal
from birdtune.sound.measures import Measures, Meter
from birdtune.sound.media import MediaDecoder
from birdtune.sound.origin import Origin, read_origin
from birdtune.sound.resample import TARGET_RATE_HZ, resampled

# Below this peak there is nothing to hear: one step of 16-bit audio is -90.3 dB of full scale.
SILENCE_DB: Final = -90.0

# What a file seems to be when the system stops giving its bytes half-way.
_LIKE_UNREAD = frozenset({"empty", "not-audio", "corrupt", "truncated"})
# Values in one block at most, of all channels together: what is made of them stays in the processor's cache.
_BLOCK_VALUES = 1 << 17
DEFAULT: Final = SoundSettings()
# An MP3's own count of frames may include the frame that holds it, and one that decoders drop.
_MP3_SLACK = 2 * 1152
# Above this, sums over channels and over a spectrum may leave float32; 32-bit integers in a float
# file, the loudest that can be meant, reach 2e9.
_LOUDEST = 1e12


@dataclass(frozen=True)
class SoundFacts:
    """What a sound file turned out to hold."""

    rate_hz: int
    channels: int
    duration_s: float
    n_samples: int  # at 16 kHz
    peak_db: float  # of full scale, before mixing; -inf would not be JSON, so silence is -999
    format: str
    samples: str = ""  # digest of the decoded samples, whatever file they are in; "" where nobody measured
    measures: Measures | None = None
    origin: Origin | None = None  # what the file says of the recording that it is from


class SoundStream:
    """One sound file as blocks of mono float32 samples at 16 kHz.

    Iterate over it once; then `facts` is set.

    Args:
        path: the file.
        sound: how it is decoded.
        measured: fill in `samples` and `measures` of the facts.
        longest_s: seconds above which the file is refused before it is read.
        in_pieces: for who judges pieces, not the whole: of a file whose header promises more than is there, give what
            is there, and refuse it then; and do not refuse silence.

    Raises:
        SoundError: with the problem "vanished", "storage-failed", "unreadable", "empty", "not-audio", "corrupt",
            "truncated", "silent", "too-long" or "not-finite"; some only when the last block has been asked for.
    """

    def __init__(
        self, path: Path, sound: SoundSettings = DEFAULT, *, longest_s: float = math.inf,
        in_pieces: bool = False, measured: bool = False,
    ) -> None:
        self.path = path
        self.sound = sound
        self.measured = measured
        self.longest_s = longest_s
        self.in_pieces = in_pieces
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
            cut = check_header(self.path, file, self.longest_s)
            if cut is not None and not self.in_pieces:
                raise cut  # without reading gigabytes of what will not be used
            meter = Meter(file.samplerate, file.channels) if self.measured else None
            source = _Source(file, self.longest_s, meter)
            n_samples = 0
            for block in resampled(source.mono(), file.samplerate, self.sound.resampler):
                n_samples += block.size
                yield block
            if file.format == "OGG":
                check_ogg(self.path, file.samplerate, source.frames_read)
            if cut is not None:
                raise cut
            source.check_whole()
            if source.peak_db < SILENCE_DB and not self.in_pieces:
                raise SoundError("silent", _silence(source.peak_db))
            self.facts = SoundFacts(
                rate_hz=file.samplerate,
                channels=file.channels,
                duration_s=source.frames_read / file.samplerate,
                n_samples=n_samples,
                peak_db=round(source.peak_db, 1),
                format=f"{file.format} {file.subtype}",
                samples=meter.sample_digest() if meter else "",
                measures=meter.measures() if meter else None,
                origin=read_origin(self.path, _tags(file)) if meter else None,
            )


def _tags(file: Decoder | MediaDecoder) -> dict[str, str]:
    return {name: str(getattr(file, name, "") or "") for name in ("comment", "title")}


def _silence(peak_db: float) -> str:
    if peak_db <= -999.0:
        return "every sample is zero"
    return f"no sample is louder than {peak_db:.0f} dB of full scale"


def examine(path: Path, sound: SoundSettings = DEFAULT, *, longest_s: float = math.inf) -> SoundFacts:
    """Decode a whole file and say what it holds. Raises SoundError as `SoundStream`."""
    stream = SoundStream(path, sound, longest_s=longest_s, measured=True)
    for _ in stream:
        pass
    assert stream.facts is not None
    return stream.facts


def read(
    path: Path, sound: SoundSettings = DEFAULT, *, start_s: float = 0.0, longest_s: float = math.inf
) -> npt.NDArray[np.float32]:
    """Part of a sound as one array, for listening: [samples] float32 mono at 16 kHz, full scale 1.

    Args:
        start_s: seconds from the beginning; sound before it is skipped without being kept.
        longest_s: seconds to read at most.

    Raises:
        SoundError: the file cannot be decoded as far as asked for.
    """
    first = round(start_s * TARGET_RATE_HZ)
    last = math.inf if math.isinf(longest_s) else first + round(longest_s * TARGET_RATE_HZ)
    parts: list[npt.NDArray[np.float32]] = []
    at = 0
    for block in SoundStream(path, sound):
        if at + block.size > first:
            parts.append(block[max(0, first - at) : None if math.isinf(last) else max(0, int(last) - at)])
        at += block.size
        if at >= last:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


class _Source:
    """Blocks of an open file, mixed to mono at the file's own rate, with what was met on the way."""

    def __init__(self, file: Decoder | MediaDecoder, longest_s: float, meter: Meter | None) -> None:
        self._file = file
        self._longest_s = longest_s
        self._peak = 0.0
        self._meter = meter
        self.frames_read = 0

    @property
    def peak_db(self) -> float:
        return 20 * math.log10(self._peak) if self._peak > 0 else -999.0

    def mono(self) -> Iterator[npt.NDArray[np.float32]]:
        size = max(1, _BLOCK_VALUES // self._file.channels)
        while True:
            try:
                block = self._read(size)
            except soundfile.LibsndfileError as fault:
                at_s = self.frames_read / self._file.samplerate
                if self._file.is_used_up:
                    raise SoundError("truncated", "the MP3 stream stops within a frame") from fault
                raise SoundError(
                    "corrupt", f"decoding fails after {at_s:.0f} s ({reason(fault)})"
                ) from fault
            if not len(block):
                return
            peak = peak_of(block)
            if not math.isfinite(peak):
                raise SoundError(
                    "not-finite", f"NaN or infinite samples after {self.frames_read:,} good ones"
                )
            if peak > _LOUDEST:
                raise SoundError("not-finite", f"samples of up to {peak:.0e}, where full scale is 1")
            self._peak = max(self._peak, peak)
            self.frames_read += len(block)
            # Once more: not every header tells the length.
            check_length(self.frames_read / self._file.samplerate, self._longest_s)
            mono = mixed(block)
            if self._meter is not None:
                self._meter.feed(block, mono, peak)
            yield mono

    def _read(self, size: int) -> npt.NDArray[Any]:
        """The next frames: float32 of full scale 1, or int16 where the file holds that. [frames, channels]"""
        # The same numbers as libsndfile's own floats in the end, in a fifth of the time.
        dtype = "int16" if self._file.subtype == "PCM_16" else "float32"
        return np.asarray(self._file.read(size, dtype=dtype, always_2d=True))

    def check_whole(self) -> None:
        promised = self._file.promised
        slack = _MP3_SLACK if self._file.format == "MP3" else 0
        if promised is not None and self.frames_read < promised - slack:
            raise SoundError(
                "truncated", f"{self.frames_read:,} of the {promised:,} samples that its header promises"
            )
