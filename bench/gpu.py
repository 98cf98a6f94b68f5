"""What a large card could do with the training step, on paper; and what one does, where there is one.

    operations and bytes of a step, an H200's rates ─▶ windows a second, seconds an epoch: an estimate
    the host's own rate of making batches ─▶ where it would keep the card waiting

Where a card is there, the step is measured on the library that sees it: TensorFlow by birdtune's Trainer, JAX or
PyTorch by the same Keras model (birdtune/model knows no backend).
"""

import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from bench import networks
from bench.epochs import make_frames, targets_of_all, windows_of
from bench.harness import (
    Child,
    Line,
    Measure,
    Noting,
    Result,
    Settings,
    candidate,
    figure,
    interleaved,
    is_installed,
)

# NVIDIA's data sheet of the H200 (SXM): 989 TFLOP/s dense in bfloat16, 4.8 TB/s. Large matrix products reach some
# 790 TFLOP/s, large copies 4.3 TB/s; these are used.
_CARD_FLOPS, _CARD_BYTES = 790e12, 4.3e12
# Of such products' rate a network of convolutions reaches; issue and aim of the CPU's step, a guess for the card.
_SHARE = 0.85
_LINK_BYTES = 50e9  # PCI Express 5 × 16, in practice
_PATCHES = 800_000  # jibjib's 80,000 clips of 10 s
_PATCH_BYTES = 96 * 64 * 2
# What Adam reads and writes of each weight: value and two moments both ways, the gradient twice, 4 bytes each.
_ADAM_BYTES = 8 * 4


def measure(settings: Settings) -> Result:
    """The estimate, the host's rate, and the card's if there is one."""
    n = 200 if settings.quick else 20_000
    make_frames(settings.folder, n, settings.seed)
    with ExitStack() as stack:
        child = candidate(stack, settings, "bench.gpu:host_batches", str(settings.folder), 128)
        host_s = interleaved({"host": child}, rounds=1 if settings.quick else 5)["host"]
        host = Measure(
            "host", [value / done for value, done in zip(host_s, child.values[-len(host_s) :], strict=True)]
        )
    lines = [_estimate(batch_size) for batch_size in (32, 128, 1024)]
    flops = 3 * networks.flops_of_a_patch()
    fastest = _SHARE * _CARD_FLOPS / flops
    lines.append(
        Line("the host: batches made by one thread, on this machine", f"{1 / host.median:,.0f} windows/s",
             f"the card's most: {fastest:,.0f} windows/s", None, "", None,
             "frames from the system's memory of files; the link's limit is "
             f"{_LINK_BYTES / _PATCH_BYTES:,.0f} windows/s in float16. Where the card outruns the host, frames lie on "
             f"the card: {_PATCHES * _PATCH_BYTES / 1e9:.1f} GB for {_PATCHES:,} windows")
    )  # fmt: skip
    measured = {name: _measured(name, settings) for name in _backends_with_a_card()}
    lines += [line for found in measured.values() for line in found]
    if not measured:
        lines.append(Line("measured on a card", "none is visible here", note="the lines above are estimates"))
    return Result("gpu", lines, {"host, s a window": list(host.values)})


def _estimate(batch_size: int) -> Line:
    from birdtune.models.registry import BACKBONES

    flops = 3 * networks.flops_of_a_patch()
    computing_s = batch_size * flops / (_SHARE * _CARD_FLOPS)
    adam_s = BACKBONES["vggish"].weight_count() * _ADAM_BYTES / _CARD_BYTES
    rate = batch_size / (computing_s + adam_s)
    return Line(
        f"an H200, batch {batch_size}: an estimate", f"{rate:,.0f} windows/s",
        f"an epoch of {_PATCHES:,} windows: {figure(_PATCHES / rate)}", None, "", None,
        f"{figure(computing_s)} at {_SHARE:.0%} of 790 TFLOP/s and {figure(adam_s)} for Adam at 4.3 TB/s a step; "
        "launching kernels is not counted",
    )  # fmt: skip


