"""A frozen backbone: its embeddings computed once and kept, the head trained on them, beside jibjib's way.

    frames ─▶ forward pass, kept ─▶ epochs of the head;   beside the whole network forward in every epoch

jibjib can hold VGGish fixed as well (train_vggish False), and computes it anew for each batch of each epoch.
"""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from bench import networks
from bench.epochs import make_frames, one_epoch, targets_of_all, windows_of
from bench.harness import Line, Measure, Result, Settings, candidate, figure, interleaved
from bench.step import products, share_line

_PATCHES = 100_000
_EPOCHS = 60  # jibjib's
_HEAD_EPOCH_S = 1.0
_SHARE = 0.85
_BATCH_SIZE = 32  # the default of birdtune


def measure(settings: Settings) -> Result:
    """The forward pass and jibjib's steps on some windows; epochs of the head on a hundred thousand."""
    n_windows = 40 if settings.quick else 1280
    n_head = 200 if settings.quick else _PATCHES
    backbone = "vggish-small" if settings.quick else "vggish"
    make_frames(settings.folder, n_windows, settings.seed)
    n_steps = 1 if settings.quick else 10
    rounds = 1 if settings.quick else 5
    with ExitStack() as stack:
        folder = str(settings.folder)
        children = {
            "forward": candidate(stack, settings, "bench.frozen:forward", folder, backbone),
            "head": candidate(stack, settings, "bench.frozen:head", folder, n_head),
            "jibjib": candidate(
                stack, settings, "bench.networks:slim_steps", _BATCH_SIZE, n_steps, backbone, "head"
            ),
            "products": products(stack, settings),
        }
        seconds = interleaved(children, rounds=rounds)
        rates = children["products"].values[-rounds:]
        seconds["head"] = children["head"].values[-rounds:]
    forward = Measure("forward", [value / n_windows for value in seconds["forward"]], per="window")
    epoch = Measure("head", [value * _PATCHES / n_head for value in seconds["head"]], per="epoch")
    theirs = Measure(
        "slim graph", [value / n_steps / _BATCH_SIZE for value in seconds["jibjib"]], per="window"
    )
    details = {
        "s": seconds,
        "GFLOP/s of products": rates,
        "windows": n_windows,
        "windows of the head": n_head,
    }
    return Result("frozen", _lines(forward, epoch, theirs, rates), details)


def _lines(forward: Measure, epoch: Measure, theirs: Measure, rates: list[Any]) -> list[Line]:
    ours_s = forward.median * _PATCHES + _EPOCHS * epoch.median
    theirs_s = theirs.median * _PATCHES * _EPOCHS
    return [
        share_line("computing and keeping embeddings: share of the machine's rate of matrix products", forward,
                   networks.flops_of_a_patch(), rates, "bfloat16", _SHARE),
        Line(f"an epoch of the head: {_PATCHES:,} windows, {networks.CLASSES} classes, batch {_BATCH_SIZE}",
             epoch.text(), "", None, f"≤ {_HEAD_EPOCH_S:g} s", epoch.median <= _HEAD_EPOCH_S,
             "without validation and checkpoint"),
        Line(f"{_EPOCHS} epochs of {_PATCHES:,} windows, forward pass included", figure(ours_s),
             f"jibjib's way, the whole network in every epoch: {figure(theirs_s)}", theirs_s / ours_s, "", None,
             f"from the lines above and {theirs.text()} of the slim graph"),
    ]  # fmt: skip


def forward(folder: str, backbone: str) -> tuple[Callable[[], None], Callable[[], int]]:
    """A turn computes what the frozen backbone makes of all windows, and keeps it, as the job does."""
    import shutil

    from birdtune.runtime.log import Journal
    from birdtune.runtime.signals import Interrupts
    from birdtune.training.inputs import Frozen

    windows = windows_of(folder)
    ours = networks.trainer("auto", _BATCH_SIZE, backbone=backbone, freeze="all-but-head")
    frozen = Frozen(
        ours.classifier, store=windows.store, most_bytes=1e9,
        journal=Journal(quiet=True), interrupts=Interrupts(),
    )  # fmt: skip

    def clear() -> None:
        for kept in windows.store.folder.glob("frozen-*"):
            shutil.rmtree(kept)

    return clear, lambda: len(frozen.feed(windows, what="training").source)


def head(folder: str, n_windows: int) -> Callable[[], float]:
    """A turn is an epoch of the head on embeddings that are kept; its value are the loop's own seconds."""
    from birdtune.data.batches import Batches
    from birdtune.data.embedding_cache import ActivationStore, KeptWindows, fill
    from birdtune.runtime.log import Journal
    from birdtune.runtime.signals import Interrupts
    from birdtune.settings import TrainSettings
    from birdtune.training.inputs import Feed, in_memory
    from birdtune.training.step import StepSettings, Trainer

    place = Path(folder) / "head"
    make_frames(place, n_windows, 0)
    windows = windows_of(str(place))
    store = ActivationStore(place / "frozen", (128,), "<f4")
    random = np.random.default_rng(0)
    with Journal(quiet=True).progress("", 0, "") as progress:
        fill(store, windows, lambda frames: random.random((len(frames), 128), np.float32), 128,
             progress=progress, interrupts=Interrupts())  # fmt: skip
    feed = in_memory(Feed(KeptWindows(windows, store), lambda given: given, 0.0, False))
    ours = networks.trainer("auto", _BATCH_SIZE, backbone="vggish-small", freeze="all-but-head")
    step = StepSettings(0.0, np.ones(networks.CLASSES, np.float32), "mixed_bfloat16")
    trainer = Trainer(ours.classifier, TrainSettings(batch_size=_BATCH_SIZE), step, feed)
    batches = Batches(feed.source, targets_of_all(windows), batch_size=_BATCH_SIZE, seed=0)
    return lambda: one_epoch(trainer, batches, place)
