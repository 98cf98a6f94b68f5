"""Recordings → the detections in them, in memory that does not grow with their length.

    files ─▶ infer (windows through the model, part by part) ─▶ Detector ─▶ Detected: one recording with its detections

A detection is scored for its distance from the training data as if it were a recording of its own, cut out of the file:
above the limit its decision is `unknown`. Windows without sound are never part of one.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from birdtune.audio.front_end import SILENT
from birdtune.evaluation.decision import OOD_LIMIT, UNKNOWN_NAME
from birdtune.evaluation.detections import Detection, Detector, Rule
from birdtune.models.head_kinds import Pooling
from birdtune.serving.inference import Channel, Cutter, Floats, Scored, Unused, infer
from birdtune.serving.rows import Scorer, sequenced
from birdtune.serving.verify import PublishedClasses

# Results of so many windows of a recording are in memory at a time, several times over: by BirdNET's 6,522 classes and
# its embeddings, 4 MB.
PART_WINDOWS = 128
# A window holds sound if its share of sounding rows is above this (`FrontEnd.held`).
_SOUNDING = SILENT + 1e-3

Sound = Path | Channel | Unused


class WithPublished:
    """A model whose kept published classes are scored behind its own."""

    def __init__(self, model: Scorer, published: PublishedClasses) -> None:
        self._model, self._published = model, published
        self.classes = (*model.classes, *published.labels)
        self.front_end = model.front_end

    def scores(self, windows: Any) -> tuple[Any, Any]:
        """Windows [n, window_rows, ...] float32 → scores [n, C] and embeddings [n, K]."""
        own, embeddings = self._model.scores(windows)
        return np.column_stack([np.asarray(own), np.asarray(self._published.windows(embeddings))]), embeddings

    def attend(self, embeddings: Any) -> Any:
        """As the model has it."""
        return self._model.attend(embeddings)

    @property
    def pooling(self) -> Pooling:
        """As the model has it."""
        return self._model.pooling

    def in_sequence(self, embeddings: Any, recording: Any) -> Any:
        """As the model has it, with published classes behind. [n, K], [n] → [n, C]"""
        own = np.asarray(self._model.in_sequence(embeddings, recording))
        return np.column_stack([own, np.asarray(self._published.windows(embeddings))])


@dataclass(frozen=True)
class Call:
    """A detection with its class and decision."""

    start_s: float
    end_s: float
    class_name: str
    score: float
    decision: str  # the class, or `unknown`
    ood_score: float | None  # None: the model has no OOD statistics
    peak_s: float  # where the window with that score begins


@dataclass(frozen=True)
class Detected:
    """A recording that went through the model.

    Attributes:
        given: what of `sounds` it is.
        windows: 0 of what could not be used.
        problem: why it was not used, or what is wrong with it; None: nothing is.
    """

    given: Sound
    name: str
    duration_s: float
    windows: int
    calls: tuple[Call, ...]
    problem: Unused | None


def detect_recordings(
    sounds: Sequence[Sound],
    classifier: Scorer,
    rule: Rule,
    cutter: Cutter,
    *,
    ood_score: Callable[[Floats], Any] | None = None,
    n_own: int | None = None,
    batch_size: int = 64,
    check: Callable[[], None] = lambda: None,
    reached: Callable[[float], None] = lambda _: None,
    unfinished: Mapping[Path | Channel, Mapping[str, Any]] | None = None,
    keep: Callable[[Path | Channel, Callable[[], dict[str, Any]]], None] = lambda given, state: None,
) -> Iterator[Detected]:
    """Every recording in its order, as soon as all of it was scored.

    Args:
        cutter: with `part_windows`, whole contexts of a head over time, or a recording is scored as a whole.
        ood_score: mean embeddings [n, K] → OOD scores [n]; None: nothing is rejected.
        n_own: so many classes can be rejected, the first ones: what is unlike the training data may well be a class
            that the backbone was published with. None: all.
        reached: called with the seconds of the present recording that were scored.
        unfinished: what `keep` got of recordings whose first windows are left out (`Cutter.scored`).
        keep: called after each part of a recording but the last with what gives all that is needed to go on from there,
            JSON-able.

    Raises:
        LookupError, TypeError, ValueError: `unfinished` is not what `keep` got.
        as `inference.infer`.
    """
    results = _results(classifier, pools=ood_score is not None)
    order = iter(sounds)
    recording: _Recording | None = None
    for item in infer(sounds, results, cutter, batch_size, check):
        given = recording.given if recording is not None else next(order)
        if isinstance(item, Unused):
            if recording is None:
                yield Detected(given, item.name, 0.0, 0, (), item)
            else:  # it breaks off; what came before stands
                yield recording.whole(item.name, recording.reached_s, item)
            recording = None
            continue
        if recording is None:
            assert not isinstance(given, Unused)
            recording = _Recording(given, classifier, rule, ood_score, n_own)
            if unfinished and given in unfinished:
                recording.restore(unfinished[given])
        recording.take(item)
        if math.isfinite(item.duration_s):
            yield recording.whole(item.name, item.duration_s, item.damage)
            recording = None
        else:
            reached(recording.reached_s)
            keep(recording.given, recording.state)


def _results(classifier: Scorer, *, pools: bool) -> Callable[[Floats], Floats]:
    """From windows to their scores [n, C]; with `pools`, embeddings times what a window holds [n, K]; and that. [n]

    With a head over time embeddings [n, K] in place of scores, until windows are in their order.
    """

    def results(windows: Floats) -> Floats:
        scores, embeddings = classifier.scores(windows)
        if classifier.pooling.context:
            scores = embeddings
        held = classifier.front_end.held(windows).astype(np.float32)
        pooled = [held[:, None] * np.asarray(embeddings)] if pools else []
        return np.column_stack([np.asarray(scores), *pooled, held])

    return results


class _Recording:
    """A recording whose parts come one after another."""

    def __init__(
        self, given: Path | Channel, classifier: Scorer, rule: Rule, ood_score: Callable[[Floats], Any] | None,
        n_own: int | None,
    ) -> None:  # fmt: skip
        self.given, self._classes, self._ood_score = given, classifier.classes, ood_score
        self._classifier = classifier
        self._n_own = len(self._classes) if n_own is None else n_own
        self._window_s = classifier.front_end.window_s
        self._detector = Detector(rule, self._window_s)
        self._calls: list[Call] = []
        self._n_windows = 0
        self._has_sound = False
        self.reached_s = 0.0

    def take(self, part: Scored) -> None:
        """The next windows."""
        n_classes = len(self._classes)
        [part] = (each for each in sequenced([part], self._classifier) if isinstance(each, Scored))
        sounding = part.results[:, -1] > _SOUNDING
        scores = np.where(sounding[:, None], part.results[:, :n_classes], np.float32(0.0))
        given = None if self._ood_score is None else part.results[:, n_classes:]
        self._add(self._detector.add(part.start_s, scores, given))
        self._n_windows += len(part.start_s)
        self._has_sound |= bool(sounding.any())
        self.reached_s = float(part.start_s[-1]) + self._window_s

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on from here, JSON-able."""
        return {
            "windows": self._n_windows, "has_sound": self._has_sound, "calls": [asdict(call) for call in self._calls],
            "detector": self._detector.state(),
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave. Raises LookupError, TypeError or ValueError if it did not."""
        self._n_windows, self._has_sound = int(state["windows"]), bool(state["has_sound"])
        self._calls = [Call(**call) for call in state["calls"]]
        self._detector.restore(state["detector"])

    def whole(self, name: str, duration_s: float, problem: Unused | None) -> Detected:
        """The recording, once all its windows were taken."""
        self._add(self._detector.end(duration_s))
        if not self._has_sound:
            problem = Unused(name, "silent", "nothing in it is loud enough for the model")
        calls = tuple(sorted(self._calls, key=lambda call: (call.start_s, call.end_s, call.class_name)))
        return Detected(self.given, name, duration_s, self._n_windows, calls, problem)

    def _add(self, found: Sequence[Detection]) -> None:
        if not found:
            return
        ood: list[float | None] = [None] * len(found)
        if self._ood_score is not None:
            sums = np.stack([each.sums for each in found if each.sums is not None])  # [n, K + 1]
            ood = np.asarray(self._ood_score(np.asarray(sums[:, :-1] / sums[:, -1:], np.float32))).tolist()
        for each, distance in zip(found, ood, strict=True):
            name = self._classes[each.column]
            distance = distance if each.column < self._n_own else None
            is_known = distance is None or distance <= OOD_LIMIT
            self._calls.append(
                Call(
                    round(each.start_s, 3), round(each.end_s, 3), name, round(each.score, 4),
                    name if is_known else UNKNOWN_NAME, None if distance is None else round(distance, 4),
                    round(each.peak_s, 3),
                )
            )  # fmt: skip
