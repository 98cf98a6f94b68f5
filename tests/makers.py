"""Signals, sound files and folders made on the spot, for the tests of the data side."""

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile

from birdtune.audio.decode import SoundFacts
from birdtune.audio.logmel import VGGISH, LogMel, mel_from_hz
from birdtune.data import file_index as file_indexes
from birdtune.data import frames
from birdtune.data.file_index import FileIndex, examine_all, identify
from birdtune.data.frames import FrameStore
from birdtune.data.labels import Label
from birdtune.data.scan import Listing, Problem, Recording, scan
from birdtune.data.selection import select
from birdtune.data.shard_writer import Entry
from birdtune.data.targets import WindowTargets, targets_of
from birdtune.errors import Interrupted
from birdtune.runtime import workers
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.settings import AudioSettings

Samples = npt.NDArray[np.float32]


def tone(
    seconds: float = 1.0, rate_hz: int = 16_000, *, frequency_hz: float = 1000.0, channels: int = 1, seed: int = 0
) -> Samples:
    """A sine of amplitude 0.4 in a little noise, another noise for each seed and channel. [frames, channels]"""
    n = round(seconds * rate_hz)
    sine = 0.4 * np.sin(2 * np.pi * frequency_hz * np.arange(n) / rate_hz)
    noise = 0.01 * np.random.default_rng(seed).standard_normal((n, channels))
    return (sine[:, None] + noise).astype(np.float32)


def write_sound(
    path: Path, samples: npt.NDArray[Any] | None = None, rate_hz: int = 16_000, *, seed: int = 0, **how: Any
) -> Path:
    """Write samples (default: one second that no other seed has) and the folders above; `how` as soundfile."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), tone(1.0, rate_hz, seed=seed) if samples is None else samples, rate_hz,
                    **{"format": soundfile_format(path), **how})  # fmt: skip
    return path


def soundfile_format(path: Path) -> str:
    """libsndfile's name of the format that a file name announces."""
    ending = path.suffix.lower()
    return {".aif": "AIFF", ".aiff": "AIFF", ".oga": "OGG", ".opus": "OGG"}.get(ending, ending[1:].upper())


def patched(path: Path, *changes: tuple[int, bytes], name: str = "patched") -> Path:
    """A copy beside the file with bytes replaced at some positions."""
    content = bytearray(path.read_bytes())
    for position, value in changes:
        content[position : position + len(value)] = value
    copy = path.with_name(f"{name}{path.suffix}")
    copy.write_bytes(content)
    return copy


def cut(path: Path, share: float) -> Path:
    """Shorten a file in place to a share of its bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    return path


def quiet() -> Journal:
    """A journal that says nothing."""
    return Journal(quiet=True)


class Said(Journal):
    """A journal that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str, **_: Any) -> None:
        self.lines.append(line)


def recording(name: str, content: str | None = None, *, duration_s: float = 1.0) -> Recording:
    """A recording that exists only as a record; its class is the first folder of its name."""
    facts = SoundFacts(16_000, 1, duration_s, -8.0, "WAV PCM_16")
    return Recording(name, Path(name), (Label(name.split("/")[0]),), content or f"content of {name}", facts)


def band_centres_hz(spec: LogMel) -> npt.NDArray[np.float64]:
    """Centre frequency of each mel band, in hertz, by the inverse of the HTK formula. [n_mels]"""
    edges = np.linspace(mel_from_hz(spec.low_hz), mel_from_hz(spec.high_hz), spec.n_mels + 2)
    return 700.0 * np.expm1(edges[1:-1] / 1127.0)


def one_class_each(windows: Any, columns: Sequence[int], kind: str = "softmax") -> WindowTargets:
    """Targets of windows whose recordings are of one class each: of these columns."""
    n_classes = max(columns, default=0) + 1
    labels = targets_of([[Label(str(column))] for column in columns], [str(column) for column in range(n_classes)])
    return WindowTargets(labels, windows, kind)