def host_batches(folder: str, batch_size: int) -> Callable[[], int]:
    """A turn makes the batches of an epoch. Returns how many windows."""
    from birdtune.data.batches import Batches

    windows = windows_of(folder)
    batches = Batches(windows, targets_of_all(windows), batch_size=batch_size, seed=0)
    return lambda: sum(len(batches.batch(0, step).targets) for step in range(len(batches)))


# ---- where there is a card -----------------------------------------------------------------------


def _backends_with_a_card() -> list[str]:
    found = []
    for name in ("tensorflow", "jax", "torch"):
        if is_installed(name):
            with Child("bench.gpu:sees_a_card", name) as child:
                child()
                found += [name] if child.value else []
    return found


def sees_a_card(backend: str) -> Callable[[], bool]:
    """Whether a library computes on a GPU here."""
    if backend == "tensorflow":
        import tensorflow as tf

        return lambda: bool(tf.config.list_physical_devices("GPU"))
    if backend == "jax":
        import jax

        return lambda: jax.default_backend() == "gpu"
    import torch

    return lambda: bool(torch.cuda.is_available())


def _measured(backend: str, settings: Settings) -> list[Line]:
    lines = []
    for batch_size in (8,) if settings.quick else (128, 1024):
        with Noting(
            "bench.gpu:card_steps", backend, batch_size, environment={"KERAS_BACKEND": backend}
        ) as child:
            rounds = 1 if settings.quick else 5
            interleaved({"card": child}, rounds=rounds)
            turns = child.values[-rounds:]
            rates = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        share = 3e-12 * networks.flops_of_a_patch() * rates["windows"] / rates["products"]
        lines.append(
            Line(f"batch {batch_size}, measured with {backend}", f"{rates['features']:,.0f} windows/s",
                 f"bfloat16 products: {rates['products']:,.0f} TFLOP/s", share, "", None, "share of the products' rate")
        )  # fmt: skip
    return lines


def card_steps(backend: str, batch_size: int, size: int = 8192) -> Callable[[], dict[str, float]]:
    """A turn trains some steps and multiplies some matrices. Returns windows/s and TFLOP/s."""
    assert os.environ["KERAS_BACKEND"] == backend
    import keras

    train = _tensorflow_steps(batch_size) if backend == "tensorflow" else _keras_steps(batch_size)
    matrix = keras.ops.cast(keras.random.normal((size, size), seed=0), "bfloat16")

    def products() -> None:
        for _ in range(10):
            product = keras.ops.matmul(matrix, matrix)
        float(keras.ops.convert_to_numpy(keras.ops.cast(product[0, 0], "float32")))

    def timed(function: Callable[[], Any]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    def turn() -> dict[str, float]:
        n_steps = train()
        products()
        return {
            "windows": n_steps * batch_size / timed(train), "products": 10 * 2e-12 * size**3 / timed(products)
        }  # fmt: skip

    return turn


def _tensorflow_steps(batch_size: int) -> Callable[[], int]:
    ours = networks.trainer("auto", batch_size)
    n = ours.updates_per_call
    features, labels = networks.patches_of(n * batch_size, 0)
    batch = networks.batch_of(features, labels)

    def steps() -> int:
        ours.updates(batch, 0, [1e-4] * n)
        return n

    return steps


def _keras_steps(batch_size: int, n_steps: int = 20) -> Callable[[], int]:
    import keras

    from birdtune.models import classifier as classifiers
    from birdtune.models.registry import BACKBONES

    ours = classifiers.build(
        BACKBONES["vggish"], head="linear", scores="softmax", hidden_units=0, embedding_activation="relu",
        freeze="none",
        classes=[str(number) for number in range(networks.CLASSES)], precision="mixed_bfloat16", seed=0,
    )  # fmt: skip
    model = keras.Model(ours.network.input, ours.head(ours.network.output))
    model.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile="auto",
    )
    features, labels = networks.patches_of(batch_size, 0)

    def steps() -> int:
        for _ in range(n_steps):
            model.train_on_batch(features, labels)
        return n_steps

    return steps
