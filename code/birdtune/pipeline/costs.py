"""What a job will cost on this machine: time, memory and disk, as estimates.

    Config + Dataset ─▶ estimates ─▶ lines for people, and faults where memory or disk is too small
"""

import functools
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from birdtune.config import Config
from birdtune.data.augment import active
from birdtune.data.dataset import Dataset
from birdtune.data.embedding_cache import is_worth_keeping
from birdtune.data.frames import FrameStore
from birdtune.data.scan import Recording
from birdtune.errors import shown
from birdtune.evaluation.label_issues import MOST_WINDOWS
from birdtune.models import registry
from birdtune.models.backbone import Backbone
from birdtune.models.file_backbone import FileBackbone
from birdtune.runtime import bfloat16
from birdtune.runtime.log import duration
from birdtune.runtime.storage import free_bytes, size_text
from birdtune.runtime.tensorflow_import import load_tensorflow

# One pass forward and two backward (with respect to activations and to weights).
_PASSES_A_STEP = 3
# Until TensorFlow has compiled the first update.
_COMPILE_S = 4.0
# Seconds of one core for an hour of audio: decoding, resampling, features (44.1 kHz FLAC or Ogg).
_PREPARE_S_PER_HOUR = 4.0
_FLOAT_BYTES = 4
_TENSORFLOW_BYTES = 1_000_000_000
# Outputs of a layer are kept for the backward pass, before and after its ReLU and pooling, with their gradients.
_ACTIVATION_COPIES = 5.7


@dataclass
class Faults:
    """What is wrong: with the input and the settings, or with the storage, as `run` would tell them apart."""

    lasting: list[str] = field(default_factory=list)
    passing: list[str] = field(default_factory=list)


def estimates(config: Config, dataset: Dataset, faults: Faults) -> Iterator[str]:
    """Time, memory and disk that a job will take, in lines; too little of them is a fault."""
    backbone = registry.backbone_of(config)
    weights = backbone.weight_count() * _FLOAT_BYTES
    hours = sum(recording.facts.duration_s for recording in dataset.recordings) / 3600
    cached = sum(_cached_bytes(config, backbone, dataset).values())
    disk = disk_bytes(config, dataset, weights)
    memory = _memory_bytes(config, backbone, weights)
    prepare_s = hours * _PREPARE_S_PER_HOUR / len(os.sched_getaffinity(0))
    yield "estimates:"
    yield f"  prepare {duration(prepare_s)}, once for each recording"
    yield from _embedding_time(config, backbone, dataset)
    yield f"  train   {training_time(config, backbone, dataset)}"
    yield from _labels_time(config, backbone, dataset)
    yield f"  memory  {memory / 1e9:.1f} GB of {memory_there() / 1e9:.1f} GB"
    free = free_bytes(config.output)
    there = f"{free / 1e9:.1f} GB are free" if free is not None else "and the file system does not say how much is free"
    yield f"  disk    {disk / 1e9:.1f} GB in {shown(config.output)}, {there}"
    if cached:
        yield f"          and {size_text(cached)} for the outputs of the frozen layers, computed once, if there is room"
    if free is not None and disk > free:
        every = " and leave out --train.keep-weights every-epoch" if config.train.keep_weights == "every-epoch" else ""
        faults.passing.append(
            f"{shown(config.output)}: the disk is too full for the job (about {size_text(disk)} needed, "
            f"{size_text(free)} free). Free some space, give another --output, or lower --train.keep-checkpoints"
            f"{every}."
        )
    if memory > memory_there():
        faults.lasting.append(
            f"about {memory / 1e9:.1f} GB of memory are needed and {memory_there() / 1e9:.1f} GB are there. "
            "Lower --train.batch-size (and raise --train.accumulate to make up for it)."
        )


def _windows(dataset: Dataset, part: str, hop_s: float | None) -> int:
    return sum(_window_counts(dataset, dataset.part(part), hop_s))


def _window_counts(dataset: Dataset, part: Sequence[Recording], hop_s: float | None) -> list[int]:
    return [dataset.spec.windows_in(recording.facts.duration_s, hop_s) for recording in part]


