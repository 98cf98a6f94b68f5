"""The stage `evaluate`: the best weights → calibrated scores of validation and test, and all figures about them.

    Job ─▶ evaluate ─▶ reports/<v>/ scores-*.npz, ood.npz, label_issues.json, embedding_map.json, metrics.json

Where the model was trained once more on validation recordings (`train.refit`), or is an ensemble, those are scored by
the first training, which has not learnt from them, and all else by what is served.

Everything is computed in float32, as the exported model will.
Importing this loads TensorFlow.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data import acoustic
from birdtune.evaluation import (
    class_alignment,
    event_thresholds,
    leak,
    model_comparison,
    rare_classes,
    recording_events,
    shortcuts,
)
from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.headline import WINDOWS, headline_figures
from birdtune.evaluation.ood import OodCollector, OodModel, centre_targets
from birdtune.evaluation.recording_events import Compared
from birdtune.evaluation.scores import Scores
from birdtune.models import classifier as classifiers
from birdtune.models.classifier import Classifier
from birdtune.pipeline import comparison, label_check, published_classes, rare_class_ablation, taxa
from birdtune.pipeline.messages import headline_lines
from birdtune.pipeline.metrics import OOD_NAME, RunMetrics, noise_logits, run_metrics
from birdtune.reporting import ensemble_section, ood_section, shortcut_section
from birdtune.reporting.report_data import diagnose
from birdtune.runtime.files import make_folder, write_json
from birdtune.runtime.text import plain
from birdtune.training import cross_fit, ensemble
from birdtune.training.base_model import read_ood_model, read_weights
from birdtune.training.job import Job
from birdtune.training.ood_fit import chosen_windows, fit_ood, watched
from birdtune.training.scoring import make_scorer
from birdtune.training.served_model import ServedModel
from birdtune.training.trained import best_classifier, feed_of, score

METRICS_NAME = "metrics.json"


def evaluate(job: Job, champion: ServedModel | None) -> list[Path]:
    """Score validation and test, compare with the base model and the champion, and diagnose; the files written.

    Args:
        champion: the model in service that the new one has to beat; None: there is none.

    Raises:
        DivergedError: scores are NaN or infinite.
        Interrupted, RetryableError: the stage begins anew.
    """
    config, folder = job.config, make_folder(job.run.reports)
    model = _Model.of(job.served)
    first = _Model.of(job) if job.served.later else model
    ood, backbone_kept = model.ood, model.backbone_kept
    held_out, refit = _held_out(job)
    members = None
    if job.config.train.ensemble:
        held_out, members = ensemble.evaluate(job)
        job.journal.say(f"  calibrated on {len(held_out.recordings):,} recordings, each by the member that left it out")
        job.journal.say(f"  {plain(ensemble_section.sentence(members))}")
    found = _run_metrics(job, first, model, held_out)
    figures, test = found.figures, found.scores.get("test")
    thresholds = Thresholds.of(figures["thresholds"])
    of_detections = _detection_thresholds(job, found, thresholds)
    figures["detection_thresholds"] = of_detections and of_detections.row(job.dataset.classes)
    figures |= taxa.measure(job, found, thresholds)
    if test is not None:
        figures["test"]["events"] = _events(job, test, of_detections or thresholds)
    figures |= {"refit": refit, "ensemble": members}
    if ood is not None:
        ood.save(folder / OOD_NAME)
        figures["ood"]["rests_on"] = _what_ood_rests_on(job)
    for name, scores in found.scores.items():
        scores.save(folder / f"scores-{name}.npz")
        figures[name]["rare_classes"] = _rare_classes(job, scores)
        figures[name]["headline"] = headline_figures(figures[name])
        _report_part(job, name, figures[name])
    figures["published"] = published_classes.measure(job, model.classifier, found.scores)
    figures["published_alone"] = None
    if job.base is None:
        figures["published_alone"] = published_classes.beside(job, model.classifier, test)
    figures["leak"] = _leak(job, test)
    earlier = {served.folder.resolve(): served for served in (job.base, champion) if served is not None}
    compared = {
        place: comparison.compared(job, served, test, thresholds, of_detections) for place, served in earlier.items()
    }
    if job.base is not None:
        figures["model_comparison"] = {
            **_base_comparison(job, job.base, compared[job.base.folder.resolve()], figures["test"]),
            "backbone_kept": backbone_kept,
            "unreachable": _unreachable(job, ood if figures["ood"]["scale"] is not None else None),
        }
    if champion is not None:
        figures["gate"] = comparison.with_champion(job, champion, compared[champion.folder.resolve()])
    figures["shortcuts"] = _shortcuts(job, found.scores)
    if config.evaluate.rare_class_ablation:
        figures["rare_class_ablation"] = rare_class_ablation.measure(
            config, job.dataset, job.store, job.journal, job.interrupts
        )
    if config.evaluate.label_issues:  # before the diagnostics, which speak of them
        label_check.check_labels(config, job.dataset, job.store, folder, job.journal, job.interrupts)
    _diagnose(job, figures)
    names = (METRICS_NAME, OOD_NAME, "scores-val.npz", "scores-test.npz", *label_check.FILES)
    return [folder / name for name in names]


# ---- scores and their figures --------------------------------------------------------------------


@dataclass(frozen=True)
class _Model:
    """What a training has made: the network, and the OOD statistics of what it learnt from."""

    classifier: Classifier
    ood: OodModel | None
    backbone_kept: bool

    @classmethod
    def of(cls, job: Job) -> "_Model":
        classifier = best_classifier(job)
        kept = _backbone_kept(job, classifier)
        return cls(classifier, _ood_statistics(job, classifier, kept), kept)

    def collector(self) -> OodCollector | None:
        return None if self.ood is None else OodCollector(self.ood, _to_logits(self.classifier))


def _held_out(job: Job) -> tuple[Scores | None, dict[str, Any] | None]:
    """What calibration and thresholds rest on where the model has learnt from validation, and `refit` of metrics.json.

    Returns:
        recordings by heads that have not learnt from them, with logits; None: validation by the first training.
    """
    row = job.run.record["refit"]
    if not job.served.refit or row is None:
        return None, None
    reason = cross_fit.why_not(job)
    found = None if reason else cross_fit.cross_fit(job, row["epochs"])
    if found is None:
        reason = reason or "no two source recordings have the same class"
        job.journal.say(f"  calibration and thresholds are those of the first training: {reason}")
    else:
        job.journal.say(f"  calibrated by cross-fitting on {len(found.recordings):,} recordings")
    return found, {**row, "cross_fitted": found is not None, "reason": reason}


def _run_metrics(job: Job, first: _Model, model: _Model, held_out: Scores | None) -> RunMetrics:
    """All figures of validation (by the first training), test and synthetic noise (by the model that is served)."""
    found_by = {"val": first, "test": model, "noise": model}
    collectors = {name: each.collector() for name, each in found_by.items()}
    measures = {name: each for name, each in collectors.items() if each is not None}
    if len(measures) < len(collectors):
        measures = {}
    logits: dict[str, Scores | None] = {}
    live: dict[str, int | None] = {}
    for name in ("val", "test"):
        part = job.dataset.part(name)
        logits[name] = None
        if part:
            windows, classifier = job.windows(part, job.config.evaluate.hop_s), found_by[name].classifier
            feed = feed_of(job, classifier, windows, what=name)
            scores_of = make_scorer(classifier, feed.embed, logits=True)
            if measures:
                scores_of = watched(scores_of, windows, measures[name].take, source=feed.source)
            with job.journal.progress(f"scoring {name}", len(windows), "windows") as progress:
                logits[name], live[name] = score(
                    job, classifier, scores_of, windows, part, progress.advance, feed.source, logits=True
                )
    noise = None
    if job.store.spec.has_sound:  # of noise, too, there are no embeddings without the backbone
        noise = noise_logits(
            make_scorer(model.classifier, logits=True), job.dataset.classes, job.store.spec,
            job.config.evaluate.batch_size, measures["noise"].take if measures else None,
        )  # fmt: skip
    found = run_metrics(
        logits,
        noise,
        kind=model.classifier.kind,
        classes=job.dataset.classes,
        background=job.dataset.background,
        train_counts=_train_counts(job),
        window_s=job.store.spec.window_s,
        settings=job.config.evaluate,
        target_recall=job.config.ood.target_recall,
        seed=job.config.train.seed,
        measured={name: each.found() for name, each in measures.items()},
        held_out=held_out,
    )
    for name, units in live.items():
        found.figures[name]["live_embeddings"] = units
    return found


def _to_logits(classifier: Classifier) -> Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]:
    """The head as a function of mean embeddings. [n, K] → [n, C]"""
    return lambda pooled: np.asarray(classifier.of_places(pooled), np.float32)


def _train_counts(job: Job) -> npt.NDArray[np.int64]:
    """Training recordings of each class. [C]"""
    return np.array(job.dataset.counts(job.dataset.part("train")), np.int64)


def _rare_classes(job: Job, scores: Scores) -> dict[str, Any] | None:
    return rare_classes.rarest_third(
        scores,
        _train_counts(job),
        background=job.dataset.background,
        n_bootstrap=job.config.evaluate.bootstrap,
        seed=job.config.train.seed,
    )


def _report_part(job: Job, name: str, figures: Mapping[str, Any]) -> None:
    calibration = figures["calibration"]
    for line in headline_lines(figures, name):
        job.journal.say(f"  {line}")
    before, after = calibration["before"], calibration["after"]
    of = " of windows" if calibration["of"] == WINDOWS else ""
    job.journal.say(
        f"  {name} calibration error{of} {after['ece']:.3f} (before calibration {before['ece']:.3f}; "
        f"{after['ece_null']:.3f} under perfect calibration)"
    )
    job.journal.event("evaluated", split=name, baseline=figures["majority_baseline"], **figures["clip"])


def _compared(job: Job, scores: Scores, thresholds: Thresholds) -> tuple[list[str], list[Compared]]:
    """Annotated and detected events, as `recording_events.compare`; nothing where labels say too little."""
    by_name = {recording.name: recording for recording in job.dataset.recordings}
    part = [by_name[name] for name in scores.recordings]
    marked, spec = recording_events.marked_classes(job.dataset, part), job.store.spec
    return recording_events.compare(
        scores, part, thresholds, job.dataset.background, marked=marked, window_s=spec.window_s,
        smooth_windows=spec.smoothed_windows(spec.hop(job.config.evaluate.hop_s)),
    ) if marked else ([], [])  # fmt: skip


def _detection_thresholds(job: Job, found: RunMetrics, thresholds: Thresholds) -> Thresholds | None:
    """Those chosen on events that no training has learnt; None: there are none, and those of recordings count."""
    val, held_out = found.scores.get("val"), found.held_out
    if val is None or held_out is None:
        return None
    # Of very many recordings some windows are left out, and detections are not made of such.
    judged_by = held_out if _longest_hop(held_out) <= _longest_hop(val) else val
    return event_thresholds.choose(
        lambda tried: _compared(job, judged_by, tried), job.dataset.classes, thresholds,
        false_alarms_per_hour=job.config.evaluate.false_alarms_per_hour,
    )  # fmt: skip


def _longest_hop(scores: Scores) -> float:
    """Seconds from one window to the next."""
    inside = np.diff(scores.window_recording) == 0
    return float(np.diff(scores.window_start_s)[inside].max(initial=0.0).round(3))


def _events(job: Job, test: Scores, thresholds: Thresholds) -> dict[str, Any] | None:
    """Detections in the test beside its labels with times: `events` of metrics.json; None: they say too little."""
    spec, settings = job.store.spec, job.config.evaluate
    compared = _compared(job, test, thresholds)
    found = recording_events.measure(
        *compared, test.groups, n_bootstrap=settings.bootstrap, seed=job.config.train.seed
    )
    return None if found is None else {**found, "hop_s": spec.hop(settings.hop_s) / spec.rows_per_s}


# ---- out-of-distribution statistics --------------------------------------------------------------


def _ood_statistics(job: Job, classifier: Classifier, backbone_kept: bool) -> OodModel | None:
    """Statistics of the training embeddings; None where OOD detection is off, or they do not differ.

    Of classes without training recordings, those of the base model, if its backbone was kept.
    """
    if job.config.ood.target_recall >= 1:
        return None
    part = job.dataset.part("train")
    positive = job.dataset.targets(part).positive()
    targets, _ = centre_targets(positive)
    windows = job.windows(part)
    numbers = chosen_windows(windows, targets)
    feed = feed_of(job, classifier, windows, what="training", some=len(numbers) < len(windows))
    scorer = make_scorer(classifier, feed.embed, logits=True)
    with job.journal.progress("embedding training", len(numbers), "windows") as progress:
        found = fit_ood(
            scorer, windows, targets, numbers, job.config.evaluate.batch_size,
            job.interrupts, progress.advance, feed.source,
        )  # fmt: skip
    if found is None or job.base is None or not job.untaught or not backbone_kept:
        return found
    before = read_ood_model(job.base)
    return found if before is None else found.with_centres_of(before, np.array(job.untaught, np.int64))


def _what_ood_rests_on(job: Job) -> dict[str, Any]:
    """What is not as plain as one class for each recording: `rests_on` of `ood` of metrics.json.

    Returns:
        `left_out`: training recordings of several classes that do not count; `of_several`: classes that rest on
        recordings with others; `with_times`: whether labels have times, which whole recordings say nothing of.
    """
    labels = job.dataset.targets(job.dataset.part("train"))
    positive = labels.positive()
    targets, of_several = centre_targets(positive)
    row = {
        "left_out": int(((positive.sum(axis=1) > 0) & (targets.sum(axis=1) == 0)).sum()),
        "of_several": [name for name, mixed in zip(job.dataset.classes, of_several, strict=True) if mixed],
        "with_times": labels.have_times,
    }
    if sentence := ood_section.rests_on(row):
        job.journal.say(f"  OOD: {plain(sentence)}")
    return row


def _backbone_kept(job: Job, classifier: Classifier) -> bool:
    """Whether the backbone's weights are still those of the base model."""
    if job.base is None:
        return False
    before, now = read_weights(job.base), classifiers.weights(classifier)
    return all(
        np.array_equal(now[name], array) for name, array in before.items() if name.startswith("backbone/")
    )


