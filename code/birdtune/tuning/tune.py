"""Settings tuned: trials by Optuna on embeddings or whole trainings, the best evaluated once more, and its page.

    settings ─▶ recordings of train and val ─▶ trials, each kept as it ends ─▶ the best evaluated once more beside the
    settings as they are ─▶ tune/report.html, tune.csv, tune.json, best.yaml

The test part is never touched. tune/<study>/trials.json holds the trials of one study: one set of data, settings and
ranges; the files above are of the last study. A tuning that was stopped goes on with the trial it was at.

Importing this loads TensorFlow.
"""

import contextlib
import shlex
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pydantic
from pydantic import BaseModel

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.errors import EXIT_DONE, DivergedError, SettingsError, shown
from birdtune.evaluation.bootstrap import Bootstrap, Floats
from birdtune.evaluation.paired import difference, figures
from birdtune.models.registry import backbone_of
from birdtune.models.weights import verify_checkpoint
from birdtune.reporting import tune_page, tuned
from birdtune.reporting.tuned import Again, Tuned
from birdtune.runtime import fingerprints
from birdtune.runtime.files import (
    make_folder,
    read_json,
    remove_unfinished,
    value_sha256,
    write_csv,
    write_json,
    write_text,
)
from birdtune.runtime.log import Journal, clock, duration
from birdtune.runtime.signals import Interrupts
from birdtune.training import devices
from birdtune.training.embeddings import embed, require_judges
from birdtune.tuning.space import Space, Value, defaults, effective, run_flags, space_of, with_settings
from birdtune.tuning.study import Study, Trial, hopeless_at, importance, propose
from birdtune.tuning.trials import Evaluator, OnEmbeddings, OnTraining, seeds

_MOST_TOLD = 5
_AGAIN_NAME = "again.json"


def tune(config: Config, journal: Journal, interrupts: Interrupts) -> int:
    """Tune; print the best trials, and write the results to output/tune.

    Raises:
        SettingsError: it is to begin from a served model.
        InputError: no data, too few classes or sources, ranges that cannot be searched, or a damaged record.
        Interrupted, RetryableError: trials that were finished are kept.
    """
    backbone = backbone_of(config)
    if config.init_from is not None:
        raise SettingsError(
            f"--init-from {shown(config.init_from)}: trials begin from the backbone's weights. Leave it out to tune."
        )
    checkpoint = verify_checkpoint(config, remember=True)
    journal.say(f"prepare: {shown(config.data_folder)}")
    dataset, store = gather.prepare(config, backbone.front_end, journal, interrupts)
    config = config.with_output(dataset.output)
    for notice in dataset.notices:
        journal.warn(notice)
    space = space_of(
        config,
        freeze_points=backbone.freeze_points,
        recordings=dataset.counts([*dataset.part("train"), *dataset.part("val")]),
        has_background=bool(dataset.background),
    )
    if config.tune.on == "embeddings":
        config = _frozen(config, journal)
    study = _study(config, space, dataset, checkpoint)
    journal.say(f"tune:\n  {devices.prepare_devices()}")
    dataset, store = gather.recheck(config, dataset, store, journal, interrupts)
    evaluator = _evaluator(config, study, dataset, store, checkpoint, journal, interrupts)
    tuning = _Tuning(config, space, study, evaluator, journal, interrupts)
    tuning.report_space()
    with devices.compiling_often():
        tuning.search()
        tuning.finish()
    return EXIT_DONE


def _frozen(config: Config, journal: Journal) -> Config:
    """The settings of a run on embeddings."""
    if config.model.freeze_point not in ("none", "all-but-head"):
        journal.warn(
            f"--model.freeze {config.model.freeze_point} plays no part: embeddings are of the whole backbone, frozen "
            "(--tune.on training tunes the rest)"
        )
    if config.augment.model_fields_set:
        journal.warn("augmentation plays no part in tuning on embeddings (--tune.on training)")
    return config.model_copy(update={"model": config.model.model_copy(update={"freeze": "all-but-head"})})