def make_store(folder: Path, lengths: dict[str, int], shards: int = 2) -> FrameStore:
    """A store whose frames tell where they lie: band 0 the recording's number, band 1 the frame's."""
    facts = SoundFacts(16_000, 1, 1.0, -8.0, "WAV PCM_16")
    store = FrameStore(folder, VGGISH, AudioSettings())
    store.folder.mkdir(parents=True)
    ends = [0] * shards
    for number, (content, n_rows) in enumerate(lengths.items()):
        which = number % shards
        block = np.zeros((n_rows, 64), "<f2")
        block[:, 0] = number
        block[:, 1] = np.arange(n_rows)
        with (store.folder / f"shard-{which}.rows").open("ab") as file:
            file.write(block.tobytes())
        store.add(Entry(content, f"shard-{which}.rows", ends[which], n_rows, 0, facts))
        ends[which] += n_rows
    return store


def run_here(
    function: Callable[[Any], Any],
    tasks: Sequence[Any],
    *,
    n_workers: int,
    interrupts: Interrupts,
    initializer: Callable[..., None] | None = None,
    initargs: tuple[Any, ...] = (),
    weight: Callable[[Any], float] = lambda task: 1.0,
) -> Iterator[tuple[Any, Any]]:
    """`workers.run_tasks` without processes, which take a second to start."""
    del n_workers, weight
    if initializer is not None:
        initializer(*initargs)
    for task in tasks:
        interrupts.check()
        yield task, function(task)


class Here:
    """`workers.Isolated` without a process, which takes a second to start."""

    def __init__(self, function: Callable[[Any], Iterator[Any]], initializer: Callable[[], None] | None = None) -> None:
        self.items = function

    def start(self) -> None:
        return None

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *fault: object) -> None:
        return None


def killed(task: Any) -> Iterator[Any]:
    """What a process of its own does that is killed at once. Here, since TensorFlow is not loaded to find it."""
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the modules of the data side decode in this process."""
    monkeypatch.setattr(frames, "run_tasks", run_here)
    monkeypatch.setattr(file_indexes, "run_tasks", run_here)


def with_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `without_processes` for a test of the processes."""
    monkeypatch.setattr(frames, "run_tasks", workers.run_tasks)
    monkeypatch.setattr(file_indexes, "run_tasks", workers.run_tasks)


def scan_and_select(
    folder: Path, file_index: FileIndex | None = None, *, short: str = "pad", longest_s: float = 3600.0, **how: Any
) -> tuple[Listing, list[Recording], list[Problem]]:
    """Scan, identify, examine and select, as a check does."""
    file_index = file_index or FileIndex(None, AudioSettings())
    listing = scan(folder)
    unusable = identify(listing.files, file_index, journal=quiet(), interrupts=Interrupts())
    examine_all(
        listing.files, file_index, unusable, longest_s=longest_s, workers=1, journal=quiet(), interrupts=Interrupts()
    )
    used, problems = select(
        listing, file_index, unusable, spec=VGGISH, short=short, longest_s=longest_s, **how
    )
    return listing, used, problems


def codes(problems: Sequence[Problem]) -> dict[str, str]:
    """Name → problem."""
    return {problem.recording: problem.problem for problem in problems}


@contextlib.contextmanager
def ordinary_folder() -> Iterator[Path]:
    """A folder, and the rights of a user who is not root while the block lasts: root may read all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if os.geteuid() != 0:
            yield folder
            return
        folder.chmod(0o777)
        try:
            os.seteuid(65534)
        except PermissionError:
            pytest.skip("root that may not become another user")
        try:
            yield folder
        finally:
            os.seteuid(0)


class StopAt(Interrupts):
    """A signal that comes at the n-th moment at which somebody looks for one."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = n

    def check(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Interrupted(15)


def write_tones(folder: Path, classes: Mapping[str, float], seconds: float, rate_hz: int, clips: int = 8) -> Path:
    """FOLDER/Class/Class N.wav: a tone of each class's frequency in Hz, other in pitch and strength in each clip."""
    for name, hertz in classes.items():
        for clip in range(clips):
            rng = np.random.default_rng([clip, len(name)])
            time = np.arange(round(seconds * rate_hz)) / rate_hz
            song = 0.3 * rng.uniform(0.5, 1.5) * np.sin(2 * np.pi * hertz * rng.uniform(0.95, 1.05) * time)
            samples = (song + 0.01 * rng.standard_normal(time.size)).astype(np.float32)
            write_sound(folder / name / f"{name} {clip}.wav", samples, rate_hz)
    return folder
