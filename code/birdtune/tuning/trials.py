"""What a trial of tuning does: heads on folds of embeddings, or a whole training evaluated on validation.

    settings ─▶ Evaluator ─▶ Outcome: scores of each recording, by a model that was not trained on it

A whole training has an output folder of its own below the study's: it is no version of the model, goes on there after a
kill as any run does, and is removed when it is evaluated. Test is never touched.

Importing this loads TensorFlow.
"""

import gc
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import keras
import numpy as np

from birdtune.config import Config
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.errors import InputError
from birdtune.evaluation.scores import pool_mean
from birdtune.models import head_start
from birdtune.models.classifier import Classifier
from birdtune.runtime import fingerprints
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import Run
from birdtune.runtime.signals import Interrupts
from birdtune.training.checkpoints import State
from birdtune.training.embeddings import Bools, Embedded, Floats, few_sources, folds, judgeable, listed
from birdtune.training.job import Job
from birdtune.training.probes import Head, out_of_fold
from birdtune.training.scoring import make_scorer
from birdtune.training.train import train
from birdtune.training.trained import best_classifier, score

# (score after each epoch so far) → whether to go on is pointless.
Hopeless = Callable[[Sequence[float]], bool]


@dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a trial."""

    scores: Floats | None  # [N, C]; None: it was ended early
    curve: list[float] = field(default_factory=list)


class Evaluator(Protocol):
    """Tries settings on some recordings.

    Attributes:
        positive, known: [N, C] classes of the recordings that are scored, and where that is known.
        groups: [N] their sources.
        how: it evaluates, for people.
        again: how many times the best is evaluated once more.
    """

    positive: Bools
    known: Bools
    groups: tuple[str, ...]
    how: str
    again: int

    def __call__(
        self, config: Config, name: str, hopeless: Hopeless | None = None, again: int = 0
    ) -> Outcome:
        """Try settings.

        Args:
            name: of the trial, where it keeps things.
            hopeless: may end it early.
            again: 0, or which time the same is evaluated once more: by other folds, from other first weights.

        Raises:
            DivergedError: training diverged.
            Interrupted: what was finished is kept.
        """
        ...

    def clear(self, name: str) -> None:
        """Remove what a trial has left."""
        ...


class OnEmbeddings:
    """Heads by cross-validation over all recordings but test. See Evaluator."""

    again = 3

    def __init__(self, classifier: Classifier, embedded: Embedded, interrupts: Interrupts, seed: int) -> None:
        self._classifier, self._embedded, self._interrupts = classifier, embedded, interrupts
        positive, groups = embedded.positive, embedded.groups
        scored = judgeable(positive, groups, seeds(seed))
        self._scored = np.asarray(scored.any(axis=1))
        self.positive = scored[self._scored]
        self.known = (embedded.known & (scored | ~positive))[self._scored]
        self.groups = tuple(group for group, scored in zip(groups, self._scored, strict=True) if scored)
        few = few_sources(positive, groups, embedded.classes, scored)
        n_folds = len(np.unique(folds(positive, groups, seed)[self._scored]))
        self.how = f"{n_folds}-fold cross-validation"
        if few:
            self.how += f"; learnt from, and not scored for want of another source: {listed(few)}"

    def __call__(
        self, config: Config, name: str, hopeless: Hopeless | None = None, again: int = 0
    ) -> Outcome:
        config = _reseeded(config, again)
        fold = folds(self._embedded.positive, self._embedded.groups, config.train.seed)
        head = Head(config.model.head, self._classifier, self._embedded, config, self._interrupts)
        return Outcome(out_of_fold(head, fold, len(self._embedded.classes), self._interrupts)[self._scored])

    def clear(self, name: str) -> None:
        gc.collect()  # compiled steps refer to themselves


class OnTraining:
    """Whole trainings, evaluated on the validation part. See Evaluator.

    Args:
        folder: of the study.
        checkpoint: of the backbone's first weights, if there is one.
    """

    again = 1
    how = "whole training, evaluated on the validation part"

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        store: FrameStore,
        checkpoint: Path | None,
        journal: Journal,
        interrupts: Interrupts,
    ) -> None:
        self._folder, self._dataset, self._store, self._checkpoint = folder, dataset, store, checkpoint
        self._journal, self._interrupts = journal, interrupts
        part = dataset.part("val")
        if not part:
            raise InputError(
                "there are no validation recordings, and whole trainings are evaluated by them. Raise "
                "--split.val-fraction, or give --tune.on embeddings."
            )
        targets, known = dataset.targets(part).of_recordings()
        self.positive, self.known = targets > 0, known > 0
        self.groups = tuple(dataset.places[recording.name].group for recording in part)

    def __call__(
        self, config: Config, name: str, hopeless: Hopeless | None = None, again: int = 0
    ) -> Outcome:
        # What is evaluated by validation must not learn from it.
        train_settings = config.train.model_copy(update={"refit": False})
        config = _reseeded(config.model_copy(update={"train": train_settings}), again)
        config = config.model_copy(update={"output": self._folder / name})
        run = Run(config, Journal(quiet=True))
        data = self._dataset.digest(sources=config.train.label_refinement)
        run.take_version(fingerprints.fingerprint(config, data, self._checkpoint))
        start = head_start.of_head(config, config.model.head, self._dataset.classes)
        job = Job(run, self._dataset, self._store, self._interrupts, head_start=start)
        curve: list[float] = []
        try:
            run.journal.write_to(run.logs)
            with self._journal.progress(name, config.train.epochs, "epochs") as progress:

                def after_epoch(state: State) -> None:
                    curve[:] = _curve(state)
                    if not state.finished:
                        progress.advance(note=f"score {curve[-1]:.3f}")
                        if hopeless is not None and hopeless(curve):
                            raise _EndedEarly

                try:
                    state = train(job, after_epoch=after_epoch)
                except _EndedEarly:
                    return Outcome(None, curve)
                return Outcome(_validation_scores(job), _curve(state))
        finally:
            run.journal.close()

    def clear(self, name: str) -> None:
        keras.utils.clear_session()
        gc.collect()
        shutil.rmtree(self._folder / name, ignore_errors=True)  # what is left of it does no harm


class _EndedEarly(Exception):  # noqa: N818 - no error
    """A trial that cannot become the best any more."""


def _curve(state: State) -> list[float]:
    """Score after each epoch of training."""
    rows = [row for row in state.history if row["epoch"]]
    # None: no validation window holds a class, where labels have times.
    return [(float(row["val_accuracy"] or 0) + float(row["val_macro_ap"] or 0)) / 2 for row in rows]


def _validation_scores(job: Job) -> Floats:
    """Of the validation recordings by the best epoch's weights, in float32 as they would be served. [N, C]"""
    classifier, part = best_classifier(job), job.dataset.part("val")
    found, _ = score(job, classifier, make_scorer(classifier), job.windows(part), part)
    return np.asarray(pool_mean(found), np.float64)


def seeds(seed: int) -> list[int]:
    """Those of trials on embeddings: of the trials themselves, and of each time the best is evaluated once more."""
    return [(seed + again) % 2**32 for again in range(OnEmbeddings.again + 1)]


def _reseeded(config: Config, again: int) -> Config:
    train = config.train.model_copy(update={"seed": (config.train.seed + again) % 2**32})
    return config.model_copy(update={"train": train})
