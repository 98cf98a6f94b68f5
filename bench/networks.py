"""VGGish and its peers, each as a candidate in a process of its own.

    (batch size, classes, ...) ─▶ a function of no arguments: so many training steps, or so many patches scored

birdtune's own Trainer and exported model; the tf-slim graph as jibjib trains it, in a TensorFlow 1 session that
is fed from outside; PyTorch with the same layers. And the processor's own rate of matrix products.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

CLASSES = 195
WIDTHS = ((64, True), (128, True), (256, False), (256, True), (512, False), (512, True))  # pooled or not
DENSE = (4096, 4096, 128)
_RATE = 1e-4  # of Adam, jibjib's


def flops_of_a_patch(n_classes: int = CLASSES) -> float:
    """Forward, a multiply-add counted as two, summed layer by layer; a training step does three times as many."""
    total, height, width, channels = 0, 96, 64, 1
    for out, pooled in WIDTHS:
        total += 2 * height * width * 9 * channels * out
        channels = out
        height, width = (height // 2, width // 2) if pooled else (height, width)
    size = height * width * channels
    for out in (*DENSE, n_classes):
        total += 2 * size * out
        size = out
    return float(total)


def patches_of(n: int, seed: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Patches as strong as real log-mel, and labels. [n, 96, 64], [n]"""
    random = np.random.default_rng(seed)
    return (
        random.normal(-3.43, 2.13, (n, 96, 64)).astype(np.float32),
        random.integers(0, CLASSES, n).astype(np.int32),
    )


# ---- the machine ---------------------------------------------------------------------------------


def matrix_products(
    library: str, sizes: list[int], flops: float
) -> Callable[[], dict[str, dict[str, float]]]:
    """Square matrix products: GFLOP/s by type and size. A turn does `flops` of each, and once more to warm up."""
    if library == "torch":
        import torch

        random = torch.Generator().manual_seed(0)
        kinds = {"bfloat16": torch.bfloat16, "float32": torch.float32}
        given = {
            (name, size): [torch.randn((size, size), generator=random).to(kind) for _ in range(2)]
            for name, kind in kinds.items()
            for size in sizes
        }

        def product(pair: list[Any]) -> Any:
            return torch.mm(*pair)
    else:
        import tensorflow as tf

        given = {
            (name, size): [tf.cast(tf.random.stateless_normal((size, size), (0, i)), name) for i in range(2)]
            for name in ("bfloat16", "float32")
            for size in sizes
        }
        function = tf.function(tf.matmul)

        def product(pair: list[Any]) -> Any:
            return function(*pair)[0, 0].numpy()

    def turn() -> dict[str, dict[str, float]]:
        rates: dict[str, dict[str, float]] = {}
        for (name, size), pair in given.items():
            times = max(1, round(flops / (2 * size**3)))
            product(pair)
            began = time.perf_counter()
            for _ in range(times):
                product(pair)
            rates.setdefault(name, {})[str(size)] = times * 2e-9 * size**3 / (time.perf_counter() - began)
        return rates

    return turn


# ---- birdtune ------------------------------------------------------------------------------------


def trainer(
    precision: str,
    batch_size: int,
    *,
    backbone: str = "vggish",
    freeze: str = "none",
    n_classes: int = CLASSES,
) -> Any:
    """birdtune's Trainer on frames, with fresh weights. `precision` "auto" is what the job would choose."""
    from birdtune.models import classifier as classifiers
    from birdtune.models.registry import BACKBONES
    from birdtune.settings import TrainSettings
    from birdtune.training import devices, inputs
    from birdtune.training.step import StepSettings, Trainer

    devices.prepare_devices()
    policy, _ = devices.choose_precision(precision, gains_on_cpu=True)
    classifier = classifiers.build(
        BACKBONES[backbone], head="linear", scores="softmax", hidden_units=0, embedding_activation="relu",
        freeze=freeze,
        classes=[f"class {number:04}" for number in range(n_classes)], precision=policy, seed=0,
    )  # fmt: skip
    step = StepSettings(0.0, np.ones(n_classes, np.float32), policy)
    return Trainer(classifier, TrainSettings(batch_size=batch_size), step, inputs.whole(classifier, None))  # type: ignore[arg-type]


def batch_of(patches: Any, labels: Any) -> Any:
    """Patches of one class each as a batch."""
    from birdtune.data.batches import Batch

    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    n = len(labels)
    return Batch(patches.astype(np.float16), np.ones(n, np.float32), np.arange(n), targets, np.ones_like(targets))


def birdtune_steps(precision: str, batch_size: int, n_steps: int, backbone: str) -> Callable[[], float]:
    """Steps as the loop does them one by one, all on one batch."""
    ours = trainer(precision, batch_size, backbone=backbone)
    patches, labels = patches_of(batch_size, 0)
    batch = batch_of(patches, labels)

    def turn() -> float:
        loss = 0.0
        for position in range(n_steps):
            sums = ours.gradients(batch, position)
            loss = float(sums[0]) / float(sums[1])
            float(ours.apply(sums[2], sums[1], _RATE))
        return loss

    return turn


# ---- the TensorFlow 1 graph ----------------------------------------------------------------------


