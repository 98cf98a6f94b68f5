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
from birdtune.config import EvaluateSettings
from birdtune.errors import shown
from birdtune.evaluation import metrics, ood, reliability, thresholds
from birdtune.evaluation.calibration import Calibration, fit
from birdtune.evaluation.decision import NONE, OWN, SHARED, Thresholds
from birdtune.evaluation.ood import Measured, Novelty, Pooler, Scale, Take
from birdtune.evaluation.scores import Scores, clip_scores
from birdtune.runtime.files import read_json

# In the reports of a run: statistics of its training embeddings.
NOVELTY_NAME = "novelty.npz"
# Seconds of each synthetic noise that are scored.
NOISE_S = 30.0


@dataclass(frozen=True, eq=False)
class RunMetrics:
    """Scores of a run, and all figures about them."""

    scores: dict[str, Scores]  # "val" and "test", as they are served; those that there are
    figures: dict[str, Any]  # of metrics.json


def run_metrics(
    logits: Mapping[str, Scores | None],
    noise: Scores | None,
    *,
    kind: str,
    classes: Sequence[str],
    background: Sequence[str],
    train_counts: npt.NDArray[np.int64],
    patch_s: float,
    settings: EvaluateSettings,
    target_recall: float,
    seed: int,
    measured: Mapping[str, Measured],
) -> RunMetrics:
    """Calibrate, choose thresholds, and compute all metrics.

    Args:
        logits: "val" and "test" → recordings with logits for `patch_scores`, or None.
        noise: synthetic noises, with logits; None leaves them out.
        kind: "softmax" or "sigmoid".
        background: names of the negative classes.
        train_counts: [C] recordings of each class that were trained on.
        patch_s: seconds of a window.
        target_recall: `ood.target-recall`.
        measured: "val", "test" and "noise" → distance from the training embeddings; empty: not measured.
    """
    calibration = fit(logits.get("val"), kind)
    served = {name: calibration.scores(part) for name, part in logits.items() if part is not None}
    scale, why = _scale(served.get("val"), measured, target_recall)
    if scale is not None:
        served = {name: replace(part, strangeness=scale.strangeness(measured[name])) for name, part in served.items()}
    chosen = thresholds.choose(
        served.get("val"),
        classes,
        background,
        precision=settings.precision,
        alarms_per_hour=settings.false_alarms_per_hour,
    )
    made = calibration.scores(noise) if noise is not None else None
    if made is not None and scale is not None:
        made = replace(made, strangeness=scale.strangeness(measured["noise"]))
    drawing: dict[str, int] = {"n_bootstrap": settings.bootstrap, "seed": seed}
    of_parts = {
        name: None if part is None else {
            **metrics.judge(served[name], train_counts=train_counts, **drawing),
            "certainty": reliability.certainty(served[name], clip_scores(Calibration(kind).scores(part)), **drawing),
            "answers": thresholds.judge_answers(served[name], chosen, **drawing),
            "novelty": thresholds.judge_novelty(served[name], **drawing),
        }
        for name, part in logits.items()
    }  # fmt: skip
    return RunMetrics(served, {
        "calibration": calibration.row(),
        "thresholds": chosen.row(classes),
        "novelty": {"scale": scale and scale.row(), "reason": why},
        **of_parts,
        "false_alarms": {
            "background": _of_background(served, background, chosen, patch_s),
            "noise": _of_noise(made, chosen, patch_s) if made is not None else [],
        },
    })  # fmt: skip


def _scale(val: Scores | None, measured: Mapping[str, Measured], keep: float) -> tuple[Scale | None, str]:
    """From which distance on a recording is rejected as unknown, or why none is."""
    if keep >= 1:
        return None, "no recording is rejected as unknown (--ood.target-recall 1)"
    if not measured:
        return None, "the embeddings of training recordings do not differ, so none can be rejected as unknown by them"
    found = ood.scale(measured["val"], val.groups, keep) if val is not None else None
    if found is not None:
        return found, ""
    sources = len(set(val.groups)) if val is not None else 0
    return None, (
        f"validation has too few source recordings ({sources}) to set a limit for unknown sounds; "
        f"to keep {keep:g} of the known takes more"
    )


def _of_background(
    served: Mapping[str, Scores], background: Sequence[str], chosen: Thresholds, patch_s: float
) -> dict[str, Any] | None:
    """False alarms on background of test, else of validation, if there is any.

    Returns:
        `part`, `chosen_on` (whether thresholds were chosen on these very recordings, which makes the rate too low),
        and as `thresholds.false_alarms`.
    """
    for part in ("test", "val"):
        heard = thresholds.of_background(served[part], background) if part in served else None
        if heard is not None:
            chosen_on = part == "val" and not {OWN, SHARED}.isdisjoint(chosen.origins)
            return {"part": part, "chosen_on": chosen_on, **thresholds.false_alarms(heard, chosen, patch_s)}
    return None


