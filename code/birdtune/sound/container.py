"""Sound file → an open decoder, and what its header is worth.

    path ─▶ open_sound ─▶ Decoder ─▶ check_header ─▶ None, or what is to be said of a file that is cut short

What a file holds is found out by its content; its name's ending only says whether it claims to be sound at all.
"""

import io
import os
import re
from pathlib import Path
from typing import Any, Final

import soundfile

from birdtune.errors import shown
from birdtune.sound import ogg
from birdtune.sound.faults import SoundError
from birdtune.sound.kinds import kind_of
from birdtune.sound.media import MediaDecoder

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
# Sound that libsndfile cannot open and media.py can.
FOREIGN_ENDINGS: Final = frozenset(
    [".m4a", ".m4b", ".mp4", ".mov", ".aac", ".wma", ".amr", ".ape", ".wv", ".webm", ".mkv", ".mka", ".3gp", ".dsf",
     ".tta"]
)

# libsndfile's SF_ERR_UNRECOGNISED_FORMAT, and SFE_BAD_FILE: what is called .mp3 it gives to the decoder of MP3
# whatever it holds, which says so of what is none.
_NO_SOUND = (1, 7)
# SF_ERR_UNSUPPORTED_ENCODING: a WAV or AIFF that holds MP3 or AAC, for instance.
_UNKNOWN_ENCODING = 4
_LOWEST_RATE_HZ, _HIGHEST_RATE_HZ = 1_000, 2_000_000
# How libsndfile reports a length that disagrees with the file's: WAV, AIFF, AU, W64 and RF64.
_SHORT_DATA = re.compile(
    r"^\s*(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", re.MULTILINE
)
# Recorders that write to a pipe put these where the length belongs; it says nothing about the sound.
_UNKNOWN_LENGTHS = frozenset({0xFFFFFFFF, 0x7FFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF - 36})
# libsndfile's count of frames when the header has none (SF_COUNT_MAX), as in FLAC written to a pipe.
_NO_COUNT = 2**63 - 1


class Decoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile ships no types
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


def open_sound(path: Path) -> Decoder | MediaDecoder:
    """Open a sound file.

    Raises:
        SoundError: "empty", "not-audio", "corrupt", or "unsupported-format" where the second decoder would be needed.
        OSError: the system does not give its bytes.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise SoundError("empty", "the file has no bytes")
        # As bytes: a name need not be UTF-8, and soundfile would insist.
        opened = Decoder(os.fsencode(path))
        if opened.format == "MP3" and not _mp3_tells_its_length(path):
            opened.close()
            opened = Decoder(_OpenEnded(path))
        return opened
    except soundfile.LibsndfileError as fault:
        kind = kind_of(path)
        if kind.demuxer is not None and (not kind.is_sound or fault.code == _UNKNOWN_ENCODING):
            return MediaDecoder(path, kind)
        if fault.code in _NO_SOUND and not kind.is_sound:
            raise SoundError("not-audio", f"it is {kind.words}. {kind.advice}".rstrip(". ")) from fault
        raise SoundError("corrupt", f"no sound can be decoded from it ({reason(fault)})") from fault


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


def reason(fault: Exception) -> str:
    text = getattr(fault, "error_string", None) or str(fault)
    return shown(text.strip().rstrip(".")) or "unknown error"


def check_header(path: Path, file: Decoder | MediaDecoder, longest_s: float) -> SoundError | None:
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
            check_ogg(path, file.samplerate)
        size = path.stat().st_size
        raise SoundError("empty", f"its header says that no samples follow, in a file of {size:,} bytes")
    check_length((file.promised or 0) / file.samplerate, longest_s)
    return short


def check_length(length_s: float, longest_s: float) -> None:
    if length_s > longest_s:
        raise SoundError(
            "too-long", f"{length_s / 3600:,.1f} h, more than sound.max-hours = {longest_s / 3600:g}"
        )


def check_ogg(path: Path, rate_hz: int, heard: int | None = None) -> None:
    if found := ogg.fault(path, rate_hz, heard):
        raise SoundError(*found)