def _unreachable(job: Job, ood: OodModel | None) -> list[str]:
    """Classes of the base model that will be rejected as unknown: there are no statistics of them any more."""
    if ood is None:
        return []
    names = [job.dataset.classes[column] for column in job.untaught if not ood.counts[column]]
    return [name for name in names if name not in job.dataset.background]


# ---- checks --------------------------------------------------------------------------------------


def _leak(job: Job, test: Scores | None) -> dict[str, Any] | None:
    """How well the model does on test recordings that share a training recording's noise floor, and on the others."""
    if test is None:
        return None
    near, compared = acoustic.near_training(job.served.dataset.part("train"), job.dataset.part("test"))
    found = leak.measure(
        test, near, compared=compared, n_bootstrap=job.config.evaluate.bootstrap, seed=job.config.train.seed
    )
    job.journal.say(
        f"  test: {found['near']:,} of {found['recordings']:,} recordings have the noise floor of a training "
        f"recording ({compared:,} could be compared).{f' {leak.sentence(found)}' if near else ''}"
    )
    return found


def _shortcuts(job: Job, scores: Mapping[str, Scores]) -> dict[str, Any] | None:
    """How well properties of the recordings alone predict the class: `shortcuts` of metrics.json."""
    part = next((name for name in ("test", "val") if name in scores), None)
    if part is None:
        return None
    row = shortcuts.measure(
        job.dataset, scores[part], part, n_bootstrap=job.config.evaluate.bootstrap,
        seed=job.config.train.seed, check=job.interrupts.check,
    )  # fmt: skip
    if sentence := shortcut_section.line(row):
        job.journal.say(f"  {sentence}")
    return row


