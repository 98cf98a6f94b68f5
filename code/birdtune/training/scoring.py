"""Patches → scores and embeddings, by a compiled forward pass.

Classifier ─▶ make_scorer ─▶ patches [n, 96, 64] ─▶ scores [n, C], embeddings [n, 128]
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.dataset.batches import Windows, in_order, prefetched
from birdtune.events import Interrupts
from birdtune.model.classifier import Classifier

Scorer = Callable[[npt.NDArray[np.floating]], tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]


def make_scorer(classifier: Classifier) -> Scorer:
    """A function from patches [n, 96, 64] to (scores [n, C], embeddings [n, 128]); it follows the weights."""

    forward = tf.function(classifier.scores, reduce_retracing=True, autograph=False)

    def score(patches: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        scores, embeddings = forward(tf.constant(patches.astype(np.float32, copy=False)))
        return scores.numpy(), embeddings.numpy()

    return score


def noting(scorer: Scorer, note: Callable[[npt.NDArray[np.float32]], None]) -> Scorer:
    """The same function, which shows the embeddings of each batch to `note` on the way."""

    def score(patches: npt.NDArray[np.floating]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        scores, embeddings = scorer(patches)
        note(embeddings)
        return scores, embeddings

    return score


def score_windows(
    scorer: Scorer,
    windows: Windows,
    batch_size: int,
    interrupts: Interrupts,
    advance: Callable[[int], None] = lambda n: None,
) -> npt.NDArray[np.float32]:
    """Scores of all windows, in their order. [windows, C]

    Raises:
        Interrupted: when told to stop.
    """
    found: npt.NDArray[np.float32] | None = None
    for batch in prefetched(in_order(windows, batch_size)):
        interrupts.check()
        real = int(batch.weights.sum())
        scores = scorer(batch.patches)[0][:real]
        if found is None:
            found = np.empty((len(windows), scores.shape[1]), np.float32)
        found[batch.windows[:real]] = scores
        advance(real)
    assert found is not None, "there is always a window"
    return found
