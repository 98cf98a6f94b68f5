"""Where in recordings their species surely is: as BirdNET's own classifier scores it.

    recordings in class folders ─▶ certain_windows ─▶ windows of 3 s with the species in them
    the loudest of each window, 1 s to 3 s ─▶ certain_calls ─▶ those in which it is the species by itself

A recording of a species is not its song throughout, and neither is the loudest second of a window with its song.
BirdNET's weights lie where BENCH_BIRDNET says.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import soundfile

from bench import learning, soundscapes
from bench.harness import birdtune
from bench.learning import birdnet
from bench.made_sets import Clip, loudest_from
from bench.soundscapes import RATE_HZ, Stretches

CERTAIN: Final = 0.5  # BirdNET's score of the species from which on it surely is there


def certain_windows(clips: Sequence[Clip], folder: Path) -> Stretches:
    """Windows of recordings in which BirdNET is sure of the species that they are named after."""
    found: defaultdict[Path, list[tuple[float, float]]] = defaultdict(list)
    for path, start_s, end_s in _certain(clips[0].path.parents[1], folder, "clips"):
        found[path].append((start_s, end_s))
    return found


def certain_calls(clips: Sequence[Clip], windows: Stretches, folder: Path, seed: int) -> Stretches:
    """Of each of some windows the loudest, as long as a call is drawn to be, if BirdNET is sure of it by itself.

    Args:
        windows: of `certain_windows`.
        folder: for the calls, as recordings in class folders.
    """
    generator = np.random.default_rng([seed, 12])
    calls: dict[Path, tuple[Path, float, float]] = {}
    for clip in clips:
        if clip.path not in windows:
            continue
        whole = soundscapes.calls_sound(clip.path)
        for number, (begin_s, end_s) in enumerate(windows[clip.path]):
            window = whole[round(begin_s * RATE_HZ) : round(end_s * RATE_HZ)]
            n = min(len(window), round(generator.uniform(*soundscapes.CALL_S) * RATE_HZ))
            first = round(begin_s * RATE_HZ) + loudest_from(window, n)
            place = folder / "calls" / clip.label / f"{clip.path.stem}_{number}.wav"
            place.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(place, soundscapes.faded(whole[first : first + n]), RATE_HZ, subtype="FLOAT")
            calls[place] = (clip.path, first / RATE_HZ, (first + n) / RATE_HZ)
    found: defaultdict[Path, list[tuple[float, float]]] = defaultdict(list)
    for place, _, _ in _certain(folder / "calls", folder, "calls"):
        path, begin_s, end_s = calls[place]
        found[path].append((begin_s, end_s))
    return found


def _certain(recordings: Path, folder: Path, name: str) -> list[tuple[Path, float, float]]:
    """Windows of recordings in class folders in which BirdNET is sure of their class, and from when to when."""
    windows = folder / f"{name}-windows.csv"
    birdtune("predict", str(recordings), f"--model={birdnet()}", f"--out={folder / f'{name}.csv'}",
             f"--patches={windows}")()  # fmt: skip
    found = []
    for row in learning.table(windows):
        path = Path(row["file"])
        for rank in ("", "_2", "_3"):
            is_it = row[f"class{rank}"].partition("_")[2] == path.parent.name
            if is_it and float(row[f"score{rank}"]) >= CERTAIN:
                found.append((path, float(row["start_s"]), float(row["end_s"])))
    return found
