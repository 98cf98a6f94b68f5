"""What was heard in a sound → the rows of the tables that `predict` writes.

    patches ─▶ judged_by ─▶ their scores, and what a recording's are made of
    Heard | Unused ─▶ Rows ─▶ a row of the table of recordings or stretches, and one for each patch
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from birdtune.audio.front_end import SILENT, FrontEnd
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import BACKGROUND, UNKNOWN, UNKNOWN_NAME, Thresholds
from birdtune.evaluation.scores import shares
from birdtune.serving.inference import Floats, Heard, Unused

# Columns of the best classes in a table; jibjib's readers show three.
_TOP = 3
# Scores are written with this many decimals: float32 near 1 has seven.
_DECIMALS = 6


class Scorer(Protocol):
    """What predictions take; `model.classifier.Classifier` and `verify.ExportedModel` have it."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of the scores."""
        ...

    @property
    def front_end(self) -> FrontEnd:
        """What its patches are made with."""
        ...

    def scores(self, patches: Any, /) -> tuple[Any, Any]:
        """Patches [n, 96, 64] float32 → scores [n, C] and embeddings [n, K]."""
        ...

    def attend(self, embeddings: Any, /) -> Any:
        """Embeddings [n, K] → how much each patch counts beside the others of its sound [n]."""
        ...


def judged_by(classifier: Scorer, *, pools: bool) -> Callable[[Floats], Floats]:
    """From patches [n, 96, 64] to their scores and, in a column of its own, how much each counts. [n, C + 1]

    Behind these stands what is summed over a recording: what each patch holds (`novelty.held`). [n, C + 1 + 1]

    Args:
        pools: before that, what the mean embedding is made of: each embedding times what its patch holds.
            [n, C + 1 + K + 1]
    """

    def judge(patches: Floats) -> Floats:
        scores, embeddings = classifier.scores(patches)
        weight = classifier.front_end.held(patches).astype(np.float32)
        pooled = [weight[:, None] * np.asarray(embeddings)] if pools else []
        return np.column_stack(
            [np.asarray(scores), np.asarray(classifier.attend(embeddings)), *pooled, weight]
        )

    return judge


@dataclass(frozen=True)
class Rows:
    """Makes rows of what `judged_by` found.

    Attributes:
        calibration, thresholds, ood_score: as `predict.predict_files`.
        stretch_s: seconds of a stretch; None: a row is a whole recording.
    """

    classes: tuple[str, ...]
    spec: FrontEnd
    calibration: Calibration | None
    thresholds: Thresholds | None
    ood_score: Callable[[Floats], Any] | None
    stretch_s: float | None

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Of the table of recordings, or of stretches."""
        where = ("duration_s",) if self.stretch_s is None else ("start_s", "end_s")
        scores = (f"score:{name}" for name in self.classes)
        return ("file", *where, "patches", *self._best_columns, "peak_s", "ood_score", "problem", *scores)

    @cached_property
    def patch_columns(self) -> tuple[str, ...]:
        """Of the table of patches."""
        return ("file", "start_s", "end_s", *self._best_columns)

    @cached_property
    def _best_columns(self) -> tuple[str, ...]:
        return tuple(self._best(np.zeros(len(self.classes), np.float32)))

    def sound(self, heard: Heard) -> dict[str, object]:
        """The row of a recording or a stretch.

        `decision`: the class with the highest of the scores that pass, or `unknown`, as also where `ood_score` is
        above 1 or nothing can be heard; `class` and `score` of the best class, and of the next ones (`class_2`,
        `score_2` …), whether they pass or not, background left out; `peak_s`: where in the file the window begins that
        scores highest for the best class; `problem`: why there is no more than that, or what is wrong with the file
        (the last window says it); and a column `score:<class>` for every class.
        """
        where = {"file": heard.name, **self._place(heard), "patches": len(heard.start_s)}
        if not _sounds(heard):
            problem = "; ".join(["silent: it holds nothing that the model can hear", *_damage(heard)])
            return {**where, "decision": self._nothing, "problem": problem}
        patches, attention = heard.results[:, :-1], heard.results[:, -1]
        mean = shares(attention, np.zeros(len(attention), np.int64)) @ patches  # [C]
        scores = self.calibration.clips(mean[None])[0] if self.calibration is not None else mean
        ood = None if self.ood_score is None else float(self.ood_score(_pooled(heard))[0])
        best = self._best(scores, ood)
        clearest = int(patches[:, self.classes.index(str(best["class"]))].argmax())
        return {
            **where,
            **best,
            "peak_s": round(float(heard.start_s[clearest]), 2),
            "ood_score": "" if ood is None else round(ood, 4),
            "problem": "".join(_damage(heard)),
            **{f"score:{name}": _rounded(score) for name, score in zip(self.classes, scores, strict=True)},
        }

    def unused(self, unused: Unused) -> dict[str, object]:
        """The row of a file that could not be used; of one without any sound, the decision is known nevertheless."""
        decision = self._nothing if unused.problem == "silent" else ""
        return {"file": unused.name, "decision": decision, "problem": f"{unused.problem}: {unused.detail}"}

    def patches(self, heard: Heard) -> Iterator[dict[str, object]]:
        """The rows of its patches: answers by thresholds alone."""
        patch_s = self.spec.heard_s
        for start_s, scores in zip(heard.start_s.tolist(), heard.results[:, :-1], strict=True):
            end_s = round(min(start_s + patch_s, heard.duration_s), 3)
            yield {"file": heard.name, "start_s": round(start_s, 2), "end_s": end_s, **self._best(scores)}

    @property
    def _nothing(self) -> str:
        return UNKNOWN_NAME if self.thresholds is not None else ""

    def _place(self, heard: Heard) -> dict[str, object]:
        if self.stretch_s is None:
            return {"duration_s": round(heard.duration_s, 3)}
        # Only of the last stretch it is known; that ends with the file.
        end_s = heard.duration_s if math.isfinite(heard.duration_s) else heard.begin_s + self.stretch_s
        return {"start_s": round(heard.begin_s, 2), "end_s": round(end_s, 3)}

    def _best(self, scores: Floats, ood: float | None = None) -> dict[str, object]:
        """The decision, and the best classes of [C] scores, the first of equals first; background is left out."""
        order = np.argsort(-scores, kind="stable")
        row: dict[str, object] = {"decision": ""}
        if self.thresholds is not None:
            known = None if ood is None else np.array([ood])
            decision = int(self.thresholds.decide(scores[None], known)[0])
            row["decision"] = UNKNOWN_NAME if decision == UNKNOWN else self.classes[decision]
            origins = self.thresholds.origins
            order = np.array([column for column in order if origins[column] != BACKGROUND])
        for rank, column in enumerate(order[:_TOP], start=1):
            suffix = "" if rank == 1 else f"_{rank}"
            row[f"class{suffix}"] = self.classes[column]
            row[f"score{suffix}"] = _rounded(scores[column])
        return row


def _damage(heard: Heard) -> list[str]:
    return [] if heard.damage is None else [f"{heard.damage.problem}: {heard.damage.detail}"]


def _rounded(score: float) -> float:
    return round(float(score), _DECIMALS)


def _sounds(heard: Heard) -> bool:
    """Whether any frame holds sound: then a patch holds at least one frame's share more than it counts without."""
    return bool(heard.sums[-1] > len(heard.start_s) * SILENT + 1e-3)


def _pooled(heard: Heard) -> Floats:
    """The mean embedding of a recording, silence left out. [1, K]"""
    return np.asarray(heard.sums[None, :-1] / heard.sums[-1], np.float32)
