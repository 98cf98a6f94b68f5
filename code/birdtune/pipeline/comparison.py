"""A served model and the run's own on the same test recordings.

    ServedModel + test recordings that neither has learnt from ─▶ compared ─▶ `model_comparison`, `gate` of metrics.json

The served model is loaded as a server loads it, whatever network it is, and reads the files itself. Where labels have
times, both are compared by segments of a second, whatever their windows are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.data.scan import Recording
from birdtune.data.targets import Targets, annotated_classes, targets_of
from birdtune.evaluation import model_comparison, paired, recording_events
from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.evaluation.decision import NOMINAL, OOD_LIMIT, Thresholds
from birdtune.evaluation.diagnostics import STRONG
from birdtune.evaluation.headline import RECORDINGS, SEGMENTS
from birdtune.evaluation.scores import Scores, clip_scores, subset
from birdtune.evaluation.segments import by_segments
from birdtune.pipeline import gate
from birdtune.runtime.text import plain
from birdtune.serving.inference import Channel, Cutter, Scored, infer
from birdtune.serving.rows import kept_columns, pooled_embedding, recording_scores, sequenced, window_results
from birdtune.serving.verify import open_model
from birdtune.training.job import Job
from birdtune.training.served_model import ServedModel

Floats = npt.NDArray[np.float64]


def with_champion(job: Job, champion: ServedModel, found: Mapping[str, Any]) -> dict[str, Any]:
    """Champion against challenger: `gate` of metrics.json.

    Args:
        found: as `compared`.

    Returns:
        the same, and of the champion `ServedModel.row`, `title`, `lost_classes` (its classes that the challenger
        lacks) and `strong` (codes of the strong diagnostics of its own run).
    """
    record = champion.record() or {"warnings": []}
    row = {
        **champion.row(),
        "title": champion.title,
        "lost_classes": [name for name in champion.classes if name not in job.dataset.classes],
        "strong": [each["code"] for each in record["warnings"] if each["severity"] == STRONG],
        **found,
    }
    job.journal.say(f"  {plain(gate.sentence(row))}")
    return row


def compared(
    job: Job, served: ServedModel, test: Scores | None, thresholds: Thresholds, of_detections: Thresholds | None = None
) -> dict[str, Any]:
    """A served model and this run's on test recordings of the former's classes that neither has learnt from.

    Args:
        test: the run's calibrated scores of the test recordings; None: there are none.
        thresholds: the run's.
        of_detections: the run's of windows; None: they are the same.

    Returns:
        `comparison`: as `model_comparison.compare`, and `score` (`before`, `after`, `difference`, `difference_ci`);
        None where there is nothing to compare by, and `reason` says why. `left_out`: test recordings that the served
        model has learnt from; `unknown`: those of which that is not known; `rejected`: share of the shared ones that
        the served model rejects as unlike its training data; None: it rejects none ever.
    """
    part = [recording for recording in job.dataset.part("test") if set(recording.classes) & set(served.classes)]
    learnt = served.learnt_from()
    row: dict[str, Any] = {"comparison": None, "reason": "", "left_out": 0, "unknown": 0, "rejected": None}
    if test is None or not part:
        return {**row, "reason": f"there are no test recordings of the classes of {served.title}"}
    if learnt is None:
        return {
            **row,
            "unknown": len(part),
            "reason": f"it is not known which of the {len(part):,} test recordings {served.title} has learnt from, as "
            "the logs of its run are not beside it (its output folder has them)",
        }
    places = job.dataset.places
    shared = [recording for recording in part if not learnt.has(recording, places[recording.name].group)]
    row["left_out"] = len(part) - len(shared)
    if test.window_targets is not None:  # of a recording without times, nobody knows what its segments hold
        shared = [one for one in shared if recording_events.says_when(one.labels, job.dataset.background)]
    before = served_scores(job, served, shared) if shared else None
    if before is None:
        why = "has learnt from all test recordings, or was chosen by them" if not shared else "can read none of them"
        return {**row, "reason": f"{served.title} {why}"}
    if before.ood_score is not None:
        row["rejected"] = float((before.ood_score > OOD_LIMIT).mean())
    after = _aligned(subset(test, np.isin(test.recordings, before.recordings)), served.classes)
    theirs = served.thresholds
    if test.window_targets is not None:
        thresholds, theirs = of_detections or thresholds, served.detection_thresholds
        before, after = _segments(job, served, before), _segments(job, None, after)
        if not before.has_class.any():
            return {**row, "reason": f"no class of {served.title} is annotated in the shared test recordings"}
    ours = _aligned_thresholds(thresholds, test.classes, after.classes)
    n_bootstrap, seed = job.config.evaluate.bootstrap, job.config.train.seed
    found = model_comparison.compare(
        before, after, n_bootstrap=n_bootstrap, seed=seed, thresholds=(theirs, ours) if theirs else None,
        unit=RECORDINGS if test.window_targets is None else SEGMENTS,
    )  # fmt: skip
    return {**row, "comparison": {**found, "score": _score(before, after, Bootstrap(before.groups, n_bootstrap, seed))}}


def _segments(job: Job, served: ServedModel | None, scores: Scores) -> Scores:
    """Scores of recordings as those of their segments; served: the model that they are of, None: the run's own."""
    place = {recording.name: recording for recording in job.dataset.part("test")}
    part = [place[name] for name in scores.recordings]
    spec = job.store.spec if served is None else open_model(served.folder).front_end
    durations = [recording.facts.duration_s for recording in part]
    return by_segments(scores, _targets(job, part, scores.classes), durations, spec.window_s)


