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
        found = classifier.head(embeddings)
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


class Attention:
    """How much each window counts in the score of its recording, noted while windows are scored."""

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self._found: list[npt.NDArray[np.float32]] = []

    def note(self, embeddings: npt.NDArray[np.float32]) -> None:
        """Take in a batch of embeddings [n, K], in the order of the windows."""
        if self._classifier.attention is not None:
            self._found.append(np.asarray(self._classifier.attend(embeddings)))

    def shares(self, recording: npt.NDArray[np.int64]) -> npt.NDArray[np.float32] | None:
        """As `Scores.window_weight`; recording: [P] of each window."""
        if not self._found:
            return None
        return shares(np.concatenate(self._found)[: recording.size], recording.astype(np.int64))


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
