"""What is in the input, what is wrong with it, what it will cost; trains nothing.

    Config ─▶ check ─▶ lines for people, problems.csv, exit code 0 (the job can run), 42 or 75 (it cannot)

All faults are looked for before any is told, so that one round of mending is enough.
"""

import contextlib
import itertools
import math
import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from birdtune.config import Config
from birdtune.data import coverage
from birdtune.data import dataset as gather
from birdtune.data.augment import active, require_background
from birdtune.data.dataset import Dataset
from birdtune.data.embedding_cache import is_worth_keeping
from birdtune.data.frames import FrameStore
from birdtune.data.properties import recorder_notices
from birdtune.data.scan import PROBLEMS, Problem, Recording
from birdtune.data.selection import TooFewClassesError
from birdtune.data.source_notices import source_lines
from birdtune.errors import (
    EXIT_DONE,
    EXIT_INPUT,
    EXIT_RETRY,
    BusyError,
    InputError,
    RetryableError,
    shown,
)
from birdtune.evaluation.label_issues import MOST_WINDOWS
from birdtune.models import registry
from birdtune.models.backbone import Backbone
from birdtune.models.weights import verify_checkpoint
from birdtune.pipeline import gate
from birdtune.runtime.files import try_to_write
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal, duration
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import free_bytes, size_text, storage_faults
from birdtune.runtime.text import count
from birdtune.training import base_model
from birdtune.training.served_model import ServedModel

_EXAMPLES = 3
_MOST_CLASSES = 60
# One pass forward and two backward (with respect to activations and to weights).
_PASSES_A_STEP = 3
# Until TensorFlow has compiled the first update.
_COMPILE_S = 4.0
# Seconds of one core for an hour of audio: decoding, resampling, frames (44.1 kHz FLAC or Ogg).
_PREPARE_S_PER_HOUR = 4.0
_FLOAT_BYTES = 4
_TENSORFLOW_BYTES = 1_000_000_000
# What leaves a layer is kept for the way back, before and after its ReLU and pooling, with its gradients.
_ACTIVATION_COPIES = 5.7


def check(config: Config, journal: Journal, interrupts: Interrupts) -> int:
    """Look at everything that the job would use.

    Beside a job that is at work in the output folder, nothing is written there.

    Returns:
        0; 42 if the job could not run, 75 if nothing but passing faults (storage) kept it from that.

    Raises:
        Interrupted.
    """
    faults = _Faults()
    with contextlib.ExitStack() as stack:
        writable = _can_write(config.output, faults)
        if writable:
            writable = False
            with _noted(faults):
                try:
                    stack.enter_context(alone_in(config.output, journal))
                    writable = True
                except BusyError as fault:
                    journal.say(
                        f"note: nothing is written to {shown(config.output)}, where a job is at work: {fault.who}"
                    )
        return _check(config, journal, interrupts, faults, writable=writable)


def _check(
    config: Config, journal: Journal, interrupts: Interrupts, faults: "_Faults", *, writable: bool
) -> int:
    backbone = registry.backbone_of(config)
    journal.say(f"check: {shown(config.data_folder)}")
    dataset = None
    with _noted(faults):
        backbone.frozen_layers(config.model.freeze)
    with _noted(faults):
        try:
            dataset = gather.inspect(
                config, registry.front_end(config), journal, interrupts, writable=writable, faults=faults.lasting
            )
        except TooFewClassesError as fault:
            for line in _problems(fault.problems):
                journal.say(line)
            raise
    base = _check_base(config, faults, journal, writable=writable)
    with _noted(faults):
        if champion := gate.find(config):
            journal.say(f"gate: {champion.title} is the champion, with {count(len(champion.classes), 'class')}")
    if dataset is not None:
        dataset = base_model.with_columns(config, dataset, base)
        said = (_classes(dataset), source_lines(dataset.sources), _problems(dataset.problems), _notices(dataset))
        for line in itertools.chain.from_iterable(said):
            journal.say(line)
    if config.init_from is None:
        _check_checkpoint(config, faults, journal, writable=writable)
    if dataset is not None:
        with _noted(faults):
            require_background(config.augment, dataset.background)
        with _noted(faults), storage_faults(config.output, verb="read"):
            for line in _costs(config, dataset, faults):
                journal.say(line)
    journal.say("")
    for line in (*faults.lasting, *faults.passing):
        journal.say(f"wrong: {line}")
    if writable and (config.output / "problems.csv").exists():
        journal.say(f"Every file that is not used, with what to do: {shown(config.output / 'problems.csv')}")
    bad = faults.lasting or faults.passing
    journal.say("The job can run." if not bad else "The job cannot run until this is mended.")
    return EXIT_INPUT if faults.lasting else EXIT_RETRY if faults.passing else EXIT_DONE


