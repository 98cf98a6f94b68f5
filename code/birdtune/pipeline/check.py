"""What is in the input, what is wrong with it, what it will cost; trains nothing.

    Config ─▶ check ─▶ lines for people, problems.csv, exit code 0 (the job can run), 42 or 75 (it cannot)

All faults are collected before any is reported, so that one round of mending is enough.
"""

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from birdtune.audio.logmel import LogMel
from birdtune.config import Config
from birdtune.data import annotated, quality, row_books
from birdtune.data import dataset as gather
from birdtune.data.augment import active, require_background
from birdtune.data.dataset import Dataset
from birdtune.data.properties import recorder_notices
from birdtune.data.scan import NO_FILE, PROBLEMS, Problem
from birdtune.data.selection import TooFewClassesError
from birdtune.data.sources import source_lines
from birdtune.errors import (
    EXIT_DONE,
    EXIT_INPUT,
    EXIT_RETRY,
    BusyError,
    InputError,
    RetryableError,
    shown,
)
from birdtune.models import ensemble, files, head_start, published, registry
from birdtune.models.backbone import Backbone
from birdtune.models.file_backbone import FileBackbone
from birdtune.models.head_start import HeadStart
from birdtune.models.known import Origin
from birdtune.models.onnx_backbone import OnnxBackbone
from birdtune.models.weights import verify_checkpoint
from birdtune.pipeline import gate
from birdtune.pipeline.costs import Faults, estimates
from birdtune.reporting import tracking
from birdtune.runtime.files import try_to_write
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import Run
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import count
from birdtune.training import base_model
from birdtune.training.served_model import ServedModel

_EXAMPLES = 3
_MOST_CLASSES = 60


def check(config: Config, journal: Journal, interrupts: Interrupts) -> int:
    """Look at everything that the job would use.

    Beside a job that is at work in the output folder, nothing is written there.

    Returns:
        0; 42 if the job could not run, 75 if nothing but passing faults (storage) kept it from that.

    Raises:
        Interrupted.
    """
    faults = Faults()
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
    config: Config, journal: Journal, interrupts: Interrupts, faults: Faults, *, writable: bool
) -> int:
    backbone = registry.backbone_of(config)
    journal.say(f"check: {shown(config.data_folder)}")
    dataset = None
    if config.init_from is None and isinstance(backbone, FileBackbone):
        # Before the recordings are read, which may take long: with another model all else is another.
        _check_checkpoint(config, journal, writable=writable)
    with _noted(faults):
        Run(config, journal)  # refuses an output folder of an earlier birdtune
    with _noted(faults):
        backbone.frozen_layers(config.model.freeze_point)
    with _noted(faults):
        tracking.require(config)
    with _noted(faults):
        try:
            dataset = gather.inspect(
                config, registry.front_end(config), journal, interrupts, writable=writable, faults=faults.lasting
            )
        except TooFewClassesError as fault:
            rows = [row_books.words(fault.rows)] if fault.rows else []
            for line in itertools.chain(rows, _problems(fault.problems)):
                journal.say(line)
            raise
    base = _check_base(config, faults, journal, writable=writable)
    for line in _backbone(backbone, base_model.origin(config, base)):
        journal.say(line)
    with _noted(faults):
        if champion := gate.find(config):
            journal.say(f"gate: {champion.title} is the champion, with {count(len(champion.classes), 'class')}")
    if dataset is not None:
        config = dataset.settled(config)
        dataset = base_model.with_columns(config, dataset, base)
        said = (
            _classes(dataset), annotated.lines(dataset, config.train.hop_s), source_lines(dataset.sources),
            _problems(dataset.problems), _notices(dataset),
        )  # fmt: skip
        for line in itertools.chain.from_iterable(said):
            journal.say(line)
    with _noted(faults):
        ensemble.require(config)
    with _noted(faults):
        head_start.require(config)
        if dataset is not None:
            start = base_model.find_head_start(config, dataset.classes, base)
            for line in itertools.chain(start.lines() if start else (), _proposal(config, dataset, start)):
                journal.say(line)
    with _noted(faults):
        if kept := published.keep(config, dataset.classes if dataset is not None else ()):
            for line in kept.lines():
                journal.say(line)
    if config.init_from is None and not isinstance(backbone, FileBackbone):
        with _noted(faults):
            _check_checkpoint(config, journal, writable=writable)
    if dataset is not None:
        with _noted(faults):
            require_background(config.augment, dataset.background)
        with _noted(faults), storage_faults(config.output, verb="read"):
            for line in estimates(config, dataset, faults):
                journal.say(line)
    journal.say("")
    for line in (*faults.lasting, *faults.passing):
        journal.say(f"wrong: {line}")
    if writable and (config.output / "problems.csv").exists():
        journal.say(f"Every file that is not used, with what to do: {shown(config.output / 'problems.csv')}")
    bad = faults.lasting or faults.passing
    journal.say("The job can run." if not bad else "The job cannot run until this is mended.")
    return EXIT_INPUT if faults.lasting else EXIT_RETRY if faults.passing else EXIT_DONE


