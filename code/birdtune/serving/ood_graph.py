"""`novelty` as TensorFlow operations, for a served model to tell strange sounds itself.

    Classifier + Novelty + Scale ─▶ GraphNovelty: mean embeddings [N, K] ─▶ strangeness [N]

The same numbers as `novelty` gives; the export compares the two. In float64 where a difference of large numbers is
taken, for a graph that is served on a GPU would take it in TF32.
"""

import tensorflow as tf

from birdtune.audio.logmel import FrontEnd
from birdtune.evaluation.ood import SILENT, Novelty, Scale, floor_of
from birdtune.models.classifier import Classifier


def graph_held(patches: tf.Tensor, spec: FrontEnd) -> tf.Tensor:
    """`novelty.held`: how much each patch counts. [n, 96, 64] → [n]"""
    sounding = tf.reduce_max(patches, axis=2) > floor_of(spec)
    return tf.reduce_mean(tf.cast(sounding, tf.float32), axis=1) + SILENT


class GraphNovelty:
    """Mean embeddings, silence left out [N, K] → how strange they are [N].

    Attributes:
        arrays: what it computes with; a module that is saved must hold them.
    """

    def __init__(self, classifier: Classifier, novelty: Novelty, scale: Scale) -> None:
        self._classifier, self._scale = classifier, scale
        self.arrays = [
            tf.Variable(array, trainable=False)
            for array in (novelty.origin, novelty.whitening, novelty.centres, novelty.widening)
        ]

    def __call__(self, embeddings: tf.Tensor) -> tf.Tensor:
        """Mean embeddings [N, K] → [N]"""
        origin, whitening, centres, widening = (tf.cast(array, tf.float64) for array in self.arrays)
        means = tf.cast(embeddings, tf.float64)
        placed = (tf.sign(means) * tf.sqrt(tf.abs(means)) - origin) @ whitening  # [N, K]
        # |a - b|² = |a|² - 2ab + |b|², so that nothing is [N, C, K]; float64 bears the difference.
        crossed = placed @ tf.transpose(centres)  # [N, C]
        lengths = [tf.reduce_sum(part**2, axis=1) for part in (placed, centres)]
        squared = tf.maximum(lengths[0][:, None] - 2.0 * crossed + lengths[1], 0.0)
        distance = tf.sqrt(tf.reduce_min(squared * widening, axis=1))
        loudness = tf.reduce_logsumexp(tf.cast(self._classifier.head(embeddings), tf.float64), axis=1)
        apart = distance - self._scale.energy * loudness
        strange = (apart - self._scale.usual) / (self._scale.limit - self._scale.usual)
        return tf.cast(tf.maximum(strange, 0.0), tf.float32)