def _study(config: Config, space: Space, dataset: Dataset, checkpoint: Path | None) -> Study:
    """The record of this tuning: of these data, settings and ranges, whatever was tuned here before."""
    digest = value_sha256(
        {
            "on": config.tune.on,
            "folds": "dealt",  # otherwise: other recordings are scored, and trials cannot be compared by it
            "space": [row.row() for row in space.dimensions],
            "rest": fingerprints.fingerprint(config, dataset.digest(sources=True), checkpoint),
        }
    )
    folder = make_folder(config.output / tuned.FOLDER / digest[:12])
    remove_unfinished(folder.parent)
    remove_unfinished(folder)
    study = Study(folder, digest)
    # Checkpoints of trials that nobody goes on with: of other studies, and of one that was finished just before a kill.
    under_way = (folder / _name(len(study.trials)), *folder.glob("again-*"))
    for pattern in ("trial-*", "again-*"):
        for left in folder.parent.glob(f"*/{pattern}"):
            if left not in under_way:
                shutil.rmtree(left, ignore_errors=True)
    return study


def _evaluator(
    config: Config,
    study: Study,
    dataset: Dataset,
    store: FrameStore,
    checkpoint: Path | None,
    journal: Journal,
    interrupts: Interrupts,
) -> Evaluator:
    if config.tune.on == "training":
        return OnTraining(study.folder, dataset, store, checkpoint, journal, interrupts)
    part = [*dataset.part("train"), *dataset.part("val")]
    require_judges(dataset, part, seeds(config.train.seed), "tuning", journal)
    classifier, embedded = embed(config, dataset, store, part, journal, interrupts, what="tuning")
    return OnEmbeddings(classifier, embedded, interrupts, config.train.seed)


class _Kept(BaseModel):
    """What again.json holds: the trial that was evaluated once more, and the result."""

    best: int
    again: Again


