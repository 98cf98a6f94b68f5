"""The stages in order: prepare → train → evaluate → export → report.

Each is skipped when its result is there and current. What decides that is a chain of fingerprints: a
stage's own settings, and the fingerprint of what came before it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data.augment import require_background
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.source_notices import source_lines
from birdtune.errors import EXIT_DEFECT, EXIT_DONE, BirdtuneError, DivergedError, Interrupted, shown
from birdtune.evaluation import diagnostics
from birdtune.models import registry
from birdtune.models.weights import verify_checkpoint
from birdtune.reporting import tuned
from birdtune.runtime import runs
from birdtune.runtime.events import Interrupts, Journal, duration
from birdtune.runtime.files import read_json, value_sha256
from birdtune.runtime.quiet import load_tensorflow
from birdtune.runtime.runs import Run, clear_unfinished
from birdtune.runtime.storage import unmet_faults
from birdtune.runtime.words import count, some
from birdtune.training import base_model
from birdtune.training.base_model import Ancestor, with_columns


def run(config: Config, journal: Journal, interrupts: Interrupts, *, until: str = "report") -> int:
    """Do the job, up to and with a stage. Returns the exit code 0, or raises what stopped it.

    Whatever happens, run.json says it, as long as the output folder can be written. That no other job
    works there is the caller's to see to (lock.py).
    """
    clear_unfinished(config.output)
    current = Run(config, journal)
    try:
        with unmet_faults(current.config.output):
            _stages(current, interrupts, until)
    except (Exception, Interrupted) as caught:
        fault = interrupts.unmasked(caught)
        if isinstance(fault, DivergedError):
            current.record.update(verdict="none", warnings=[diagnostics.diverged(str(fault)).row()])
        with interrupts.held():
            _try_to_end(current, fault)
        if fault is caught:
            raise
        raise fault from caught
    with interrupts.held():  # too late to stop: all is done
        current.end("done", EXIT_DONE)
    return EXIT_DONE


def _try_to_end(current: Run, fault: BaseException) -> None:
    if isinstance(fault, BirdtuneError | Interrupted):
        code, error = fault.exit_code, str(fault)
    else:
        code, error = EXIT_DEFECT, f"{type(fault).__name__}: {fault}"
    try:
        current.end("interrupted" if isinstance(fault, Interrupted) else "failed", code, error)
    except (BirdtuneError, OSError):
        # The disk that stopped the job may refuse the record too; the first fault is the one to tell.
        current.journal.close()


def _stages(current: Run, interrupts: Interrupts, until: str) -> None:
    config, journal = current.config, current.journal
    backbone = registry.BACKBONES[config.model.backbone]
    backbone.frozen_layers(config.model.freeze)  # raises where there is no such point
    # A checkpoint that does not fit is told before the long work, not after; so is a model to begin from.
    ancestors = base_model.find(config) if until != "prepare" else []
    checkpoint = verify_checkpoint(config, remember=True) if until != "prepare" and not ancestors else None
    if ancestors:
        base_model.verify(ancestors[-1], config, remember=True)
    journal.say(f"prepare: {shown(config.data_folder)}")
    with current.stage("prepare"):
        dataset, store = gather.prepare(config, registry.front_end(config), journal, interrupts)
        _tell_dataset(dataset, journal)
        require_background(config.augment, dataset.background)
    if until == "prepare":
        for notice in dataset.notices:
            journal.warn(notice)
        return
    chain = _chosen_chain(current, dataset, checkpoint, ancestors)
    dataset = chain.dataset
    current.record.update(classes=list(dataset.classes), init_from=chain.ancestor and chain.ancestor.row())
    resumed = current.take_version(chain.train)
    if resumed and not chain.to_do(until):
        journal.say(
            f"nothing to do: {shown(_results(current, until)[0])} is current (data, settings and code unchanged)"
        )
        _tell_doubts(current)
        return
    journal.write_to(current.logs)
    journal.event("run", version=current.version, resumed=resumed, settings=config.changed())
    journal.say(
        f"version {current.version}: {'going on' if resumed else 'new'}, logs in {shown(current.logs)}"
    )
    if chain.ancestor is not None:
        _tell_ancestor(chain.ancestor, dataset, journal)
    for notice in dataset.notices:
        journal.warn(notice)
    if set(chain.to_do(until)) - {"report"}:
        found, store = gather.recheck(config, dataset, store, journal, interrupts)
        dataset = dataset if found is dataset else with_columns(config, found, chain.ancestor)
    _compute(current, dataset, store, chain, interrupts, until)
    _tell_result(current, until)


def _compute(
    current: Run, dataset: Dataset, store: FrameStore, chain: "_Chain", interrupts: Interrupts, until: str
) -> None:
    """Do the stages that need TensorFlow; it is loaded here."""
    load_tensorflow()
    from birdtune.pipeline.stages import Stages

    stages = Stages(current, dataset, store, interrupts, chain.ancestor)
    journal, to_do = current.journal, chain.to_do(until)
    if "train" not in to_do and {"evaluate", "export"} & set(to_do) and not stages.has_weights():
        journal.warn(
            "The trained weights are no longer there: they are trained again, and all that is made of them."
        )
        to_do = chain.wanted(until)
    for name in to_do:
        journal.say(f"{name}:")
        with current.stage(name):
            getattr(stages, name)()
            # What an interruption that a library swallowed has spoilt is done again.
            interrupts.check()
            current.done(name, chain.fingerprint(name), _results(current, name))


def _chosen_chain(
    current: Run, dataset: Dataset, checkpoint: Path | None, ancestors: Sequence[Ancestor]
) -> "_Chain":
    """The chain of the run: that of the first model to begin from with which it goes on, or of the last."""
    for begun_from in ancestors[:-1]:
        chain = _Chain(current, with_columns(current.config, dataset, begun_from), None, begun_from)
        if current.goes_on(chain.train):
            base_model.verify(begun_from, current.config, remember=True)
            return chain
    last = ancestors[-1] if ancestors else None
    return _Chain(current, with_columns(current.config, dataset, last), checkpoint, last)


def _tell_ancestor(begun_from: Ancestor, dataset: Dataset, journal: Journal) -> None:
    n_old = len(begun_from.classes)
    new = [f"{shown(name)} ({n_old + place})" for place, name in enumerate(dataset.classes[n_old:])]
    added = f"{count(len(new), 'new class')} behind them: {some(new)}" if new else "no class is new"
    journal.say(
        f"  begins from {begun_from.title} (weights {begun_from.facts.weights_sha256[:12]}): its {n_old:,} classes "
        f"keep their columns, {added}"
    )
    journal.event("init_from", **begun_from.row(), kept=n_old, new=list(dataset.classes[n_old:]))


class _Chain:
    """Which stages there are to do, on what, and from which model."""

    def __init__(
        self, current: Run, dataset: Dataset, checkpoint: Path | None, begun_from: Ancestor | None
    ) -> None:
        config = current.config
        self.dataset, self.ancestor = dataset, begun_from
        before = begun_from.digest() if begun_from is not None else None
        problems = value_sha256([problem.row() for problem in dataset.problems])
        self._current = current
        by_source = config.train.label_refinement
        self.train = runs.fingerprint(config, dataset.digest(sources=by_source), checkpoint, before)
        # What it is compared with: the model that it began from, as that is served.
        beside = [begun_from.calibration.row(), begun_from.title] if begun_from is not None else []
        # Calibration, thresholds, label issues, the OOD limit and all intervals are by source.
        sources = dataset.digest(sources=True)
        evaluate = runs.stage_fingerprint(self.train, config, "evaluate", sources, dataset.background, *beside)
        # What is served is calibrated, and has thresholds.
        export = runs.stage_fingerprint(evaluate, config, "export", dataset.class_ids)
        more = (export, problems, dataset.notices, tuned.digest(config))
        report = runs.stage_fingerprint(evaluate, config, "report", *more)
        self._to_do: dict[str, list[str]] = {}  # found out before the first stage; results take time to look at
        self._fingerprints = {"train": self.train, "evaluate": evaluate, "export": export, "report": report}

    def fingerprint(self, stage: str) -> str:
        """What the stage's result must have been made from to be current."""
        return self._fingerprints[stage]

    def wanted(self, until: str) -> list[str]:
        """All stages up to and with `until`, done or not."""
        names = list(self._fingerprints)
        return names[: names.index(until) + 1]

    def to_do(self, until: str) -> list[str]:
        """The stages that must be done, in order, up to and with `until`."""
        if until not in self._to_do:
            wanted = self.wanted(until)
            stale = [name for name in wanted if not self._current.is_current(name, self._fingerprints[name])]
            # Checkpoints may be deleted once their model is exported; but who asks for weights gets them.
            weights_lack = until == "train" and not self._current.checkpoints.exists()
            # What was made of weights that are trained anew is made anew, too.
            self._to_do[until] = wanted if "train" in stale or weights_lack else stale
        return self._to_do[until]


