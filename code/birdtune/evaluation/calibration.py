"""Logits → scores that can be read as probabilities: fitted on validation, applied wherever a score is served.

    logits of patches ─▶ Calibration.patches ─▶ patch scores ─▶ mean ─▶ Calibration.clips ─▶ clip scores
    logits of the validation recordings ─▶ fit ─▶ Calibration

A score says how likely it is that a recording is of a class: a patch's score, after one patch of it was heard; a
clip's score, after all of it was. These are two questions, so there are two temperatures. One alone cannot answer
both: patches of a recording disagree, so that their mean is far less sure than it is right (ESC-10, YAMNet: 0.85 on
average where 0.97 are right), while the patches themselves are too sure. The clip's temperature works on the logarithm
of the mean, which leaves the order of the classes as the mean has it.

softmax: one slope (1 / temperature) each (Guo et al. 2017). sigmoid: slope and offset, the same for all classes (Platt
1999): offsets of their own would be fitted on a handful of recordings each.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.optimize
import scipy.special

from birdtune.evaluation.scores import Scores, pool_mean, with_scores
from birdtune.runtime.parsing import finite

Floats = npt.NDArray[np.float64]

# With fewer validation sources nothing is fitted. Above, a normal prior on the logarithm of the slope, and on the
# offset, keeps both near "as it is" until there is evidence: it counts as much as a source or two.
FEWEST_SOURCES = 10
_PRIOR_SD = 1.0
_STEEPEST = 20.0
# Means of float32 scores carry no more than this near 1, and softmax scores may vanish.
SMALLEST, LARGEST = 1e-30, 1.0 - 1e-5
# The fit looks at this many patches at most, evenly taken; more would change its third digit.
_MOST_PATCHES = 20_000
# Rows that are computed at a time, so that memory stays flat.
_ROWS = 65_536


@dataclass(frozen=True)
class Scale:
    """A logit becomes slope · logit + offset; a slope above 1 makes surer."""

    slope: float = 1.0
    offset: float = 0.0

    @property
    def temperature(self) -> float:
        """As the literature has it: above 1 makes less sure."""
        return 1.0 / self.slope


@dataclass(frozen=True)
class Calibration:
    """How logits become scores.

    Attributes:
        kind: "softmax" or "sigmoid".
        patch, clip: for logits of patches, and for the logarithm (softmax) or log odds (sigmoid) of a recording's mean.
        sources: source recordings of validation that it was fitted on.
        reason: why nothing was fitted; "" where something was.
    """

    kind: str
    patch: Scale = Scale()
    clip: Scale = Scale()
    sources: int = 0
    reason: str = ""

    def patches(self, logits: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Logits [P, C] → scores of patches [P, C], 0…1."""
        found = np.empty(logits.shape, np.float32)
        for start in range(0, len(logits), _ROWS):
            part = slice(start, start + _ROWS)
            found[part] = _link(logits[part].astype(np.float64), self.kind, self.patch)
        return found

    def clips(self, means: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Means of patch scores over recordings [N, C] → scores of the recordings [N, C], 0…1."""
        if self.clip == Scale():
            return means.astype(np.float32)
        return _link(_unlink(means, self.kind), self.kind, self.clip).astype(np.float32)

    def scores(self, logits: Scores) -> Scores:
        """What is served for recordings whose `patch_scores` are logits still."""
        patches = with_scores(logits, self.patches(logits.patch_scores), None)
        return with_scores(patches, patches.patch_scores, self.clips(pool_mean(patches)))

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.json and model.json."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "Calibration":
        """What `row` gave. Raises LookupError, TypeError or ValueError if it did not."""
        scales = {
            name: Scale(finite(row[name]["slope"]), finite(row[name]["offset"])) for name in ("patch", "clip")
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
    """The calibration under which validation recordings are least surprising.

    Patches: log loss against the label of their recording, each recording counting alike. Clips of a softmax: log
    loss of "the highest score is right", because that is what people read the score as; of sigmoids, of every class.
    Recordings of one source count as one.

    Args:
        logits: validation recordings, with logits for `patch_scores`; None if there are none.
        kind: "softmax" or "sigmoid".
    """
    sources = len(set(logits.groups)) if logits is not None else 0
    if logits is None or sources < FEWEST_SOURCES:
        few = f"{sources} source recordings" if sources != 1 else "1 source recording"
        return Calibration(
            kind,
            sources=sources,
            reason=f"validation has {few}, and a temperature takes {FEWEST_SOURCES} at least: scores are as they came",
        )
    weights = _source_weights(logits)  # [N]
    patch = _best(_patch_loss(logits, kind, weights), kind)
    means = pool_mean(
        with_scores(logits, Calibration(kind, patch).patches(logits.patch_scores), None)
    )  # [N, C]
    clip = _best(_clip_loss(_unlink(means, kind), logits.labels, kind, weights), kind)
    return Calibration(kind, patch, clip, sources)


def _source_weights(scores: Scores) -> Floats:
    """A source's recordings weigh one together. [N]"""
    _, source, size = np.unique(np.asarray(scores.groups, object), return_inverse=True, return_counts=True)
    return np.asarray(1.0 / size[source])


def _patch_loss(logits: Scores, kind: str, weights: Floats) -> Callable[[Scale], float]:
    step = -(-len(logits.patch_recording) // _MOST_PATCHES)
    chosen = np.arange(0, len(logits.patch_recording), step)
    recording = logits.patch_recording[chosen]
    share = weights[recording] / np.bincount(recording, minlength=len(weights))[recording]  # [P]
    part = logits.patch_scores[chosen].astype(np.float64)
    labels = logits.labels[recording]
    return lambda scale: float((share * _losses(part, labels, kind, scale)).sum())


def _clip_loss(
    logits: Floats, labels: npt.NDArray[np.int64], kind: str, weights: Floats
) -> Callable[[Scale], float]:
    if kind != "softmax":
        return lambda scale: float((weights * _losses(logits, labels, kind, scale)).sum())
    right = logits.argmax(axis=1) == labels

    def loss(scale: Scale) -> float:
        surest = np.clip(_link(logits, kind, scale).max(axis=1), SMALLEST, 1.0 - 1e-9)
        return float(-(weights * np.where(right, np.log(surest), np.log1p(-surest))).sum())

    return loss


def _losses(logits: Floats, labels: npt.NDArray[np.int64], kind: str, scale: Scale) -> Floats:
    scaled = scale.slope * logits + scale.offset
    own = np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]
    if kind == "softmax":
        return np.asarray(scipy.special.logsumexp(scaled, axis=1) - own)
    return np.asarray(np.logaddexp(0.0, scaled).sum(axis=1) - own)


def _best(loss: Callable[[Scale], float], kind: str) -> Scale:
    """The scale of least loss under the prior; as it is where there is none."""
    most = np.log(_STEEPEST)

    def scale_of(point: npt.NDArray[Any]) -> Scale:
        return Scale(
            float(np.exp(np.clip(point[0], -most, most))), float(point[1]) if kind != "softmax" else 0.0
        )

    def total(point: npt.NDArray[Any]) -> float:
        return loss(scale_of(point)) + 0.5 * float((point**2).sum()) / _PRIOR_SD**2

    start = np.zeros(1 if kind == "softmax" else 2)
    found = scipy.optimize.minimize(
        total, start, method="Nelder-Mead", options={"xatol": 1e-4, "fatol": 1e-7}
    )
    better = np.isfinite(found.x).all() and np.isfinite(found.fun) and found.fun <= total(start)
    return scale_of(found.x) if better else Scale()