@dataclass
class _Faults:
    """What is wrong: with the input and the settings, or with storage, as `run` would tell them apart."""

    lasting: list[str] = field(default_factory=list)
    passing: list[str] = field(default_factory=list)


@contextlib.contextmanager
def _noted(faults: _Faults) -> Iterator[None]:
    """Note what is wrong, and go on looking."""
    try:
        yield
    except (InputError, RetryableError) as fault:
        kind = faults.lasting if isinstance(fault, InputError) else faults.passing
        if str(fault) not in kind:
            kind.append(str(fault))


def _can_write(folder: Path, faults: _Faults) -> bool:
    with _noted(faults):
        try_to_write(folder)
        return True
    return False


def _classes(dataset: Dataset) -> Iterator[str]:
    books = dataset.books()
    hours = sum(recording.facts.duration_s for recording in dataset.recordings) / 3600
    usable = f"{books['used']:,} usable: {len(dataset.classes)} classes, {hours:.2f} h of sound"
    yield f"{books['found']:,} files found, {usable}"
    width = min(40, max(len(name) for name in dataset.classes) + 2)
    yield f"  {'class':<{width}}{'recordings':>11}{'sources':>9}{'minutes':>9}{'train':>7}{'val':>6}{'test':>6}"
    inside = defaultdict(list)
    for recording in dataset.recordings:
        inside[recording.label].append(recording)
    for name in dataset.classes[:_MOST_CLASSES]:
        places = [dataset.places[recording.name] for recording in inside[name]]
        sides = [place.split for place in places]
        minutes = sum(recording.facts.duration_s for recording in inside[name]) / 60
        sources = len({place.group for place in places})
        yield (
            f"  {name[: width - 2]:<{width}}{len(places):>11,}{sources:>9,}{minutes:>9.1f}"
            f"{sides.count('train'):>7,}{sides.count('val'):>6,}{sides.count('test'):>6,}"
        )
    if len(dataset.classes) > _MOST_CLASSES:
        yield f"  ... and {len(dataset.classes) - _MOST_CLASSES:,} more classes"


def _problems(problems: Sequence[Problem]) -> Iterator[str]:
    by_code = defaultdict(list)
    for problem in problems:
        by_code[problem.problem, problem.used].append(problem)
    for (code, used), inside in sorted(by_code.items(), key=lambda item: -len(item[1])):
        word = "used all the same" if used else "not used"
        yield f"{len(inside):,} {word}: {code}. {PROBLEMS[code]}"
        for problem in inside[:_EXAMPLES]:
            yield f"  {problem.recording}: {problem.detail}"
        if len(inside) > _EXAMPLES:
            yield f"  ... and {len(inside) - _EXAMPLES:,} more"


def _notices(dataset: Dataset) -> Iterator[str]:
    for notice in [*dataset.notices, *recorder_notices(dataset.recordings)]:
        yield f"note: {notice}"
    shares = coverage.class_shares(dataset.recordings, dataset.spec, dataset.background)
    yield from coverage.band_lines(shares, dataset.spec)


# ---- the checkpoint -----------------------------------------------------------------------------


def _check_checkpoint(config: Config, faults: _Faults, journal: Journal, *, writable: bool) -> None:
    with _noted(faults):
        path = verify_checkpoint(config, remember=writable)
        said = f"{shown(path)} is whole and fits" if path is not None else "none, training from scratch"
        journal.say(f"checkpoint: {said}")


