"""Logits → scores that can be read as probabilities: fitted on validation, applied wherever a score is served.

    logits of windows ─▶ Calibration.windows ─▶ window scores ─▶ mean ─▶ Calibration.clips ─▶ clip scores
    logits of the validation recordings ─▶ fit ─▶ Calibration

A score says how likely it is that a recording is of a class: a window's score, given one window of it; a clip's score,
given all of them. These are two questions, so there are two temperatures. One alone cannot answer both: windows of a
recording disagree, so that their mean is far less confident than it is right (ESC-10, YAMNet: 0.85 on average where
0.97 are right), while the windows themselves are overconfident. The clip's temperature works on the logarithm of the
mean, which leaves the order of the classes as the mean has it.

softmax: one slope (1 / temperature) each (Guo et al. 2017). sigmoid: slope and offset, the same for all classes (Platt
1999): offsets of their own would be fitted on a handful of recordings each.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special

from birdtune.evaluation.bootstrap import source_weights
from birdtune.evaluation.scores import Scores, pool_mean, with_scores
from birdtune.runtime.parsing import finite

Floats = npt.NDArray[np.float64]

# With fewer validation sources nothing is fitted. Above, a normal prior on the logarithm of the slope, and on the
# offset, keeps both near "as it is" until there is evidence. For clips it counts as much as a source or two. Windows
# are about as sure as they are right, and ten sources tell little of them: under the wide prior the log loss of other
# sources' windows could end above that without any fit, on warblers and on ESC-10. To fit nothing where sources left
# out of the fit say so was no better: it gave up temperatures of clips that helped.
FEWEST_SOURCES = 10
_PRIOR_SD, _WINDOW_PRIOR_SD = 1.0, 0.3
_STEEPEST = 20.0
# Means of float32 scores carry no more than this near 1, and softmax scores may vanish.
SMALLEST, LARGEST = 1e-30, 1.0 - 1e-5
# The fit takes at most this many windows, evenly spread; more would change its third digit.
_MOST_WINDOWS = 20_000
# Rows that are computed at a time, so that memory stays flat.
_ROWS = 65_536


@dataclass(frozen=True)
class Scale:
    """A logit becomes slope · logit + offset; a slope above 1 raises the confidence."""

    slope: float = 1.0
    offset: float = 0.0

    @property
    def temperature(self) -> float:
        """As the literature has it: above 1 lowers the confidence."""
        return 1.0 / self.slope


@dataclass(frozen=True)
class Calibration:
    """How logits become scores.

    Attributes:
        kind: "softmax" or "sigmoid".
        window, clip: for logits of windows, and for the logarithm (softmax) or log odds (sigmoid) of a clip's mean.
        sources: source recordings of validation that it was fitted on.
        reason: why nothing was fitted; "" where something was.
    """

    kind: str
    window: Scale = Scale()
    clip: Scale = Scale()
    sources: int = 0
    reason: str = ""

    def windows(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits [P, C] → scores of windows [P, C], 0…1."""
        found = np.empty(logits.shape, np.float32)
        for start in range(0, len(logits), _ROWS):
            part = slice(start, start + _ROWS)
            found[part] = _link(logits[part].astype(np.float64), self.kind, self.window)
        return found

    def clips(self, means: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Means of window scores over recordings [N, C] → scores of the recordings [N, C], 0…1."""
        if self.clip == Scale():
            return means.astype(np.float32)
        return _link(_unlink(means, self.kind), self.kind, self.clip).astype(np.float32)

    def scores(self, logits: Scores) -> Scores:
        """What is served for recordings whose `window_scores` are logits still."""
        windows = with_scores(logits, self.windows(logits.window_scores), None)
        return with_scores(windows, windows.window_scores, self.clips(pool_mean(windows)))

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.json and model.json."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Calibration":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        scales = {
            name: Scale(finite(row[name]["slope"]), finite(row[name]["offset"])) for name in ("window", "clip")
        }
        return cls(str(row["kind"]), **scales, sources=int(finite(row["sources"])), reason=str(row["reason"]))


def _link(logits: Floats, kind: str, scale: Scale) -> Floats:
    scaled = scale.slope * logits + scale.offset
    found = scipy.special.softmax(scaled, axis=-1) if kind == "softmax" else scipy.special.expit(scaled)
    return np.asarray(found)


def _unlink(means: npt.NDArray[Any], kind: str) -> Floats:
    inside = np.maximum(means.astype(np.float64), SMALLEST)
    if kind == "softmax":
        return np.asarray(np.log(inside))
    inside = np.minimum(inside, LARGEST)
    return np.asarray(np.log(inside) - np.log1p(-inside))


# ---- fitting ------------------------------------------------------------------------------------


def fit(logits: Scores | None, kind: str) -> Calibration:
    """The calibration of least log loss on validation recordings.

    Windows: log loss against their targets (by labels with times, else those of the recording), each recording counting
    alike. Clips of a softmax: log loss of "the highest score is right", because that is what people read the score as;
    of sigmoids, of every class that is known. Recordings of one source count as one.

    Args:
        logits: validation recordings, with logits for `window_scores`; None if there are none.
        kind: "softmax" or "sigmoid".
    """
    sources = len(set(logits.groups)) if logits is not None else 0
    if logits is None or sources < FEWEST_SOURCES:
        few = f"{sources} source recordings" if sources != 1 else "1 source recording"
        return Calibration(
            kind,
            sources=sources,
            reason=f"held-out recordings are of {few}, and a temperature takes {FEWEST_SOURCES} or more: scores are "
            "not calibrated",
        )
    weights = source_weights(logits.groups)  # [N]
    window = _best(_window_loss(logits, kind, weights), kind, _WINDOW_PRIOR_SD)
    means = pool_mean(
        with_scores(logits, Calibration(kind, window).windows(logits.window_scores), None)
    )  # [N, C]
    clip = _best(_clip_loss(_unlink(means, kind), logits, kind, weights), kind)
    return Calibration(kind, window, clip, sources)


def _window_loss(logits: Scores, kind: str, weights: Floats) -> Callable[[Scale], float]:
    step = -(-len(logits.window_recording) // _MOST_WINDOWS)
    chosen = np.arange(0, len(logits.window_recording), step)
    recording = logits.window_recording[chosen]
    share = weights[recording] / np.bincount(recording, minlength=len(weights))[recording]  # [P]
    part = logits.window_scores[chosen].astype(np.float64)
    targets, known = logits.truth_of_windows(chosen)
    return lambda scale: float((share * _losses(part, targets, known, kind, scale)).sum())


def _clip_loss(logits: Floats, truth: Scores, kind: str, weights: Floats) -> Callable[[Scale], float]:
    if kind != "softmax":
        return lambda scale: float((weights * _losses(logits, truth.targets, truth.known, kind, scale)).sum())
    right = np.take_along_axis(truth.positive, logits.argmax(axis=1)[:, None], axis=1)[:, 0]

    def loss(scale: Scale) -> float:
        highest = np.clip(_link(logits, kind, scale).max(axis=1), SMALLEST, 1.0 - 1e-9)
        return float(-(weights * np.where(right, np.log(highest), np.log1p(-highest))).sum())

    return loss


def _losses(
    logits: Floats, targets: npt.NDArray[np.float32], known: npt.NDArray[np.bool_], kind: str, scale: Scale
) -> Floats:
    """Log loss of each item. [n]"""
    scaled = scale.slope * logits + scale.offset
    own = (np.where(targets > 0, scaled, 0.0) * targets * known).sum(axis=1)
    if kind == "softmax":
        return np.asarray((targets * known).sum(axis=1) * scipy.special.logsumexp(scaled, axis=1) - own)
    return np.asarray((np.logaddexp(0.0, scaled) * known).sum(axis=1) - own)


def _best(loss: Callable[[Scale], float], kind: str, slope_sd: float = _PRIOR_SD) -> Scale:
    """The scale of least loss under the prior; as it is where there is none."""
    sd = np.array([slope_sd, _PRIOR_SD])
    most = np.log(_STEEPEST)

    def scale_of(point: npt.NDArray[Any]) -> Scale:
        return Scale(
            float(np.exp(np.clip(point[0], -most, most))), float(point[1]) if kind != "softmax" else 0.0
        )

    def total(point: npt.NDArray[Any]) -> float:
        return loss(scale_of(point)) + 0.5 * float(((point / sd[: point.size]) ** 2).sum())

    start = np.zeros(1 if kind == "softmax" else 2)
    from scipy.optimize import minimize  # slow to load

    found = minimize(total, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7})
    better = np.isfinite(found.x).all() and np.isfinite(found.fun) and found.fun <= total(start)
    return scale_of(found.x) if better else Scale()
