"""Sound file → an open decoder that gives all sound there is, whatever the header says.

    path ─▶ open_sound ─▶ Decoder ─▶ check_header ─▶ blocks are read ─▶ damage_of ─▶ Damage, or None

The format is recognised by content; the ending of the name only marks files that claim to be sound.
"""

import os
from pathlib import Path
from typing import IO, Any, Final

import soundfile

from birdtune.audio.chunks import Chunk, View, find_chunk
from birdtune.audio.faults import Damage, SoundError, repaired
from birdtune.audio.formats import MediaDecoder, kind_of
from birdtune.audio.streams import (
    Flac,
    OpenEnded,
    counts_its_frames,
    find_flac,
    id3_bytes,
    is_mp3,
    missing_bytes,
    next_frame,
    ogg_fault,
)
from birdtune.errors import shown

SOUND_ENDINGS: Final = frozenset(
    (".wav", ".wave", ".bwf", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".aifc",
     ".au", ".snd", ".caf")
)
# Sound that libsndfile cannot open and FFmpeg can.
FOREIGN_ENDINGS: Final = frozenset(
    (".m4a", ".m4b", ".mp4", ".mov", ".aac", ".wma", ".amr", ".ape", ".wv", ".webm", ".mkv", ".mka", ".3gp", ".dsf",
     ".tta")
)

# libsndfile's SF_ERR_UNRECOGNISED_FORMAT, and SFE_BAD_FILE: what is called .mp3 it gives to the decoder of MP3
# whatever it holds, which says so of what is none.
_NO_SOUND = (1, 7)
# SF_ERR_UNSUPPORTED_ENCODING: a WAV or AIFF that holds MP3 or AAC, for instance.
_UNKNOWN_ENCODING = 4
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 2_000_000
# libsndfile's count of frames when the header has none (SF_COUNT_MAX), as in FLAC written to a pipe.
_NO_COUNT = 2**63 - 1
# So many bytes too many a header may promise and nothing is missing: recorders count the header, or a part of it.
_MISCOUNTED = 256
# Less than this behind the promised end is tags and filling, not sound.
_LEAST_MORE_S = 0.1
# An MP3's own count of frames may include the frame that holds it, and one that decoders drop.
_MP3_SLACK = 2 * 1152
# Of an MP3, the lowest bit rate there is; a header that promises more sound than that is wrong.
_LEAST_MP3_BYTES_S = 1000


class Decoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
    """A sound file that is read from its beginning to its end, and never sought in.

    soundfile believes the header's count of frames and seeks after every read. Both fail for FLAC
    that was written to a pipe; a decoder that just goes on until nothing comes needs neither.

    Attributes:
        damage: what is wrong with its header.
        fault: at which decoding stopped.
        is_complete: whether all bytes that its header counts are there, known only of MP3.
        last_frame: of a FLAC, the sample with which its last frame begins, and the one behind it.
    """

    damage: Damage | None = None
    fault: soundfile.LibsndfileError | None = None
    is_complete = False
    last_frame = 0, 0

    def seekable(self) -> bool:
        return False  # so soundfile leaves the position alone

    def close(self) -> None:
        super().close()
        if isinstance(self.name, View):
            self.name.close()

    def _cdata_io(self, action: str, data: Any, ctype: str, frames: int) -> int:
        """As soundfile's, but what was decoded before a fault is not lost with it: the fault stands in `fault`."""
        done = getattr(soundfile._snd, f"sf_{action}f_{ctype}")(self._file, data, frames)
        if self._errorcode:
            self.fault = soundfile.LibsndfileError(self._errorcode)
        return int(done)

    @property
    def promised(self) -> int | None:
        """Frames that the decoder promises; None if it cannot know."""
        if self.frames == _NO_COUNT or isinstance(self.name, OpenEnded):
            return None
        return int(self.frames)

    @property
    def bytes_read(self) -> int | None:
        """How far the decoder has read; known only of MP3."""
        if isinstance(self.name, int):
            return os.lseek(self.name, 0, os.SEEK_CUR)
        return self.name.begin + self.name.tell() if isinstance(self.name, OpenEnded) else None

    def seconds(self, frames: int) -> float:
        return float(frames / self.samplerate)


Opened = Decoder | MediaDecoder