def _base_comparison(
    job: Job, base: ServedModel, compared: Mapping[str, Any], test: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The new model beside its base model: `model_comparison` of metrics.json."""
    classes = job.dataset.classes
    row = {
        **base.row(),
        "title": base.title,
        "kept": list(base.classes),
        "untrained": [classes[column] for column in job.untaught],
        "moved": class_alignment.moved(job.dataset, base.learnt()),
        "new": model_comparison.rows_of_new(test, classes, len(base.classes)),
        **compared,
    }
    for sentence in model_comparison.sentences(row):
        job.journal.say(f"  {plain(sentence)}")
    return row


def _diagnose(job: Job, figures: dict[str, Any]) -> None:
    """Report how far to trust the model, and write metrics.json."""
    for part in ("calibration", "thresholds", "detection_thresholds", "ood"):
        if figures[part] and (reason := figures[part]["reason"]):
            job.journal.say(f"  {reason}")
    found, word = diagnose(job.run, figures)
    rows = [each.row() for each in found]
    whole = {
        "version": job.run.version,
        "weights_sha256": job.run.record["weights_sha256"],
        **figures,
        "verdict": word.level,
        "warnings": rows,
    }
    write_json(job.run.reports / METRICS_NAME, whole)
    job.run.record.update(verdict=word.level, warnings=rows)
    job.warn(found)
