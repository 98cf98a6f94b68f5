"""The same input again: how long it takes to find out that nothing has changed.

20,000 small recordings, prepared once ─▶ seconds of `prepare` again, and of its parts
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Line, Measure, Result, Settings, birdtune, interleaved

RECORDINGS, CLASSES = 20_000, 200
TARGET_S = 5.0
# The least sound that can be told apart: a fifth of a second at 8 kHz, 16 bits.
SAMPLES, RATE_HZ = 1600, 8_000


def measure(settings: Settings) -> Result:
    """Prepare once, then again and again."""
    n = 60 if settings.quick else RECORDINGS
    make_recordings(settings.folder / "data", n, settings.seed)
    command = (
        "prepare",
        "--data",
        str(settings.folder / "data"),
        "--output",
        str(settings.folder / "output"),
    )
    again = birdtune(*command)
    first_s = again()
    seconds = interleaved({"again": again}, rounds=1 if settings.quick else 7)["again"]
    found = Measure("again", seconds)
    check = birdtune("check", *command[1:], "--model.checkpoint", "none")
    checked = Measure("check", interleaved({"check": check}, rounds=1 if settings.quick else 5)["check"])
    what = f"{n:,} recordings recognised as unchanged"
    lines = [
        Line(
            f"{what}: `prepare` from start to end", found.text(), f"the first time: {first_s:.1f} s", None,
            f"< {TARGET_S:g} s", found.median < TARGET_S, "files in the system's cache",
        ),
        Line(f"{what}: `check` from start to end", checked.text()),
    ]  # fmt: skip
    details: dict[str, Any] = {"first": first_s, "again": seconds, "check": list(checked.values)}
    return Result("unchanged", lines, details)


def make_recordings(folder: Path, n: int, seed: int) -> None:
    """Small wav files, no two alike, written without a library: 20,000 of them shall not take long."""
    random = np.random.default_rng(seed)
    sounds = random.integers(-8000, 8000, (n, SAMPLES), dtype="<i2")
    header = _wav_header(SAMPLES * 2)
    for label in range(min(n, CLASSES)):
        (folder / f"Class_{label:03}").mkdir(parents=True)
    for number in range(n):
        label = f"Class_{number % CLASSES:03}"
        path = os.path.join(folder, label, f"{label}-{100_000 + number}_0.wav")  # noqa: PTH118 -- 20,000 times
        with open(path, "wb") as file:  # noqa: PTH123
            file.write(header + sounds[number].tobytes())


def _wav_header(n_bytes: int) -> bytes:
    def little(value: int, size: int = 4) -> bytes:
        return value.to_bytes(size, "little")

    described = (
        little(1, 2) + little(1, 2) + little(RATE_HZ) + little(2 * RATE_HZ) + little(2, 2) + little(16, 2)
    )
    return b"RIFF" + little(36 + n_bytes) + b"WAVEfmt " + little(16) + described + b"data" + little(n_bytes)
