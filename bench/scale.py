"""A million recordings in the index, and figures of two thousand classes: time and memory as the data grow.

empty files, made facts ─▶ scan, file index, selection, split, an epoch's plan ─▶ seconds and memory at 1×, 4×, 16×
made scores ─▶ all figures of a part of the split, with 1,000 replicates ─▶ the same

What is decoded, embedded and trained is not made here: that grows with the sound, as `linear` and `epochs` show.
"""

import dataclasses
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench.harness import Child, Line, Result, Settings, figure

RECORDINGS, SCORED, CLASSES = (62_500, 250_000, 1_000_000), (2_500, 10_000, 40_000), 2_000
# Rows of log-mel of each recording: two windows.
_ROWS = 192
# Of what is linear, the time of one recording may grow by so much: caches of the processor and of files get too small.
FLAT = 1.5


def measure(settings: Settings) -> Result:
    """Lines of each step, and of memory."""
    quick = settings.quick
    n_classes = 20 if quick else CLASSES
    found = {n: _alone("bench.scale:of_index", n, n_classes, str(settings.folder / str(n)))
             for n in ((400,) if quick else RECORDINGS)}  # fmt: skip
    figures = {n: _alone("bench.scale:of_figures", n, n_classes) for n in ((300,) if quick else SCORED)}
    lines = [*_lines(found, n_classes), *_lines(figures, n_classes)]
    return Result("scale", lines, {"index": found, "figures": figures})


def _alone(maker: str, *arguments: Any) -> dict[str, float]:
    """Measured in a process of its own, so that memory is that of this size alone."""
    print(f"  {maker.partition(':')[2]} {arguments[0]:,}", file=sys.stderr, flush=True)
    with Child(maker, *arguments) as child:
        child()
        return dict(child.value)


def _lines(found: dict[int, dict[str, float]], classes: int) -> list[Line]:
    sizes = sorted(found)
    lines = []
    for name in found[sizes[0]]:
        values = [found[n][name] for n in sizes]
        unit = "MB" if name.startswith("memory") else "s"
        told = ", ".join(f"{n:,}: {figure(value, unit)}" for n, value in zip(sizes, values, strict=True))
        ratio = (values[-1] / sizes[-1]) / (values[0] / sizes[0])
        lines.append(
            Line(f"{name}, {classes:,} classes", told, "the fewest", ratio, f"≤ {FLAT:g}×", ratio <= FLAT,
                 "a recording of the most / of the fewest")
        )  # fmt: skip
    return lines


# ---- in a process of its own ------------------------------------------------------------------------


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = step()
        self.seconds[name] = time.perf_counter() - began
        return found

    def with_memory(self, of: str) -> dict[str, float]:
        return {**self.seconds, f"memory of {of}": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000}


def of_index(n: int, classes: int, place: str) -> Callable[[], dict[str, float]]:
    """A turn does all that `prepare` does beside reading sound, and plans an epoch."""
    folder = Path(place)
    _write_empty(folder / "data", n, classes)

    def turn() -> dict[str, float]:
        from birdtune.audio.decode import SoundFacts
        from birdtune.audio.logmel import VGGISH
        from birdtune.data import scan, selection, split
        from birdtune.data.batches import Batches, Windows
        from birdtune.data.file_index import Examined, FileIndex
        from birdtune.data.frames import FrameStore
        from birdtune.data.sampling import Examples, sampler, totals
        from birdtune.data.shards import Entry
        from birdtune.data.sources import source_lines, source_notices
        from birdtune.data.targets import WindowTargets, targets_of
        from birdtune.settings import AudioSettings, SplitSettings, TrainSettings

        clock, sound = _Clock(), AudioSettings()
        listing = clock("scan", lambda: scan.scan(folder / "data"))
        listing = dataclasses.replace(listing, problems=[])

        def index() -> FileIndex:
            made = FileIndex(folder / "ledger.json", sound)
            for number, file in enumerate(listing.files):
                made.set_content(file, f"{number:064x}")
                # Recordings differ in length, as people make them.
                facts = SoundFacts(16_000, 1, 2.0 + number % 3_000 / 10, -6.0, "WAV")
                made.set_examined(f"{number:064x}", Examined(facts))
            made.save()
            return FileIndex(folder / "ledger.json", sound)

        file_index = clock("file index, written and read", index)
        usable, _ = clock("selection", lambda: selection.select(
            listing, file_index, {}, spec=VGGISH, short="pad", longest_s=3600.0))  # fmt: skip
        result = clock("split", lambda: split.assign(usable, SplitSettings(), folder / "split.csv"))
        clock("source recordings, reported", lambda: (
            list(source_lines(result.sources)), source_notices(usable, result.sources)))  # fmt: skip
        clock("split.csv, written", lambda: split.write(folder / "split.csv", usable, result.places))
        store = FrameStore(folder, VGGISH, sound)
        for number, recording in enumerate(usable):
            store.add(Entry(recording.content, f"shard-{number // 10_000}.rows", _ROWS * (number % 10_000), _ROWS, 0))
        names = tuple(sorted({recording.label for recording in usable}))
        settings = TrainSettings(sampling_power=0.5)

        def examples() -> tuple[Windows, Examples]:
            windows = Windows(store, [recording.content for recording in usable], VGGISH.hop_rows)
            targets = targets_of([recording.labels for recording in usable], names)
            targets.positive()
            return windows, Examples(WindowTargets(targets, windows))

        windows, taught = clock("windows and their targets", examples)
        drawn = clock("classes counted and balanced", lambda: (sampler(taught, settings), totals(taught, settings))[0])
        batches = Batches(windows, taught.targets, batch_size=32, seed=0, sampler=drawn)
        clock("an epoch's order", lambda: batches.plan(0))
        return clock.with_memory("the index")

    return turn


def _write_empty(folder: Path, n: int, classes: int) -> None:
    for label in range(classes):
        (folder / f"Species_{label:04}").mkdir(parents=True)
    for number in range(n):
        label = f"Species_{number % classes:04}"
        # Recordings of xeno-canto: each is a source of its own.
        os.close(os.open(f"{folder}/{label}/XC{100_000 + number}.wav", os.O_CREAT | os.O_WRONLY))


def of_figures(n: int, classes: int) -> Callable[[], dict[str, float]]:
    """A turn evaluates some recordings of a window each, a class each."""
    from birdtune.evaluation.scores import Scores

    random = np.random.default_rng(0)
    labels = np.arange(n) % classes
    targets = np.zeros((n, classes), np.float32)
    targets[np.arange(n), labels] = 1.0
    table = random.random((n, classes), np.float32) ** 8
    table[np.arange(n), labels] = random.random(n, np.float32)
    names = tuple(f"{number}.wav" for number in range(n))
    scores = Scores(tuple(f"Species {label}" for label in range(classes)), names, names, targets, table,
                    np.arange(n), np.zeros(n, np.float32))  # fmt: skip

    def turn() -> dict[str, float]:
        from birdtune.evaluation.part import evaluate_part

        clock, counts = _Clock(), np.full(classes, 10)
        clock("all figures of a part", lambda: evaluate_part(scores, train_counts=counts, n_bootstrap=1000, seed=0))
        return clock.with_memory("figures")

    return turn