def open_sound(path: Path) -> Opened:
    """Open a file where its sound is, whatever its header says.

    Raises:
        SoundError: "empty", "not-audio", "corrupt", or "unsupported-format" where the second decoder would be needed.
        OSError: the system does not give its bytes.
    """
    with path.open("rb") as file:
        if not file.read(1):
            raise SoundError("empty", "the file has no bytes")
        try:
            if (chunk := find_chunk(file)) is not None:
                return _open_chunk(path, file, chunk)
            begin = id3_bytes(file)
            if (flac := find_flac(file, begin)) is not None:
                return _open_flac(path, file, flac)
            if begin >= path.stat().st_size:
                return _open_behind_tag(path, begin)
            return _open_mp3(path, file, begin) if is_mp3(file, begin) else _open(path)
        except soundfile.LibsndfileError as fault:
            kind = kind_of(path)
            if kind.demuxer is not None and (not kind.is_sound or fault.code == _UNKNOWN_ENCODING):
                return MediaDecoder(path, kind)
            if fault.code in _NO_SOUND and not kind.is_sound:
                raise SoundError("not-audio", f"it is {kind.words}. {kind.advice}".rstrip(". ")) from fault
            raise SoundError("corrupt", f"no sound can be decoded from it ({reason(fault)})") from fault


def _open(path: Path) -> Decoder:
    # As bytes: a name need not be UTF-8, and soundfile would insist.
    return Decoder(os.fsencode(path))


def _open_chunk(path: Path, file: IO[bytes], chunk: Chunk) -> Decoder:
    if chunk.is_right:
        opened = _open(path)
    else:
        header = chunk.header(file)
        opened = Decoder(View(path, header, chunk.begin, chunk.begin + chunk.there))
    if chunk.promised is None or chunk.promised == chunk.there:
        return opened
    missing = chunk.promised - chunk.there
    promised_s = opened.seconds(opened.frames) * chunk.promised / max(1, chunk.there)
    if 0 < missing <= _MISCOUNTED:
        opened.damage = repaired(f"its header promises {missing:,} bytes of sound too many")
    elif missing > 0:
        why = f"its header promises {chunk.promised:,} bytes of sound, {chunk.there:,} are there"
        opened.damage = Damage("truncated", why, promised_s)
    elif chunk.promised == 0:
        opened.damage = repaired("its header promises no sound, as after a power cut, but there is some")
    elif opened.seconds(opened.frames) - promised_s < _LEAST_MORE_S and not chunk.has_wrapped:
        opened.close()
        return _open(path)
    else:
        wrapped = "for its sizes began again at 0 above 4 GiB" if chunk.has_wrapped else "but more sound follows"
        opened.damage = repaired(f"its header promises {promised_s:.2f} s, {wrapped}")
    return opened


def _open_flac(path: Path, file: IO[bytes], flac: Flac) -> Decoder:
    if 0 < flac.total < flac.end:
        header = flac.header(file)
        opened = Decoder(View(path, header, flac.begin + len(header), file.seek(0, os.SEEK_END)))
        counted_s = opened.seconds(flac.total)
        opened.damage = repaired(f"its header promises {counted_s:.2f} s, but more sound follows")
    else:
        opened = _open(path)
    opened.last_frame = flac.start, flac.end
    return opened


def _open_mp3(path: Path, file: IO[bytes], begin: int) -> Decoder:
    if not counts_its_frames(file, begin):
        return Decoder(OpenEnded(path))
    # By its number, so that it is known how far the decoder has read.
    opened = Decoder(os.open(path, os.O_RDONLY))
    missing = missing_bytes(file, begin)
    if not missing and opened.seconds(opened.frames) > path.stat().st_size / _LEAST_MP3_BYTES_S:
        counted_h = opened.seconds(opened.frames) / 3600
        opened.close()
        opened = Decoder(OpenEnded(path))
        opened.damage = repaired(f"its header promises {counted_h:,.1f} h of sound")
        return opened
    opened.is_complete = missing == 0
    if missing:
        why = f"the last {missing:,} bytes that its header counts are not there"
        opened.damage = Damage("truncated", why, opened.seconds(opened.frames))
    return opened