def _check_base(config: Config, faults: _Faults, journal: Journal, *, writable: bool) -> ServedModel | None:
    """The served model that the run would begin from, if it would and could."""
    with _noted(faults):
        if found := base_model.find(config):
            base_model.verify(found[-1], config, remember=writable)
            title, n = found[-1].title, len(found[-1].classes)
            journal.say(f"init-from: {title} is whole and fits; its {n:,} classes keep their columns")
            return found[-1]
    return None


# ---- what it will cost --------------------------------------------------------------------------


def _costs(config: Config, dataset: Dataset, faults: _Faults) -> Iterator[str]:
    """Time, memory and disk, as estimates; too little of them is a fault."""
    backbone = registry.backbone_of(config)
    weights = backbone.weight_count() * _FLOAT_BYTES
    hours = sum(recording.facts.duration_s for recording in dataset.recordings) / 3600
    kept = sum(_kept_bytes(config, backbone, dataset).values())
    disk = _disk_bytes(config, dataset, weights)
    memory = _memory_bytes(config, backbone, weights)
    prepare_s = hours * _PREPARE_S_PER_HOUR / len(os.sched_getaffinity(0))
    yield "estimates:"
    yield f"  prepare {duration(prepare_s)}, once for each recording"
    yield f"  train   {_training_time(config, backbone, dataset)}"
    yield from _labels_time(config, backbone, dataset)
    yield f"  memory  {memory / 1e9:.1f} GB of {_memory_there() / 1e9:.1f} GB"
    free = free_bytes(config.output)
    there = f"{free / 1e9:.1f} GB are free" if free is not None else "and the file system does not say what is free"
    yield f"  disk    {disk / 1e9:.1f} GB in {shown(config.output)}, {there}"
    if kept:
        yield f"          and {size_text(kept)} for what the frozen layers make once, if there is room"
    if free is not None and disk > free:
        faults.passing.append(
            f"{shown(config.output)}: the disk is too full for the job (about {size_text(disk)} needed, "
            f"{size_text(free)} free). Free some space, give another --output, or lower --train.keep-checkpoints."
        )
    if memory > _memory_there():
        faults.lasting.append(
            f"about {memory / 1e9:.1f} GB of memory are needed and {_memory_there() / 1e9:.1f} GB are there. "
            "Lower --train.batch-size (and raise --train.accumulate to make up for it)."
        )


def _patches(dataset: Dataset, part: str, hop_s: float | None) -> int:
    return sum(_patch_counts(dataset, dataset.part(part), hop_s))


def _patch_counts(dataset: Dataset, part: Sequence[Recording], hop_s: float | None) -> list[int]:
    return [dataset.spec.windows_in(recording.facts.duration_s, hop_s) for recording in part]


def _labels_time(config: Config, backbone: Backbone, dataset: Dataset) -> Iterator[str]:
    """What it takes to hear recordings by the backbone as it was given, to check their labels."""
    counts = _patch_counts(dataset, dataset.recordings, None) if config.evaluate.label_issues else []
    trained = _patch_counts(dataset, dataset.part("train"), config.train.hop_s)
    shares = trained if config.train.label_refinement else []
    patches = sum(min(count, MOST_WINDOWS) for count in [*counts, *shares]) + sum(shares)
    if patches and config.model.checkpoint != "none":
        seconds = patches * backbone.window_flops() / _rate(config, backbone)
        yield f"  labels  {duration(seconds)} to check them, by {patches:,} patches (--evaluate.label-issues)"


def _rate(config: Config, backbone: Backbone) -> float:
    gain = backbone.bfloat16_gain if _computes_bfloat16(config, backbone) else 1.0
    return _matmul_flops() * backbone.step_efficiency * gain


