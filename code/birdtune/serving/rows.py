"""Scores of a recording → the rows of the tables that `predict` writes.

    windows ─▶ window_results ─▶ their scores, and what those of a recording are made of
    Scored | Unused ─▶ Rows ─▶ a row of the table of recordings or segments, and one for each window
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from birdtune.audio.front_end import SILENT, FrontEnd
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import BACKGROUND, UNKNOWN, UNKNOWN_NAME, Thresholds
from birdtune.evaluation.genera import Genera
from birdtune.evaluation.scores import shares
from birdtune.models.head_kinds import Pooling
from birdtune.serving.inference import Floats, Scored, Unused
from birdtune.serving.verify import PublishedClasses

# Columns of the best classes in a table; jibjib's readers show three.
_TOP = 3
# Beyond this, a window's attention counts as this: sums over windows are of its exponential, in float32.
_MOST_ATTENTION = 80.0
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
        """What its windows are made with."""
        ...

    def scores(self, windows: Any, /) -> tuple[Any, Any]:
        """Windows [n, window_rows, ...] float32 → scores [n, C] and embeddings [n, K]."""
        ...

    def attend(self, embeddings: Any, /) -> Any:
        """Embeddings [n, K] → how much each window counts beside the others of its recording [n]; or [n, C]."""
        ...

    @property
    def pooling(self) -> Pooling:
        """How scores of windows come to be those of their recording."""
        ...

    def in_sequence(self, embeddings: Any, recording: Any, /) -> Any:
        """Of a head over time: embeddings [n, K] of windows and which recording each is of [n] → scores [n, C]."""
        ...


@dataclass(frozen=True)
class PublishedChoice:
    """Published classes beside the model's own, or in their place.

    Attributes:
        alone: the decision is among published classes; else it is an own class if one passes.
        threshold: from which score on a published class is decided for.
    """

    classes: PublishedClasses
    alone: bool
    threshold: float

    @property
    def width(self) -> int:
        """Columns of `window_results` that are of published classes: theirs, and what they are divided by."""
        return len(self.classes.labels) + 1


def window_results(
    classifier: Scorer, *, pools: bool, published: PublishedChoice | None = None
) -> Callable[[Floats], Floats]:
    """From windows [n, window_rows, ...] to their scores and, in columns of their own, how much each counts. [n, C + 1]

    With attention to each class that are C columns. With a head over time embeddings stand in place of scores, until
    `sequenced` has all windows of a recording; `kept_columns` says how many columns these are together.

    Behind these stands what is summed over a recording: what each window holds (`FrontEnd.held`). [n, C + 1 + 1]

    Args:
        pools: before that, what the mean embedding is made of: each embedding times what its window holds.
            [n, C + 1 + K + 1]
        published: and before that, the scores of its M classes, times how much the window counts, and that.
            [n, C + 1 + M + 1 + K + 1]
    """

    def results(windows: Floats) -> Floats:
        scores, embeddings = classifier.scores(windows)
        if classifier.pooling.context:
            scores = embeddings
        weight = classifier.front_end.held(windows).astype(np.float32)
        pooled = [weight[:, None] * np.asarray(embeddings)] if pools else []
        attention = np.asarray(classifier.attend(embeddings))
        others = []
        if published is not None:
            alike = attention if attention.ndim == 1 else np.zeros(len(attention), np.float32)
            counts = np.exp(np.clip(alike, -_MOST_ATTENTION, _MOST_ATTENTION))[:, None]
            others = [counts * np.asarray(published.classes.windows(embeddings)), counts]
        return np.column_stack([np.asarray(scores), attention, *others, *pooled, weight])

    return results


def kept_columns(classifier: Scorer) -> int:
    """Columns of `window_results` that are of single windows; those behind are summed over a recording."""
    pooling = classifier.pooling
    return (pooling.embedding_size if pooling.context else len(classifier.classes)) + pooling.weights


def sequenced(items: Iterable[Scored | Unused], classifier: Scorer) -> Iterator[Scored | Unused]:
    """What `infer` made with `window_results`, each window with its scores."""
    size = classifier.pooling.embedding_size
    for item in items:
        if isinstance(item, Scored) and classifier.pooling.context:
            scores = classifier.in_sequence(item.results[:, :size], np.zeros(len(item.results), np.int32))
            item = item._replace(results=np.column_stack([np.asarray(scores), item.results[:, size:]]))
        yield item


@dataclass(frozen=True)
class Rows:
    """Makes rows of what `window_results` found.

    Attributes:
        calibration, thresholds, ood_score, genera: as `predict.predict_files`.
        segment_s: seconds of a segment; None: a row is a whole recording.
        published: published classes that rows are about, too; None: own classes only.
    """

    classes: tuple[str, ...]
    spec: FrontEnd
    calibration: Calibration | None
    thresholds: Thresholds | None
    ood_score: Callable[[Floats], Any] | None
    segment_s: float | None
    published: PublishedChoice | None = None
    genera: tuple[Genera, ...] = ()

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Of the table of recordings, or of segments."""
        where = ("duration_s",) if self.segment_s is None else ("start_s", "end_s")
        scores = [f"score:{name}" for name in self.classes]
        best = self._best_columns
        if self.published is not None and self.published.alone:  # thousands of classes have no columns of scores
            scores, best = [], ("decision", "class_from", *self._published_columns(""))
        elif self.published is not None:
            best = ("decision", "class_from", *best[1:], *self._published_columns("published_"))
        return ("file", *where, "windows", *best, "peak_s", "ood_score", "problem", *scores)

    @cached_property
    def window_columns(self) -> tuple[str, ...]:
        """Of the table of windows."""
        return ("file", "start_s", "end_s", *self._best_columns)

    @cached_property
    def _best_columns(self) -> tuple[str, ...]:
        return tuple(self._best(np.zeros(len(self.classes), np.float32)))

    def recording(self, scored: Scored) -> dict[str, object]:
        """The row of a recording or a segment.

        `decision`: the class with the highest of the scores that pass; where none does, the genus that passes, as
        `Setophaga sp.`, or the family; else `unknown`, as also where `ood_score` is above 1 or nothing but silence is
        there; `class` and `score` of the best class, and of the next ones (`class_2`, `score_2` …), whether they pass
        or not, background left out; `peak_s`: where in the file the window begins that scores highest for that class;
        `problem`: why there is no more than that, or what is wrong with the file (the last window says it); and a
        column `score:<class>` for every class.

        With published classes `class_from` says of which the decision is, `own` or `published`, and
        `published_class`, `published_score` … are the best of them. With these alone `class` and `score` are, and there
        is no `peak_s` and no column of scores: single windows of them are not kept.
        """
        where = {"file": scored.name, **self._place(scored), "windows": len(scored.start_s)}
        if not _sounds(scored):
            problem = "; ".join(["silent: nothing in it is loud enough for the model", *_damage(scored)])
            return {**where, "decision": self._nothing, "problem": problem}
        windows = scored.results[:, : len(self.classes)]  # [W, C]
        scores = recording_scores(scored, self.calibration, len(self.classes))
        ood = None if self.ood_score is None else float(self.ood_score(pooled_embedding(scored, self.published))[0])
        end = {"ood_score": "" if ood is None else round(ood, 4), "problem": "".join(_damage(scored))}
        best = self._best(scores, ood)
        if self.published is not None:
            best = _with_published(best, scored, self.published)
            if self.published.alone:
                return {**where, **best, **end}
        for genera in self.genera:
            if best["decision"] == UNKNOWN_NAME:
                number = int(genera.decide(scores[None], None if ood is None else np.array([ood]))[0])
                best["decision"] = UNKNOWN_NAME if number == UNKNOWN else genera.title(number)
        clearest = int(windows[:, self.classes.index(str(best["class"]))].argmax())
        return {
            **where,
            **best,
            "peak_s": round(float(scored.start_s[clearest]), 2),
            **end,
            **{f"score:{name}": _rounded(score) for name, score in zip(self.classes, scores, strict=True)},
        }

    def unused(self, unused: Unused) -> dict[str, object]:
        """The row of a file that could not be used; of one without any sound, the decision is known nevertheless."""
        decision = self._nothing if unused.problem == "silent" else ""
        return {"file": unused.name, "decision": decision, "problem": f"{unused.problem}: {unused.detail}"}

    def windows(self, scored: Scored) -> Iterator[dict[str, object]]:
        """The rows of its windows: decisions by thresholds alone."""
        window_s = self.spec.receptive_s
        for start_s, scores in zip(scored.start_s.tolist(), scored.results[:, : len(self.classes)], strict=True):
            end_s = round(min(start_s + window_s, scored.duration_s), 3)
            yield {"file": scored.name, "start_s": round(start_s, 2), "end_s": end_s, **self._best(scores)}

    @property
    def _nothing(self) -> str:
        return UNKNOWN_NAME if self.thresholds is not None or self.published is not None else ""

    def _published_columns(self, prefix: str) -> tuple[str, ...]:
        assert self.published is not None
        ranks = range(1, min(_TOP, len(self.published.classes.labels)) + 1)
        return tuple(name for rank in ranks for name in _named(prefix, rank))

    def _place(self, scored: Scored) -> dict[str, object]:
        if self.segment_s is None:
            return {"duration_s": round(scored.duration_s, 3)}
        # Only of the last segment it is known; that ends with the file.
        end_s = scored.duration_s if math.isfinite(scored.duration_s) else scored.begin_s + self.segment_s
        return {"start_s": round(scored.begin_s, 2), "end_s": round(end_s, 3)}

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