def _open_behind_tag(path: Path, tag_bytes: int) -> Decoder:
    """An MP3 whose tag claims to be longer than the file."""
    why = f"its ID3 tag says that it is {tag_bytes:,} bytes long, in a file of {path.stat().st_size:,} bytes"
    at = next_frame(path, 10)
    if at is None:
        raise SoundError("corrupt", f"{why}, and no MP3 begins in or near it")
    opened = Decoder(OpenEnded(path, at))
    opened.damage = repaired(why)
    return opened


def continued(path: Path, file: Opened) -> Decoder | None:
    """What follows in an MP3 whose header counts fewer frames than there are, or behind which another was put."""
    if isinstance(file, MediaDecoder) or not isinstance(file.name, int) or file.fault is not None:
        return None
    at = next_frame(path, file.bytes_read or 0)
    if at is None:
        return None
    more = Decoder(OpenEnded(path, at))
    if (more.samplerate, more.channels) == (file.samplerate, file.channels):
        return more
    more.close()
    return None


def reason(fault: Exception | None) -> str:
    text = getattr(fault, "error_string", None) or getattr(fault, "strerror", None) or str(fault)
    return shown(text.strip().rstrip(".")) or "unknown error"


def check_header(path: Path, file: Opened, longest_s: float) -> None:
    """Refuse what cannot be used at all. Raises SoundError."""
    if not _LOWEST_RATE_HZ <= file.samplerate <= _HIGHEST_RATE_HZ:
        raise SoundError("corrupt", f"its header says {file.samplerate} samples a second")
    if file.frames <= 0:
        if file.damage is not None and file.damage.is_loss:
            raise SoundError(file.damage.problem, file.damage.why)
        if file.format == "OGG" and (fault := ogg_fault(path, file.samplerate)):
            raise SoundError(*fault)
        size = path.stat().st_size
        raise SoundError("empty", f"its header says that no samples follow, in a file of {size:,} bytes")
    there = min(file.promised or 0, file.last_frame[1] or _NO_COUNT)
    check_length(file.seconds(there), longest_s)


def check_length(length_s: float, longest_s: float) -> None:
    if length_s > longest_s:
        raise SoundError("too-long", f"{length_s / 3600:,.1f} h, more than audio.max-hours = {longest_s / 3600:g}")


def damage_of(path: Path, file: Opened, n_frames: int) -> Damage | None:
    """What is wrong with a file that was decoded to its end, or as far as it can be.

    Args:
        n_frames: how many came out of it.
    """
    if file.format == "OGG" and (fault := ogg_fault(path, file.samplerate, n_frames)):
        is_known = n_frames < file.frames < _NO_COUNT // 2
        return Damage(*fault, promised_s=file.seconds(file.frames) if is_known else None)
    promised = file.promised
    slack = _MP3_SLACK if file.format == "MP3" else 0
    promised_s = None if promised is None else file.seconds(promised)
    if file.fault is not None:
        if promised_s is None and file.last_frame[1]:
            promised_s = file.seconds(file.last_frame[1])
        return Damage(*_broken(path, file, n_frames), promised_s=promised_s)
    if promised is None or n_frames >= promised - slack:
        return file.damage
    if file.is_complete or (file.format == "FLAC" and promised == 2 * n_frames):
        return repaired(f"its header promises {promised_s:.2f} s, but nothing is missing")
    if file.format == "OGG":
        return Damage("corrupt", "some pages of the Ogg stream are broken", promised_s)
    return Damage("truncated", f"{n_frames:,} of the {promised:,} samples that its header promises", promised_s)


def damage_behind(path: Path, more: Decoder, counted_s: float, n_frames: int) -> Damage:
    """The damage of a file that goes on behind the end by its header.

    Args:
        more: what followed, decoded.
        n_frames: how many came out of both.
    """
    if more.fault is not None:
        return Damage(*_broken(path, more, n_frames))
    return repaired(f"its header promises {counted_s:.2f} s, but more sound follows")


def _broken(path: Path, file: Opened, n_frames: int) -> tuple[str, str]:
    """Whether a fault in decoding is at the end of the file, or within it."""
    at_s = file.seconds(n_frames)
    if (read := file.bytes_read) is not None and read >= path.stat().st_size:
        return "truncated", "the MP3 stream stops within a frame"
    if file.format == "FLAC" and file.last_frame[1] and file.last_frame[0] <= n_frames:
        return "truncated", "its last frame is broken or cut short"
    return "corrupt", f"decoding fails after {at_s:.2f} s ({reason(file.fault)})"