def slim_session(backbone: str, *, train: str) -> tuple[Any, Any, Any, Any]:
    """A session with the tf-slim graph under fresh weights.

    Args:
        train: "all", "head" or "nothing".

    Returns:
        the session, and the names to feed and fetch: patches, labels, what to run.
    """
    import tensorflow as tf

    from birdtune.models import tf1
    from birdtune.models.registry import BACKBONES

    graph = tf.Graph()
    with graph.as_default():
        tf1.build_graph(
            BACKBONES[backbone], embedding_activation="relu", scores="sigmoid", hidden_units=0, n_classes=CLASSES
        )
        labels = tf.compat.v1.placeholder(tf.float32, (None, CLASSES))
        fetch: Any = graph.get_tensor_by_name(tf1.PREDICTION)
        if train != "nothing":
            logits = graph.get_tensor_by_name(tf1.LOGITS)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(logits=logits, labels=labels))
            variables = tf.compat.v1.trainable_variables(None if train == "all" else "mymodel/")
            optimizer = tf.compat.v1.train.AdamOptimizer(_RATE, epsilon=1e-8)
            fetch = [optimizer.minimize(loss, var_list=variables), loss]
        session = tf.compat.v1.Session(graph=graph)
        session.run(tf.compat.v1.global_variables_initializer())
        random = np.random.default_rng(0)
        for variable in tf.compat.v1.trainable_variables():
            shape = variable.shape.as_list()
            spread = np.sqrt(2 / max(1, np.prod(shape[:-1]))) if len(shape) > 1 else 0.0
            value = random.standard_normal(shape, np.float32) * np.float32(spread)
            session.run(variable.initializer, {variable.initial_value: value})
    return session, tf1.FEATURES, labels, fetch


def slim_steps(batch_size: int, n_steps: int, backbone: str, train: str = "all") -> Callable[[], float]:
    """Training steps of the graph, fed from outside as jibjib does."""
    session, features, labels, fetch = slim_session(backbone, train=train)
    patches, truth = patches_of(batch_size, 0)
    one_hot = np.eye(CLASSES, dtype=np.float32)[truth]

    def turn() -> float:
        loss = 0.0
        for _ in range(n_steps):
            _, loss = session.run(fetch, {features: patches, labels: one_hot})
        return float(loss)

    return turn


def slim_scores(batch_size: int, n_batches: int, backbone: str) -> Callable[[], float]:
    """Scores of patches by the graph."""
    session, features, _, fetch = slim_session(backbone, train="nothing")
    patches, _ = patches_of(batch_size, 0)

    def turn() -> float:
        return float(np.mean([session.run(fetch, {features: patches}).mean() for _ in range(n_batches)]))

    return turn


# ---- PyTorch -------------------------------------------------------------------------------------


def torch_network(small: bool) -> Any:
    """The same layers in PyTorch."""
    from torch import nn

    shrink, layers, channels = 8 if small else 1, list[Any](), 1
    for width, pooled in WIDTHS:
        layers += [nn.Conv2d(channels, width // shrink, 3, padding=1), nn.ReLU(inplace=True)]
        layers += [nn.MaxPool2d(2)] if pooled else []
        channels = width // shrink
    layers.append(nn.Flatten())
    size = 6 * 4 * channels
    for width in DENSE:
        out = width if width == DENSE[-1] else width // shrink
        layers += [nn.Linear(size, out), nn.ReLU(inplace=True)]
        size = out
    return nn.Sequential(*layers, nn.Linear(size, CLASSES))


def _torch(kind: str, batch_size: int, backbone: str) -> tuple[Any, Any, Any, Callable[[], Any]]:
    """Network, patches, labels, and the context to compute in, of "float32" or "bfloat16", "+ channels-last" or not."""
    import torch

    torch.manual_seed(0)
    layout = torch.channels_last if "channels-last" in kind else torch.contiguous_format
    network = torch_network(backbone != "vggish").to(memory_format=layout)
    patches, labels = patches_of(batch_size, 0)
    given = torch.from_numpy(patches[:, None]).to(memory_format=layout)
    half = "bfloat16" in kind
    return (
        network, given, torch.from_numpy(labels.astype(np.int64)),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    )  # fmt: skip


def torch_steps(kind: str, batch_size: int, n_steps: int, backbone: str) -> Callable[[], float]:
    """Training steps in PyTorch, with its fused Adam."""
    import torch

    network, patches, labels, context = _torch(kind, batch_size, backbone)
    optimizer = torch.optim.Adam(network.parameters(), lr=_RATE, fused=True)
    loss_of = torch.nn.CrossEntropyLoss()

    def turn() -> float:
        loss = 0.0
        for _ in range(n_steps):
            optimizer.zero_grad(set_to_none=True)
            with context():
                found = loss_of(network(patches).float(), labels)
            found.backward()
            optimizer.step()
            loss = found.item()
        return loss

    return turn


def torch_scores(kind: str, batch_size: int, n_batches: int, backbone: str) -> Callable[[], float]:
    """Scores of patches in PyTorch."""
    import torch

    network, patches, _, _ = _torch(kind, batch_size, backbone)
    network.eval()
    if "bfloat16" in kind:
        # Faster than to convert the weights in every call, as autocast does.
        network, patches = network.bfloat16(), patches.bfloat16()

    def turn() -> float:
        total = 0.0
        with torch.inference_mode():
            for _ in range(n_batches):
                total += float(torch.sigmoid(network(patches).float()).mean())
        return total / n_batches

    return turn


TORCH_KINDS = ("float32", "float32, channels-last", "bfloat16", "bfloat16, channels-last")
