"""Sound file → mono float32 waveform at 16 kHz: the only decoder in the house.

    path ─▶ SoundStream ─▶ blocks [n] float32, 16 kHz mono ─▶ .facts once all is read

Files are read in blocks of some seconds, so a 24-hour recording needs no more memory than a short
one. What a file holds is found out by its content; its name's ending only says whether it claims to
be sound at all. Formats are libsndfile's: WAV in all its encodings, FLAC, Ogg Vorbis and Opus, MP3,
AIFF, AU, CAF and W64.
"""

import io
import math
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from birdtune.errors import BirdtuneError, shown
from birdtune.sound import ogg
from birdtune.storage import has_failed

TARGET_RATE_HZ: Final = 16_000

SOUND_ENDINGS: Final = frozenset(
    [
        ".wav",
        ".wave",
        ".bwf",
        ".rf64",
        ".w64",
        ".flac",
        ".ogg",
        ".oga",
        ".opus",
        ".mp3",
        ".aif",
        ".aiff",
        ".aifc",
        ".au",
        ".snd",
        ".caf",
    ]
)
# Sound, but in containers that libsndfile cannot open.
FOREIGN_ENDINGS: Final = frozenset(
    [".m4a", ".mp4", ".aac", ".wma", ".amr", ".ape", ".wv", ".webm", ".mkv", ".mka", ".3gp", ".dsf"]
)

# Below this peak there is nothing to hear: one step of 16-bit audio is -90.3 dB of full scale.
SILENCE_DB: Final = -90.0

