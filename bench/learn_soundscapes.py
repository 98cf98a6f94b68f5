"""Detections in soundscapes of known content: a head on BirdNET, beside plain logistic regression on its embeddings.

    warblers laid into real and made background ─▶ `run` on labels with times ─▶ window scores ─▶ AP, event F1, by SNR

BirdNET's weights lie where BENCH_BIRDNET says. A call is the loudest stretch of a recording, which now and then holds
another bird or none.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from bench import learning, soundscapes
from bench.harness import Line, Result, Settings, birdtune
from bench.learn_backbones import birdnet
from bench.made_sets import Clip, clips_of
from bench.soundscapes import Placed

Floats = npt.NDArray[Any]
# Soundscapes of a minute.
NUMBERS: Mapping[str, int] = {"train": 36, "val": 14, "test": 20}
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
# ESC-10's folds whose sounds are background in each part, and which sounds.
FOLDS = {"train": "123", "val": "4", "test": "5"}
BACKGROUNDS = ("Rain", "Sea_waves", "Fire_crackling", "Helicopter")
SNR_DB = (0, 5, 10, 15)  # each to five more
JOINED = 0.5  # windows of logistic regression from this on are a detection, with their neighbours


class Scored(NamedTuple):
    """A soundscape with what two ways make of its windows."""

    name: str
    start_s: Floats  # [n]
    scores: Mapping[str, Floats]  # way → [n, C]
    duration_s: float


def measure(settings: Settings) -> Result:
    """AP on windows, event F1, and recall by signal-to-noise ratio."""
    placed = write(settings)
    home = settings.folder
    birdtune(
        "run", f"--data={home / 'data'}", f"--output={home / 'out'}", f"--split.file={home / 'split.csv'}",
        "--model.backbone=birdnet", f"--model.checkpoint={birdnet()}", "--evaluate.label-issues=false",
        "--evaluate.rare-class-ablation=false",
    )()  # fmt: skip
    classes, thresholds, window_s, scored = _scored(home, placed)
    lines = _lines(classes, thresholds, window_s, scored, placed["test"])
    return Result("learn_soundscapes", lines)


def write(settings: Settings) -> dict[str, list[Placed]]:
    """The soundscapes of all parts, with the table of labels and the split of training and validation."""
    clips = clips_of(learning.place("warblers"))
    parts = soundscapes.by_source(clips, SHARES, settings.seed)
    placed = {}
    for number, (part, n) in enumerate(NUMBERS.items()):
        folder = settings.folder / ("test" if part == "test" else "data")
        placed[part] = soundscapes.write_soundscapes(
            parts[part], _backgrounds(part), folder, part, 2 if settings.quick else n, settings.seed * 10 + number
        )
    soundscapes.write_labels(settings.folder / "data" / "labels.csv", [*placed["train"], *placed["val"]])
    with (settings.folder / "split.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("recording", "split"))
        writer.writerows(
            (name, part) for part in ("train", "val") for name in dict.fromkeys(call.recording for call in placed[part])
        )
    return placed


def _backgrounds(part: str) -> list[Path]:
    sounds: Sequence[Clip] = clips_of(learning.esc10())
    return [clip.path for clip in sounds if clip.label in BACKGROUNDS and clip.path.name[0] in FOLDS[part]]


def _scored(home: Path, placed: Mapping[str, Sequence[Placed]]) -> tuple[Sequence[str], Floats, float, list[Scored]]:
    """Scores of the test soundscapes' windows by the exported model, and by logistic regression on the training's."""
    from birdtune.runtime.tensorflow_import import load_tensorflow

    load_tensorflow()
    from birdtune.config import AudioSettings
    from birdtune.serving import inference
    from birdtune.serving.verify import open_model

    model = open_model(home / "out" / "model" / "birdtune" / "1")
    assert model.thresholds is not None
    n, spec = len(model.classes), model.front_end

    def results(windows: Floats) -> Floats:
        scores, embeddings = model.scores(windows)
        return np.column_stack([np.asarray(scores), np.asarray(embeddings)])

    def through(folder: Path, part: str) -> list[Any]:
        cutter = inference.Cutter(AudioSettings(), spec.hop(None), np.inf, spec)
        return list(inference.infer(sorted(folder.glob(f"{part}-*.wav")), results, cutter, 32, lambda: None))

    train, test = through(home / "data", "train"), through(home / "test", "test")
    there = np.concatenate(
        [targets(one.start_s, spec.window_s, placed["train"], Path(one.name).name, model.classes) for one in train]
    )
    embeddings = np.concatenate([one.results[:, n:] for one in train])
    plain = [
        LogisticRegression(max_iter=300).fit(embeddings, there[:, c]) if there[:, c].any() else None for c in range(n)
    ]
    scored = [
        Scored(
            Path(one.name).name, one.start_s,
            {
                "birdtune": one.results[:, :n],
                "logistic regression": np.column_stack([
                    np.zeros(len(one.results)) if each is None else each.predict_proba(one.results[:, n:])[:, 1]
                    for each in plain
                ]),
            },
            one.duration_s,
        )
        for one in test
    ]  # fmt: skip
    return model.classes, np.asarray(model.thresholds.values), spec.window_s, scored


def targets(
    start_s: Floats, window_s: float, placed: Sequence[Placed], recording: str, classes: Sequence[str]
) -> npt.NDArray[np.bool_]:
    """Windows that hold at least half of a call, or are filled by it by half. [n, C]"""
    there = np.zeros((len(start_s), len(classes)), np.bool_)
    for call in placed:
        if call.recording == recording:
            overlap = np.minimum(start_s + window_s, call.end_s) - np.maximum(start_s, call.start_s)
            least = 0.5 * min(window_s, call.end_s - call.start_s)
            there[:, classes.index(call.label)] |= overlap >= least
    return there


def _lines(
    classes: Sequence[str], thresholds: Floats, window_s: float, scored: Sequence[Scored], placed: Sequence[Placed]
) -> list[Line]:
    from birdtune.evaluation.detections import OFF_SHARE, Rule, detect
    from birdtune.evaluation.event_metrics import Event, by_overlap, event_counts, summary

    there = np.concatenate([targets(one.start_s, window_s, placed, one.name, classes) for one in scored])
    n = len(classes)
    rules = {
        "birdtune": Rule(thresholds, OFF_SHARE * thresholds),
        "logistic regression": Rule(np.full(n, JOINED), np.full(n, JOINED)),
    }
    lines, fits = [], by_overlap()
    for way, rule in rules.items():
        table = np.concatenate([one.scores[way] for one in scored])
        ap = [average_precision_score(there[:, c], table[:, c]) for c in range(n) if there[:, c].any()]
        counts, found = [], np.zeros((len(SNR_DB), 2), np.int64)
        for one in scored:
            calls = [call for call in placed if call.recording == one.name]
            given = detect(one.start_s, one.scores[way], rule, window_s=window_s, end_s=one.duration_s)
            events = [Event(each.column, each.start_s, each.end_s) for each in given]
            truth = [Event(classes.index(call.label), call.start_s, call.end_s) for call in calls]
            counts.append(event_counts(truth, events, n, fits))
            for call, event in zip(calls, truth, strict=True):
                right = int(event_counts([event], events, n, fits).right.sum())
                found[np.searchsorted(SNR_DB, call.snr_db, side="right") - 1] += (right, 1)
        whole = summary(counts, [one.name for one in scored], classes, n_bootstrap=learning.REPLICATES, seed=0)
        by_snr = ", ".join(
            f"{low} to {low + 5} dB: {right / max(1, all_):.2f}"
            for low, (right, all_) in zip(SNR_DB, found.tolist(), strict=True)
        )
        ci = whole["f1_ci"] or (0.0, 0.0)
        lines += [
            Line(f"soundscapes, BirdNET frozen, {way}: mean AP on windows", f"{np.mean(ap):.3f}", "", None, "≥ 0.88",
                 bool(np.mean(ap) >= 0.88), f"{len(classes)} species, {len(placed)} calls of 0 to 20 dB"),
            Line(f"soundscapes, BirdNET frozen, {way}: event F1 (overlap 0.3)",
                 f"{whole['f1']:.3f} ({ci[0]:.3f} to {ci[1]:.3f})", "", None, "≥ 0.80", bool(whole["f1"] >= 0.8),
                 f"precision {whole['precision'] or 0:.2f}, recall {whole['recall'] or 0:.2f}; recall at {by_snr}"),
        ]  # fmt: skip
    return lines