class _Tuning:
    """One start of a tuning."""

    def __init__(
        self,
        config: Config,
        space: Space,
        study: Study,
        evaluator: Evaluator,
        journal: Journal,
        interrupts: Interrupts,
    ) -> None:
        self._config, self._space, self._study, self._evaluator = config, space, study, evaluator
        self._journal, self._interrupts = journal, interrupts
        self._bootstrap = Bootstrap(evaluator.groups, config.evaluate.bootstrap, config.train.seed)
        self._defaults = defaults(space, config)

    def report_space(self) -> None:
        """Say what is searched, and what is not."""
        journal = self._journal
        for row in self._space.dimensions:
            journal.say(f"  {row.name:<25}{row.text + (' (log)' if row.log else ''):<27}{row.words}")
        if self._space.left_out:
            listed = ", ".join(f"{name} ({why})" for name, why in self._space.left_out.items())
            journal.say(f"  not searched: {listed}")
        journal.say(f"  {self._evaluator.how}, {len(self._evaluator.positive):,} recordings scored; test is left alone")
        if self._study.trials:
            journal.say(f"  going on: {len(self._study.trials):,} trials are done")

    # ---- the trials ------------------------------------------------------------------------------

    def search(self) -> None:
        """Do the trials that lack, as far as the time allows."""
        study, wanted, minutes = self._study, self._config.tune.trials, self._config.tune.minutes
        began = time.monotonic()
        while len(study.trials) < wanted:
            if study.trials and minutes is not None and time.monotonic() - began > 60 * minutes:
                self._journal.say(
                    f"  the {minutes:g} minutes are over; the same command does the {wanted - len(study.trials):,} "
                    "trials that lack"
                )
                return
            number = len(study.trials)
            values = self._defaults if number == 0 else self._proposed()
            trial = self._try(number, values)
            study.add(trial)
            self._evaluator.clear(_name(number))
            self._report(trial)
            self._interrupts.check()

    def _proposed(self) -> dict[str, Value]:
        return propose(self._space.dimensions, self._study.trials, self._config.train.seed)

    def _try(self, number: int, values: dict[str, Value]) -> Trial:
        began = time.monotonic()
        settings = effective(values, self._config)
        for earlier in self._study.trials:
            if earlier.settings == settings:
                again = {"number": number, "values": values, "same_as": earlier.number, "seconds": 0.0}
                return earlier.model_copy(update=again)
        dimensions, trials = self._space.dimensions, self._study.trials

        def hopeless(curve: Sequence[float]) -> bool:
            return number > 0 and hopeless_at(curve, trials, dimensions) is not None

        rest: dict[str, Any] = {"number": number, "values": values, "settings": settings}
        try:
            found = self._evaluator(with_settings(self._config, settings), _name(number), hopeless)
        except DivergedError:
            return Trial(**rest, state="diverged", score=None, seconds=_since(began))
        if found.scores is None:
            # A start that was killed between an epoch and its evaluation has one epoch more.
            ended = hopeless_at(found.curve, trials, dimensions)
            return Trial(**rest, state="pruned", score=None, curve=found.curve[:ended], seconds=_since(began))
        metrics = asdict(figures(found.scores, self._evaluator.positive, self._bootstrap, self._evaluator.known))
        return Trial(**rest, state="done", curve=found.curve, seconds=_since(began), **metrics)

    def _report(self, trial: Trial) -> None:
        said = f"  trial {trial.number + 1:>3} of {self._config.tune.trials}: "
        if trial.is_done:
            said += f"{trial.score:.3f}  accuracy {trial.accuracy:.3f}, AP {trial.macro_ap:.3f}  "
        else:
            said += "ended early  " if trial.state == "pruned" else "diverged  "
        said += f"as trial {trial.same_as + 1}" if trial.same_as is not None else duration(trial.seconds)
        best = self._study.best
        if trial.number == 0:
            said += "  the settings as they are"
        elif best is not None and best.number == trial.number:
            said += "  best so far"
        self._journal.say(said)
        self._journal.event("trial", **trial.model_dump(mode="json"))

    # ---- the result ------------------------------------------------------------------------------

    def finish(self) -> None:
        """Evaluate the best once more, report and write the results."""
        best = self._study.best
        if best is None:
            raise DivergedError(
                f"None of the {len(self._study.trials)} trials came to an end: training diverged in all. Lower "
                "--train.learning-rate, or narrow --tune.space."
            )
        found = self._found(best, self._again(best))
        folder = self._config.output / tuned.FOLDER
        names = [row.name for row in self._space.dimensions]
        columns = (
            "trial", "state", "score", "accuracy", "low", "high", "macro_ap", "same_as", "seconds", *names,
        )  # fmt: skip
        rows = [
            {
                **row,
                **row["settings"],
                "trial": tuned.from_one(row["number"]),
                "same_as": tuned.from_one(row["same_as"]),
            }
            for row in found.trials
        ]
        write_csv(folder / "tune.csv", columns, [{name: row.get(name) for name in columns} for row in rows])
        write_text(folder / "best.yaml", tuned.fragment(found))
        tune_page.write_page(folder / "report.html", found)
        write_json(folder / tuned.RESULT_NAME, found.model_dump(mode="json"))
        self._report_result(found, folder)

    def _again(self, best: Trial) -> Again | None:
        """The best and the settings as they are, evaluated once more; None where these are the best."""
        first = self._study.trials[0]
        if best.number == 0 or not first.is_done:
            return None
        path = self._study.folder / _AGAIN_NAME
        with contextlib.suppress(pydantic.ValidationError):  # none, or a damaged one: it is done again
            kept = _Kept.model_validate(read_json(path))
            if kept.best == best.number:
                return kept.again
        self._journal.say(f"the best, trial {best.number + 1}, and the settings as they are, evaluated once more:")
        scores: dict[str, list[Floats]] = {"best": [], "as it is": []}
        began = time.monotonic()
        for again in range(1, self._evaluator.again + 1):
            for name, trial in (("best", best), ("as it is", first)):
                config = with_settings(self._config, trial.settings)
                found = self._evaluator(config, _name(trial.number, again), again=again)
                assert found.scores is not None
                scores[name].append(found.scores)
        again_found = self._compared(scores["best"], scores["as it is"])
        write_json(path, {"best": best.number, "again": again_found.model_dump(mode="json")})
        for again in range(1, self._evaluator.again + 1):
            for trial in (best, first):
                self._evaluator.clear(_name(trial.number, again))
        self._journal.say(f"  took {duration(_since(began))}")
        return again_found

    def _compared(self, best: Sequence[Floats], usual: Sequence[Floats]) -> Again:
        positive, known, bootstrap = self._evaluator.positive, self._evaluator.known, self._bootstrap
        gain = difference(best, usual, positive, bootstrap, known)
        means = [
            sum(figures(each, positive, bootstrap, known).score for each in scores) / len(scores)
            for scores in (best, usual)
        ]
        return Again(
            times=len(best),
            best=means[0],
            defaults=means[1],
            difference=gain["score"],
            low=gain["low"],
            high=gain["high"],
        )

    def _found(self, best: Trial, again: Again | None) -> Tuned:
        config, dimensions = self._config, self._space.dimensions
        shares, lacks = importance(dimensions, self._study.trials, config.train.seed)
        flat = Config().flat()
        # What `run` takes by itself need not be said.
        settings = {name: value for name, value in best.settings.items() if flat[name] != value}
        if config.tune.on == "embeddings":
            settings["model.freeze"] = "all-but-head"
        return Tuned(
            study=self._study.folder.name,
            created=clock(),
            on=config.tune.on,
            how=self._evaluator.how,
            recordings=len(self._evaluator.positive),
            sources=self._bootstrap.n_groups,
            wanted=config.tune.trials,
            command=_command(config, settings),
            space=[row.row() for row in dimensions],
            left_out=dict(self._space.left_out),
            defaults=self._defaults,
            settings=settings,
            best=best.number,
            importance=shares,
            importance_lacks=lacks,
            again=again,
            trials=[trial.model_dump(mode="json") for trial in self._study.trials],
        )

    def _report_result(self, found: Tuned, folder: Path) -> None:
        journal = self._journal
        for line in table(self._study.trials):
            journal.say(f"  {line}")
        if found.importance:
            shares = ", ".join(
                f"{name} {100 * share:.0f} %" for name, share in list(found.importance.items())[:4]
            )
            journal.say(f"what matters most: {shares}")
        journal.say(tuned.verdict(found))
        journal.say(f"{tuned.advice(found)}: {found.command}")
        journal.say(
            f"report  {shown(folder / 'report.html')}; "
            f"{'those' if tuned.keeps(found) else 'the'} settings for job.yaml: {shown(folder / 'best.yaml')}"
        )