# What a file seems to be when the system stops giving its bytes half-way.
_LIKE_UNREAD = frozenset({"empty", "not-audio", "corrupt", "truncated"})
_READ_BYTES = 1 << 20
# resampy works on pieces of this length.
_PIECE_S = 10.0
# libsndfile's SF_ERR_UNRECOGNISED_FORMAT, and SFE_BAD_FILE: what is called .mp3 it gives to the decoder of MP3
# whatever it holds, which says so of what is none.
_NO_SOUND = (1, 7)
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 2_000_000
# resampy's kaiser_best filter reaches 64 zero crossings to each side at the lower of the two rates.
_RESAMPY_ZERO_CROSSINGS = 64
# Values in one block at most, of all channels together: what is made of them stays in the processor's cache.
_BLOCK_VALUES = 1 << 17
# How libsndfile reports a length that disagrees with the file's: WAV, AIFF, AU, W64 and RF64.
_SHORT_DATA = re.compile(
    r"^\s*(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
# Recorders that write to a pipe put these where the length belongs; it says nothing about the sound.
_UNKNOWN_LENGTHS = frozenset({0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF - 36})
# libsndfile's count of frames when the header has none (SF_COUNT_MAX), as in FLAC written to a pipe.
_NO_COUNT = 2**63 - 1
# An MP3's own count of frames may include the frame that holds it, and one that decoders drop.
_MP3_SLACK = 2 * 1152
# Above this, sums over channels and over a spectrum may leave float32; 32-bit integers in a float
# file, the loudest that can be meant, reach 2e9.
_LOUDEST = 1e12


class SoundError(BirdtuneError):
    """A sound file cannot be used: `problem` is a code of `recordings.PROBLEMS`, the text says why."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem

    def __reduce__(self) -> tuple[type["SoundError"], tuple[str, str]]:
        return SoundError, (self.problem, str(self))  # so that it crosses from a worker whole


def refusal(fault: OSError) -> SoundError:
    """Why the system gives nothing of a file."""
    if isinstance(fault, FileNotFoundError | NotADirectoryError):
        return SoundError("vanished", "it is not there any more")
    if has_failed(fault):
        return SoundError("storage-failed", f"the storage failed ({fault.strerror})")
    return SoundError("unreadable", f"the system refuses to open it ({fault.strerror})")


@dataclass(frozen=True)
class SoundFacts:
    """What a sound file turned out to hold."""

    rate_hz: int
    channels: int
    duration_s: float
    n_samples: int  # at 16 kHz
    peak_db: float  # of full scale, before mixing; -inf would not be JSON, so silence is -999
    format: str


class SoundStream:
    """One sound file as blocks of mono float32 samples at 16 kHz.

    Iterate over it once; then `facts` is set.

    Args:
        path: the file.
        resampler: "soxr" (HQ; the default) or "resampy" (kaiser_best, what the published VGGish used).
        longest_s: seconds above which the file is refused before it is read.
        in_pieces: for who judges pieces, not the whole: of a file whose header promises more than is there, give what
            is there, and refuse it then; and do not refuse silence.

    Raises:
        SoundError: with the problem "vanished", "storage-failed", "unreadable", "empty", "not-audio", "corrupt",
            "truncated", "silent", "too-long" or "not-finite"; some only when the last block has been asked for.
    """

    def __init__(
        self, path: Path, *, resampler: str = "soxr", longest_s: float = math.inf, in_pieces: bool = False
    ) -> None:
        self.path = path
        self.resampler = resampler
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
                _read_through(self.path)
            raise

    def _blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        with _open(self.path) as file:
            cut = _check_header(self.path, file, self.longest_s)
            if cut is not None and not self.in_pieces:
                raise cut  # without reading gigabytes of what will not be used
            source = _Source(file, self.longest_s)
            resample = _resample_soxr if self.resampler == "soxr" else _resample_resampy
            n_samples = 0
            blocks = (
                source.mono()
                if file.samplerate == TARGET_RATE_HZ
                else resample(source.mono(), file.samplerate)
            )
            for block in blocks:
                n_samples += block.size
                yield block
            if file.format == "OGG":
                _check_ogg(self.path, file.samplerate, source.frames_read)
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
            )


def _silence(peak_db: float) -> str:
    if peak_db <= -999.0:
        return "every sample is zero"
    return f"no sample is louder than {peak_db:.0f} dB of full scale"


def examine(path: Path, *, resampler: str = "soxr", longest_s: float = math.inf) -> SoundFacts:
    """Decode a whole file and say what it holds. Raises SoundError as `SoundStream`."""
    stream = SoundStream(path, resampler=resampler, longest_s=longest_s)
    for _ in stream:
        pass
    assert stream.facts is not None
    return stream.facts


def read(
    path: Path, *, resampler: str = "soxr", start_s: float = 0.0, longest_s: float = math.inf
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
    for block in SoundStream(path, resampler=resampler):
        if at + block.size > first:
            parts.append(block[max(0, first - at) : None if math.isinf(last) else max(0, int(last) - at)])
        at += block.size
        if at >= last:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


class _Decoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """A sound file that is read from its beginning to its end, and never sought in.

    soundfile believes the header's count of frames and seeks after every read. Both fail for FLAC
    that was written to a pipe; a decoder that just goes on until nothing comes needs neither.
    """

    def seekable(self) -> bool:
        """False: so soundfile leaves the position alone."""
        return False

    def close(self) -> None:
        """Close the file, and the one below if it was given as such."""
        super().close()
        if isinstance(self.name, _OpenEnded):
            self.name.close()

    @property
    def promised(self) -> int | None:
        """Frames that the header promises; None if it says nothing."""
        if self.frames == _NO_COUNT or isinstance(self.name, _OpenEnded):
            return None
        return int(self.frames)

    @property
    def is_used_up(self) -> bool:
        """Whether the decoder was given the last byte; known only of open-ended files."""
        return isinstance(self.name, _OpenEnded) and self.name.tell() >= os.fstat(self.name.fileno()).st_size


class _OpenEnded(io.FileIO):
    """A file that claims to be far longer than it is.

    Of an MP3 that does not tell its length, libsndfile guesses it by the file's size and the bit rate
    of the first frame, and reads no further than it guessed. Beside tags (counted as sound) and
    changing bit rates the guess is wrong; at 64 times the size it is at least never too short (the
    lowest and the highest bit rate, 8 and 448 kbit/s, are 56 apart).
    """

    @property
    def _claimed(self) -> int:
        return 64 * os.fstat(self.fileno()).st_size

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As any file's, but the end is where it is claimed to be."""
        return super().seek(*((self._claimed + offset,) if whence == os.SEEK_END else (offset, whence)))

    def readinto(self, buffer: Any) -> int | None:
        """As any file's, but at the claimed end, where a tag of 128 bytes is looked for, are zeros."""
        if self.tell() >= self._claimed - 128:
            buffer[:] = bytes(len(buffer))
            return len(buffer)
        return super().readinto(buffer)


def _open(path: Path) -> _Decoder:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SoundError("empty", "the file has no bytes")
        # As bytes: a name need not be UTF-8, and soundfile would insist.
        opened = _Decoder(os.fsencode(path))
        if opened.format == "MP3" and not _mp3_tells_its_length(path):
            opened.close()
            opened = _Decoder(_OpenEnded(path))
        return opened
    except soundfile.LibsndfileError as fault:
        if fault.code in _NO_SOUND:
            raise SoundError(
                "not-audio", "its content is none of the sound formats that can be read"
            ) from fault
        raise SoundError("corrupt", f"no sound can be decoded from it ({_reason(fault)})") from fault


def _read_through(path: Path) -> None:
    """Read a file for nothing: the decoder does not tell a fault of the disk from one of the content.

    Raises:
        SoundError: the system does not give all of it.
    """
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(_READ_BYTES):
                pass
    except OSError as fault:
        raise refusal(fault) from fault


def _mp3_tells_its_length(path: Path) -> bool:
    """Whether the first frame is one of those that hold the number of frames (Xing, Info, VBRI)."""
    with path.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):
            # The size of an ID3v2 tag: four bytes of seven bits each.
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
            file.seek(10 + size)
        else:
            file.seek(0)
        first = file.read(2048)
    return any(mark in first for mark in (b"Xing", b"Info", b"VBRI"))


