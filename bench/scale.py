"""A million recordings of two thousand classes: time and memory of all that is not sound, as the data grow.

empty files, made facts ─▶ scan, file index, selection, split, an epoch's batches ─▶ seconds and memory of three sizes
made scores ─▶ all figures of a part of the split, with 1,000 replicates, and the report ─▶ the same

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

RECORDINGS, SCORED, CLASSES = (62_500, 250_000, 1_000_000), (2_000, 8_000, 16_000), 2_000
# Rows of log-mel of each recording: two windows.
_ROWS = 192
# Of what is linear, the time of one recording may grow by so much: caches of the processor and of files get too small.
FLAT, MOST_MB = 1.5, 8_000


def measure(settings: Settings) -> Result:
    """Lines of each step, and of memory."""
    quick = settings.quick
    n_classes = 20 if quick else CLASSES
    found = {n: _alone("bench.scale:of_index", n, n_classes, str(settings.folder / str(n)))
             for n in ((400,) if quick else RECORDINGS)}  # fmt: skip
    figures = {n: _alone("bench.scale:of_figures", n, n_classes, str(settings.folder / f"figures {n}"))
               for n in ((300,) if quick else SCORED)}  # fmt: skip
    lines = [*_lines(found, n_classes), *_lines(figures, n_classes)]
    return Result("scale", lines, {"index": found, "figures": figures})


def _alone(maker: str, *arguments: Any) -> dict[str, Any]:
    """Measured in a process of its own, so that memory is that of this size alone."""
    print(f"  {maker.partition(':')[2]} {arguments[0]:,}", file=sys.stderr, flush=True)
    with Child(maker, *arguments) as child:
        child()
        return dict(child.value)


def _lines(found: dict[int, dict[str, Any]], classes: int) -> list[Line]:
    sizes = sorted(found)
    fewest, most = sizes[0], sizes[-1]
    lines = []
    for name in found[fewest]["seconds"]:
        told = ", ".join(f"{n:,}: {figure(found[n]['seconds'][name])}" for n in sizes)
        ratio = (found[most]["processor"][name] / most) / (found[fewest]["processor"][name] / fewest)
        busy = max(found[n]["load"] for n in sizes)
        lines.append(
            Line(f"{name}, {classes:,} classes", told, "the fewest", ratio, f"≤ {FLAT:g}×", ratio <= FLAT,
                 f"processor time of a recording, of the most / of the fewest; load average up to {busy:.1f}")
        )  # fmt: skip
    told = ", ".join(f"{n:,}: {figure(found[n]['memory'], 'MB')}" for n in sizes)
    ratio, fits = (found[most]["memory"] / most) / (found[fewest]["memory"] / fewest), found[most]["memory"] <= MOST_MB
    lines.append(
        Line(f"peak memory of these, {classes:,} classes", told, "the fewest", ratio, f"≤ {FLAT:g}×, ≤ 8 GB",
             ratio <= FLAT and fits, "a recording of the most / of the fewest")
    )  # fmt: skip
    return lines


# ---- in a process of its own ------------------------------------------------------------------------


class _Clock:
    """Seconds of each step: on the wall, and of the processor, which other work beside hardly changes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.processor: dict[str, float] = {}

    def __call__(self, name: str, step: Callable[[], Any]) -> Any:
        began = time.perf_counter(), time.process_time()
        found = step()
        self.seconds[name] = time.perf_counter() - began[0]
        self.processor[name] = time.process_time() - began[1]
        return found

    def read(self) -> dict[str, Any]:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
        return {"seconds": self.seconds, "processor": self.processor, "memory": memory, "load": os.getloadavg()[0]}


