"""What each thing that was set for the sake of rare classes did to them: balance, weights, focal loss, quality.

    recordings of train and val ─▶ embeddings by the backbone as it was given
               ─▶ heads with all that is set, without one of it, with none, by cross-validation
               ─▶ what the rarest third reaches with and without: `rare_class_ablation` of metrics.json

Training the whole network once for each of them would take days; heads take seconds, and are trained by the step that
the run is trained with; they are of the run's own kind. The test part is not used, nothing is chosen by the result,
and the report says how it was measured.

Importing this loads TensorFlow.
"""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from birdtune.config import Config
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.errors import DivergedError
from birdtune.evaluation import paired, rare_classes
from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.models.classifier import Classifier
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training import devices
from birdtune.training.embeddings import (
    Embedded,
    Floats,
    Ints,
    classes_of,
    embed,
    evaluated,
    folds,
    no_first_backbone,
    scored_targets,
)
from birdtune.training.probes import Head, out_of_fold

_FLOOR, _QUALITY = "train.min-samples-per-class", "train.sample-weights"
# Setting → what it is where nothing is done for rare classes.
_OFF: Mapping[str, tuple[str, Any]] = {
    "train.sampling-power": ("sampling_power", 0.0),
    "train.class-weight-alpha": ("class_weight_alpha", 0.0),
    "train.focal-gamma": ("focal_gamma", 0.0),
    _FLOOR: ("min_samples_per_class", 0),
}
# So many are 200 MB of YAMNet's embeddings. What they take is not measured: 164 clips took a minute of `evaluate`.
MOST_WINDOWS = 50_000


def active(config: Config, weights: Mapping[str, float]) -> list[str]:
    """The settings that do something for rare classes, or for good recordings, in a run.

    What leaves rare classes out does nothing for them.

    Args:
        weights: of recordings that weigh more or less than 1, by quality.csv.
    """
    train = config.train
    on = [name for name, (field, off) in _OFF.items() if getattr(train, field) != off]
    if train.min_samples_action == "leave-out" and _FLOOR in on:
        on.remove(_FLOOR)
    return [*on, *([_QUALITY] if weights else [])]


def measure(
    config: Config, dataset: Dataset, store: FrameStore, journal: Journal, interrupts: Interrupts
) -> dict[str, Any] | None:
    """What each measure did to the rarest third of the classes.

    Returns:
        None where none is on; else `on`, `reason` (why nothing was measured, or ""), and where it is "" what
        `_measured` returns.

    Raises:
        Interrupted, RetryableError: the stage begins anew.
    """
    on = active(config, dataset.weights)
    if not on:
        return None
    reason = no_first_backbone(config)
    part = [*dataset.part("train"), *dataset.part("val")]
    if len(part) > MOST_WINDOWS:
        reason = f"of {len(part):,} recordings that takes too long; up to {MOST_WINDOWS:,} are tried"
    found: dict[str, Any] = {}
    if not reason:
        try:
            found = _measured(config, on, dataset, store, journal, interrupts)
        except (DivergedError, _NoneRare) as why:
            reason = str(why).removesuffix(".")
    if reason:
        journal.say(f"  what {' and '.join(on)} did to rare classes was not measured: {reason}")
    for row in found.get("rows", ()):
        recall, accuracy = row["rare_recall"], row["accuracy"]
        journal.say(
            f"  {' and '.join(row['settings'])}: heads find {recall['without']:.3f} → {recall['with']:.3f} of the "
            f"rarest third, {accuracy['without']:.3f} → {accuracy['with']:.3f} of all"
        )
    return {"on": on, "reason": reason, **found}


class _NoneRare(Exception):  # noqa: N818 - no error
    """There is nothing to measure; the words say why."""


