"""What a file is, by its first bytes; and sound that libsndfile cannot open, read through FFmpeg.

    path ─▶ kind_of ─▶ Kind: in words, what to do about it, FFmpeg's name of its format
    path, Kind ─▶ MediaDecoder ─▶ blocks [frames, channels] float32, as `container.Decoder` gives them

FFmpeg is an optional second decoder: the package `av` (PyAV), which `./entrypoint.sh extras media` installs. It is
given one open file and the name of one format, so that a crafted file can name no other file and no address.
"""

import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from birdtune.audio.faults import Damage, SoundError
from birdtune.errors import shown

_HEAD_BYTES = 1024


@dataclass(frozen=True)
class Kind:
    """What a file is.

    Attributes:
        words: "an MP4 or M4A file"; follows "it is".
        advice: what to do about it where a recording was expected; "" where nothing special helps.
        demuxer: FFmpeg's name of the format, where FFmpeg reads sound from it; else None.
        is_sound: libsndfile reads such files.
    """

    words: str
    advice: str = ""
    demuxer: str | None = None
    is_sound: bool = False


# Offset, bytes that stand there, and what that means; the first that fits counts.
_SIGNATURES: Final[tuple[tuple[int, bytes, Kind], ...]] = (
    (0, b"RF64", Kind("an RF64 file", is_sound=True)),
    (0, b"BW64", Kind("a BW64 file (a WAV of more than 4 GB)", demuxer="wav", is_sound=True)),
    (8, b"WAVE", Kind("a WAV file", demuxer="wav", is_sound=True)),
    (8, b"AVI ", Kind("an AVI video", demuxer="avi")),
    (8, b"WEBP", Kind("a picture (WebP)")),
    (0, b"riff\x2e\x91\xcf\x11", Kind("a W64 file", is_sound=True)),
    (8, b"AIFF", Kind("an AIFF file", demuxer="aiff", is_sound=True)),
    (8, b"AIFC", Kind("an AIFF file", demuxer="aiff", is_sound=True)),
    (0, b"fLaC", Kind("a FLAC file", demuxer="flac", is_sound=True)),
    (0, b"OggS", Kind("an Ogg file", demuxer="ogg", is_sound=True)),
    (0, b"ID3", Kind("an MP3 file", demuxer="mp3", is_sound=True)),
    (0, b"\xff\xf1", Kind("raw AAC", demuxer="aac")),
    (0, b"\xff\xf9", Kind("raw AAC", demuxer="aac")),
    (0, b".snd", Kind("an AU file", is_sound=True)),
    (0, b"caff", Kind("a CAF file", demuxer="caf", is_sound=True)),
    (4, b"ftyp", Kind("an MP4 or M4A file", demuxer="mov")),
    (4, b"moov", Kind("a QuickTime file", demuxer="mov")),
    (4, b"mdat", Kind("a QuickTime file", demuxer="mov")),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", Kind("a WMA file", demuxer="asf")),
    (0, b"wvpk", Kind("a WavPack file", demuxer="wv")),
    (0, b"MAC ", Kind("a Monkey's Audio file", demuxer="ape")),
    (0, b"TTA1", Kind("a TTA file", demuxer="tta")),
    (0, b"DSD ", Kind("a DSF file", demuxer="dsf")),
    (0, b"#!AMR", Kind("an AMR file", demuxer="amr")),
    (0, b"\x1a\x45\xdf\xa3", Kind("a WebM or Matroska file", demuxer="matroska")),
    (0, b"FLV", Kind("an FLV video", demuxer="flv")),
    (0, b"WAC0", Kind("a WAC file of Wildlife Acoustics", "Convert it to WAV with their Kaleidoscope or wac2wav.")),
    (0, b"PK\x03\x04", Kind("a ZIP archive", "Unpack it, and put the recordings here.")),
    (0, b"Rar!", Kind("a RAR archive", "Unpack it, and put the recordings here.")),
    (0, b"7z\xbc\xaf", Kind("a 7z archive", "Unpack it, and put the recordings here.")),
    (0, b"\x1f\x8b", Kind("a gzip archive", "Unpack it, and put the recordings here.")),
    (257, b"ustar", Kind("a tar archive", "Unpack it, and put the recordings here.")),
    (0, b"%PDF", Kind("a PDF")),
    (0, b"\x89PNG", Kind("a picture (PNG)")),
    (0, b"\xff\xd8\xff", Kind("a picture (JPEG)")),
    (0, b"GIF8", Kind("a picture (GIF)")),
    (0, b"II*\x00", Kind("a picture (TIFF)")),
    (0, b"MM\x00*", Kind("a picture (TIFF)")),
    (0, b"SQLite format 3", Kind("an SQLite database")),
    (0, b"\x89HDF", Kind("an HDF5 file")),
    (0, b"\x93NUMPY", Kind("a NumPy array")),
    (0, b"version https://git-lfs",
     Kind("a Git LFS pointer, not the recording itself", "Fetch the recordings with `git lfs pull`.")),
    (0, b"/annex/objects/", Kind("a git-annex pointer, not the recording itself", "Fetch it with `git annex get`.")),
)
# Offset, bytes that stand there, the first four bytes of such files, and what it is then.
_BEHIND_FIRST: Final = (
    (8, b"WAVE", (b"RIFF", b"RIFX", b"RF64", b"BW64"), "a WAV file"),
    (8, b"AIFF", (b"FORM",), "an AIFF file"),
    (4, b"\x00\x00\x00\x22", (b"fLaC",), "a FLAC file"),  # the length of the block that comes first in all
    (28, b"\x01vorbis", (b"OggS",), "an Ogg file"),
)
_MEND_FIRST: Final = "Copy it again from where it comes, or write {} there."
# First bytes of files whose kind depends on what follows, and how many bytes that takes.
_CHUNKED = {b"RIFF": "a WAV file", b"RIFX": "a WAV file", b"FORM": "an AIFF file"}
_SHORTEST = 12
_SAVED_PAGE = Kind(
    "a web page (HTML), most likely saved in place of the recording",
    "Download the recording again; where a login or a quota stood in the way, the page says so.",
)
_RAVEN = Kind(
    "a Raven selection table, not a recording", "Keep it beside the recording, with a name that ends in .txt."
)
_HTML = re.compile(rb"^\s*(?:<!doctype html|<html|<head|<\?xml[^>]*>\s*<!doctype html)", re.IGNORECASE)
# Eleven bits of synchronisation, a version, a layer (0 is AAC's, which comes before) and a bit rate that there is.
_MPEG_AUDIO = re.compile(rb"^\x00*\xff[\xe2-\xe7\xf2-\xf7\xfa-\xff][\x10-\xef]")
_UNKNOWN = Kind("of no kind that is known here")