@contextlib.contextmanager
def _noted(faults: Faults) -> Iterator[None]:
    """Note what is wrong, and go on looking."""
    try:
        yield
    except (InputError, RetryableError) as fault:
        kind = faults.lasting if isinstance(fault, InputError) else faults.passing
        if str(fault) not in kind:
            kind.append(str(fault))


def _can_write(folder: Path, faults: Faults) -> bool:
    with _noted(faults):
        try_to_write(folder)
        return True
    return False


def _classes(dataset: Dataset) -> Iterator[str]:
    books = dataset.books()
    hours = sum(recording.facts.duration_s for recording in dataset.recordings) / 3600
    usable = f"{books['used']:,} usable: {count(len(dataset.classes), 'class')}, {hours:.2f} h of sound"
    yield f"{books['found']:,} files found, {usable}"
    width = min(40, max(len(name) for name in dataset.classes) + 2)
    yield f"  {'class':<{width}}{'recordings':>11}{'sources':>9}{'minutes':>9}{'train':>7}{'val':>6}{'test':>6}"
    inside = defaultdict(list)
    for recording in dataset.recordings:
        for name in recording.classes:
            inside[name].append(recording)
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
        word = f"{'of the labels ' if code in NO_FILE else ''}{'used all the same' if used else 'not used'}"
        yield f"{len(inside):,} {word}: {code}. {PROBLEMS[code]}"
        for problem in inside[:_EXAMPLES]:
            yield f"  {problem.recording}: {problem.detail}"
        if len(inside) > _EXAMPLES:
            yield f"  ... and {len(inside) - _EXAMPLES:,} more"


def _notices(dataset: Dataset) -> Iterator[str]:
    for notice in [*dataset.notices, *recorder_notices(dataset.recordings)]:
        yield f"note: {notice}"
    shares = quality.class_shares(dataset.recordings, dataset.spec, dataset.background)
    yield from quality.band_lines(shares, dataset.spec)


def _proposal(config: Config, dataset: Dataset, start: HeadStart | None) -> Iterator[str]:
    """What helped where test sounds were noisier than those to train on: for heads that begin at random on a frozen
    backbone that takes waveforms (docs/tuning.md has the figures)."""
    is_frozen = registry.backbone_of(config).freezes_all(config.model.freeze_point)
    is_waveform = dataset.spec.has_sound and not isinstance(dataset.spec, LogMel)
    have_times = any(label.has_times for one in dataset.recordings for label in one.labels)
    begins_published = start is not None and bool(start.columns)
    if not (is_frozen and is_waveform) or have_times or begins_published or active(config.augment):
        return
    yield (
        "proposal: if what is to be recognised will be noisier than these recordings, train with --augment.white-noise "
        "0.5 --augment.pink-noise 0.5 --augment.snr-db -5 (docs/tuning.md); each copy of a window is embedded, too"
    )


# ---- the backbone -------------------------------------------------------------------------------


def _backbone(backbone: Backbone, origin: Origin) -> Iterator[str]:
    yield (
        f"backbone: {backbone.title}, {backbone.sample_rate_hz:,} Hz, windows of {backbone.front_end.receptive_s:g} s, "
        f"embeddings of {backbone.embedding_size:,} numbers"
    )
    if isinstance(backbone, FileBackbone):
        yield f"  embedding: {backbone.embedding}"
        if (compared := files.compared_with_published(backbone)) is not None:
            yield f"  file: {compared}"
    if isinstance(backbone, OnnxBackbone):
        yield "  served: the SavedModel takes embeddings; `predict` takes sound, by this file beside it"
    for about, known in origin.lines():
        yield f"  {about}: {shown(known)}"


# ---- the checkpoint -----------------------------------------------------------------------------


def _check_checkpoint(config: Config, journal: Journal, *, writable: bool) -> None:
    path = verify_checkpoint(config, remember=writable)
    said = f"{shown(path)} is whole and fits" if path is not None else "none, training from scratch"
    journal.say(f"checkpoint: {said}")


def _check_base(config: Config, faults: Faults, journal: Journal, *, writable: bool) -> ServedModel | None:
    """The served model that the run would begin from, if it would and could."""
    with _noted(faults):
        if found := base_model.find(config):
            base_model.verify(found[-1], config, remember=writable)
            base_model.require_published(found[-1], config)
            title, n = found[-1].title, len(found[-1].classes)
            journal.say(f"init-from: {title} is whole and fits; its {n:,} classes keep their columns")
            return found[-1]
    return None
