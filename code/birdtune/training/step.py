"""The training step: what one update of the weights computes.

    Classifier + Batch ─▶ gradients of the loss ─▶ added up ─▶ divided, clipped, the optimizer ─▶ new weights

Compiled by TensorFlow, and where it pays by XLA: on a GPU all of it; on CPUs the optimizer's update, which XLA fuses
into one pass over weights, moments and gradients, and what has no convolutions, which XLA computes slowly there.
Updates that take next to no time are done many in one call.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.data.batches import WHOLE, Batch, Part
from birdtune.models import heads
from birdtune.models.classifier import Classifier, load_weights, weights
from birdtune.models.losses import example_losses, example_weights
from birdtune.settings import TrainSettings
from birdtune.training import convolution, devices
from birdtune.training.checkpoints import Saved
from birdtune.training.inputs import Feed
from birdtune.training.optimizer import averages, has_updated, make_optimizer, rest_backbone

# Operations of one call: a tenth of a second or so, after which the loop looks at what happened.
_CALL_FLOPS_ON_CPU, _CALL_FLOPS_ON_GPU = 2e10, 2e13
_MOST_UPDATES_A_CALL = 256
_UNDER_WAY = "weights"  # where a checkpoint's weights are averages, what they are averages of
# A logit beside which any other is the whole of a softmax.
_OUT = -1e9


@dataclass(frozen=True)
class StepSettings:
    """What the compiled step needs to know."""

    dropout: float
    class_weights: npt.NDArray[np.float32]  # [C]
    precision: str
    untaught: tuple[int, ...] = ()  # columns that nothing is learnt of: new classes have to be above them
    n_kept: int = 0  # columns of an earlier model; those behind are of new classes
    loss_terms: float = 1.0  # classes that an example's loss sums up, on average: what is shown is their mean


class Trainer:
    """The compiled update of a classifier, with its optimizer.

    Args:
        feed: where batches come from, and what is to be computed of them.
        part: of each batch, what this process is given; updates are then done one by one, by `gradients` and `apply`.
        examples, places: of a whole batch, and windows of each of them.
    """

    def __init__(
        self, classifier: Classifier, settings: TrainSettings, step: StepSettings, feed: Feed, *, part: Part = WHOLE,
        examples: int = 0, places: int = 1,
    ) -> None:  # fmt: skip
        self._part = part
        self._windows = examples * places  # of a whole batch
        self._own = (part.rows(examples)[:, None] * places + np.arange(places)).reshape(-1) if examples else None
        self.classifier = classifier
        self._settings = settings
        self._step = step
        self._embed = feed.embed
        self._variables = classifier.trainable_variables
        self.optimizer = make_optimizer(classifier, settings, step.precision, step.untaught)
        self._averages = averages(self.optimizer)
        self._is_taught = ~np.isin(np.arange(len(step.class_weights)), step.untaught)  # [C]
        self._class_weights = tf.constant(step.class_weights)
        by_products = devices.multiplies_better_than_it_convolves(step.precision)
        self._narrow = convolution.trained(classifier.network.layers) if by_products else []
        self.loss_terms = step.loss_terms
        self.scales_loss = step.precision == "mixed_float16"
        self.updates_per_call = self._updates_per_call(feed)
        xla = settings.jit and not self.scales_loss
        self._gradients = _compiled(self._gradients_eagerly, xla and devices.has_gpu())
        self._add = _compiled(lambda sums, more: [a + b for a, b in zip(sums, more, strict=True)])
        self._update = _compiled(self._update_eagerly, xla)
        self._apply = _compiled(self._apply_eagerly)
        # Drawing what is dropped takes XLA on CPUs thirty times as long as all else of a head's update.
        self._updates = _compiled(self._updates_eagerly, xla and (devices.has_gpu() or not step.dropout))

    def _updates_per_call(self, feed: Feed) -> int:
        """How many updates `updates` does in one call; 1: they are long, and done by `gradients` and `apply`."""
        gpu = devices.has_gpu()
        if self._part.parts > 1 or self._settings.accumulate > 1 or (feed.convolves and not gpu):
            return 1
        head = 2.0 * sum(math.prod(variable.shape) for variable in self.classifier.head.variables)
        flops = 3 * (feed.flops + head) * self._settings.batch_size
        return max(
            1, min(_MOST_UPDATES_A_CALL, int((_CALL_FLOPS_ON_GPU if gpu else _CALL_FLOPS_ON_CPU) / flops))
        )

    def begin_epoch(self, epoch: int) -> None:
        """To be called before the updates of each epoch (from 0): in the first ones the head may learn alone."""
        rest_backbone(self.optimizer, epoch < self._settings.head_warmup_epochs)

    def gradients(self, batch: Batch, position: int) -> tuple[Any, Any, Any]:
        """Sum of weighted losses, sum of weights, and gradients of the former, of one batch.

        Args:
            position: number of the batch over all epochs; dropout is drawn from it.
        """
        return self._gradients(  # type: ignore[no-any-return]
            devices.tensor(batch.features), tf.constant(batch.targets), tf.constant(batch.known),
            tf.constant(batch.weights),
            tf.constant(_inside(batch)), tf.constant([self._settings.seed, position], tf.int64),
        )  # fmt: skip

    def updates(self, batches: Batch, position: int, rates: Sequence[float]) -> npt.NDArray[np.float32]:
        """Updates one after another, in one call.

        Args:
            batches: `updates_per_call` of them in one; only the first few are used, one for each rate.
            position: number of the first batch over all epochs.
            rates: learning rate of each update.

        Returns:
            [updates, 3] sum of weighted losses, sum of weights, norm of the gradients, as `gradients` and `apply`.
        """
        calls = self.updates_per_call
        rows = [
            devices.tensor(array.reshape(calls, -1, *array.shape[1:]))
            for array in (batches.features, batches.targets, batches.known, batches.weights, _inside(batches))
        ]
        padded = np.zeros(calls, np.float32)
        padded[: len(rates)] = rates
        found = self._updates(
            *rows, tf.constant(padded), tf.constant(position, tf.int64), tf.constant(len(rates))
        )
        return np.asarray(found)[: len(rates)]

    def add(self, sums: Any, more: Any) -> Any:
        """Add up the gradients of two batches."""
        return self._add(sums, more)

    def apply(self, gradients: Any, weight_sum: Any, rate: float) -> Any:
        """One update of the weights. Returns the norm of all gradients together, before clipping."""
        self.optimizer.learning_rate.assign(rate)
        return self._apply(gradients, weight_sum)

    def _gradients_eagerly(
        self, given: Any, targets: Any, known: Any, row_weights: Any, inside: Any, seed: Any
    ) -> tuple[Any, Any, Any]:
        with convolution.watched(self._narrow) as seen, tf.GradientTape() as tape:
            embeddings = self._embed(given)  # [B, 128]
            if self._step.dropout:
                embeddings = self._dropped(embeddings, seed)
            logits = self.classifier.of_places(embeddings, inside)
            logits, targets = self._compared(logits, targets)  # [B, C]
            if self.classifier.by_recording:
                attention = self.classifier.attend(embeddings)
                logits = heads.clip_logits(logits, attention, inside, self.classifier.kind)  # [recordings, C]
            losses = example_losses(
                logits, targets, self.classifier.kind, label_smoothing=self._settings.label_smoothing, known=known,
                focal_gamma=self._settings.focal_gamma, untaught=self._step.untaught, n_kept=self._step.n_kept,
            )  # [B]
            counts = row_weights * example_weights(targets, self._class_weights)  # [B]
            loss_sum = tf.reduce_sum(counts * losses)
            scaled = self.optimizer.scale_loss(loss_sum)
        return loss_sum, tf.reduce_sum(counts), self._backwards(tape, scaled, seen)

    def _dropped(self, embeddings: Any, seed: Any) -> Any:
        """Embeddings [n, K] after dropout; of a part of a batch, what the whole batch would have had of it."""
        drop = tf.nn.experimental.stateless_dropout
        if self._part.parts == 1:
            return drop(embeddings, self._step.dropout, seed=seed)
        factors = drop(tf.ones((self._windows, embeddings.shape[-1]), embeddings.dtype), self._step.dropout, seed=seed)
        return embeddings * tf.gather(factors, self._own)

    def _compared(self, logits: Any, targets: Any) -> tuple[Any, Any]:
        """Logits without a gradient where columns are not taught, and targets without a share of those.

        Where a class has no recordings, every example would say "not this one" and none the contrary: nothing may
        push its column, nor the backbone by way of it. But left out of the comparison, it would take the sounds of a
        new class that it fires at, as nothing would lift the new column above it. Examples of other classes are
        compared without it: these stood beside it when it was taught, and would only be lifted above its own sounds.
        """
        if not self._step.untaught:
            return logits, targets
        logits = tf.where(self._is_taught, logits, tf.stop_gradient(logits))
        if self.classifier.kind == "softmax":
            is_new = np.arange(logits.shape[-1]) >= self._step.n_kept
            competes = tf.reduce_any((targets > 0) & is_new & self._is_taught, axis=1)  # of each example
            competes = tf.repeat(competes, tf.shape(logits)[0] // tf.shape(competes)[0])  # of each of its windows
            logits = tf.where(self._is_taught | competes[:, None], logits, _OUT)
        return logits, targets * self._is_taught.astype(np.float32)

    def _backwards(self, tape: Any, loss: Any, seen: Sequence[convolution.Seen]) -> list[Any]:
        """The gradients of all variables; those of some kernels by way of what their convolutions saw."""
        apart = {id(one.layer.kernel) for one in seen}
        plain = [variable for variable in self._variables if id(variable) not in apart]
        found = tape.gradient(loss, [variable.value for variable in plain] + [one.outputs for one in seen])
        gradients = {id(variable): gradient for variable, gradient in zip(plain, found, strict=False)}
        for one, gradient in zip(seen, found[len(plain) :], strict=True):
            gradients[id(one.layer.kernel)] = tf.cast(
                convolution.kernel_gradient(one.inputs, gradient), tf.float32
            )
        return [gradients[id(variable)] for variable in self._variables]

    def _apply_eagerly(self, gradients: Any, weight_sum: Any) -> Any:
        # Division and clipping are one factor, which XLA multiplies with as it goes. Its sums over all gradients
        # take one core three times as long as TensorFlow's, so the norm is computed outside of it.
        norm = tf.linalg.global_norm(gradients) / weight_sum
        unscaled = norm / self.optimizer.dynamic_scale if self.scales_loss else norm
        most = self._settings.clip_norm
        factor = tf.minimum(1.0, most / unscaled) if most else 1.0
        self._update(gradients, factor / weight_sum)
        return norm

    def _updates_eagerly(
        self, given: Any, targets: Any, known: Any, row_weights: Any, inside: Any, rates: Any, position: Any, n: Any
    ) -> Any:
        seed = tf.constant(self._settings.seed, tf.int64)

        def update(number: Any, found: Any) -> tuple[Any, Any]:
            drawn_from = tf.stack([seed, position + tf.cast(number, tf.int64)])
            loss_sum, weight_sum, gradients = self._gradients_eagerly(
                given[number], targets[number], known[number], row_weights[number], inside[number], drawn_from
            )
            self.optimizer.learning_rate.assign(rates[number])
            norm = self._apply_eagerly(gradients, weight_sum)
            row = tf.stack([loss_sum, weight_sum, norm])
            return number + 1, tf.tensor_scatter_nd_update(found, [[number]], [row])

        nothing = tf.zeros((self.updates_per_call, 3))
        _, found = tf.while_loop(lambda number, _: number < n, update, (tf.constant(0), nothing))
        return found

    def _update_eagerly(self, gradients: Any, factor: Any) -> None:
        self.optimizer.apply([gradient * factor for gradient in gradients], self._variables)

    @property
    def state_variables(self) -> list[Any]:
        """All variables that training goes on from: the weights, and the optimizer's own."""
        return [*self.classifier.variables, *self.optimizer.variables]

    @property
    def state_bytes(self) -> int:
        """Bytes of the weights and of the optimizer's own variables: of a checkpoint."""
        averages = self.weights_bytes if self._averages is not None else 0
        return self.weights_bytes + averages + _bytes_of(self.optimizer.variables)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights alone."""
        return _bytes_of(self.classifier.variables)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """While the block lasts, the classifier has the averages of its weights, if they are averaged."""
        if self._averages is None or not has_updated(self.optimizer):
            yield
            return
        under_way = [variable.numpy() for variable in self._variables]
        for variable, average in zip(self._variables, self._averages, strict=True):
            variable.assign(average)
        try:
            yield
        finally:
            for variable, array in zip(self._variables, under_way, strict=True):
                variable.assign(array)

    def state_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """What training goes on from beside the weights of `averaged`: the optimizer's own variables, by position and
        name, and the weights under way, where they are others.
        """
        found = {
            f"{position:04d}/{variable.path}": viewed(variable)
            for position, variable in enumerate(self.optimizer.variables)
        }
        if self._averages is not None:
            found |= {f"{_UNDER_WAY}/{name}": array for name, array in weights(self.classifier, viewed).items()}
        return found

    def restore(self, saved: Saved) -> None:
        """Go back to a checkpoint of the same settings."""
        mark = f"{_UNDER_WAY}/"
        under_way = {name.removeprefix(mark): a for name, a in saved.optimizer.items() if name.startswith(mark)}
        load_weights(self.classifier, under_way or saved.weights)
        for position, variable in enumerate(self.optimizer.variables):
            variable.assign(saved.optimizer[f"{position:04d}/{variable.path}"])


def viewed(variable: keras.Variable) -> npt.NDArray[Any]:
    """A variable's numbers as they are now, not copied where they lie in main memory: of the full network with its
    optimizer, a copy would be 866 MB more, and the memory for it the longest part of saving a checkpoint.

    What changes the variable afterwards leaves these numbers alone: TensorFlow gives it another buffer then.
    """
    return np.asarray(memoryview(tf.convert_to_tensor(variable.value)))


def _bytes_of(variables: Sequence[keras.Variable]) -> int:
    return sum(math.prod(v.shape) * np.dtype(keras.backend.standardize_dtype(v.dtype)).itemsize for v in variables)


def _inside(batch: Batch) -> npt.NDArray[np.bool_]:
    """Which places of each example hold a window; where each window is one, its only place does. [examples, places]"""
    return np.ones((len(batch.targets), 1), np.bool_) if batch.inside is None else batch.inside


def _compiled(function: Callable[..., Any], xla: bool = False) -> Any:
    # Autograph has nothing to translate here; and it would need room in /tmp, and leave its files there if killed.
    return tf.function(function, jit_compile=xla, autograph=False)

