"""Detections in long recordings: the command beside the backbone alone, and its memory by the length of the sound.

    a recording at 48 kHz ─▶ `predict --format csv`; its windows ─▶ BirdNET's network alone ─▶ seconds an hour of sound
    30 min, 5 h ─▶ `predict --format csv`, one whole command each ─▶ peak of all its processes together

A window begins every 1.5 s (`--detect.hop-s 1.5`); every 0.5 s, the default, there are three times as many. Seconds are
those of a long recording less those of a short one, so that what it takes to start and to end is not counted. BirdNET's
weights lie where BENCH_BIRDNET says. The part takes about 6 minutes on two cores; memory is measured up to 5 h of
sound, and not more, for their sake.
"""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import numpy as np
import soundfile

from bench.harness import ROOT, Line, Measure, Result, Settings, as_users_have_it, candidate, interleaved
from bench.learning import birdnet
from bench.memory import POLL_S, family_mb

_RATE_HZ = 48_000
_HOUR_S = 3600
_BLOCK_S = 60
_HOP_S = 1.5
_HIDDEN = 0.95
_FLAT = 1.10


def measure(settings: Settings) -> Result:
    """The time of an hour of sound, and peaks of memory."""
    rate, seconds = _rate(settings)
    memory, peaks = _memory(settings)
    return Result("detect", [rate, memory], {"s": seconds, "MB": peaks})


# ---- beside the backbone alone ----------------------------------------------------------------------


def _rate(settings: Settings) -> tuple[Line, dict[str, list[float]]]:
    short_s, long_s = (6, 30) if settings.quick else (60, 660)
    paths = {name: _make_sound(settings.folder / f"{name}.wav", length_s, settings.seed)
             for name, length_s in (("short", short_s), ("long", long_s))}  # fmt: skip
    with ExitStack() as stack:
        children = {
            name: candidate(stack, settings, "bench.detect:command", str(birdnet()), str(path))
            for name, path in paths.items()
        }
        children["backbone"] = candidate(stack, settings, "bench.detect:backbone", str(paths["long"]))
        seconds = interleaved(children, rounds=1 if settings.quick else 3)
        counts = {name: child.values[-1] for name, child in children.items()}
    hours, n_windows = (long_s - short_s) / _HOUR_S, counts["long"] - counts["short"]
    took = [long - short for long, short in zip(seconds["long"], seconds["short"], strict=True)]
    ours = Measure("predict", [value / hours for value in took])
    alone = Measure("backbone", [value / counts["backbone"] * n_windows / hours for value in seconds["backbone"]])
    ratio = alone.median / ours.median
    line = Line(
        "1 h of 48 kHz sound to detections by BirdNET, a window every 1.5 s", ours.text(),
        f"its backbone alone, the same windows in the same batches: {alone.text()}", ratio, f"≥ {_HIDDEN:g}×",
        ratio >= _HIDDEN, f"{long_s} s of sound less {short_s} s of it, {n_windows} windows; loading is not counted",
    )  # fmt: skip
    return line, seconds


def command(weights: str, path: str) -> tuple[Callable[[], None], Callable[[], int]]:
    """`predict --format csv` with the model loaded before; the value of a turn is the number of windows."""
    from birdtune.config import Config
    from birdtune.pipeline import detect
    from birdtune.pipeline import predict as prediction
    from birdtune.pipeline.detection_model import Asked
    from birdtune.runtime.log import Journal
    from birdtune.runtime.signals import Interrupts
    from birdtune.serving.detection_ledger import NAME
    from birdtune.settings import DetectSettings
    from birdtune.training import devices

    devices.prepare_devices()
    model = prediction.scorer_in(Path(weights))
    out = Path(path).with_suffix("")
    config = Config(detect=DetectSettings(hop_s=_HOP_S))
    asked = Asked([Path(path)], out, "csv", Path(weights), species_list=None)

    def turn() -> int:
        with mock.patch.object(prediction, "scorer_in", lambda place: model):
            detect.detect(config, asked, Journal(quiet=True), Interrupts())
        rows = map(json.loads, (out / NAME).read_text("utf-8").splitlines())
        return sum(row["windows"] for row in rows)

    return lambda: shutil.rmtree(out, ignore_errors=True), turn


