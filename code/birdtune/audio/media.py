"""Sound that libsndfile cannot open, read through FFmpeg: an optional second decoder.

    path, Kind ─▶ MediaDecoder ─▶ blocks [frames, channels] float32, as `container.Decoder` gives them

FFmpeg comes with the package `av` (PyAV), which `./entrypoint.sh extras media` installs. It is given one open file and
the name of one format, so that a crafted file can name no other file and no address for it to open.
"""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from birdtune.audio.faults import Damage, SoundError
from birdtune.audio.kinds import Kind
from birdtune.errors import shown

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
    flac: None = None
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
        """Close the file."""
        self._container.close()
        self._file.close()

    def _blocks(self, stream: Any) -> Iterator[npt.NDArray[np.float32]]:
        for frame in self._container.decode(stream):
            for even in self._resampler.resample(frame):
                yield np.asarray(even.to_ndarray(), np.float32).T  # [frames, channels]
        for even in self._resampler.resample(None):
            yield np.asarray(even.to_ndarray(), np.float32).T

    def seconds(self, frames: int) -> float:
        """How long so many frames last."""
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
