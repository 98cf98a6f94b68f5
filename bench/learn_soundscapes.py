"""Detections in soundscapes of known content: a head on BirdNET, beside logistic regression on its embeddings.

    warblers laid into real and made background ─▶ `run` on labels with times ─▶ window scores ─▶ AP, event F1, by SNR

A recording of a species is not its song throughout: other birds are in it, and now and then it is of another species.
So a call is one that BirdNET itself scores 0.5 or more as that species, hearing nothing else. That leaves songs which
BirdNET knows, and flatters all that rests on its embeddings alike (`learn_soundscapes_doubtful` has other calls).
"""

import csv
import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from bench import learning, made_sets, soundscapes
from bench.certain_calls import CERTAIN, certain_calls, certain_windows
from bench.harness import Line, Result, Settings, birdtune
from bench.learning import birdnet
from bench.made_sets import Clip, clips_of
from bench.soundscapes import Placed, Stretches

Floats = npt.NDArray[Any]
SHARES = {"train": 0.5, "val": 0.2, "test": 0.3}
DRAWS = 3  # of a kind: which recordings are for training, and what lies where, changes figures more than settings do
# ESC-10's folds whose sounds are background in each part, and which sounds.
FOLDS = {"train": "123", "val": "4", "review": "4", "test": "5"}
BACKGROUNDS = ("Rain", "Sea_waves", "Fire_crackling", "Helicopter")
SNR_DB = (0, 5, 10, 15)  # each to five more
JOINED = 0.5  # windows of logistic regression from this on are a detection, with their neighbours
FLAGS = ("--model.backbone=birdnet", "--evaluate.label-issues=false", "--evaluate.rare-class-ablation=false")


class Kind(NamedTuple):
    """What soundscapes of a minute are made of."""

    minutes: Mapping[str, int]
    snr_db: tuple[float, float]
    n_species: int | None = None  # those of which most recordings hold a certain call; None: all
    calls: str = "certain"  # "certain"; "window": the loudest of a certain window; "loudest" of the recording
    beside_weak: bool = False  # measured with labels of class folders alone, too
    draws: int = DRAWS


KINDS = {
    "14 species, 0 to 20 dB": Kind({"train": 36, "val": 14, "test": 20}, (0.0, 20.0), beside_weak=True),
}
TO_REACH = {"14 species, 0 to 20 dB": (0.88, 0.80)}  # AP and F1


class Scored(NamedTuple):
    """A soundscape and its windows."""

    name: str
    start_s: Floats  # [n]
    embeddings: Floats  # [n, K]
    scores: Floats  # [n, C] by birdtune
    duration_s: float


def measure(settings: Settings) -> Result:
    """AP on windows, event F1, and recall by signal-to-noise ratio."""
    return Result("learn_soundscapes", measured(settings, KINDS, TO_REACH))


def measured(
    settings: Settings, kinds: Mapping[str, Kind], to_reach: Mapping[str, tuple[float, float]]
) -> list[Line]:
    """The same of some kinds of soundscapes."""
    clips = clips_of(learning.place("warblers"))
    windows = certain_windows(clips, settings.folder)
    calls = certain_calls(clips, windows, settings.folder, settings.seed)
    stretches = {"certain": calls, "window": windows, "loudest": None}
    lines = [_certain_line(clips, windows, calls)]
    for name, kind in list(kinds.items())[: 1 if settings.quick else None]:
        found: defaultdict[str, list[Judged]] = defaultdict(list)
        for draw in range(1 if settings.quick else kind.draws):
            home = settings.folder / f"{name} {draw}"
            of_draw = dataclasses.replace(settings, seed=settings.seed * DRAWS + draw)
            world = write(home, kind, clips, stretches[kind.calls], of_draw)
            birdtune("run", f"--data={home / 'data'}", f"--output={home / 'out'}", f"--split.file={home / 'split.csv'}",
                     f"--model.checkpoint={birdnet()}", *FLAGS)()  # fmt: skip
            for what, judged in _of_draw(world, home).items():
                found[what].append(judged)
            if kind.beside_weak:
                found["birdtune by class folders"].append(_weakly(world, home))
        for what, each in found.items():
            lines += _lines(f"{name}, {what}", each, to_reach.get(name) if what == "birdtune" else None)
    return lines


# ---- the set ----------------------------------------------------------------------------------------


