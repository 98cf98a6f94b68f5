"""Adam or SGD with a rate for each part of the network, and an average of the weights on the way.

    TrainSettings, factors ─▶ make_optimizer ─▶ a keras optimizer that multiplies its rate by each variable's factor

Gradients cannot be scaled in place of rates: Adam divides by their size.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.models.classifier import Classifier
from birdtune.settings import TrainSettings


def rate_factors(classifier: Classifier, settings: TrainSettings) -> dict[int, float]:
    """How many times the learning rate each variable is trained with, by the id of its value.

    The backbone's last layer has the rate itself, each layer before it `layer_decay` of the next one's: what is deep is
    general, and is changed less (Howard and Ruder, "Universal language model fine-tuning", 2018). What is above the
    backbone has `head_factor`, as it mostly begins from nothing.
    """
    found = {}
    depth = [layer for layer in classifier.network.layers if layer.weights]
    for place, layer in enumerate(reversed(depth)):
        for variable in layer.trainable_variables:
            found[id(variable.value)] = settings.layer_decay**place
    for part in (classifier.head, classifier.attention):
        for variable in part.trainable_variables if part is not None else ():
            found[id(variable.value)] = settings.head_factor
    return found


class _WithRates(keras.optimizers.Optimizer):  # type: ignore[misc]
    """A keras optimizer whose rate is multiplied by a factor of each variable's own, in the update and in the decay.

    Args:
        factors: by the id of each variable's value.
        backbone: ids of those that `backbone_rate` counts for as well.
        decayed: by the id, which columns of a kernel decay (1) and which stay as they are (0), where not all do. [C]
    """

    def __init__(
        self,
        factors: Mapping[int, float],
        backbone: frozenset[int],
        decayed: Mapping[int, npt.NDArray[np.float32]],
        **settings: Any,
    ) -> None:
        super().__init__(**settings)
        self._factors, self._backbone, self._decayed = dict(factors), backbone, dict(decayed)
        # No part of the optimizer's state: it follows from the epoch (see `rest_backbone`).
        self.backbone_rate = tf.Variable(1.0, trainable=False)

    def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
        super().update_step(gradient, variable, learning_rate * self._factor(id(variable)))

    def _apply_weight_decay(self, variables: Any) -> None:
        for variable in variables:
            if self.weight_decay and self._use_weight_decay(variable):
                share = self.learning_rate * self.weight_decay * self._factor(id(variable.value))
                if (columns := self._decayed.get(id(variable.value))) is not None:
                    share = share * columns
                variable.assign(variable * (1.0 - share))

    def _factor(self, identity: int) -> Any:
        factor = self._factors[identity]
        return factor * self.backbone_rate if identity in self._backbone else factor


class _AdamW(_WithRates, keras.optimizers.AdamW):  # type: ignore[misc]
    """AdamW with a rate for each variable."""


class _SGD(_WithRates, keras.optimizers.SGD):  # type: ignore[misc]
    """Stochastic gradient descent with momentum, and a rate for each variable."""


def _decayed(classifier: Classifier, untaught: Sequence[int]) -> dict[int, npt.NDArray[np.float32]]:
    """As for `_AdamW`: columns without a loss have no gradient that would make up for what decay takes."""
    if not untaught:
        return {}
    columns = np.ones(len(classifier.classes), np.float32)
    columns[list(untaught)] = 0.0
    return {id(classifier.head.get_layer("logits").kernel.value): columns}


def make_optimizer(
    classifier: Classifier, settings: TrainSettings, precision: str, untaught: Sequence[int] = ()
) -> Any:
    """The optimizer of a classifier's trainable variables, built.

    Args:
        untaught: columns that are left out of the loss; they stay as they are.
    """
    kinds: dict[str, tuple[Any, dict[str, Any]]] = {
        "adam": (_AdamW, {"epsilon": settings.epsilon}),
        "sgd": (_SGD, {"momentum": settings.momentum}),
    }
    kind, own = kinds[settings.optimizer]
    optimizer = kind(
        rate_factors(classifier, settings),
        frozenset(id(variable.value) for variable in classifier.network.trainable_variables),
        _decayed(classifier, untaught),
        # Else Keras counts, and a checkpoint's names would depend on what was built before.
        name=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        use_ema=settings.ema_decay > 0,
        ema_momentum=settings.ema_decay,
        **own,
    )
    # Biases and scales are few and need not be small.
    optimizer.exclude_from_weight_decay(var_names=["bias", "log_scale"])
    # The gradients of half precision vanish unless the loss is scaled up; bfloat16 has float32's range.
    if precision == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, name="loss_scale")
    optimizer.build(classifier.trainable_variables)
    return optimizer


def rest_backbone(optimizer: Any, rests: bool) -> None:
    """Whether the backbone's weights stay as they are from now on; the moments of their gradients are kept."""
    _inner(optimizer).backbone_rate.assign(0.0 if rests else 1.0)


def _inner(optimizer: Any) -> Any:
    return getattr(optimizer, "inner_optimizer", optimizer)


def averages(optimizer: Any) -> list[Any] | None:
    """The average of each variable that the optimizer was built for, or None where it keeps none.

    Before the first update they are zeros (see `has_updated`).
    """
    inner = _inner(optimizer)
    return list(inner._model_variables_moving_average) if inner.use_ema else None


def has_updated(optimizer: Any) -> bool:
    """Whether there was an update yet."""
    return bool(int(_inner(optimizer).iterations))
