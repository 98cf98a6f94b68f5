"""A faster gradient for the kernels of convolutions over narrow images, on some processors.

    what went into a convolution, gradient at what came out ─▶ gradient of its kernel

Of all parts of the training step, TensorFlow's CPU library (oneDNN 3.7) is slowest here: on VGGish's last
convolutions, over 12 by 8 places, it reaches a third of what the same processor does with matrix products of
bfloat16. So there the gradient is computed as nine matrix products, one for each place of the kernel, in less
than half of the time: the same sums in another order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import tensorflow as tf

from birdtune.models.layers import KERNEL
from birdtune.models.network import Convolution

# Bands that a convolution's output may have at most. Measured: at 8 the products take 0.5 of oneDNN's time, at 16
# about as long, at 32 1.5 times as long.
_NARROW = 8


class Seen(NamedTuple):
    """What went into a convolution and came out of it."""

    layer: Convolution
    inputs: Any  # [N, H, W, inputs]
    outputs: Any  # [N, H, W, outputs], before the bias


def trained(layers: Sequence[Any]) -> list[Convolution]:
    """The convolutions whose kernel's gradient is wanted, of those that look at every place."""
    return [
        layer
        for layer in layers
        if isinstance(layer, Convolution) and layer.trainable and layer.strides == (1, 1)
    ]


@contextmanager
def watched(layers: Sequence[Convolution]) -> Iterator[list[Seen]]:
    """What those of the layers that see narrow images compute, while the block lasts."""
    seen: list[Seen] = []

    def watch(layer: Convolution) -> None:
        def note(inputs: Any, outputs: Any) -> None:
            if outputs.shape[2] <= _NARROW:
                seen.append(Seen(layer, inputs, outputs))

        layer.watcher = note

    for layer in layers:
        watch(layer)
    try:
        yield seen
    finally:
        for layer in layers:
            layer.watcher = None


def kernel_gradient(inputs: Any, gradient: Any) -> Any:
    """The gradient of a 3×3 kernel, stride 1, padding "same".

    Args:
        inputs: [N, H, W, inputs] of the convolution.
        gradient: [N, H, W, outputs] of the loss with respect to its outputs.

    Returns:
        [3, 3, inputs, outputs], in the type of the arguments.
    """
    _, rows, columns, n_inputs = inputs.shape
    n_outputs, margin = gradient.shape[-1], KERNEL // 2
    padded = tf.pad(inputs, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    after = tf.reshape(gradient, (-1, n_outputs))  # [N·H·W, outputs]
    products = []
    for row in range(KERNEL):
        for column in range(KERNEL):
            moved = padded[:, row : row + rows, column : column + columns, :]
            before = tf.reshape(moved, (-1, n_inputs))  # [N·H·W, inputs]
            products.append(tf.matmul(before, after, transpose_a=True))  # [inputs, outputs]
    return tf.reshape(tf.stack(products), (KERNEL, KERNEL, n_inputs, n_outputs))