def of_index(n: int, classes: int, place: str) -> Callable[[], dict[str, Any]]:
    """A turn does all that `prepare` does beside reading sound, and plans an epoch."""
    folder = Path(place)
    _write_empty(folder / "data", n, classes)

    def turn() -> dict[str, Any]:
        from birdtune.audio.decode import SoundFacts
        from birdtune.audio.logmel import VGGISH
        from birdtune.data import scan, selection, split
        from birdtune.data.batches import Batches, Windows
        from birdtune.data.dataset import Dataset
        from birdtune.data.file_index import Examined, FileIndex
        from birdtune.data.frames import FrameStore
        from birdtune.data.sampling import Examples, sampler, totals
        from birdtune.data.shard_writer import Entry
        from birdtune.data.sources import source_lines, source_notices
        from birdtune.data.targets import WindowTargets
        from birdtune.reporting.report_data import class_rows
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
        names = selection.class_names(usable)
        dataset = Dataset(VGGISH, names, usable, result.places, [], [], {})
        clock("digest of the dataset, rows of its classes", lambda: (dataset.digest(sources=True), class_rows(dataset)))
        settings = TrainSettings(sampling_power=0.5)

        def examples() -> tuple[Windows, Examples]:
            windows = Windows(store, [recording.content for recording in usable], VGGISH.hop_rows)
            targets = dataset.targets(usable)
            targets.positive()
            return windows, Examples(WindowTargets(targets, windows))

        windows, taught = clock("windows and their targets", examples)
        drawn = clock("classes counted and balanced", lambda: (sampler(taught, settings), totals(taught, settings))[0])
        batches = Batches(windows, taught.targets, batch_size=32, seed=0, sampler=drawn)
        clock("an epoch's order", lambda: batches.plan(0))
        return clock.read()

    return turn


def _write_empty(folder: Path, n: int, classes: int) -> None:
    for label in range(classes):
        (folder / f"Species_{label:04}").mkdir(parents=True)
    for number in range(n):
        label = f"Species_{number % classes:04}"
        # Recordings of xeno-canto: each is a source of its own.
        os.close(os.open(f"{folder}/{label}/XC{100_000 + number}.wav", os.O_CREAT | os.O_WRONLY))


def of_figures(n: int, classes: int, place: str) -> Callable[[], dict[str, Any]]:
    """A turn evaluates some recordings of a window each, a class each, and writes a report of them."""
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
    folder = Path(place)
    folder.mkdir()

    def turn() -> dict[str, Any]:
        from birdtune.evaluation.part import evaluate_part
        from birdtune.reporting.report import write_report
        from birdtune.reporting.tables import write_tables

        clock, counts = _Clock(), np.full(classes, 10)
        found = clock("all figures of a part", lambda: evaluate_part(
            scores, train_counts=counts, n_bootstrap=1000, seed=0))  # fmt: skip
        data = _report_data(scores, found)
        clock("report and its tables", lambda: (
            write_tables(folder, data), write_report(folder / "report.html", data)))  # fmt: skip
        return clock.read()

    return turn


def _report_data(scores: Any, found: dict[str, Any]) -> Any:
    from birdtune.evaluation.diagnostics import Diagnostic
    from birdtune.reporting.report import ReportData
    from birdtune.reporting.verdict import verdict

    counts = {"recordings": 30, "sources": 30, "minutes": 10.0, "train": 10, "val": 10, "test": 10, "external_id": None}
    metrics, none = {"val": None, "test": found}, list[Diagnostic]()
    return ReportData(
        version=1, created="2026-01-01T00:00:00+00:00", birdtune_version="", command="", settings={},
        changed=frozenset(), classes=scores.classes, class_rows=[{"class": name, **counts} for name in scores.classes],
        metrics=metrics, scores={"test": scores}, history=[{"epoch": 1, "train_loss": 1.0}], best_epoch=1, problems=[],
        books={"found": len(scores.recordings), "used": len(scores.recordings), "left_out": {}}, notices=[],
        diagnostics=none, verdict=verdict(metrics, none), hardware={}, stages={}, window_s=3.0,
        listen=lambda recording, start_s, seconds: None,
    )  # fmt: skip
