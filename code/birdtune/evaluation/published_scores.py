"""Scores of a backbone's published classifier: calibrated by the classes that it shares with the data, and compared.

    Scores of the model, published logits of its windows ─▶ of_matched ─▶ Scores of the matched classes, with logits
    those of validation ─▶ fit ─▶ Calibration;  those of test ─▶ compare ─▶ the published classifier beside the head

One slope and one offset serve all published classes: most of them have no recording to be calibrated on. So their
scores say little of a class that is rare, and of thousands of classes one is high by chance. A validation recording is
of classes of the data, and so an example without any kept class; by these the threshold of kept classes is chosen:

    highest kept score of each validation recording, or window ─▶ choose_threshold ─▶ Threshold
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation import calibration, reliability
from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.evaluation.calibration import FEWEST_SOURCES, Calibration
from birdtune.evaluation.decision import LEAST
from birdtune.evaluation.scores import Scores, clip_scores, subset

# One class alone says nothing of the next one.
FEWEST_CLASSES = 2
# Of recordings without a kept class, the share on which one of them may reach the threshold.
FALSE_ALARMS = 0.05


@dataclass(frozen=True)
class Threshold:
    """From which score on a kept class is decided for.

    Attributes:
        score: at least `LEAST`.
        sources: source recordings of validation that it was chosen on; 0: there were none.
        expected: share of recordings like those, without a kept class, on which one reaches it, at most.
    """

    score: float = LEAST
    sources: int = 0
    expected: float | None = None

    def row(self) -> dict[str, Any]:
        """As it stands in metrics.json and model.json."""
        return asdict(self)


def choose_threshold(highest: npt.NDArray[np.float32], groups: Sequence[str], *, windows: bool = False) -> Threshold:
    """The lowest threshold that `FALSE_ALARMS` of recordings without a kept class reach at most.

    As in split conformal prediction (Vovk et al. 2005): a recording of a further source from the same place ranks
    anywhere among those of n that were not trained on. With fewer than 19 of them the highest score is the threshold,
    and `expected` is above `FALSE_ALARMS`. Of windows it is the plain quantile: a further source would count with its
    highest window, and with few sources no score at all would be high enough.

    Args:
        highest: [N] of each validation recording, or window, the highest score of all kept classes.
        groups: [N] source recordings, which count alike.
    """
    names, source, counts = np.unique(np.asarray(groups, object).astype(str), return_inverse=True, return_counts=True)
    if not names.size:
        return Threshold()
    order = np.argsort(highest, kind="stable")
    below = np.cumsum(1.0 / counts[source][order])  # sources at or below each score
    n = names.size if windows else names.size + 1
    place = min(int(np.searchsorted(below, n * (1 - FALSE_ALARMS) - 1e-9)), below.size - 1)
    score = np.nextafter(highest[order[place]], np.float32(1))
    return Threshold(max(LEAST, float(score)), names.size, max(0.0, float(1 - below[place] / n)))


def of_matched(
    scores: Scores, logits: npt.NDArray[np.float32], names: Sequence[str], members: Sequence[Sequence[int]]
) -> Scores:
    """The same recordings with the published logits of the matched classes for `window_scores`.

    Args:
        scores: of the model, C classes.
        logits: [P, m] of the published classes that match.
        names: [m] their labels.
        members: [m] columns of the classes of the data that each is; several where two names mean one.
    """

    def merged(values: npt.NDArray[Any] | None, of: Any) -> Any:
        return None if values is None else np.stack([of(values[:, list(each)], axis=1) for each in members], axis=1)

    weight = scores.window_weight
    return Scores(
        classes=tuple(names),
        recordings=scores.recordings,
        groups=scores.groups,
        targets=merged(scores.targets, np.max),
        window_scores=logits,
        window_recording=scores.window_recording,
        window_start_s=scores.window_start_s,
        mask=merged(scores.mask, np.all),
        # Attention to each class of the model says nothing of others.
        window_weight=None if weight is None or weight.ndim > 1 else weight,
        window_targets=merged(scores.window_targets, np.any),
        window_mask=merged(scores.window_mask, np.all),
    )


def fit(val: Scores | None) -> Calibration:
    """Slope and offset of the published sigmoids by validation recordings, each matched class against the rest.

    As `calibration.fit`, for windows and for the mean over them; with too few classes or sources nothing is fitted.

    Args:
        val: as `of_matched`; None: there are no validation recordings, or no class matches.
    """
    n_classes = int(val.positive.any(axis=0).sum()) if val is not None else 0
    sources = len(set(np.array(val.groups, object)[val.has_class])) if val is not None else 0
    if val is None or n_classes < FEWEST_CLASSES or sources < FEWEST_SOURCES:
        return Calibration(
            "sigmoid",
            sources=sources,
            reason=f"validation has {sources} source recordings of {n_classes} published classes, and a calibration "
            f"takes {FEWEST_SOURCES} of {FEWEST_CLASSES} or more",
        )
    return calibration.fit(val, "sigmoid")


def of_others(highest: npt.NDArray[np.float32], threshold: Threshold) -> dict[str, Any]:
    """What the published classes that are kept score on recordings of other classes, where they ought to be low.

    Args:
        highest: [N] of each recording, or window, the highest score of all of them.

    Returns:
        `n`; `above_least`, `above`: how many reach `LEAST`, and the threshold; `median` (of
        the highest).
    """
    return {
        "n": len(highest),
        "above_least": int((highest >= LEAST).sum()),
        "above": int((highest >= threshold.score).sum()),
        "median": float(np.median(highest)),
    }


def compare(
    test: Scores, own: Scores, members: Sequence[Sequence[int]], found: Calibration, *, n_bootstrap: int, seed: int
) -> dict[str, Any] | None:
    """The published classifier beside the head, on recordings of the classes that both have.

    Both choose among the matched classes alone, by the score of the recording.

    Args:
        test: as `of_matched`.
        own: the same recordings, scored by the model.
        members: as `of_matched`.
        found: of the published scores.

    Returns:
        `recordings`, `sources`, `classes`; `published`, `head`: each `accuracy` and `accuracy_ci`; `difference` (of the
        published classifier to the head) and `difference_ci`; `calibration` as `reliability.evaluate_calibration`.
        None: no recording has a matched class.
    """
    inside = test.has_class
    if not inside.any():
        return None
    part = subset(test, inside)
    served, before = found.scores(part), clip_scores(Calibration("sigmoid").scores(part))
    heads = clip_scores(own)[inside]
    of_head = np.stack([heads[:, list(each)].max(axis=1) for each in members], axis=1)  # [n, m]
    head = np.take_along_axis(part.positive, of_head.argmax(axis=1)[:, None], axis=1)[:, 0]
    bootstrap, all_of = Bootstrap(part.groups, n_bootstrap, seed), np.ones(len(part.recordings), np.bool_)
    row: dict[str, Any] = {
        "recordings": len(part.recordings),
        "sources": bootstrap.n_groups,
        "classes": int(part.positive.any(axis=0).sum()),
    }
    for name, right in (("published", served.top1), ("head", head)):
        accuracy, ci = bootstrap.share(right, all_of)
        row[name] = {"accuracy": accuracy, "accuracy_ci": ci}
    row["difference"], row["difference_ci"] = bootstrap.difference(served.top1, head, all_of)
    row["calibration"] = reliability.evaluate_calibration(served, before, n_bootstrap=n_bootstrap, seed=seed)
    return row
