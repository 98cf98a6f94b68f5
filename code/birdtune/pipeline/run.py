"""The job, from top to bottom: prepare → train → evaluate → export → report.

    Config ─▶ run ─▶ output/: run.json, split.csv, checkpoints/<v>, reports/<v>, model/<name>/<v> or candidates/<v>

Each stage is skipped when its result is there and current (plan.py), and goes on where it was stopped.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from birdtune.cloud import session
from birdtune.config import Config
from birdtune.data import dataset as data
from birdtune.data.augment import require_background, require_front_end
from birdtune.errors import EXIT_DEFECT, EXIT_DONE, BirdtuneError, DivergedError, Interrupted, shown
from birdtune.evaluation import diagnostics
from birdtune.models import ensemble, head_start, published, registry
from birdtune.models.weights import verify_checkpoint
from birdtune.pipeline import gate, messages, prepare_parts, processes, release, taxa
from birdtune.pipeline.plan import Plan, with_base
from birdtune.reporting import tracking
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import cluster, is_chief
from birdtune.runtime.runs import Run, clear_unfinished
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.tensorflow_import import load_tensorflow
from birdtune.training import base_model
from birdtune.training.job import Job
from birdtune.training.served_model import ServedModel
from birdtune.training.world import World


def run(
    config: Config, journal: Journal, interrupts: Interrupts, *, until: str = "report",
    keep: Callable[[], None] = lambda: None,
) -> int:  # fmt: skip
    """Do the job, up to and with a stage. Returns the exit code 0, or raises what stopped it.

    Whatever happens, run.json says it, as long as the output folder can be written. The caller holds the lock of the
    output folder.

    Args:
        keep: brings what the output folder holds to where it is kept, if that is elsewhere.
    """
    world = World() if until == "prepare" else processes.world_of(config)
    if not is_chief():
        return EXIT_DONE if until == "prepare" else processes.follow(config, world, journal, interrupts)
    clear_unfinished(config.output)
    current = Run(config, journal)
    with _recorded(current, interrupts), _met(config, world, journal):
        checkpoint, bases = _first_weights(config, until)
        if bases and config.model.output == "auto":
            config = config.with_output(bases[-1].facts.scores)
        journal.say(f"prepare: {shown(config.data_folder)}")
        with current.stage("prepare"):
            spec = registry.front_end(config)
            require_front_end(config.augment, spec)
            prepare_parts.adopt(config, spec, journal)
            dataset, store = data.prepare(config, spec, journal, interrupts)
            config = current.config = dataset.settled(config)
            messages.say_dataset(dataset, journal)
            require_background(config.augment, dataset.background)
        if until == "prepare":
            messages.say_notices(dataset, journal)
            return EXIT_DONE

        base, dataset, start, fingerprint = with_base(current, dataset, checkpoint, bases)
        resumed = current.take_version(fingerprint)
        champion = gate.find(config, current)
        plan = Plan.of(current, dataset, fingerprint, base, champion, until)
        current.record.update(
            classes=list(dataset.classes), init_from=base and base.row(), head_start=start and start.row()
        )
        if resumed and not plan.due:
            journal.say(
                f"nothing to do: {until} of version {current.version} is current (data, settings and code unchanged)"
            )
            messages.say_outcome(current)
            with tracking.followed(current):  # what a server that was away has not got yet
                _release(current, until, keep)
                return EXIT_DONE

        journal.write_to(current.logs)
        messages.say_begin(current, dataset, base, resumed=resumed)
        for line in start.lines() if start is not None else ():
            if start is not None and not start.are_named:
                journal.warn(line)
            else:
                journal.say(f"  {line}")
        if base is not None and config.model.keep_classes is None and base.keeps_published:
            journal.warn(
                f"{base.title} serves published classes as well, and this version will not. Give --model.keep-classes "
                "to serve them again."
            )
        if kept := published.keep(config, dataset.classes):
            for line in kept.lines():
                journal.say(f"  {line}")
        if plan.due != ["report"]:
            found, store = data.recheck(config, dataset, store, journal, interrupts)
            dataset = dataset if found is dataset else base_model.with_columns(config, found, base)
        with tracking.followed(current):
            _compute(Job(current, dataset, store, interrupts, base, start, world=world), plan, champion)
        messages.say_result(current, until)
        _release(current, until, keep)
    return EXIT_DONE


def _release(current: Run, until: str, keep: Callable[[], None]) -> None:
    if until in ("export", "report"):
        release.release(current, keep)


def _compute(job: Job, plan: Plan, champion: ServedModel | None) -> None:
    """Do the stages that are due; TensorFlow is loaded here."""
    load_tensorflow()
    from birdtune.pipeline.evaluate import evaluate
    from birdtune.pipeline.stages import export, report, train
    from birdtune.training import devices
    from birdtune.training.trained import has_weights

    job.journal.say(f"  {devices.prepare_devices()}")
    def train_together() -> list[Path]:
        with processes.together(job):
            return train(job)

    stages: dict[str, Callable[[], list[Path]]] = {
        "train": train_together,
        "evaluate": lambda: evaluate(job, champion),
        "export": lambda: export(job),
        "report": lambda: report(job),
    }
    due = plan.due
    if "train" not in due and {"evaluate", "export"} & set(due) and not has_weights(job):
        job.journal.warn("The trained weights are gone: they are trained again, and all that is made of them.")
        due = plan.wanted
    if "train" in due:
        job.run.record.update(processes=job.world.size)
    else:
        processes.tell_end(job.world)
    n = int(job.run.record["processes"])
    job.run.record["hardware"] = devices.describe().rows() | ({"processes": str(n)} if n > 1 else {})
    for name in due:
        job.journal.say(f"{name}:")
        with job.run.stage(name):
            results = [path for path in stages[name]() if path.exists()]
            job.interrupts.check()  # what an interruption that a library swallowed has spoilt is done again
            job.run.done(name, plan.fingerprints[name], results)


def _first_weights(config: Config, until: str) -> tuple[Path | None, list[ServedModel]]:
    """The backbone's checkpoint, or the models that the run may begin from; refused before the long work, not after."""
    registry.backbone_of(config).frozen_layers(config.model.freeze_point)  # raises for an unknown layer
    if until == "prepare":
        return None, []
    tracking.require(config)
    ensemble.require(config)  # raises for one that could not be served
    head_start.require(config)  # raises for what cannot be begun from
    published.keep(config, ())  # raises for what cannot be kept
    taxa.require(config)
    gate.find(config)
    release.require(config)
    session.require_published(config)
    bases = base_model.find(config)
    if not bases:
        return verify_checkpoint(config, remember=True), []
    base_model.verify(bases[-1], config, remember=True)
    base_model.require_published(bases[-1], config)
    return None, bases