def _measured(
    config: Config,
    on: Sequence[str],
    dataset: Dataset,
    store: FrameStore,
    journal: Journal,
    interrupts: Interrupts,
) -> dict[str, Any]:
    """Train the heads, and evaluate them.

    Returns:
        `classes` (the rarest third), `unjudged` (as rare, but of one source), `recordings` and `sources` of the former,
        `all_recordings`, `all_sources`; `head`, `folds`, `every` (which window of each recording is learnt from: every
        first, second, …); `rows`, a row for each measure and, of several, one for all together: `settings` (setting →
        value), `changed` (whether any score did), and as `paired.gains`.
    """
    part = sorted([*dataset.part("train"), *dataset.part("val")], key=lambda recording: recording.name)
    positive = classes_of(dataset, part)
    fold = folds(positive, [dataset.places[recording.name].group for recording in part], config.train.seed)
    counts = np.array(dataset.counts(dataset.part("train")), np.int64)
    scored = scored_targets(positive, fold)
    chosen = rare_classes.choose(dataset.classes, scored[fold >= 0], counts, dataset.background)
    of_two = " with recordings of two sources" if (fold < 0).any() else ""
    if chosen is None:
        raise _NoneRare(f"there are fewer than three classes{of_two}")
    if not chosen[1]:
        raise _NoneRare(f"no class{of_two} is clearly rarer in training than the others")
    classifier, embedded = embed(
        config, dataset, store, part, journal, interrupts, what="rare classes",
        keep=config.model.freeze_point == "all-but-head", most=MOST_WINDOWS,
    )  # fmt: skip
    every = embedded.windows.hop_rows // store.spec.hop(config.train.hop_s)
    scores = _scores(_thinned(config, every), on, classifier, embedded, fold, journal, interrupts)
    rare = chosen[0][: chosen[1]]
    return {
        "classes": [dataset.classes[c] for c in rare],
        "unjudged": [dataset.classes[c] for c in chosen[2]],
        "head": config.model.head,
        "folds": len(np.unique(fold[fold >= 0])),
        "every": every,
        **_metrics(config, scores, embedded, fold, rare),
    }


def _thinned(config: Config, every: int) -> Config:
    """The same floor for every second, third, … window as for all of them; recordings are as many as ever."""
    if every == 1 or config.model.by_recording or not config.train.min_samples_per_class:
        return config
    floor = max(1, round(config.train.min_samples_per_class / every))
    return _with(config, {"min_samples_per_class": floor})


def _with(config: Config, changes: Mapping[str, Any]) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=dict(changes))})


def _scores(
    config: Config,
    on: Sequence[str],
    classifier: Classifier,
    embedded: Embedded,
    fold: Ints,
    journal: Journal,
    interrupts: Interrupts,
) -> dict[tuple[str, ...], Floats]:
    """What was taken away → scores [N, C] of each recording by a head that had only other sources."""
    away = dict.fromkeys([(), *((name,) for name in on), tuple(on)])
    found = {}
    with journal.progress("measures for rare classes", len(away), "heads") as progress:
        for names in away:
            changed = _with(config, dict(_OFF[name] for name in names if name in _OFF))
            alike = np.ones_like(embedded.weights)
            given = replace(embedded, weights=alike) if _QUALITY in names else embedded
            with devices.compiling_often():
                head = Head(config.model.head, classifier, given, changed, interrupts)
                found[names] = out_of_fold(head, fold, len(embedded.classes), interrupts)
            gc.collect()  # compiled steps refer to themselves
            progress.advance()
    return found


def _metrics(
    config: Config, scores: Mapping[tuple[str, ...], Floats], embedded: Embedded, fold: Ints, rare: Ints
) -> dict[str, Any]:
    """Figures of all scores, of the recordings that have a fold."""
    scored = fold >= 0
    positive, known = (each[scored] for each in evaluated(embedded, fold))  # [N, C] each
    groups = np.asarray(embedded.groups, object)[scored]
    inside = np.asarray(positive[:, rare].any(axis=1))
    n_rare, n_all = len(set(groups[inside])), len(set(groups))
    bootstrap = Bootstrap(groups.tolist(), config.evaluate.bootstrap, config.train.seed)
    standings = {
        names: rare_classes.standing(found[scored], positive, rare, bootstrap, known)
        for names, found in scores.items()
    }
    values = config.flat()
    rows = []
    for names in scores:
        changed = not np.array_equal(scores[()], scores[names])
        gained = paired.gains(standings[()], standings[names], changed=changed)
        if names:
            rows.append(
                {"settings": {name: values.get(name) for name in names}, "changed": changed, **gained}
            )
    return {
        "recordings": int(inside.sum()), "sources": n_rare,
        "all_recordings": len(positive), "all_sources": n_all, "rows": rows,
    }  # fmt: skip
