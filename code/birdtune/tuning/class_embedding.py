"""An embedding trained on seen classes, between the backbone's own and the class vectors.

    embeddings [N, K], classes of those that are learnt ─▶ 4096, 4096, 128, 100, classes ─▶ the layer of 128 [N, 128]

The layers are those with which YAMNet was changed for the published experiment on unseen classes (see docs/unseen.md).
There its last blocks were taken off and the rest trained as well; here the backbone stays as it is.

Importing this loads TensorFlow.
"""

import keras
import numpy as np

from birdtune.runtime.files import value_sha256
from birdtune.tuning.class_maps import Floats, Ints, standard

_WIDE, _SIZE, _BEFORE_CLASSES = 4096, 128, 100
_EPOCHS, _BATCH, _RATE = 30, 32, 1e-4


class TrainedEmbedding:
    """Trained anew for each set of recordings that is learnt from, and kept for all maps."""

    def __init__(self, wide: int = _WIDE, epochs: int = _EPOCHS) -> None:
        self._wide, self._epochs = wide, epochs
        self._kept: dict[str, Floats] = {}

    def __call__(self, embeddings: Floats, labels: Ints, learnt: Ints, seed: int) -> Floats:
        """Embeddings of all recordings by what is trained on some. [N, 128]

        Args:
            embeddings: [N, K]; labels: [N]; learnt: positions of those that are trained on.
        """
        key = value_sha256([learnt.tolist(), seed])
        if key not in self._kept:
            self._kept[key] = self._trained(embeddings, labels, learnt, seed)
        return self._kept[key]

    def _trained(self, embeddings: Floats, labels: Ints, learnt: Ints, seed: int) -> Floats:
        keras.utils.set_random_seed(seed)
        scaled = standard(embeddings[learnt])(embeddings).astype(np.float32)
        _, targets = np.unique(labels[learnt], return_inverse=True)
        given = keras.Input((embeddings.shape[1],))
        found = given
        for width in (self._wide, self._wide):
            found = keras.layers.Dense(width, activation="relu")(found)
        embedded = keras.layers.Dense(_SIZE, activation="relu")(found)
        last = keras.layers.Dense(_BEFORE_CLASSES, activation="relu")(embedded)
        scores = keras.layers.Dense(int(targets.max()) + 1)(last)
        model = keras.Model(given, scores)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(_RATE), loss)
        model.fit(scaled[learnt], targets, batch_size=_BATCH, epochs=self._epochs, verbose=0)
        return np.asarray(keras.Model(given, embedded).predict(scaled, verbose=0), np.float64)