def _of_noise(heard: Scores, chosen: Thresholds, patch_s: float) -> list[dict[str, Any]]:
    """Detections in each synthetic noise: window by window, and as `predict` decides on a recording of it.

    Returns:
        Of each as `thresholds.false_alarms`, and `taken_for` (the answer to most of the patches that pass, or None),
        `answer` (to the whole: the class, or None), `score` (of that answer, or None) and `strangeness`.
    """
    each = np.arange(len(heard.recordings))
    of_patches = chosen.answers(heard.patch_scores)
    clips = clip_scores(heard)
    whole = chosen.answers(clips, heard.strangeness)
    whole[[name == SILENCE for name in heard.recordings]] = NONE  # silence is never decided for a class
    return [
        {
            "noise": name,
            **thresholds.false_alarms(thresholds.only(heard, each == k), chosen, patch_s),
            "recordings_answered": int(whole[k] != NONE),
            "taken_for": _commonest(of_patches[heard.patch_recording == k], heard.classes),
            "answer": None if whole[k] == NONE else heard.classes[whole[k]],
            "score": None if whole[k] == NONE else float(clips[k, whole[k]]),
            "strangeness": None if heard.strangeness is None else float(heard.strangeness[k]),
        }
        for k, name in enumerate(heard.recordings)
    ]


def _commonest(said: npt.NDArray[np.int64], classes: Sequence[str]) -> str | None:
    given = said[said != NONE]
    return classes[int(np.bincount(given).argmax())] if given.size else None


def read_served(reports: Path, n_classes: int, kind: str) -> tuple[Calibration, Thresholds | None]:
    """Calibration and thresholds out of metrics.json; scores as they come, where there are none in it."""
    path = reports / "metrics.json"
    figures = read_json(path)
    try:
        found = Calibration.of(figures["calibration"]), Thresholds.of(figures["thresholds"])
    except (LookupError, TypeError, ValueError):
        return Calibration(kind, reason=f"{shown(path)} holds no calibration"), None
    return found if len(found[1].values) == n_classes else (found[0], None)


def read_novelty(reports: Path) -> tuple[Novelty, Scale] | None:
    """The OOD statistics and limit, if there are any. Raises InputError or RetryableError if it is lost."""
    figures = read_json(reports / "metrics.json")
    try:
        scale = Scale.of(figures["novelty"]["scale"])
    except (LookupError, TypeError, ValueError):
        return None
    return Novelty.load(reports / NOVELTY_NAME), scale


def noise_logits(
    scorer: Callable[[Any], tuple[Any, Any]],
    classes: tuple[str, ...],
    spec: FrontEnd,
    batch_size: int,
    take: Take | None = None,
) -> Scores:
    """Every synthetic noise as a recording, with logits for scores.

    Args:
        scorer: patches [n, 96, 64] → logits [n, C], embeddings.
        batch_size: windows at a time; the last batch is filled up, so that nothing is compiled anew.
        take: called with the number of each noise and its mean embedding, as a `Pooler` does; None: nothing is.
    """
    parts = []
    for number, name in enumerate(NOISES):
        cuts = list(spec.cut(spec.rows_of([made_noise(name, NOISE_S, spec.rate_hz)])))
        starts = np.array([start for start, _ in cuts])
        patches = spec.stored(np.stack([patch for _, patch in cuts]))  # as all else is: [P, window_rows, ...]
        full = np.resize(patches, (-(-len(patches) // batch_size) * batch_size, *patches.shape[1:]))
        pooler = Pooler(np.full(len(patches), number, np.int64), spec, take or (lambda *_: None))
        logits = []
        for at in range(0, len(full), batch_size):
            found, embeddings = scorer(full[at : at + batch_size])
            pooler.note(full[at : at + batch_size], embeddings)
            logits.append(found)
        parts.append((starts, np.concatenate(logits)[: len(patches)]))
    return Scores(
        classes=classes,
        recordings=tuple(NOISES),
        groups=tuple(NOISES),
        labels=np.zeros(len(NOISES), np.int64),  # of no class, and never used
        patch_scores=np.concatenate([logits for _, logits in parts]),
        patch_recording=np.repeat(np.arange(len(NOISES)), [len(starts) for starts, _ in parts]),
        patch_start_s=(np.concatenate([starts for starts, _ in parts]) / spec.rows_per_s).astype(
            np.float32
        ),
    )