def table(trials: Sequence[Trial]) -> list[str]:
    """The best trials and the settings as they are, as people read them."""
    done = sorted(
        (trial for trial in trials if trial.is_done), key=lambda trial: (-(trial.score or 0), trial.number)
    )
    lines = [f"{'trial':>5}{'score':>7}{'accuracy':>10}  {'95 % interval':<16}{'AP':>5}  settings"]
    for trial in [*done[:_MOST_TOLD], *(trial for trial in done[_MOST_TOLD:] if trial.number == 0)]:
        ends = (
            f"{trial.low:.3f} to {trial.high:.3f}"
            if trial.low is not None and trial.high is not None
            else "-"
        )
        said = ", ".join(f"{name.partition('.')[2]} {_text(value)}" for name, value in trial.settings.items())
        lines.append(
            f"{trial.number + 1:>5}{trial.score:>7.3f}{trial.accuracy:>10.3f}  {ends:<16}{trial.macro_ap:>5.3f}  "
            + ("as they are" if trial.number == 0 else said)
        )
    return lines


def _text(value: Value) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name(number: int, again: int = 0) -> str:
    """Of what a trial keeps, and of its progress, which people see."""
    return f"again-{number + 1}-{again}" if again else f"trial-{number + 1}"


def _since(began: float) -> float:
    return round(time.monotonic() - began, 2)


def _command(config: Config, settings: dict[str, Value]) -> str:
    return shlex.join(["./entrypoint.sh", "run", *run_flags(config, settings)[0]])
