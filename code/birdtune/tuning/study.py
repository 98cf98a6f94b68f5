"""The trials of a tuning, and what to try next: Optuna's samplers, pruners and importances over a record of our own.

    trials.json ─▶ Study: trials;  (dimensions, trials, seed) ─▶ propose ─▶ values;  trials ─▶ importance

A proposal is a pure function of (dimensions, trials, seed): Optuna's study is made anew from the record each time, and
its sampler seeded by the number of the trial. So a tuning that was stopped goes on as if it had not been. The record is
one file, written whole or not at all when a trial is finished: a trial that was killed has left nothing in it.

Optuna's JournalStorage does not serve (5.0.0): it appends, so a line that a full disk cut short joins with the next one
and no later start can read the journal; its lock outlives a killed process by 30 seconds; and a killed trial stays in
it as running, which shifts the numbers that seed the next proposals.
"""

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pydantic
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial
from pydantic import BaseModel, ConfigDict, FiniteFloat

from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_json, write_json
from birdtune.tuning.space import Dimension, Value

RECORD_NAME = "trials.json"

# So many are drawn at random before the sampler follows what was found.
_RANDOM_FIRST = 8
# The median of fewer finished trials, or the first epochs of one, say too little to end a trial by.
_FINISHED_FIRST, _EPOCHS_FIRST = 4, 2
# Of eight settings, one of which decided nearly all, fANOVA put that one first in 4 of 8 made studies of 15 trials, in
# 7 of 20 trials, and in 8 of 30.
FEWEST_FOR_IMPORTANCE = 20
_DIGITS = 3

State = Literal["done", "pruned", "diverged"]


class Trial(BaseModel):
    """One trial that came to an end."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    number: int
    values: dict[str, Value]  # of each dimension
    settings: dict[str, Value]  # those that had an effect
    state: State
    score: FiniteFloat | None  # None: there is none, as training diverged
    accuracy: FiniteFloat | None = None
    macro_ap: FiniteFloat | None = None
    low: FiniteFloat | None = None  # 95 % interval of the accuracy
    high: FiniteFloat | None = None
    curve: list[FiniteFloat] = []  # score after each epoch, of whole trainings
    same_as: int | None = None  # the earlier trial with the very same settings
    seconds: FiniteFloat

    @property
    def is_done(self) -> bool:
        """Whether it was evaluated at its end."""
        return self.state == "done"


class _Written(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    study: str
    trials: list[Trial]


class Study:
    """The trials of one tuning, on the disk.

    Args:
        folder: of this study alone; its name holds the digest of all that its trials depend on.
        digest: that digest.

    Raises:
        InputError: the record is damaged.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self._digest = folder, digest
        self.trials: list[Trial] = []
        path = folder / RECORD_NAME
        if not path.exists():
            return
        try:
            found = _Written.model_validate(read_json(path))
        except pydantic.ValidationError as fault:
            first = fault.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise _damaged(path, f"{where}: {first['msg']}" if where else "it is no JSON object") from fault
        if found.study != digest:
            raise _damaged(path, f"it is of another study, {found.study[:12]}")
        if [trial.number for trial in found.trials] != list(range(len(found.trials))):
            raise _damaged(path, "trials are missing or stand twice")
        self.trials = found.trials

    def add(self, trial: Trial) -> None:
        """Keep a finished trial. Raises as files.write_json."""
        trials = [*self.trials, trial]
        rows = [row.model_dump(mode="json") for row in trials]
        write_json(self.folder / RECORD_NAME, {"study": self._digest, "trials": rows})
        self.trials = trials

    @property
    def best(self) -> Trial | None:
        """The best of those evaluated at their end; of equals the first."""
        done = [trial for trial in self.trials if trial.is_done]
        return max(done, key=lambda trial: (trial.score or 0.0, -trial.number)) if done else None


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{shown(path)}: the record of this tuning is damaged ({shown(why)[:200]}). Restore it, or remove the folder "
        f"{shown(path.parent)} to tune anew."
    )


# ---- what Optuna computes ----------------------------------------------------------------------------