def _labels_time(config: Config, backbone: Backbone, dataset: Dataset) -> Iterator[str]:
    """The time that checking the labels takes, by embeddings of the backbone as it was given."""
    counts = _window_counts(dataset, dataset.recordings, None) if config.evaluate.label_issues else []
    trained = _window_counts(dataset, dataset.part("train"), config.train.hop_s)
    shares = trained if config.train.label_refinement else []
    windows = sum(min(count, MOST_WINDOWS) for count in [*counts, *shares]) + sum(shares)
    if windows and config.model.checkpoint != "none":
        seconds = windows * _forward_s(config, backbone, backbone.window_flops())
        yield f"  labels  {duration(seconds)} to check them, by {windows:,} windows (--evaluate.label-issues)"


def _embedding_time(config: Config, backbone: Backbone, dataset: Dataset) -> Iterator[str]:
    """The time that a whole frozen backbone takes for all recordings, where it computes each once."""
    n_frozen = _n_frozen(config, backbone)
    if not n_frozen or not backbone.cut(n_frozen).is_whole or "train" not in _cached_bytes(config, backbone, dataset):
        return
    hops = {"train": config.train.hop_s, "val": config.evaluate.hop_s, "test": config.evaluate.hop_s}
    windows = sum(_windows(dataset, part, hop_s) for part, hop_s in hops.items())
    each_s = _forward_s(config, backbone, backbone.window_flops())
    how = "measured" if isinstance(backbone, FileBackbone) else "estimated"
    yield (
        f"  embed   about {duration(windows * each_s)}, once: {windows:,} windows of all recordings, "
        f"{1 / each_s:,.0f} a second ({how})"
    )


def _forward_s(config: Config, backbone: Backbone, flops: float) -> float:
    """Seconds of so many operations of a window, forward."""
    if isinstance(backbone, FileBackbone):
        return _measured_s(backbone) * flops / backbone.window_flops()
    return flops / _rate(config, backbone)


@functools.lru_cache(maxsize=1)
def _measured_s(backbone: FileBackbone) -> float:
    """Seconds of a window; what a graph in a file costs is not known otherwise."""
    load_tensorflow()
    from birdtune.models import probe

    return probe.window_s(backbone, backbone.arrays())


def _rate(config: Config, backbone: Backbone) -> float:
    gain = backbone.bfloat16_gain if _computes_bfloat16(config, backbone) else 1.0
    return matmul_flops() * backbone.step_efficiency * gain


def training_time(config: Config, backbone: Backbone, dataset: Dataset) -> str:
    """Layers that are trained take three passes an epoch, frozen ones one, or one for all epochs where it is cached."""
    where = " on this CPU; the GPU that is there is some hundred times faster" if has_gpu() else " on this CPU"
    n_frozen = _n_frozen(config, backbone)
    cached = _cached_bytes(config, backbone, dataset)
    frozen, is_whole = 0.0, False
    if n_frozen:
        cut = backbone.cut(n_frozen)
        frozen, is_whole = cut.frozen_flops, cut.is_whole and "train" in cached
    frozen_s = _forward_s(config, backbone, frozen)
    rest_s = _forward_s(config, backbone, backbone.window_flops() - frozen)
    once_s = epoch_s = 0.0
    for part, hop_s, passes in (("train", config.train.hop_s, _PASSES_A_STEP), ("val", config.evaluate.hop_s, 1)):
        windows = _windows(dataset, part, hop_s)
        epoch_s += windows * passes * rest_s
        if part in cached:
            once_s += 0.0 if is_whole else windows * frozen_s  # `embed` has it
        else:
            epoch_s += windows * frozen_s
    n = config.train.ensemble or 1
    epochs = f"{config.train.epochs} epochs{f' of each of {n} members' if n > 1 else ''}"
    epoch = f"about {duration(epoch_s)} an epoch" if epoch_s >= 1 else "under a second an epoch"
    once = f"about {duration(once_s)} once for the frozen layers, then " if once_s else ""
    return (
        f"{_windows(dataset, 'train', config.train.hop_s):,} windows, {once}{epoch}, at most "
        f"{duration(n * _COMPILE_S + once_s + n * epoch_s * config.train.epochs)} for {epochs}{where} "
        "(give or take a factor of two)"
    )


