"""Windows → scores and embeddings, by a compiled forward pass.

Classifier ─▶ make_scorer ─▶ windows [n, 96, 64] ─▶ scores [n, C], embeddings [n, 128]
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.data.batches import Source, in_order, prefetched
from birdtune.evaluation.scores import shares
from birdtune.models import heads
from birdtune.models.classifier import Classifier
from birdtune.runtime.signals import Interrupts
from birdtune.training import devices

Scorer = Callable[[npt.NDArray[Any]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def make_scorer(
    classifier: Classifier, embed: Callable[[Any], Any] | None = None, *, logits: bool = False
) -> Scorer:
    """A function from windows [n, 96, 64] to (scores [n, C], embeddings [n, 128]); it follows the weights.

    Args:
        embed: from what is given in place of windows to embeddings; default: the backbone.
        logits: give these in place of scores.
    """
    to_embeddings = embed or classifier.embed

    def scores(given: Any) -> tuple[Any, Any]:
        embeddings = tf.cast(to_embeddings(given), tf.float32)
        found = classifier.of_places(embeddings)
        return found if logits else heads.scores(found, classifier.kind), embeddings

    # TensorFlow warns where the same code is compiled often. In a `partial`, each scorer's is counted by itself.
    forward = tf.function(functools.partial(scores), reduce_retracing=True, autograph=False)

    def score(given: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        found, embeddings = forward(devices.tensor(given))
        return found.numpy(), embeddings.numpy()

    return score


def noting(scorer: Scorer, note: Callable[[npt.NDArray[np.float32]], None]) -> Scorer:
    """The same function, which shows the embeddings of each batch to `note` on the way."""

    def score(features: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        scores, embeddings = scorer(features)
        note(embeddings)
        return scores, embeddings

    return score


class Together:
    """What the windows of a recording are to each other, found out while they are scored: how much each counts, and
    their scores by a head over time.

    Args:
        recording: [P] which recording each window is of, in the order in which they are noted.
        logits: `scores` gives these.
    """

    def __init__(self, classifier: Classifier, recording: npt.NDArray[np.int64], *, logits: bool = False) -> None:
        self._classifier, self._recording, self._context = classifier, recording, classifier.pooling.context
        self._answer = classifier.sequence_logits if logits else classifier.in_sequence
        first = np.searchsorted(recording, recording)  # [P] first window of its recording
        self._begins = (np.arange(recording.size) - first) % max(self._context, 1) == 0  # [P] a context
        self._attention: list[npt.NDArray[np.float32]] = []
        self._scores: list[npt.NDArray[np.float32]] = []
        self._waiting: list[npt.NDArray[np.float32]] = []
        self._done = self._noted = 0

    def note(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Take in a batch of embeddings [n, K], in the order of the windows; what fills up the last one is left out."""
        own = embeddings[: self._recording.size - self._noted]
        self._noted += len(own)
        if self._classifier.attention is not None:
            self._attention.append(np.asarray(self._classifier.attend(own)))
        if self._context:
            self._waiting.append(own)
            begins = self._done + np.flatnonzero(self._begins[self._done : self._noted])
            self._score(self._noted if self._noted == self._recording.size else int(begins[-1]))

    def _score(self, end: int) -> None:
        """Score the windows up to `end`, which are whole contexts."""
        waiting, n = np.concatenate(self._waiting), end - self._done
        if n:
            found = self._answer(waiting[:n], self._recording[self._done : end])
            self._scores.append(np.asarray(found, np.float32))
        self._waiting, self._done = [waiting[n:]], end

    def scores(self, alone: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Scores [P, C] of windows, or logits; alone: as each has them without the others."""
        return np.concatenate(self._scores) if self._context else alone

    def shares(self) -> npt.NDArray[np.float32] | None:
        """As `Scores.window_weight`."""
        return shares(np.concatenate(self._attention), self._recording) if self._attention else None


def score_windows(
    scorer: Scorer,
    windows: Source,
    batch_size: int,
    interrupts: Interrupts,
    advance: Callable[[int], None] = lambda n: None,
) -> npt.NDArray[np.float32]:
    """Scores of all windows, in their order. [windows, C]

    Raises:
        Interrupted: when told to stop.
    """
    found: npt.NDArray[np.float32] | None = None
    for rows in prefetched(in_order(windows, batch_size)):
        interrupts.check()
        real = int(rows.weights.sum())
        scores = scorer(rows.features)[0][:real]
        if found is None:
            found = np.empty((len(windows), scores.shape[1]), np.float32)
        found[rows.windows[:real]] = scores
        advance(real)
    assert found is not None, "there is always a window"
    return found
