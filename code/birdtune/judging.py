"""Logits of validation and test → calibrated scores, thresholds, and all figures about them.

    logits of val, test and made noise ─▶ judge_run ─▶ Judged: the scores that are served, and metrics.json

Validation chooses the temperatures and the thresholds; test only tells what they are worth.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.config import EvaluateSettings
from birdtune.errors import shown
from birdtune.files import read_json
from birdtune.results import certainty, metrics, thresholds
from birdtune.results.answers import Thresholds
from birdtune.results.calibration import Calibration, fit
from birdtune.results.scores import Scores, clip_scores
from birdtune.sound.empty import NOISES, made_noise
from birdtune.sound.logmel import FrontEnd, frames_of

# Seconds of each made noise that are listened to.
NOISE_S = 30.0


@dataclass(frozen=True, eq=False)
class Judged:
    """What the stage `evaluate` found."""

    scores: dict[str, Scores]  # "val" and "test", as they are served; those that there are
    figures: dict[str, Any]  # of metrics.json


def judge_run(
    logits: Mapping[str, Scores | None],
    noise: Scores | None,
    *,
    kind: str,
    classes: Sequence[str],
    background: Sequence[str],
    train_counts: npt.NDArray[np.int64],
    patch_s: float,
    settings: EvaluateSettings,
    seed: int,
) -> Judged:
    """Calibrate, choose thresholds, and judge.

    Args:
        logits: "val" and "test" → recordings with logits for `patch_scores`, or None.
        noise: made noises, with logits; None leaves them out.
        kind: "softmax" or "sigmoid".
        background: names of the classes that are no answer.
        train_counts: [C] recordings of each class that were trained on.
        patch_s: seconds of a patch.
    """
    calibration = fit(logits.get("val"), kind)
    served = {name: calibration.scores(part) for name, part in logits.items() if part is not None}
    chosen = thresholds.choose(
        served.get("val"),
        classes,
        background,
        precision=settings.precision,
        alarms_per_hour=settings.false_alarms_per_hour,
    )
    figures: dict[str, Any] = {"calibration": calibration.row(), "thresholds": chosen.row(classes)}
    drawing: dict[str, int] = {"n_bootstrap": settings.bootstrap, "seed": seed}
    for name, part in logits.items():
        if part is None:
            figures[name] = None
            continue
        before = clip_scores(Calibration(kind).scores(part))
        figures[name] = {
            **metrics.judge(served[name], train_counts=train_counts, **drawing),
            "certainty": certainty.certainty(served[name], before, **drawing),
            "answers": thresholds.judge_answers(served[name], chosen, **drawing),
        }
    heard = calibration.scores(noise) if noise is not None else None
    figures["false_alarms"] = {
        "background": _of_background(served, background, chosen, patch_s),
        "noise": _of_noise(heard, chosen, patch_s) if heard is not None else [],
    }
    return Judged(served, figures)


def _of_background(
    served: Mapping[str, Scores], background: Sequence[str], chosen: Thresholds, patch_s: float
) -> dict[str, Any] | None:
    """False alarms on background that was neither trained on nor chosen with, if there is any."""
    for part in ("test", "val"):
        heard = thresholds.of_background(served[part], background) if part in served else None
        if heard is not None:
            return {"part": part, **thresholds.false_alarms(heard, chosen, patch_s)}
    return None


def _of_noise(heard: Scores, chosen: Thresholds, patch_s: float) -> list[dict[str, Any]]:
    each = np.arange(len(heard.recordings))
    return [
        {"noise": name, **thresholds.false_alarms(thresholds.only(heard, each == k), chosen, patch_s)}
        for k, name in enumerate(heard.recordings)
    ]


def read_judged(path: Path, n_classes: int, kind: str) -> tuple[Calibration, Thresholds | None]:
    """Calibration and thresholds out of metrics.json; scores as they come, where there are none in it."""
    figures = read_json(path)
    try:
        found = Calibration.of(figures["calibration"]), Thresholds.of(figures["thresholds"])
    except (LookupError, TypeError, ValueError):
        return Calibration(kind, reason=f"{shown(path)} holds no calibration"), None
    return found if len(found[1].values) == n_classes else (found[0], None)


def noise_logits(
    scorer: Callable[[Any], tuple[Any, Any]], classes: tuple[str, ...], spec: FrontEnd, batch_size: int
) -> Scores:
    """What is heard in every made noise: a recording each, with logits for scores.

    Args:
        scorer: patches [n, 96, 64] → logits [n, C], embeddings.
        batch_size: patches at a time; the last batch is filled up, so that nothing is compiled anew.
    """
    parts = []
    for name in NOISES:
        frames = np.concatenate(list(frames_of([made_noise(name, NOISE_S)], spec)))  # [frames, n_mels]
        starts = np.arange(spec.patch_count(len(frames))) * spec.patch_hop
        patches = np.stack([frames[start : start + spec.patch_frames] for start in starts])  # [P, 96, 64]
        # The frame store keeps float16, and so has the network heard all else.
        full = np.resize(patches, (-(-len(patches) // batch_size) * batch_size, *patches.shape[1:])).astype(
            np.float16
        )
        logits = np.concatenate(
            [scorer(full[at : at + batch_size])[0] for at in range(0, len(full), batch_size)]
        )
        parts.append((starts, logits[: len(patches)]))
    return Scores(
        classes=classes,
        recordings=tuple(NOISES),
        groups=tuple(NOISES),
        labels=np.zeros(len(NOISES), np.int64),  # of no class: nobody asks which
        patch_scores=np.concatenate([logits for _, logits in parts]),
        patch_recording=np.repeat(np.arange(len(NOISES)), [len(starts) for starts, _ in parts]),
        patch_start_s=(np.concatenate([starts for starts, _ in parts]) / spec.frames_per_s).astype(
            np.float32
        ),
    )