def propose(dimensions: Sequence[Dimension], trials: Sequence[Trial], seed: int) -> dict[str, Value]:
    """Values for the next trial, by the tree-structured Parzen estimator. Numbers have three digits."""
    number = len(trials)
    drawn = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=drawn, n_startup_trials=_RANDOM_FIRST, multivariate=True)
    with _quietly():
        study = _study(dimensions, trials, sampler=sampler)
        found = study.ask(_distributions(dimensions)).params
    return {row.name: _rounded(row, found[row.name]) for row in dimensions}


def hopeless_at(
    curve: Sequence[float], trials: Sequence[Trial], dimensions: Sequence[Dimension]
) -> int | None:
    """The epoch (from 1) at which a trial with this curve is to be ended, if there is one.

    When its best so far is below the median of what earlier trials had at that epoch.
    """
    pruner = optuna.pruners.MedianPruner(_FINISHED_FIRST, _EPOCHS_FIRST + 1)  # it counts from 0
    with _quietly():
        study = _study(dimensions, trials, pruner=pruner)
        trial = study.ask()
        for epoch, score in enumerate(curve, 1):
            trial.report(score, epoch)
            if trial.should_prune():
                return epoch
    return None


def importance(
    dimensions: Sequence[Dimension], trials: Sequence[Trial], seed: int
) -> tuple[dict[str, float], str | None]:
    """How much of the differences between trials each setting explains, by fANOVA; the most important first.

    Returns:
        shares that sum to one, and None; or nothing, and why there is nothing.
    """
    done = [trial for trial in trials if trial.is_done and _fits(trial, dimensions)]
    if len(done) < FEWEST_FOR_IMPORTANCE:
        return {}, f"{len(done)} finished trials are too few to show it; {FEWEST_FOR_IMPORTANCE} are needed"
    if len(dimensions) < 2:
        return {}, "only one setting was searched"
    if len({trial.score for trial in done}) < 2:
        return {}, "all trials came to the same score"
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    with _quietly():
        try:
            found = optuna.importance.get_param_importances(
                _study(dimensions, done), evaluator=evaluator, params=[row.name for row in dimensions]
            )
        except RuntimeError as fault:  # its trees found no split
            return {}, f"the trials do not show it ({shown(fault)})"
    return {name: float(share) for name, share in found.items()}, None


def _study(dimensions: Sequence[Dimension], trials: Sequence[Trial], **how: Any) -> optuna.Study:
    study = optuna.create_study(direction="maximize", **how)
    study.add_trials([_frozen(trial, dimensions) for trial in trials if _fits(trial, dimensions)])
    return study


def _fits(trial: Trial, dimensions: Sequence[Dimension]) -> bool:
    # The settings as they are may lie outside of a range that somebody narrowed.
    return all(row.holds(trial.values.get(row.name)) for row in dimensions)


def _frozen(trial: Trial, dimensions: Sequence[Dimension]) -> FrozenTrial:
    # A training that diverged counts as ended early without any score: the worst there is.
    is_done = trial.is_done
    return create_trial(
        params={row.name: trial.values[row.name] for row in dimensions},
        distributions=_distributions(dimensions),
        value=trial.score if is_done else None,
        intermediate_values=dict(enumerate(trial.curve, 1)) if trial.state != "diverged" else {},
        state=TrialState.COMPLETE if is_done else TrialState.PRUNED,
    )


def _distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    found: dict[str, BaseDistribution] = {}
    for row in dimensions:
        if row.choices:
            found[row.name] = CategoricalDistribution(row.choices)
        elif row.whole:
            found[row.name] = IntDistribution(int(row.low), int(row.high), log=row.log)
        else:
            found[row.name] = FloatDistribution(row.low, row.high, log=row.log)
    return found


def _rounded(row: Dimension, value: Any) -> Value:
    if row.choices or row.whole:
        kept: Value = value
        return kept
    return min(max(float(f"{value:.{_DIGITS}g}"), row.low), row.high) if math.isfinite(value) else row.low


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Optuna without log lines of its own."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(before)