def _named(prefix: str, rank: int) -> tuple[str, str]:
    suffix = "" if rank == 1 else f"_{rank}"
    return f"{prefix}class{suffix}", f"{prefix}score{suffix}"


def _with_published(best: dict[str, object], scored: Scored, published: PublishedChoice) -> dict[str, object]:
    """The best own classes with the best published ones, and the decision among both."""
    scores = published_scores(scored, published)
    order = np.argsort(-scores, kind="stable")[:_TOP]
    found: dict[str, object] = {}
    for rank, column in enumerate(order, start=1):
        named, score = _named("" if published.alone else "published_", rank)
        found |= {named: published.classes.labels[column], score: _rounded(scores[column])}
    decision, came_from = best["decision"], "own"
    if published.alone or decision in ("", UNKNOWN_NAME):
        passes = scores[order[0]] >= published.threshold
        decision = published.classes.labels[order[0]] if passes else UNKNOWN_NAME
        came_from = "published" if passes else ""
    own = {} if published.alone else best
    return {**own, **found, "decision": decision, "class_from": came_from}


def _damage(scored: Scored) -> list[str]:
    return [] if scored.damage is None else [f"{scored.damage.problem}: {scored.damage.detail}"]


def _rounded(score: float) -> float:
    return round(float(score), _DECIMALS)