def _targets(job: Job, part: Sequence[Recording], classes: Sequence[str]) -> Targets:
    """The labels of some recordings, with the columns of another model."""
    dataset = job.dataset
    annotated = annotated_classes(recording.labels for recording in dataset.recordings)
    negative = [name for name in dataset.background if name in classes]
    return targets_of(
        [recording.labels for recording in part], classes, annotated, rule=dataset.rule, negative=negative
    )


def _score(before: Scores, after: Scores, bootstrap: Bootstrap) -> dict[str, Any]:
    """Mean of accuracy and macro average precision of both, and the difference with its interval."""
    old, new = clip_scores(before), clip_scores(after)  # [N, C], [N, C + n]
    beyond = ((0, 0), (0, new.shape[1] - old.shape[1]))
    old, positive = np.pad(old, beyond), np.pad(before.positive, beyond)
    known = np.pad(before.known, beyond, constant_values=True)
    each = [paired.figures(scores, positive, bootstrap, known).score for scores in (old, new)]
    gain = paired.difference([new], [old], positive, bootstrap, known)
    return {
        "before": each[0],
        "after": each[1],
        "difference": gain["score"],
        "difference_ci": [gain["low"], gain["high"]] if bootstrap.n_groups > 1 else None,
    }


def _aligned(scores: Scores, classes: tuple[str, ...]) -> Scores:
    """The same scores with the columns of another model first, 0 for classes that these do not have; then the rest."""
    columns = (*classes, *(name for name in scores.classes if name not in classes))
    at = [scores.classes.index(name) if name in scores.classes else len(scores.classes) for name in columns]

    def moved(table: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.pad(table, ((0, 0), (0, 1)))[:, at]

    return replace(
        scores, classes=columns, targets=moved(scores.targets), window_scores=moved(scores.window_scores),
        mask=None if scores.mask is None else moved(scores.mask),
        pooled=None if scores.pooled is None else moved(scores.pooled),
        window_targets=None if scores.window_targets is None else moved(scores.window_targets),
        window_mask=None if scores.window_mask is None else moved(scores.window_mask),
    )  # fmt: skip


def _aligned_thresholds(found: Thresholds, classes: Sequence[str], columns: Sequence[str]) -> Thresholds:
    rows = dict(zip(classes, zip(found.values, found.origins, strict=True), strict=True))
    values, origins = zip(*(rows.get(name, (float("inf"), NOMINAL)) for name in columns), strict=True)
    return Thresholds(values, origins, found.goal, found.reason)


def served_scores(job: Job, served: ServedModel, part: Sequence[Recording]) -> Scores | None:
    """Scores of some recordings by an exported model, as `predict` computes them; None: it can read none of them.

    The files are read again: the model may have a front end of its own.
    """
    from birdtune.training.devices import windows_at_once  # loads TensorFlow

    model = open_model(served.folder)
    spec, config = model.front_end, job.config
    have_times = any(label.has_times for recording in part for label in recording.labels)
    hop_rows = spec.detection_hop if have_times and not model.pooling.context else spec.hop_rows
    cutter = Cutter(config.audio, hop_rows, config.audio.max_hours * 3600, spec)
    function = window_results(model, pools=model.ood_score is not None)
    files = [r.path if r.channel is None else Channel(r.path, r.channel) for r in part]
    at_once = windows_at_once(config.evaluate.batch_size, spec)
    scored = infer(files, function, cutter, at_once, job.interrupts.check, kept=kept_columns(model))
    scored = sequenced(scored, model)
    used: list[tuple[Recording, Scored]] = []
    with job.journal.progress(f"scoring, {served.title}", len(part), "recordings") as progress:
        for recording, found in zip(part, scored, strict=True):
            progress.advance()
            if isinstance(found, Scored):
                used.append((recording, found))
    if not used:
        return None
    recordings, results = [recording for recording, _ in used], [found for _, found in used]
    targets, known = targets_of([recording.labels for recording in recordings], model.classes).of_recordings()
    ood_scores = None
    if model.ood_score is not None:
        ood_scores = np.array([float(model.ood_score(pooled_embedding(found))[0]) for found in results], np.float32)
    return Scores(
        classes=model.classes,
        recordings=tuple(recording.name for recording in recordings),
        groups=tuple(job.dataset.places[recording.name].group for recording in recordings),
        targets=targets,
        window_scores=np.concatenate([found.results[:, : len(model.classes)] for found in results]),
        window_recording=np.repeat(np.arange(len(results)), [len(found.start_s) for found in results]),
        window_start_s=np.concatenate([found.start_s for found in results]).astype(np.float32),
        mask=None if known.all() else known > 0,
        pooled=np.stack(
            [recording_scores(found, model.calibration, len(model.classes)) for found in results]
        ).astype(np.float32),
        ood_score=ood_scores,
    )