def _certain_line(clips: Sequence[Clip], windows: Stretches, calls: Stretches) -> Line:
    return Line(f"recordings of warblers in which BirdNET scores a call {CERTAIN:g} or more as their species",
                f"{len(calls)} of {len(clips)}",
                note=f"{sum(map(len, calls.values()))} calls of 1 to 3 s, each the loudest of a window; {len(windows)} "
                f"recordings with {sum(map(len, windows.values()))} such windows of 3 s")  # fmt: skip


def write(
    home: Path, kind: Kind, clips: Sequence[Clip], stretches: Stretches | None, settings: Settings
) -> dict[str, list[Placed]]:
    """The soundscapes of all parts, with the table of labels and the split of training and validation."""
    parts = soundscapes.by_source(_clips(kind, clips, stretches), SHARES, settings.seed)
    placed = {}
    for number, (part, n) in enumerate(kind.minutes.items()):
        placed[part] = soundscapes.write_soundscapes(
            parts[part], backgrounds(part), home / ("test" if part == "test" else "data"), part,
            2 if settings.quick else n, settings.seed * 10 + number, snr_db=kind.snr_db, stretches=stretches,
            are_calls=kind.calls == "certain",
        )  # fmt: skip
    soundscapes.write_labels(home / "data" / "labels.csv", [*placed["train"], *placed["val"]])
    write_split(home / "split.csv", {call.recording: part for part in ("train", "val") for call in placed[part]})
    return placed


def _clips(kind: Kind, clips: Sequence[Clip], stretches: Stretches | None) -> list[Clip]:
    usable = [clip for clip in clips if stretches is None or clip.path in stretches]
    if kind.n_species is None:
        return usable
    labels = [clip.label for clip in usable]
    most = sorted(set(labels), key=lambda label: (-labels.count(label), label))[: kind.n_species]
    return [clip for clip in usable if clip.label in most]