@contextmanager
def _met(config: Config, world: World, journal: Journal) -> Iterator[None]:
    """Wait for the processes that others have started, and keep them waiting; those of this machine are not due yet."""
    if (n := cluster().size) == 1 or world.size == 1:
        yield
        return
    journal.say(f"waiting for the processes of {n} machines or containers, {world.size} in all")
    with processes.started(config, world):
        yield


@contextmanager
def _recorded(current: Run, interrupts: Interrupts) -> Iterator[None]:
    """Let run.json say how the run ended."""
    try:
        with storage_faults(current.config.output, verb="used"):
            yield
    except (Exception, Interrupted) as caught:
        fault = interrupts.unmasked(caught)
        if isinstance(fault, DivergedError):
            current.record.update(verdict="none", warnings=[diagnostics.diverged(str(fault)).row()])
        with interrupts.held():
            _end(current, fault)
        if fault is caught:
            raise
        raise fault from caught
    with interrupts.held():  # too late to stop: all is done
        current.end("done", EXIT_DONE)


def _end(current: Run, fault: BaseException) -> None:
    if isinstance(fault, BirdtuneError | Interrupted):
        code, error = fault.exit_code, str(fault)
    else:
        code, error = EXIT_DEFECT, f"{type(fault).__name__}: {fault}"
    try:
        current.end("interrupted" if isinstance(fault, Interrupted) else "failed", code, error)
    except (BirdtuneError, OSError):
        # The disk that stopped the job may refuse the record too; the first fault is the one to report.
        current.journal.close()
