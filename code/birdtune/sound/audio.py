"""Sound file → mono float32 waveform at 16 kHz: the only decoder in the house.

    path ─▶ SoundStream ─▶ blocks [n] float32, 16 kHz mono ─▶ .facts once all is read

Files are read in blocks of some seconds, so a 24-hour recording needs no more memory than a short
one. What a file holds is found out by its content; its name's ending only says whether it claims to
be sound at all. Formats are libsndfile's: WAV in all its encodings, FLAC, Ogg Vorbis and Opus, MP3,
AIFF, AU, CAF and W64.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from birdtune.errors import BirdtuneError, shown

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

_BLOCK_S = 10.0
# libsndfile's SF_ERR_UNRECOGNISED_FORMAT.
_UNRECOGNISED_FORMAT = 1
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 2_000_000
# resampy's kaiser_best filter reaches 64 zero crossings to each side at the lower of the two rates.
_RESAMPY_ZERO_CROSSINGS = 64
# How libsndfile reports a WAV chunk whose length disagrees with the file's.
_SHORT_DATA = re.compile(r"^\s*data : (\d+) \(should be (\d+)\)", re.MULTILINE)
# Recorders that write to a pipe put these where the length belongs; it says nothing about the sound.
_UNKNOWN_LENGTHS = frozenset({0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF - 36})


class SoundError(BirdtuneError):
    """A sound file cannot be used: `problem` is a code of `recordings.PROBLEMS`, the text says why."""

    def __init__(self, problem: str, detail: str) -> None:
        super().__init__(detail)
        self.problem = problem

    def __reduce__(self) -> tuple[type["SoundError"], tuple[str, str]]:
        return SoundError, (self.problem, str(self))  # so that it crosses from a worker whole


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

    Raises:
        SoundError: with the problem "unreadable", "empty", "not-audio", "corrupt", "truncated",
            "silent", "too-long" or "not-finite"; some only when the last block has been asked for.
    """

    def __init__(self, path: Path, *, resampler: str = "soxr", longest_s: float = math.inf) -> None:
        self.path = path
        self.resampler = resampler
        self.longest_s = longest_s
        self.facts: SoundFacts | None = None

    def __iter__(self) -> Iterator[npt.NDArray[np.float32]]:
        with _open(self.path) as file:
            _check_header(self.path, file, self.longest_s)
            source = _Source(file)
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
            source.check_whole()
            if self.path.suffix.lower() in (".ogg", ".oga", ".opus") or file.format == "OGG":
                _check_ogg_end(self.path)
            if source.peak_db < SILENCE_DB:
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


def _open(path: Path) -> soundfile.SoundFile:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SoundError("empty", "the file has no bytes")
        return soundfile.SoundFile(str(path))
    except OSError as fault:
        raise SoundError("unreadable", f"the system refuses to open it ({fault.strerror})") from fault
    except soundfile.LibsndfileError as fault:
        if fault.code == _UNRECOGNISED_FORMAT:
            raise SoundError(
                "not-audio", "its content is none of the sound formats that can be read"
            ) from fault
        raise SoundError("corrupt", f"no sound can be decoded from it ({_reason(fault)})") from fault


def _reason(fault: Exception) -> str:
    text = getattr(fault, "error_string", None) or str(fault)
    return shown(text.strip().rstrip(".")) or "unknown error"


def _check_header(path: Path, file: soundfile.SoundFile, longest_s: float) -> None:
    if not _LOWEST_RATE_HZ <= file.samplerate <= _HIGHEST_RATE_HZ:
        raise SoundError("corrupt", f"its header says {file.samplerate} samples a second")
    if file.frames <= 0:
        size = path.stat().st_size
        raise SoundError("empty", f"its header says that no samples follow, in a file of {size:,} bytes")
    if file.frames / file.samplerate > longest_s:
        hours = file.frames / file.samplerate / 3600
        raise SoundError("too-long", f"{hours:,.1f} h, more than sound.max-hours = {longest_s / 3600:g}")
    cut = _SHORT_DATA.search(file.extra_info)
    if cut and int(cut[1]) > int(cut[2]) and int(cut[1]) not in _UNKNOWN_LENGTHS:
        raise SoundError(
            "truncated", f"its header promises {int(cut[1]):,} bytes of sound, {int(cut[2]):,} are there"
        )


class _Source:
    """Blocks of an open file, mixed to mono at the file's own rate, with what was met on the way."""

    def __init__(self, file: soundfile.SoundFile) -> None:
        self._file = file
        self._peak = 0.0
        self.frames_read = 0

    @property
    def peak_db(self) -> float:
        return 20 * math.log10(self._peak) if self._peak > 0 else -999.0

    def mono(self) -> Iterator[npt.NDArray[np.float32]]:
        size = int(_BLOCK_S * self._file.samplerate)
        while True:
            try:
                block = self._file.read(size, dtype="float32", always_2d=True)  # [frames, channels]
            except soundfile.LibsndfileError as fault:
                at_s = self.frames_read / self._file.samplerate
                raise SoundError(
                    "corrupt", f"decoding fails after {at_s:.0f} s ({_reason(fault)})"
                ) from fault
            if not len(block):
                return
            peak = float(np.abs(block).max())
            if not math.isfinite(peak):
                raise SoundError(
                    "not-finite", f"NaN or infinite samples after {self.frames_read:,} good ones"
                )
            self._peak = max(self._peak, peak)
            self.frames_read += len(block)
            yield block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)

    def check_whole(self) -> None:
        if self.frames_read < self._file.frames:
            raise SoundError(
                "truncated",
                f"{self.frames_read:,} of the {self._file.frames:,} samples that its header promises",
            )


def _check_ogg_end(path: Path) -> None:
    """An Ogg stream ends with a page marked so (RFC 3533, header type 4); libsndfile does not look."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 0x20000))  # a page has at most 65,307 bytes
        tail = file.read()
    page = tail.rfind(b"OggS")
    if page < 0 or page + 5 >= len(tail) or not tail[page + 5] & 4:
        raise SoundError("truncated", "the Ogg stream stops before its last page")


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
    piece = math.ceil(_BLOCK_S * rate_hz / step_in)  # steps
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