def _reason(fault: Exception) -> str:
    text = getattr(fault, "error_string", None) or str(fault)
    return shown(text.strip().rstrip(".")) or "unknown error"


def _check_header(path: Path, file: _Decoder, longest_s: float) -> SoundError | None:
    """Refuse what cannot be used at all; what is to be said of a file that is cut short."""
    if not _LOWEST_RATE_HZ <= file.samplerate <= _HIGHEST_RATE_HZ:
        raise SoundError("corrupt", f"its header says {file.samplerate} samples a second")
    cut = _SHORT_DATA.search(file.extra_info)
    short = None
    if cut and int(cut[1]) > int(cut[2]) and int(cut[1]) not in _UNKNOWN_LENGTHS:
        detail = f"its header promises {int(cut[1]):,} bytes of sound, {int(cut[2]):,} are there"
        short = SoundError("truncated", detail)
    if file.frames <= 0:
        if short is not None:
            raise short
        if file.format == "OGG":
            _check_ogg(path, file.samplerate)
        size = path.stat().st_size
        raise SoundError("empty", f"its header says that no samples follow, in a file of {size:,} bytes")
    _check_length((file.promised or 0) / file.samplerate, longest_s)
    return short


def _check_length(length_s: float, longest_s: float) -> None:
    if length_s > longest_s:
        raise SoundError(
            "too-long", f"{length_s / 3600:,.1f} h, more than sound.max-hours = {longest_s / 3600:g}"
        )


class _Source:
    """Blocks of an open file, mixed to mono at the file's own rate, with what was met on the way."""

    def __init__(self, file: _Decoder, longest_s: float) -> None:
        self._file = file
        self._longest_s = longest_s
        self._peak = 0.0
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
                    "corrupt", f"decoding fails after {at_s:.0f} s ({_reason(fault)})"
                ) from fault
            if not len(block):
                return
            peak = _peak(block)
            if not math.isfinite(peak):
                raise SoundError(
                    "not-finite", f"NaN or infinite samples after {self.frames_read:,} good ones"
                )
            if peak > _LOUDEST:
                raise SoundError("not-finite", f"samples of up to {peak:.0e}, where full scale is 1")
            self._peak = max(self._peak, peak)
            self.frames_read += len(block)
            # Once more: not every header tells the length.
            _check_length(self.frames_read / self._file.samplerate, self._longest_s)
            yield _mixed(block)

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