def _training_time(config: Config, backbone: Backbone, dataset: Dataset) -> str:
    """Of layers that are trained three passes an epoch, of frozen ones one, or one once for all where it is kept."""
    where = " on this CPU; the GPU that is there is some hundred times faster" if _has_gpu() else " on this CPU"
    rate, n_frozen, kept = _rate(config, backbone), _n_frozen(config, backbone), _kept_bytes(config, backbone, dataset)
    frozen = backbone.cut(n_frozen).frozen_flops if n_frozen else 0.0
    once_s = epoch_s = 0.0
    for part, hop_s, passes in (("train", config.train.hop_s, _PASSES_A_STEP), ("val", None, 1)):
        patches = _patches(dataset, part, hop_s)
        epoch_s += patches * passes * (backbone.window_flops() - frozen) / rate
        if part in kept:
            once_s += patches * frozen / rate
        else:
            epoch_s += patches * frozen / rate
    epoch = f"about {duration(epoch_s)} an epoch" if epoch_s >= 1 else "under a second an epoch"
    once = f"about {duration(once_s)} once for the frozen layers, then " if kept else ""
    return (
        f"{_patches(dataset, 'train', config.train.hop_s):,} patches, {once}{epoch}, at most "
        f"{duration(_COMPILE_S + once_s + epoch_s * config.train.epochs)} for {config.train.epochs} epochs{where} "
        "(give or take a factor of two)"
    )


def _n_frozen(config: Config, backbone: Backbone) -> int:
    return backbone.frozen_layers(config.model.freeze) if config.model.freeze in backbone.freeze_points else 0


def _kept_bytes(config: Config, backbone: Backbone, dataset: Dataset) -> dict[str, float]:
    """What the frozen layers make of training and validation patches, as far as it is kept on disk: part → bytes."""
    n_frozen = _n_frozen(config, backbone)
    if not n_frozen:
        return {}
    cut = backbone.cut(n_frozen)
    precision = config.train.precision
    if precision == "auto":
        precision = "mixed_bfloat16" if _has_gpu() or _computes_bfloat16(config, backbone) else "float32"
    row_bytes = cut.row_bytes(precision)
    if not is_worth_keeping(cut.frozen_flops, row_bytes, on_gpu=_has_gpu()):
        return {}
    moves = config.train.jitter_s > 0 or bool(active(config.augment))
    found: dict[str, float] = {}
    for part, hop_s in (("train", config.train.hop_s), ("val", None)):
        n_bytes = _patches(dataset, part, hop_s) * row_bytes
        left = config.train.cache_gb * 1e9 - sum(found.values())
        if n_bytes and n_bytes <= left and not (moves and part == "train"):
            found[part] = n_bytes
    return found


def _has_gpu() -> bool:
    return any(Path("/proc/driver/nvidia/gpus").glob("*"))


def _computes_bfloat16(config: Config, backbone: Backbone) -> bool:
    precision = config.train.precision
    wanted = precision == "mixed_bfloat16" or (precision == "auto" and backbone.bfloat16_gain > 1)
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        flags = ""
    return wanted and ("avx512_bf16" in flags or "amx_bf16" in flags)


def _matmul_flops() -> float:
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


def _disk_bytes(config: Config, dataset: Dataset, weights: int) -> float:
    made = FrameStore(config.output / "cache", dataset.spec, config.audio)
    missing = [recording.facts.duration_s for recording in dataset.recordings if recording.content not in made]
    frames = sum(missing) * dataset.spec.rows_per_s * dataset.spec.row_bytes
    # Each checkpoint holds the weights and Adam's two slots: the newest, the best, and one being written.
    checkpoints = (config.train.keep_checkpoints + 2) * 3 * weights
    exported = 2 * weights  # one being built while an earlier one stands
    return frames + checkpoints + exported


def _memory_bytes(config: Config, backbone: Backbone, weights: int) -> float:
    # Weights, gradients, two slots; and copies while a checkpoint is written. With these numbers the peak of
    # `birdtune demo` (batch 32, measured 4.0 GB) comes out right.
    activations = backbone.window_activations() * _FLOAT_BYTES * _ACTIVATION_COPIES
    return _TENSORFLOW_BYTES + 8 * weights + config.train.batch_size * activations


def _memory_there() -> float:
    """Bytes this process may use: the container's limit, or the machine's memory."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return float(min(machine, int(Path(name).read_text("utf-8"))))
        except (OSError, ValueError):
            continue
    return float(machine)