def _n_frozen(config: Config, backbone: Backbone) -> int:
    point = config.model.freeze_point
    return backbone.frozen_layers(point) if point in backbone.freeze_points else 0


def _cached_bytes(config: Config, backbone: Backbone, dataset: Dataset) -> dict[str, float]:
    """Outputs of the frozen layers for training and validation windows, as far as they are cached: part → bytes."""
    n_frozen = _n_frozen(config, backbone)
    if not n_frozen:
        return {}
    cut = backbone.cut(n_frozen)
    precision = config.train.precision
    if precision == "auto":
        precision = "mixed_bfloat16" if has_gpu() or _computes_bfloat16(config, backbone) else "float32"
    row_bytes = cut.row_bytes(precision)
    if not is_worth_keeping(cut.frozen_flops, row_bytes, on_gpu=has_gpu()):
        return {}
    moves = config.train.jitter_s > 0 or bool(active(config.augment))
    found: dict[str, float] = {}
    for part, hop_s in (("train", config.train.hop_s), ("val", config.evaluate.hop_s)):
        n_bytes = _windows(dataset, part, hop_s) * row_bytes
        left = config.train.cache_gb * 1e9 - sum(found.values())
        if n_bytes and n_bytes <= left and not (moves and part == "train"):
            found[part] = n_bytes
    return found


def has_gpu() -> bool:
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def _computes_bfloat16(config: Config, backbone: Backbone) -> bool:
    precision = config.train.precision
    wanted = precision == "mixed_bfloat16" or (precision == "auto" and backbone.bfloat16_gain > 1)
    return wanted and bfloat16.instructions() is not None


def matmul_flops() -> float:
    """This machine's float32 matrix-product rate, from a tenth of a second of trying.

    By one core, in products of some milliseconds: those of all cores together wait for each other, and beside other
    work showed a tenth of what they do alone.
    """
    side = 512
    a = np.ones((side, side), np.float32)
    best = math.inf
    with threadpool_limits(1):
        began = time.perf_counter()
        while time.perf_counter() - began < 0.1:
            start = time.perf_counter()
            a @ a
            best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best * len(os.sched_getaffinity(0))


def disk_bytes(config: Config, dataset: Dataset, weights: int) -> float:
    made = FrameStore(config.output / "cache", dataset.spec, config.audio)
    missing = [recording.facts.duration_s for recording in dataset.recordings if recording.content not in made]
    frames = sum(missing) * dataset.spec.rows_per_s * dataset.spec.row_bytes
    # Each checkpoint holds the weights and Adam's two slots: the newest, the best, and one being written.
    checkpoints = (config.train.keep_checkpoints + 2) * 3 * weights
    of_epochs = config.train.epochs * weights if config.train.keep_weights == "every-epoch" else 0
    # Of each member the newest and the best; their mean is weights alone.
    checkpoints += (config.train.ensemble or 0) * 2 * 3 * weights
    of_epochs *= config.train.ensemble or 1
    exported = 2 * weights  # one being built while an earlier one stands
    return frames + checkpoints + of_epochs + exported


def _memory_bytes(config: Config, backbone: Backbone, weights: int) -> float:
    # Weights, gradients, two slots; and copies while a checkpoint is written. With these numbers the peak of
    # `birdtune demo` (batch 32, measured 4.0 GB) comes out right.
    activations = backbone.window_activations() * _FLOAT_BYTES
    if _n_frozen(config, backbone) and backbone.freezes_all(config.model.freeze_point):
        return _TENSORFLOW_BYTES + 8 * weights + 2 * backbone.frozen_batch() * activations
    return _TENSORFLOW_BYTES + 8 * weights + config.train.batch_size * activations * _ACTIVATION_COPIES


def memory_there() -> float:
    """Bytes this process may use: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return float(min(machine, int(Path(name).read_text("utf-8"))))
        except (OSError, ValueError):
            continue
    return float(machine)