def write_split(path: Path, parts: Mapping[str, str]) -> None:
    """For --split.file: recording → part."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("recording", "split"))
        writer.writerows(parts.items())


def backgrounds(part: str) -> list[Path]:
    """Those of a part of the set."""
    sounds: Sequence[Clip] = clips_of(learning.esc10())
    return [clip.path for clip in sounds if clip.label in BACKGROUNDS and clip.path.name[0] in FOLDS[part]]


# ---- scores -----------------------------------------------------------------------------------------


def scored(output: Path, folder: Path, part: str, version: int = 1) -> tuple[Any, list[Scored]]:
    """An exported model, and the windows of soundscapes as detections have them."""
    from birdtune.runtime.tensorflow_import import load_tensorflow

    load_tensorflow()
    from birdtune.config import AudioSettings
    from birdtune.serving import inference
    from birdtune.serving.verify import open_model

    model = open_model(output / "model" / "birdtune" / str(version))
    n, spec = len(model.classes), model.front_end

    def results(windows: Floats) -> Floats:
        return np.column_stack([np.asarray(each) for each in model.scores(windows)])

    cutter = inference.Cutter(AudioSettings(), spec.detection_hop, np.inf, spec)
    found = inference.infer(sorted(folder.glob(f"{part}-*.wav")), results, cutter, 32, lambda: None)
    return model, [
        Scored(Path(one.name).name, one.start_s, one.results[:, n:], one.results[:, :n], one.duration_s)
        for one in found
    ]


@dataclass(frozen=True)
class Truth:
    """Soundscapes, and the calls in them."""

    classes: Sequence[str]
    window_s: float
    given: Sequence[Scored]
    placed: Sequence[Placed]

    def share(self, one: Scored, low_db: float = -np.inf, high_db: float = np.inf) -> Floats:
        """How much of a call the windows hold at most, or how far they are filled by it. [n, C]"""
        found = np.zeros((len(one.start_s), len(self.classes)))
        for call in self.calls(one):
            if low_db <= call.snr_db < high_db:
                overlap = np.minimum(one.start_s + self.window_s, call.end_s) - np.maximum(one.start_s, call.start_s)
                column = found[:, self.classes.index(call.label)]
                np.maximum(column, overlap / min(self.window_s, call.end_s - call.start_s), out=column)
        return found

    def calls(self, one: Scored) -> list[Placed]:
        """Those in a soundscape."""
        return [call for call in self.placed if call.recording == one.name]

    @cached_property
    def shares(self) -> Floats:
        """Of all windows. [P, C]"""
        return np.concatenate([self.share(one) for one in self.given])

    def of_snr(self, low_db: float) -> Floats:
        """The same of calls of some levels alone. [P, C]"""
        return np.concatenate([self.share(one, low_db, low_db + 5) for one in self.given])


def mean_ap(scores: Floats, positive: Floats, known: Floats) -> float:
    """Mean over classes of average precision. [P, C] each"""
    each = [
        average_precision_score(positive[own, c], scores[own, c])
        for c, own in enumerate(known.T) if positive[own, c].any()
    ]  # fmt: skip
    return float(np.mean(each)) if each else float("nan")


def of_regression(truth: Truth) -> Callable[[Scored], Floats]:
    """Logistic regression of each class on the windows and targets that birdtune has learnt from."""
    table = np.concatenate([one.embeddings for one in truth.given])
    plain: list[Any] = []
    for share in truth.shares.T:
        own = (share >= 0.5) | (share <= 0)  # what holds less than half of a call is left out, as birdtune does
        fits = bool((share >= 0.5).any())
        plain.append(LogisticRegression(max_iter=300).fit(table[own], share[own] >= 0.5) if fits else None)
    return lambda one: np.column_stack([
        np.zeros(len(one.embeddings)) if each is None else each.predict_proba(one.embeddings)[:, 1] for each in plain
    ])  # fmt: skip


# ---- figures ----------------------------------------------------------------------------------------


class Judged(NamedTuple):
    """Windows and detections in the test soundscapes of one draw."""

    ap: float
    ap_of_snr: Mapping[int, float]
    strict_ap: float  # windows with less than half a call are negatives
    counts: Sequence[Any]  # right, false and missed events of each soundscape
    found_of_snr: npt.NDArray[np.int64]  # [levels, 2] calls that were found, and calls
    classes: Sequence[str]


def _of_draw(placed: Mapping[str, Sequence[Placed]], home: Path) -> dict[str, Judged]:
    from birdtune.evaluation.detections import Rule

    model, test = scored(home / "out", home / "test", "test")
    _, train = scored(home / "out", home / "data", "train")
    window_s, n, smooth = model.front_end.window_s, len(model.classes), _smooth(model)
    truth = Truth(model.classes, window_s, test, placed["test"])
    plain = of_regression(Truth(model.classes, window_s, train, placed["train"]))
    return {
        "birdtune": _judged(truth, [one.scores for one in test], Rule.of(model.detection_thresholds, **smooth)),
        "logistic regression": _judged(
            truth, [plain(one) for one in test], Rule(np.full(n, JOINED), np.full(n, JOINED), **smooth)
        ),
    }


def _weakly(placed: Mapping[str, Sequence[Placed]], home: Path) -> Judged:
    """The recordings that the calls were taken from, in class folders, in place of annotated soundscapes."""
    from birdtune.evaluation.detections import Rule

    sources = {call.source: part for part in ("train", "val") for call in placed[part]}
    clips = [clip for clip in clips_of(learning.place("warblers")) if clip.path.name in sources]
    made_sets.lay_out(clips, home / "weak")
    write_split(home / "weak.csv", {f"{one.label}/{one.path.name}": sources[one.path.name] for one in clips})
    birdtune("run", f"--data={home / 'weak'}", f"--output={home / 'weakly'}", f"--split.file={home / 'weak.csv'}",
             f"--model.checkpoint={birdnet()}", "--model.output=sigmoid", *FLAGS)()  # fmt: skip
    model, test = scored(home / "weakly", home / "test", "test")
    truth = Truth(model.classes, model.front_end.window_s, test, placed["test"])
    return _judged(truth, [one.scores for one in test], Rule.of(model.thresholds, **_smooth(model)))


def _smooth(model: Any) -> dict[str, int]:
    """As `predict` smooths."""
    spec = model.front_end
    return {"smooth_windows": spec.smoothed_windows(spec.detection_hop)}


def _judged(truth: Truth, scores: Sequence[Floats], rule: Any) -> Judged:
    from birdtune.evaluation.detections import smoothed

    table, shares = np.concatenate([smoothed(each, rule.smooth_windows) for each in scores]), truth.shares
    positive, absent = shares >= 0.5, shares <= 0
    of_snr = {low_db: truth.of_snr(low_db) >= 0.5 for low_db in SNR_DB}
    counts, found = _events(truth, scores, rule)
    return Judged(
        mean_ap(table, positive, positive | absent),
        {low_db: mean_ap(table, own, own | absent) for low_db, own in of_snr.items() if own.any()},
        mean_ap(table, positive, np.ones_like(positive)), counts, found, truth.classes,
    )  # fmt: skip


def _events(truth: Truth, scores: Sequence[Floats], rule: Any) -> tuple[list[Any], npt.NDArray[np.int64]]:
    """Counts of each soundscape; calls that were found, and calls, at each level."""
    from birdtune.evaluation.detections import detect
    from birdtune.evaluation.event_metrics import Event, by_overlap, event_counts

    classes, fits, counts = truth.classes, by_overlap(), []
    found = np.zeros((len(SNR_DB), 2), np.int64)
    for one, own in zip(truth.given, scores, strict=True):
        calls = truth.calls(one)
        given = detect(one.start_s, own, rule, window_s=truth.window_s, end_s=one.duration_s)
        events = [Event(each.column, each.start_s, each.end_s) for each in given]
        annotated = [Event(classes.index(call.label), call.start_s, call.end_s) for call in calls]
        counts.append(event_counts(annotated, events, len(classes), fits))
        for call, event in zip(calls, annotated, strict=True):
            right = int(event_counts([event], events, len(classes), fits).right.sum())
            found[np.searchsorted(SNR_DB, call.snr_db, side="right") - 1] += (right, 1)
    return counts, found


# ---- lines ------------------------------------------------------------------------------------------


def _lines(what: str, found: Sequence[Judged], to_reach: tuple[float, float] | None) -> list[Line]:
    """AP as the mean of all draws; events of all draws together."""
    aps = [each.ap for each in found]
    by_snr = ", ".join(
        f"{low} to {low + 5} dB: {np.nanmean([each.ap_of_snr.get(low, np.nan) for each in found]):.2f}"
        for low in SNR_DB if any(low in each.ap_of_snr for each in found)
    )  # fmt: skip
    strict = np.mean([each.strict_ap for each in found])
    ap = float(np.mean(aps))
    return [
        Line(f"{what}: mean AP on windows",
             f"{ap:.3f} ({min(aps):.3f} to {max(aps):.3f})" if len(found) > 1 else f"{ap:.3f}",
             target="" if to_reach is None else f"≥ {to_reach[0]}",
             reached=None if to_reach is None else ap >= to_reach[0],
             note=f"{_draws(found, 'mean and range of ')}; {by_snr}; {strict:.3f} where windows with less than half a "
             "call are negatives"),
        _event_line(what, found, to_reach),
    ]  # fmt: skip


def _draws(found: Sequence[Judged], of_several: str = "") -> str:
    return f"{of_several}{len(found)} draws" if len(found) > 1 else "one draw"


def _event_line(what: str, found: Sequence[Judged], to_reach: tuple[float, float] | None) -> Line:
    from birdtune.evaluation.event_metrics import summary

    counts = [count for each in found for count in each.counts]
    names = [f"{draw} {number}" for draw, each in enumerate(found) for number in range(len(each.counts))]
    whole = summary(counts, names, found[0].classes, n_bootstrap=learning.REPLICATES, seed=0)
    each_f1 = [
        summary(one.counts, [str(k) for k in range(len(one.counts))], one.classes, n_bootstrap=20, seed=0)["f1"]
        for one in found
    ]
    recalls = ", ".join(
        f"{low} to {low + 5} dB: {right / n:.2f}"
        for low, (right, n) in zip(SNR_DB, sum(one.found_of_snr for one in found).tolist(), strict=True) if n
    )  # fmt: skip
    ci = whole["f1_ci"] or (0.0, 0.0)
    return Line(
        f"{what}: event F1 (overlap 0.3)", f"{whole['f1']:.3f} ({ci[0]:.3f} to {ci[1]:.3f})",
        target="" if to_reach is None else f"≥ {to_reach[1]}",
        reached=None if to_reach is None else bool(whole["f1"] >= to_reach[1]),
        note=f"{whole['events']} calls of {_draws(found)} ({', '.join(f'{f1:.3f}' for f1 in each_f1)}); precision "
        f"{whole['precision'] or 0:.2f}, recall {whole['recall'] or 0:.2f}; recall at {recalls}",
    )  # fmt: skip