def _sounds(scored: Scored) -> bool:
    """Whether any frame holds sound: then a window holds at least one frame's share more than it counts without."""
    return bool(scored.sums[-1] > len(scored.start_s) * SILENT + 1e-3)


def pooled_embedding(scored: Scored, published: PublishedChoice | None = None) -> Floats:
    """The mean embedding of a recording, silence left out, of results that `pools`. [1, K]"""
    before = 0 if published is None else published.width
    return np.asarray(scored.sums[None, before:-1] / scored.sums[-1], np.float32)


def published_scores(scored: Scored, published: PublishedChoice) -> Floats:
    """Scores of the published classes for a recording, pooled and calibrated as `sound` does. [M]"""
    sums = scored.sums[: published.width]
    return np.asarray(published.classes.calibration.clips(np.asarray(sums[None, :-1] / sums[-1], np.float32))[0])


def recording_scores(scored: Scored, calibration: Calibration | None, n_classes: int) -> Floats:
    """The scores of a recording: the mean of its windows, by attention where the head has one, calibrated. [C]"""
    windows, attention = scored.results[:, :n_classes], scored.results[:, n_classes:]  # [W, C], [W, 1 or C]
    mean = (shares(attention, np.zeros(len(attention), np.int64)) * windows).sum(axis=0)  # [C]
    return np.asarray(mean if calibration is None else calibration.clips(mean[None])[0])
