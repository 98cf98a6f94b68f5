"""One segment of a video of YouTube → a recording of 16 bit, by yt-dlp, which runs as a process of its own.

    Item with segment_s ─▶ YouTube.fetch ─▶ FLAC or WAV | RefusedError
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import soundfile

from birdtune.collect.item import Budget, Item, RefusedError
from birdtune.collect.web import Pace
from birdtune.errors import InputError
from birdtune.runtime.storage import UNFINISHED

FORMATS: Final = ("flac", "wav")
_PROGRAM: Final = "yt-dlp"
_HOST: Final = "www.youtube.com"
_LONGEST_S: Final = 300.0
_LOOK_S: Final = 0.1  # how often a process is looked at
_LEAST_SHARE: Final = 0.9  # of a segment; less is too short
_MOST_MESSAGE_BYTES: Final = 1 << 16
# What yt-dlp says of a video, and what it means; the first that fits counts.
_MEANINGS: Final = (
    ("rate-limited", r"429|too many requests|rate-limited|not a bot|captcha"),
    ("private", r"private|members|join this channel"),
    ("age", r"confirm your age|age-restricted|inappropriate for some"),
    ("region", r"in your country|from your location|geo.?restrict"),
    ("copyright", r"copyright"),
    ("removed", r"removed|terminated|no longer available|closed|deleted|unavailable|not available\b(?!.*format)"),
    ("no-sound", r"no video formats|format is not available|live event"),
    ("timeout", r"timed out"),
    ("server", r"http error (?:5\d\d|403)"),
    ("network", r"unable to download|connection|resolution|resolve|network"),
)


def programs() -> str:
    """Where yt-dlp is. Raises InputError: it or FFmpeg is not there."""
    beside = Path(sys.executable).with_name(_PROGRAM)
    found = shutil.which(_PROGRAM) or (str(beside) if beside.is_file() else None)
    if found is None:
        raise InputError(
            "collect audioset: yt-dlp is not there. Install it: ./entrypoint.sh extras collect; in a container: "
            "--build-arg EXTRAS=collect."
        )
    if shutil.which("ffmpeg") is None:
        raise InputError("collect audioset: FFmpeg is not there, and yt-dlp needs it. On Debian: apt install ffmpeg.")
    return found


class YouTube:
    """Fetches segments of videos.

    Args:
        kind: one of FORMATS.
        most_bytes: of what is fetched for one segment.
        budget: of all segments together.
        stop: ends a process at once.
    """

    def __init__(
        self, program: str, kind: str, timeout_s: float, most_bytes: int, budget: Budget, pace: Pace,
        stop: threading.Event,
    ) -> None:  # fmt: skip
        self._program, self._kind, self._timeout_s, self._most_bytes = program, kind, timeout_s, most_bytes
        self._budget, self._pace, self._stop = budget, pace, stop

    def fetch(self, item: Item, target: Path) -> None:
        """Write a segment into a file that is not there yet. Raises RefusedError or BudgetSpentError."""
        assert item.segment_s is not None
        self._pace.wait(_HOST)
        with TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as room:
            folder = Path(room)
            code = self._run(command(self._program, item, self._timeout_s), folder)
            clip = folder / "clip.wav"
            if code or not clip.is_file():
                raise _refusal(_last_error(folder / "messages"), code)
            _cut(clip, target, item.segment_s[1] - item.segment_s[0], self._kind)

    def _run(self, arguments: list[str], folder: Path) -> int:
        """Run a program in a folder, watched: its exit code."""
        path = f"{os.environ.get('PATH', '')}:{Path(self._program).parent}"  # where its JavaScript runtime may be, too
        until, seen = time.monotonic() + _LONGEST_S, 0
        with (folder / "messages").open("wb") as messages:
            process = subprocess.Popen(
                arguments, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages,
                start_new_session=True, env=os.environ | {"PATH": path},
            )  # fmt: skip
            try:
                while process.poll() is None:
                    if self._stop.wait(_LOOK_S):
                        raise RefusedError("waiting", "stopped")
                    if time.monotonic() > until:
                        raise RefusedError("timeout", f"not done after {_LONGEST_S:.0f} s")
                    seen = self._counted(folder, seen)
                self._counted(folder, seen)
            finally:
                _end(process)
        return process.returncode

    def _counted(self, folder: Path, seen: int) -> int:
        """The most bytes that lay there at once; what is new is counted. Raises RefusedError or BudgetSpentError."""
        there = 0
        for entry in os.scandir(folder):
            try:
                there += entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                continue  # it was renamed meanwhile
        if there > self._most_bytes:
            raise RefusedError("too-large", f"more than {self._most_bytes:,} bytes")
        self._budget.take(max(0, there - seen))
        return max(there, seen)


def command(program: str, item: Item, timeout_s: float) -> list[str]:
    """How yt-dlp is called for a segment; nothing of the user's own configuration counts."""
    assert item.segment_s is not None
    start_s, end_s = item.segment_s
    return [
        program, "--ignore-config", "--no-playlist", "--no-progress", "--no-cache-dir", "--no-part",
        "--socket-timeout", f"{timeout_s:g}", "--retries", "2", "--format", "bestaudio/best",
        "--download-sections", f"*{start_s:g}-{end_s:g}", "--extract-audio", "--audio-format", "wav",
        "--output", "clip.%(ext)s", "--", item.url,
    ]  # fmt: skip


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process with all that it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _last_error(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _MOST_MESSAGE_BYTES))
        lines = file.read().decode("utf-8", "replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "")


def _refusal(message: str, code: int) -> RefusedError:
    """What a message of yt-dlp means, e.g. `ERROR: [youtube] ID: Private video. Sign in …`."""
    said = re.sub(r"^ERROR:\s*(?:\[[\w:]+\]\s*)?(?:[\w-]{11}:\s*)?", "", message)
    for reason, pattern in _MEANINGS:
        if re.search(pattern, said, re.IGNORECASE):
            return RefusedError(reason, said)
    return RefusedError("failed", said or f"yt-dlp ended with {code} and left no sound")


def _cut(clip: Path, target: Path, seconds: float, kind: str) -> None:
    """Write the first seconds of a clip with 16 bit. Raises RefusedError: it is too short, or no sound."""
    try:
        with soundfile.SoundFile(clip) as file:
            wanted, rate_hz = round(seconds * file.samplerate), int(file.samplerate)
            samples = file.read(wanted, dtype="int16", always_2d=True)  # [frames, channels]
    except soundfile.LibsndfileError as fault:
        raise RefusedError("not-audio", "yt-dlp left something else than a WAV") from fault
    if len(samples) < _LEAST_SHARE * wanted:
        raise RefusedError("too-short", f"{len(samples) / rate_hz:.1f} of {seconds:g} s")
    soundfile.write(target, samples, rate_hz, format=kind.upper(), subtype="PCM_16")
