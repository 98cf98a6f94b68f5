"""How much memory the job takes, and that the amount of sound does not matter.

1 h, 20 h, 1 h + a file of 24 h ─▶ one whole job each ─▶ peak of all its processes together, in each stage

Beside it: all windows held in memory as float64, which is what jibjib's training does with them.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from bench.harness import ROOT, Child, Line, Result, Settings

STAGES = ("prepare", "train", "evaluate", "export", "report")
_RATE_HZ = 22_050  # so that resampling is part of it
_CLASSES = ("low", "middle", "high")
_BLOCK_S = 60
POLL_S = 0.05
_MB = 1e6
_PATCH_S = 0.96
_FLAT = 1.10
# The network that is small in memory, so that what the sound takes would show.
_JOB = ("--model.checkpoint", "none", "--model.backbone", "vggish-small", "--train.epochs", "1")


def measure(settings: Settings) -> Result:
    """Run the job on more and more sound."""
    minute, unit = (6, 60) if settings.quick else (60, 3600)
    plan = {
        "1 h": [(minute, unit // minute)],
        "20 h": [(minute, 20 * unit // minute)],
        "1 h and a file of 24 h": [(minute, unit // minute), (24 * unit, 1)],
    }
    peaks: dict[str, dict[str, float]] = {}
    for name, files in plan.items():
        print(f"  {name}", file=sys.stderr, flush=True)
        data = settings.folder / "data"
        _make_sound(data, files, settings.seed)
        # The whole job takes a quarter of a minute even without any sound.
        peaks[name] = _peaks("prepare" if settings.quick else "run", data, settings.folder / "output")
        subprocess.run(["rm", "-rf", str(data), str(settings.folder / "output")], check=True)
    hours = [unit / 3600, 20 * unit / 3600]
    held = [_all_in_memory(each) for each in hours]
    lines = [_line(stage, peaks, held) for stage in STAGES if stage in peaks["1 h"]]
    details = {"MB": peaks, "all windows in memory, MB": dict(zip(("1 h", "20 h"), held, strict=True))}
    return Result("memory", lines, details)


def _line(stage: str, peaks: dict[str, dict[str, float]], held: list[float]) -> Line:
    values = {name: found[stage] for name, found in peaks.items()}
    first, *others = values.values()
    ratio = max(others) / first
    figure = ", ".join(f"{name}: {value:,.0f} MB" for name, value in values.items())
    beside = f"all windows in memory: {held[0]:,.0f} → {held[1]:,.0f} MB" if stage == "train" else ""
    return Line(
        f"peak of {stage}", figure, beside, ratio, f"≤ {_FLAT:g}×", ratio <= _FLAT,
        "ratio: the most of the larger sets by that of 1 h",
    )  # fmt: skip


# ---- the sound ----------------------------------------------------------------------------------


def _make_sound(folder: Path, files: list[tuple[int, int]], seed: int) -> None:
    """Write files of so many seconds, so many of each length, in turn into three classes."""
    generator = np.random.default_rng(seed)
    # One sound a class, of which each block is a part: making 45 hours of noise would take longer than hearing it.
    sounds = [_tone(700.0 * (label + 1), _BLOCK_S + 1, generator) for label in range(len(_CLASSES))]
    number = 0
    for seconds, count in files:
        for _ in range(count):
            label = number % len(_CLASSES)
            path = folder / _CLASSES[label] / f"{_CLASSES[label]}-{number:05d}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            with soundfile.SoundFile(path, "w", _RATE_HZ, 1, "PCM_16") as file:
                for block_s in _blocks(seconds):
                    begin = generator.integers(_RATE_HZ)
                    block = sounds[label][begin : begin + block_s * _RATE_HZ]
                    block[0] = number  # no two files are the same
                    file.write(block)
            number += 1


def _blocks(seconds: int) -> Iterator[int]:
    for begin in range(0, seconds, _BLOCK_S):
        yield min(_BLOCK_S, seconds - begin)


def _tone(frequency_hz: float, seconds: int, generator: np.random.Generator) -> np.ndarray:
    time_s = np.arange(seconds * _RATE_HZ, dtype=np.float32) / _RATE_HZ
    sine = 0.3 * np.sin(2 * np.pi * np.float32(frequency_hz) * time_s)
    sound = sine + 0.02 * generator.standard_normal(time_s.size, np.float32)
    return np.round(32_767 * sound).astype(np.int16)


# ---- the job, watched ---------------------------------------------------------------------------


def _peaks(command: str, data: Path, output: Path) -> dict[str, float]:
    """Run the job; stage → the most that all its processes together had in memory at a time, in MB."""
    arguments = [sys.executable, "-m", "birdtune", command, "--data", data, "--output", output, *_JOB]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2"}
    peaks: dict[str, float] = {}
    with subprocess.Popen(arguments, env=environment, stdout=subprocess.DEVNULL, text=True) as job:
        while job.poll() is None:
            stage = _stage(output)
            peaks[stage] = max(peaks.get(stage, 0.0), family_mb(job.pid))
            time.sleep(POLL_S)
    if job.returncode:
        raise RuntimeError(f"the job ended with {job.returncode}; its reason stands above")
    return peaks


def _stage(output: Path) -> str:
    """Which stage the job is in; before it says so, it is preparing."""
    try:
        return str(json.loads((output / "run.json").read_text("utf-8"))["stage"])
    except (OSError, ValueError, KeyError):
        return "prepare"


def family_mb(pid: int) -> float:
    """What a process and all that come of it have in memory, in MB; a page that several share counts for each."""
    return sum(map(_resident_mb, _family(pid)))


def _family(pid: int) -> list[int]:
    """A process and all that come of it."""
    found = [pid]
    for each in found:
        for task in Path(f"/proc/{each}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # it has just ended
    return found


def _resident_mb(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / _MB


# ---- the other way ------------------------------------------------------------------------------


def all_patches(hours: float) -> Any:
    """For a Child: hold every window of so much sound, as float64 [windows, 96, 64]; its resident MB."""

    def turn() -> float:
        features = np.zeros((round(hours * 3600 / _PATCH_S), 96, 64))
        features += 1.0  # memory that nothing was written to is not there yet
        return _resident_mb(os.getpid())

    return turn


def _all_in_memory(hours: float) -> float:
    with Child("bench.memory:all_patches", hours) as child:
        child()
        return float(child.value)
