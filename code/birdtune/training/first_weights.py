"""The network of some settings, and the weights that its training begins from.

    settings, classes ─▶ build_classifier ─▶ load_first_weights: of the checkpoint, or of the base model ─▶ begin_head

Importing this loads TensorFlow.
"""

from collections.abc import Sequence

import numpy as np

from birdtune.config import Config
from birdtune.models import classifier as classifiers
from birdtune.models import head_start, heads, registry
from birdtune.models.classifier import Classifier
from birdtune.models.growth import grown
from birdtune.settings import TrainSettings
from birdtune.training.base_model import read_weights
from birdtune.training.served_model import ServedModel


def build_classifier(
    config: Config, classes: tuple[str, ...], precision: str, seed: int | None = -1
) -> Classifier:
    """The network of these settings, with fresh weights drawn from `train.seed` (None: zeros)."""
    return classifiers.build(
        registry.backbone_of(config),
        head=config.model.head,
        # No labels have decided it where nothing but the settings is known.
        scores="softmax" if config.model.output == "auto" else config.model.output,
        hidden_units=config.model.head_units,
        prototypes=config.model.head_prototypes,
        embedding_activation=config.model.embedding_activation,
        freeze=config.model.freeze_point,
        classes=classes,
        precision=precision,
        seed=config.train.seed if seed == -1 else seed,
    )


def load_first_weights(classifier: Classifier, config: Config, base: ServedModel | None = None) -> None:
    """Load the checkpoint's weights into the backbone, if there is one; or all weights of the base model.

    Raises:
        CheckpointError: it cannot be read, or is of another network.
    """
    if base is not None:
        first = grown(read_weights(base), classifiers.weights(classifier))
        classifiers.load_weights(classifier, first, source=base.title)
        return
    path = registry.checkpoint_path(config)
    if path is not None:
        variables = registry.read_weights(classifier.backbone, path)
        classifier.backbone.load(classifier.network, variables, source=str(path))


def with_head_rate(config: Config, head: str, classes: Sequence[str]) -> TrainSettings:
    """The settings of training, with the head's learning rate for what the head begins from, if none is set.

    Columns that were learnt from thousands of recordings are spoilt by the rate that random ones need.
    """
    start = head_start.of_head(config, head, classes)
    if config.train.head_lr_multiplier is not None or start is None or len(start.columns) < len(classes):
        return config.train
    return config.train.model_copy(update={"head_lr_multiplier": 1.0})


def begin_head(classifier: Classifier, config: Config) -> None:
    """Let the head begin from the published classifier, where `model.head-weights` says so and classes match.

    Args:
        classifier: with fresh weights; its head may be another than that of the settings.

    Raises:
        CheckpointError, RetryableError: the published weights cannot be read.
    """
    start = head_start.of_head(config, classifier.head_name, classifier.classes)
    if start is None:
        return  # embeddings alone, for one, have no checkpoint to look for
    path = registry.sound_checkpoint(config)
    assert path is not None, "training from scratch was refused"
    kernel, bias = start.weights(registry.read_weights(classifier.backbone, path))  # [K, M], [M]
    at = [classifier.classes.index(name) for name in start.columns]
    logits = classifier.head.get_layer("logits")
    own_kernel, own_bias = logits.kernel.numpy(), np.full_like(
        # Published logits are of yes against no; a class without any must not stand out beside them.
        logits.bias.numpy(), heads.first_bias("sigmoid", len(classifier.classes))
    )
    own_kernel[:, at], own_bias[at] = kernel, bias
    logits.kernel.assign(own_kernel)
    logits.bias.assign(own_bias)
