"""Logits of validation and test → calibrated scores, thresholds, and all figures about them.

    logits of val, test and synthetic noise ─▶ run_metrics ─▶ RunMetrics: the scores that are served, and metrics.json

Validation chooses the temperatures and the thresholds; test only measures them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.synthetic import NOISES, SILENCE, made_noise
from birdtune.errors import shown
from birdtune.evaluation import false_alarms, ood, reliability, thresholds
from birdtune.evaluation.calibration import Calibration, fit
from birdtune.evaluation.decision import OWN, SHARED, UNKNOWN, Thresholds
from birdtune.evaluation.ood import OodMeasures, OodModel, OodScale, Pooler, Take
from birdtune.evaluation.part import evaluate_part
from birdtune.evaluation.scores import Scores, clip_scores, subset
from birdtune.runtime.files import read_json
from birdtune.settings import EvaluateSettings

# In the reports of a run: the OOD model.
OOD_NAME = "ood.npz"
# Seconds of each synthetic noise that are scored.
NOISE_S = 30.0


@dataclass(frozen=True, eq=False)
class RunMetrics:
    """Scores of a run, and all figures about them."""

    scores: dict[str, Scores]  # "val" and "test", as they are served; those that there are
    held_out: Scores | None  # the recordings that thresholds were chosen on, as they are served
    figures: dict[str, Any]  # of metrics.json


def run_metrics(
    logits: Mapping[str, Scores | None],
    noise: Scores | None,
    *,
    kind: str,
    classes: Sequence[str],
    background: Sequence[str],
    train_counts: npt.NDArray[np.int64],
    window_s: float,
    settings: EvaluateSettings,
    target_recall: float,
    seed: int,
    measured: Mapping[str, OodMeasures],
    held_out: Scores | None = None,
) -> RunMetrics:
    """Calibrate, choose thresholds, and compute all metrics.

    Args:
        logits: "val" and "test" → recordings with logits for `window_scores`, or None.
        noise: synthetic noises, with logits; None leaves them out.
        kind: "softmax" or "sigmoid".
        background: names of the classes that are never a decision.
        train_counts: [C] recordings of each class in training.
        window_s: seconds of a window.
        target_recall: share of known recordings that OOD rejection accepts; 1 turns it off.
        measured: "val", "test" and "noise" → distance and energy of their recordings; empty: there is no OOD model.
        held_out: recordings to calibrate and choose thresholds on, with logits; None: those of "val".
    """
    held_out = logits.get("val") if held_out is None else held_out
    calibration = fit(held_out, kind)
    served = {name: calibration.scores(part) for name, part in logits.items() if part is not None}
    scale, why = _scale(served.get("val"), measured, target_recall)
    if scale is not None:
        served = {name: replace(part, ood_score=scale.ood_score(measured[name])) for name, part in served.items()}
    judged_by = None if held_out is None else calibration.scores(held_out)
    chosen = thresholds.choose(
        judged_by,
        classes,
        background,
        precision=settings.precision,
        alarms_per_hour=settings.false_alarms_per_hour,
        window_s=window_s,
    )
    noises = calibration.scores(noise) if noise is not None else None
    if noises is not None and scale is not None:
        noises = replace(noises, ood_score=scale.ood_score(measured["noise"]))
    drawing: dict[str, int] = {"n_bootstrap": settings.bootstrap, "seed": seed}
    values = np.asarray(chosen.values)
    of_parts = {
        name: None if part is None else {
            **evaluate_part(served[name], train_counts=train_counts, thresholds=values, **drawing),
            "calibration": reliability.evaluate_calibration(served[name], _uncalibrated(part, kind), **drawing),
            "decisions": thresholds.evaluate_decisions(served[name], chosen, **drawing),
            "ood": thresholds.evaluate_ood(served[name], **drawing),
        }
        for name, part in logits.items()
    }  # fmt: skip
    return RunMetrics(served, judged_by, {
        "calibration": calibration.row(),
        "thresholds": chosen.row(classes),
        "ood": {"scale": scale and scale.row(), "reason": why},
        **of_parts,
        "false_alarms": {
            "background": _of_background(served, background, chosen, window_s),
            "noise": _of_noise(noises, chosen, window_s) if noises is not None else [],
        },
    })  # fmt: skip


def _uncalibrated(logits: Scores, kind: str) -> npt.NDArray[Any]:
    """Scores before calibration, of windows where labels have times, else of recordings. [P or N, C]"""
    scores = Calibration(kind).scores(logits)
    return clip_scores(scores) if logits.window_targets is None else scores.window_scores


def _scale(
    val: Scores | None, measured: Mapping[str, OodMeasures], target_recall: float
) -> tuple[OodScale | None, str]:
    """How OOD scores are computed, or why there are none."""
    if target_recall >= 1:
        return None, "OOD rejection is off (--ood.target-recall 1)"
    if not measured:
        return None, "the embeddings of training recordings do not differ, so there is no OOD model"
    found = ood.fit_scale(measured["val"], val.groups, target_recall) if val is not None else None
    if found is not None:
        return found, ""
    sources = len(set(val.groups)) if val is not None else 0
    return None, (
        f"validation has too few source recordings ({sources}) to set a limit that accepts {target_recall:g} of the "
        "known recordings"
    )


def _of_background(
    served: Mapping[str, Scores], background: Sequence[str], chosen: Thresholds, window_s: float
) -> dict[str, Any] | None:
    """False alarms on background of test, else of validation, if there is any.

    Returns:
        `part`, `chosen_on` (whether thresholds were chosen on these very recordings, which makes the rate too low),
        and as `false_alarms.count`.
    """
    for part in ("test", "val"):
        negatives = false_alarms.of_background(served[part], background) if part in served else None
        if negatives is not None:
            chosen_on = part == "val" and not {OWN, SHARED}.isdisjoint(chosen.origins)
            return {"part": part, "chosen_on": chosen_on, **false_alarms.count(negatives, chosen, window_s)}
    return None


def _of_noise(noises: Scores, chosen: Thresholds, window_s: float) -> list[dict[str, Any]]:
    """Decisions in each synthetic noise: window by window, and as `predict` decides for a recording of it.

    Returns:
        Of each as `false_alarms.count`, and `confused_with` (the class of most of the windows that pass, or None),
        `decision` (for the whole: the class, or None), `score` (of that class, or None) and `ood_score`.
    """
    each = np.arange(len(noises.recordings))
    of_windows = chosen.decide(noises.window_scores)
    clips = clip_scores(noises)
    whole = chosen.decide(clips, noises.ood_score)
    whole[[name == SILENCE for name in noises.recordings]] = UNKNOWN  # silence never gets a class
    return [
        {
            "noise": name,
            **false_alarms.count(subset(noises, each == k), chosen, window_s),
            "recordings_decided": int(whole[k] != UNKNOWN),
            "confused_with": _most_frequent(of_windows[noises.window_recording == k], noises.classes),
            "decision": None if whole[k] == UNKNOWN else noises.classes[whole[k]],
            "score": None if whole[k] == UNKNOWN else float(clips[k, whole[k]]),
            "ood_score": None if noises.ood_score is None else float(noises.ood_score[k]),
        }
        for k, name in enumerate(noises.recordings)
    ]


def _most_frequent(decisions: npt.NDArray[np.int64], classes: Sequence[str]) -> str | None:
    given = decisions[decisions != UNKNOWN]
    return classes[int(np.bincount(given).argmax())] if given.size else None


def read_served(
    reports: Path, n_classes: int, kind: str
) -> tuple[Calibration, Thresholds | None, Thresholds | None]:
    """Calibration, thresholds and those of detections out of metrics.json; scores as they come, where it has none."""
    path = reports / "metrics.json"
    figures = read_json(path)
    try:
        calibration, thresholds = Calibration.of(figures["calibration"]), Thresholds.of(figures["thresholds"])
        of_detections = Thresholds.of(row) if (row := figures.get("detection_thresholds")) else None
    except (LookupError, TypeError, ValueError):
        return Calibration(kind, reason=f"{shown(path)} holds no calibration"), None, None
    if len(thresholds.values) != n_classes:
        return calibration, None, None
    return calibration, thresholds, of_detections


def read_ood(reports: Path) -> tuple[OodModel, OodScale] | None:
    """The OOD model and its scale, if there are any. Raises InputError or PassingError if it is lost."""
    figures = read_json(reports / "metrics.json")
    try:
        scale = OodScale.of(figures["ood"]["scale"])
    except (LookupError, TypeError, ValueError):
        return None
    return OodModel.load(reports / OOD_NAME), scale


def noise_logits(
    scorer: Callable[[Any], tuple[Any, Any]],
    classes: tuple[str, ...],
    spec: FrontEnd,
    batch_size: int,
    take: Take | None = None,
) -> Scores:
    """Every synthetic noise as a recording, with logits for scores.

    Args:
        scorer: windows [n, 96, 64] → logits [n, C], embeddings.
        batch_size: windows at a time; the last batch is filled up, so that nothing is compiled anew.
        take: called with the number of each noise and its mean embedding, as a `Pooler` does; None: nothing is.
    """
    parts = []
    for number, name in enumerate(NOISES):
        cuts = list(spec.cut(spec.rows_of([made_noise(name, NOISE_S, spec.rate_hz)])))
        starts = np.array([start for start, _ in cuts])
        features = spec.stored(np.stack([window for _, window in cuts]))  # as all else is: [P, window_rows, ...]
        full = np.resize(features, (-(-len(features) // batch_size) * batch_size, *features.shape[1:]))
        pooler = Pooler(np.full(len(features), number, np.int64), spec, take or (lambda *_: None))
        logits = []
        for at in range(0, len(full), batch_size):
            found, embeddings = scorer(full[at : at + batch_size])
            pooler.note(full[at : at + batch_size], embeddings)
            logits.append(found)
        parts.append((starts, np.concatenate(logits)[: len(features)]))
    return Scores(
        classes=classes,
        recordings=tuple(NOISES),
        groups=tuple(NOISES),
        targets=np.zeros((len(NOISES), len(classes)), np.float32),  # of no class
        window_scores=np.concatenate([logits for _, logits in parts]),
        window_recording=np.repeat(np.arange(len(NOISES)), [len(starts) for starts, _ in parts]),
        window_start_s=(np.concatenate([starts for starts, _ in parts]) / spec.rows_per_s).astype(
            np.float32
        ),
    )