def _peak(block: npt.NDArray[Any]) -> float:
    """The largest magnitude in a block as `_Source._read` gives it, full scale 1; NaN if there is one."""
    if block.dtype == np.int16:
        return max(int(block.max()), -int(block.min())) / 32768  # int: -32,768 has no counterpart in int16
    return float(np.abs(block).max())


def _mixed(block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """The mean of all channels, full scale 1. [frames, channels] → [frames]"""
    if block.dtype == np.int16:
        if block.shape[1] == 2 and block.flags.c_contiguous and sys.byteorder == "little":
            # Left and right as the halves of one integer: exact, as is the mean of floats, and twice as fast.
            both = block.view(np.int32)[:, 0]
            total = (both >> 16) + ((both << 16) >> 16)
            return np.multiply(total, np.float32(1 / 65536), dtype=np.float32, casting="unsafe")
        block = block * np.float32(1 / 32768)
    if block.shape[1] == 1:
        return block[:, 0]
    if block.shape[1] == 2:
        # As `mean`, to the bit, in a thirtieth of the time.
        return np.asarray((block[:, 0] + block[:, 1]) * np.float32(0.5))
    return np.asarray(block.mean(axis=1, dtype=np.float32))


def _check_ogg(path: Path, rate_hz: int, heard: int | None = None) -> None:
    if found := ogg.fault(path, rate_hz, heard):
        raise SoundError(*found)


def _resample_soxr(
    blocks: Iterator[npt.NDArray[np.float32]], rate_hz: int
) -> Iterator[npt.NDArray[np.float32]]:
    stream = soxr.ResampleStream(rate_hz, TARGET_RATE_HZ, 1, dtype="float32", quality="HQ")
    for block in blocks:
        # HQ overshoots full scale by a little at clipped peaks; that is sound, not a fault.
        yield stream.resample_chunk(block)
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _resample_resampy(
    blocks: Iterator[npt.NDArray[np.float32]], rate_hz: int
) -> Iterator[npt.NDArray[np.float32]]:
    """resampy knows no streams: work on pieces that overlap by more than its filter reaches.

    Pieces begin where an input and an output sample fall together (every rate/gcd input samples), so
    the joined pieces are what one call over the whole sound gives.
    """
    import resampy  # brings numba, half a second that only those who ask for it should wait

    common = math.gcd(rate_hz, TARGET_RATE_HZ)
    step_in, step_out = rate_hz // common, TARGET_RATE_HZ // common
    reach = math.ceil((_RESAMPY_ZERO_CROSSINGS + 2) * max(1.0, rate_hz / TARGET_RATE_HZ) / step_in)  # steps
    piece = math.ceil(_PIECE_S * rate_hz / step_in)  # steps
    waiting = np.zeros(0, np.float32)
    lead = 0  # steps of context before what is still to be given out
    for block in blocks:
        waiting = np.concatenate([waiting, block])
        while waiting.size >= (lead + piece + reach) * step_in:
            taken = waiting[: (lead + piece + reach) * step_in]
            made = resampy.resample(taken, rate_hz, TARGET_RATE_HZ, filter="kaiser_best")
            yield made[lead * step_out : (lead + piece) * step_out].astype(np.float32)
            kept = min(reach, lead + piece)
            waiting = waiting[(lead + piece - kept) * step_in :]
            lead = kept
    if waiting.size > lead * step_in:
        # At least one output sample must come of it, else resampy refuses.
        padded = np.pad(waiting, (0, max(0, math.ceil(rate_hz / TARGET_RATE_HZ) - waiting.size)))
        made = resampy.resample(padded, rate_hz, TARGET_RATE_HZ, filter="kaiser_best")
        yield made[lead * step_out :].astype(np.float32)