def backbone(path: str) -> Callable[[], int]:
    """BirdNET's network alone on the windows of a recording; the value of a turn is how many these are."""
    import tensorflow as tf

    from bench.backbone_speed import loaded
    from birdtune.audio import decode
    from birdtune.settings import EvaluateSettings
    from birdtune.training import devices

    devices.prepare_devices()
    found, compute = loaded()
    spec = found.front_end
    size = devices.windows_at_once(EvaluateSettings().batch_size, spec)
    windows = spec.windows_of(decode.read(Path(path), rate_hz=spec.rate_hz), spec.hop(_HOP_S))
    batches = [tf.constant(windows[begin : begin + size]) for begin in range(0, len(windows), size)]

    def turn() -> int:
        return sum(len(compute(batch).numpy()) for batch in batches)

    return turn


# ---- memory -----------------------------------------------------------------------------------------


def _memory(settings: Settings) -> tuple[Line, dict[str, float]]:
    lengths = {"20 s": 20, "40 s": 40} if settings.quick else {"30 min": 1800, "5 h": 5 * _HOUR_S}
    peaks = {}
    for name, length_s in lengths.items():
        path = _make_sound(settings.folder / "memory.wav", length_s, settings.seed)
        peaks[name] = _peak_mb(path)
        path.unlink()
    first, last = peaks.values()
    line = Line(
        "peak memory of `predict --format csv` by BirdNET, all processes together",
        ", ".join(f"{name}: {value:,.0f} MB" for name, value in peaks.items()), "", last / first, f"≤ {_FLAT:g}×",
        last / first <= _FLAT, "ratio: of the long recording by the short one",
    )  # fmt: skip
    return line, peaks


def _peak_mb(path: Path) -> float:
    """Detect in a recording; the most that all processes of the command had in memory at a time, in MB."""
    out = path.with_suffix("")
    arguments = [sys.executable, "-m", "birdtune", "predict", path, "--model", birdnet(), "--format", "csv"]
    arguments += [f"--detect.hop-s={_HOP_S}"]
    environment = as_users_have_it({"PYTHONPATH": str(ROOT / "code"), "TF_CPP_MIN_LOG_LEVEL": "2"})
    peak = 0.0
    with subprocess.Popen([*arguments, "--out", out], env=environment, stdout=subprocess.DEVNULL) as job:
        while job.poll() is None:
            peak = max(peak, family_mb(job.pid))
            time.sleep(POLL_S)
    shutil.rmtree(out, ignore_errors=True)
    if job.returncode:
        raise RuntimeError(f"the command ended with {job.returncode}; its reason stands above")
    return peak


# ---- the sound --------------------------------------------------------------------------------------


def _make_sound(path: Path, seconds: int, seed: int) -> Path:
    """Noise, with two seconds of a warble in every seven: one block again and again, which costs little to write."""
    time_s = np.arange(_BLOCK_S * _RATE_HZ) / _RATE_HZ
    warble = 0.3 * np.sin(2 * np.pi * 2500 * time_s + 250 * np.sin(2 * np.pi * 6 * time_s)) * (time_s % 7 < 2)
    noise = 0.02 * np.random.default_rng(seed).standard_normal(time_s.size)
    block = np.round(32_767 * (warble + noise)).astype(np.int16)
    with soundfile.SoundFile(path, "w", _RATE_HZ, 1, "PCM_16") as file:
        for begin in range(0, seconds, _BLOCK_S):
            file.write(block[: min(_BLOCK_S, seconds - begin) * _RATE_HZ])
    return path