def kind_of(path: Path) -> Kind:
    """What a file is. Reads its first kilobyte. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return kind_of_bytes(head)


def kind_of_bytes(head: bytes) -> Kind:
    """What a file is that begins with some bytes; a kilobyte is enough."""
    for offset, mark, first, words in _BEHIND_FIRST:
        if head[offset : offset + len(mark)] == mark and head[:4] not in first:
            return Kind(f"{words} whose first four bytes are damaged", _MEND_FIRST.format(shown(first[0].decode())))
    for offset, mark, kind in _SIGNATURES:
        if head[offset : offset + len(mark)] == mark:
            return kind
    if 0 < len(head) < _SHORTEST and head[:4] in _CHUNKED:
        return Kind(f"the beginning of {_CHUNKED[head[:4]]}, and nothing more", "Copy it again from where it comes.")
    if _MPEG_AUDIO.match(head):
        return Kind("an MP3 file", demuxer="mp3", is_sound=True)
    if not head.strip(b"\x00"):
        words = "nothing but zeros" if head else "empty"
        return Kind(words, "Copy it again from where it comes; the card or the copy may have failed.")
    if _HTML.match(head):
        return _SAVED_PAGE
    if b"Begin Time (s)" in head:
        return _RAVEN
    if head.lstrip()[:5] == b"<?xml":
        return Kind("an XML text")
    if head.lstrip()[:1] in (b"{", b"[") and _is_text(head):
        return Kind("a JSON text")
    return Kind("a text") if _is_text(head) else _UNKNOWN


def _is_text(head: bytes) -> bool:
    if re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", head):
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as fault:
        return fault.start > len(head) - 4  # a character that is cut at the end
    return True


# ---- FFmpeg -------------------------------------------------------------------------------------

HOW_TO_GET: Final = "./entrypoint.sh extras media (in an image: build it with --build-arg EXTRAS=media)"


def is_installed() -> bool:
    """Whether the second decoder is there."""
    return importlib.util.find_spec("av") is not None


class MediaDecoder:
    """A file opened by FFmpeg, read from its beginning to its end; of several streams of sound, the first.

    Args:
        path: the file.
        kind: what it is; `kind.demuxer` names the format.

    Raises:
        SoundError: "unsupported-format" (the decoder is not installed, or knows no such sound), "corrupt".
    """

    # What its header says of the length is an estimate.
    promised: int | None = None
    frames = 2**63 - 1
    # As of a container.Decoder; of the header's damage nothing is known.
    damage: Damage | None = None
    fault: Exception | None = None
    is_complete = False
    last_frame = 0, 0
    bytes_read: int | None = None

    def __init__(self, path: Path, kind: Kind) -> None:
        if not is_installed():
            raise SoundError("unsupported-format", f"it is {kind.words}; to read such files: {HOW_TO_GET}")
        import av

        self._fault: type[Exception] = av.error.FFmpegError
        self._file = path.open("rb")
        try:
            self._container: Any = av.open(self._file, format=kind.demuxer, metadata_errors="replace")
            if not self._container.streams.audio:
                raise SoundError("not-audio", f"it is {kind.words}, and there is no sound in it")
            stream = self._container.streams.audio[0]
            self.samplerate = int(stream.codec_context.sample_rate or 0)
            self.channels = int(stream.codec_context.channels or 0)
            if not self.samplerate or not self.channels:
                raise SoundError("corrupt", f"it is {kind.words}, whose header names no sample rate or no channels")
        except (av.error.FFmpegError, ValueError) as fault:
            self._file.close()
            why = getattr(fault, "strerror", None) or fault  # of FFmpeg's faults, without its number and the path
            detail = f"it is {kind.words}, and no sound can be decoded from it ({shown(why)})"
            raise SoundError("corrupt", detail) from fault
        except SoundError:
            self._file.close()
            raise
        self.format = str(kind.demuxer).upper()
        self.subtype = str(stream.codec_context.name).upper()
        self._resampler = av.AudioResampler(format="fltp", layout=stream.codec_context.layout, rate=self.samplerate)
        self._decoded = self._blocks(stream)
        self._waiting: npt.NDArray[np.float32] = np.zeros((0, self.channels), np.float32)

    def __enter__(self) -> "MediaDecoder":
        return self

    def __exit__(self, *fault: object) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()
        self._file.close()

    def _blocks(self, stream: Any) -> Iterator[npt.NDArray[np.float32]]:
        for frame in self._container.decode(stream):
            for even in self._resampler.resample(frame):
                yield np.asarray(even.to_ndarray(), np.float32).T  # [frames, channels]
        for even in self._resampler.resample(None):
            yield np.asarray(even.to_ndarray(), np.float32).T

    def seconds(self, frames: int) -> float:
        return float(frames / self.samplerate)

    def read(self, frames: int, dtype: str = "float32", always_2d: bool = True) -> npt.NDArray[np.float32]:
        """The next frames, fewer at the end. [frames, channels], full scale 1

        Where decoding breaks off, `fault` says why, and no more follow.
        """
        assert dtype == "float32" and always_2d, "nothing else is asked of it"
        parts, there = [self._waiting], len(self._waiting)
        try:
            while there < frames and (block := next(self._decoded, None)) is not None:
                parts.append(block)
                there += len(block)
        except self._fault as fault:
            self.fault = fault
        whole = np.concatenate(parts)
        self._waiting = whole[frames:]
        return np.ascontiguousarray(whole[:frames])