def _results(current: Run, stage: str) -> list[Path]:
    """The files and folders that a stage leaves; people are told of the first."""
    tables = (f"{name}.csv" for name in ("classes", "problems", "per_class", "predictions", "confusion"))
    names = {
        "evaluate": ("metrics.json", "scores-val.npz", "scores-test.npz", "suspect_labels.csv", "suspects.json"),
        "report": ("report.html", "config.yaml", *tables),
    }
    return {
        "train": [current.logs / "history.json"],
        "export": [current.model],
        **{name: [current.reports / file for file in files] for name, files in names.items()},
    }[stage]


def _tell_dataset(dataset: Dataset, journal: Journal) -> None:
    books = dataset.books()
    minutes = sum(recording.facts.duration_s for recording in dataset.recordings) / 60
    sides = {name: len(dataset.part(name)) for name in ("train", "val", "test")}
    journal.say(
        f"  {books['used']:,} recordings of {len(dataset.classes)} classes, {minutes:,.0f} min: "
        + ", ".join(f"{count:,} {name}" for name, count in sides.items())
    )
    for line in source_lines(dataset.sources):
        journal.say(f"  {line}")
    if books["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in books["left_out"].items())
        journal.say(f"  {sum(books['left_out'].values()):,} of {books['found']:,} files not used: {reasons}")
        journal.say("  each is named, with what to do, in problems.csv")
    if remarks := Counter(problem.problem for problem in dataset.problems if problem.used):
        counted = ", ".join(f"{count:,} {remark}" for remark, count in sorted(remarks.items()))
        journal.say(f"  {remarks.total():,} remarks on files that are used, in problems.csv: {counted}")
    journal.event("dataset", classes=len(dataset.classes), minutes=round(minutes, 1), **sides, **books)


def _tell_result(current: Run, until: str) -> None:
    journal = current.journal
    metrics: dict[str, Any] | None = read_json(current.reports / "metrics.json")
    judged = metrics.get("test") if metrics and until != "train" else None
    if judged:
        low_high = judged["clip"]["accuracy_ci"]
        interval = f" (95 %: {low_high[0]:.2f} to {low_high[1]:.2f})" if low_high else ""
        journal.say("")
        sources = "1 source" if judged["n_groups"] == 1 else f"{judged['n_groups']:,} sources"
        journal.say(
            f"test accuracy {judged['clip']['accuracy']:.3f}{interval} on {judged['n_recordings']:,} recordings "
            f"of {sources}; always answering {judged['majority_class']} would score {judged['majority_baseline']:.3f}"
        )
    stages = current.record["stages"]
    if until == "report":
        journal.say(f"report  {shown(current.reports / 'report.html')}")
        journal.say(f"model   {shown(current.model)}")
    journal.say(
        "took    " + ", ".join(f"{name} {duration(stages[name])}" for name in runs.STAGES if name in stages)
    )
    _tell_doubts(current)


def _tell_doubts(current: Run) -> None:
    """The last word, so that nobody goes away with a figure alone; what is only mild is counted."""
    warnings: list[dict[str, str]] = current.record["warnings"]
    strong = [row for row in warnings if row["severity"] == diagnostics.STRONG]
    for row in strong:
        current.journal.say(f"warning {row['code']}: {row['text']}")
    if strong:
        current.journal.say("Do not rely on this model. What to do stands in run.json, and on top of the report.")
    elif warnings:
        codes = ", ".join(dict.fromkeys(row["code"] for row in warnings))
        current.journal.say(f"read its figures with care: {codes} (see run.json, or the top of the report)")
