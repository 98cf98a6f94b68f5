"""The network of some settings, and the weights that its training begins from.

    settings, classes ─▶ build_classifier ─▶ load_first_weights: of the checkpoint or the base model, and a HeadStart's

Importing this loads TensorFlow.
"""

import numpy as np

from birdtune.config import Config
from birdtune.models import classifier as classifiers
from birdtune.models import heads, registry
from birdtune.models.backbone import Arrays
from birdtune.models.classifier import Classifier
from birdtune.models.growth import grown
from birdtune.models.head_start import HeadStart
from birdtune.settings import TrainSettings
from birdtune.training.base_model import read_weights
from birdtune.training.served_model import ServedModel


def build_classifier(
    config: Config, classes: tuple[str, ...], precision: str, seed: int | None = -1
) -> Classifier:
    """The network of these settings, with fresh weights drawn from `train.seed` (None: zeros)."""
    unsettled = "sigmoid" if config.model.head == "sed-attention" else "softmax"
    return classifiers.build(
        registry.backbone_of(config),
        head=config.model.head,
        # No labels have decided it where nothing but the settings is known.
        scores=unsettled if config.model.output == "auto" else config.model.output,
        hidden_units=config.model.head_units,
        prototypes=config.model.head_prototypes,
        context=config.model.context,
        embedding_activation=config.model.embedding_activation,
        freeze=config.model.freeze_point,
        classes=classes,
        precision=precision,
        seed=config.train.seed if seed == -1 else seed,
    )


def load_first_weights(
    classifier: Classifier, config: Config, base: ServedModel | None = None, start: HeadStart | None = None
) -> None:
    """Load the checkpoint's weights into the backbone, if there is one; or all weights of the base model.

    Args:
        start: the classes that begin from the classifier in the checkpoint; None: none does.

    Raises:
        CheckpointError: it cannot be read, or is of another network.
    """
    starts = start is not None and bool(start.columns)
    path = registry.checkpoint_path(config) if base is None or starts else None
    variables = {} if path is None else registry.read_weights(classifier.backbone, path)
    if base is not None:
        first = grown(read_weights(base), classifiers.weights(classifier))
        classifiers.load_weights(classifier, first, source=base.title)
    elif path is not None:
        classifier.backbone.load(classifier.network, variables, source=str(path))
    if starts and start is not None:
        begin_head(classifier, start, variables)


def with_head_rate(settings: TrainSettings, start: HeadStart | None) -> TrainSettings:
    """The settings of training, with the head's learning rate for what the head begins from, if none is set.

    Columns that were learnt from thousands of recordings are spoilt by the rate that random ones need.
    """
    if settings.head_lr_multiplier is not None or start is None or not start.knows_all:
        return settings
    return settings.model_copy(update={"head_lr_multiplier": 1.0})


def begin_head(classifier: Classifier, start: HeadStart, variables: Arrays) -> None:
    """Let columns of the head begin from the published classifier.

    Args:
        classifier: with fresh weights, or those of a base model.
        variables: of the checkpoint that the classifier was published in.
    """
    kernel, bias = start.weights(variables)  # [K, M], [M]
    at = [classifier.classes.index(name) for name in start.columns]
    logits = classifier.head.get_layer("logits")
    own_kernel, own_bias = logits.kernel.numpy(), logits.bias.numpy()
    if start.base is None:
        # Published logits are of yes against no; a class without any must not stand out beside them.
        own_bias = np.full_like(own_bias, heads.first_bias("sigmoid", len(classifier.classes)))
    own_kernel[:, at], own_bias[at] = kernel, bias
    logits.kernel.assign(own_kernel)
    logits.bias.assign(own_bias)
