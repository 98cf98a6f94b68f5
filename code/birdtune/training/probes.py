"""What may learn on embeddings: the heads, trained by the step that `run` trains with, and baselines of scikit-learn.

    Embedded ─▶ Candidate: (training recordings, recordings to evaluate) ─▶ scores of the latter, or of their windows

Importing this loads TensorFlow.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import has_fit_parameter

from birdtune.config import Config
from birdtune.data import sampling
from birdtune.data.batches import Batches
from birdtune.data.clips import ClipBatches
from birdtune.data.sampling import Examples
from birdtune.data.targets import WindowTargets
from birdtune.errors import DivergedError
from birdtune.evaluation.scores import Scores, pool_mean
from birdtune.models import classifier as classifiers
from birdtune.models import head_start, registry
from birdtune.models.classifier import Classifier
from birdtune.models.losses import class_weights
from birdtune.runtime.signals import Interrupts
from birdtune.settings import TrainSettings
from birdtune.training.checkpoints import Saved, State
from birdtune.training.embeddings import Embedded, Floats, Ints, Rows
from birdtune.training.first_weights import begin_head, with_head_rate
from birdtune.training.inputs import Feed
from birdtune.training.loop import learning_rate
from birdtune.training.scoring import Scorer, Together, make_scorer, noting, score_windows
from birdtune.training.step import StepSettings, Trainer

# From the training recordings and the ones to evaluate to scores of the latter. [evaluated, C]
Candidate = Callable[[Ints, Ints], Floats]


class WithWindows(Protocol):
    """A candidate that scores windows as well."""

    def __call__(self, training: Ints, evaluated: Ints) -> Floats: ...

    def of_windows(self, training: Ints, evaluated: Ints) -> npt.NDArray[Any]:
        """Scores of the windows of the recordings to evaluate. [their windows, C]"""


SMOTE = "logistic with SMOTE"

_TREES = 300
_NEIGHBOURS = 5


def out_of_fold(candidate: Candidate, folds: Ints, n_classes: int, interrupts: Interrupts) -> Floats:
    """Scores of each recording by a candidate that was not trained on its fold. [N, C]

    Args:
        folds: [N] fold of each recording; -1: it is trained on always, and its scores are 0.
    """
    scores = np.zeros((len(folds), n_classes))
    for fold in np.unique(folds[folds >= 0]):
        interrupts.check()
        scores[folds == fold] = candidate(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold))
    return scores


def windows_out_of_fold(candidate: WithWindows, folds: Ints, embedded: Embedded, interrupts: Interrupts) -> Floats:
    """As `out_of_fold`, the scores of each recording's windows. [P, C]"""
    recording = embedded.windows.recording
    scores = np.zeros((len(recording), len(embedded.classes)))
    for fold in np.unique(folds[folds >= 0]):
        interrupts.check()
        inside = folds[recording] == fold
        scores[inside] = candidate.of_windows(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold))
    return scores


class Head:
    """A head on the frozen backbone, trained by the step that `run` trains with; compiled once for all folds."""

    def __init__(
        self, head: str, classifier: Classifier, embedded: Embedded, config: Config, interrupts: Interrupts
    ) -> None:
        self._embedded, self._config, self._interrupts = embedded, config, interrupts
        # Folds are small: one batch, one update.
        start = head_start.of_head(config, head, embedded.classes)
        settings = with_head_rate(config.train, start)
        self._settings = settings.model_copy(update={"accumulate": 1, "ema_decay": 0.0})
        model = config.model.model_copy(update={"head": head})
        self._classifier = classifiers.on_network(
            classifier.backbone,
            classifier.network,
            head=head,
            scores="sigmoid" if head == "sed-attention" else config.model.output,
            hidden_units=model.head_units,
            prototypes=model.head_prototypes,
            context=model.context,
            classes=embedded.classes,
            precision=classifier.network.layers[-1].dtype_policy.name,
            seed=config.train.seed,
        )
        if start is not None and (path := registry.sound_checkpoint(config)) is not None:
            begin_head(self._classifier, start, registry.read_weights(classifier.backbone, path))
        feed = Feed(Rows(embedded), lambda given: given, 0.0, False)
        # Each fold's own weights of classes are in those of its examples (see _examples): the step is compiled once.
        weights = np.ones(len(embedded.classes), np.float32)
        self._trainer = Trainer(
            self._classifier, self._settings, StepSettings(config.model.dropout, weights, "float32"), feed
        )
        # These follow the weights: for all folds.
        self._scorer = make_scorer(self._classifier, lambda given: given)
        self._logits = make_scorer(self._classifier, lambda given: given, logits=True)
        fresh = classifiers.weights(self._classifier)
        self._fresh = Saved(fresh, self._trainer.state_arrays(), State())

    def __call__(self, training: Ints, evaluated: Ints) -> Floats:
        self._learn(training)
        return self._score(self._embedded.some(evaluated))

    def of_windows(self, training: Ints, evaluated: Ints) -> npt.NDArray[np.float32]:
        """Scores of the windows of the recordings to evaluate. [their windows, C]"""
        self._learn(training)
        return self._scores(self._embedded.some(evaluated), self._scorer).window_scores

    def logits(self, training: Ints, evaluated: Ints) -> Scores:
        """The recordings to evaluate, with logits for `window_scores`."""
        self._learn(training)
        return self._scores(self._embedded.some(evaluated), self._logits, logits=True)

    def _learn(self, training: Ints) -> None:
        self._trainer.restore(self._fresh)
        self._train(self._embedded.some(training))

    def _train(self, embedded: Embedded) -> None:
        settings, source = self._settings, Rows(embedded)
        examples, weights = self._examples(embedded)
        how: dict[str, Any] = {
            "batch_size": settings.batch_size,
            "seed": settings.seed,
            "sampler": sampling.sampler(examples, settings),
            "weights": weights,
        }
        batches = (
            ClipBatches(source, examples.targets, **how, context=self._classifier.pooling.context)
            if self._classifier.by_recording
            else Batches(source, examples.targets, **how)
        )
        per_epoch, leap = len(batches), self._trainer.updates_per_call
        for epoch in range(settings.epochs):
            for first in range(0, per_epoch, leap):
                done = epoch * per_epoch + first
                n = min(leap, per_epoch - first)
                rates = [learning_rate(settings, done + k, per_epoch) for k in range(n)]
                found = self._trainer.updates(batches.batch(epoch, first, leap), done, rates)
                self._interrupts.check()
                if not np.isfinite(found).all():
                    raise DivergedError(
                        f"Training of the {self._classifier.head_name} head went astray in epoch {epoch + 1}. Lower "
                        "--train.learning-rate or --train.head-lr-multiplier (try a tenth)."
                    )

    def _examples(self, embedded: Embedded) -> tuple[Examples, npt.NDArray[np.float32]]:
        """What the loss averages over, and how much each counts: by its recording and by its classes."""
        targets = WindowTargets(embedded.targets, embedded.windows, self._classifier.kind)
        examples = Examples(targets, embedded.weights, by_recording=self._classifier.by_recording)
        seen = sampling.totals(examples, self._settings).positive
        return examples, sampling.weighed(examples, class_weights(seen, self._settings.class_weight_alpha))

    def _score(self, embedded: Embedded) -> Floats:
        return pool_mean(self._scores(embedded, self._scorer))

    def _scores(self, embedded: Embedded, scorer: Scorer, *, logits: bool = False) -> Scores:
        recording = embedded.windows.recording.astype(np.int64)
        together = Together(self._classifier, recording, logits=logits)
        scorer = noting(scorer, together.note)
        found = score_windows(scorer, Rows(embedded), self._config.evaluate.batch_size, self._interrupts)
        return Scores(
            embedded.classes, embedded.names, embedded.groups, embedded.targets.of_recordings()[0],
            together.scores(found), recording, embedded.windows.start_s, window_weight=together.shares(),
        )  # fmt: skip


def recording_weights(embedded: Embedded, settings: TrainSettings) -> Floats:
    """How much each recording counts where all are given once: by its quality, its class, and how often that comes. [N]

    The mean is 1, so that regularisation keeps its meaning.
    """
    examples = Examples(WindowTargets(embedded.targets, embedded.windows, "sigmoid"), embedded.weights)
    weights = class_weights(sampling.totals(examples, settings).positive, settings.class_weight_alpha)
    each = sampling.often(examples, settings) * sampling.weighed(examples, weights)  # [windows]
    recording = embedded.windows.recording
    counts = np.bincount(recording, each) / np.bincount(recording)
    return np.asarray(counts / counts.mean(), np.float64)


def _logistic_regression(seed: int, n: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))


def _nearest_neighbours(seed: int, n: int) -> Any:
    return KNeighborsClassifier(min(_NEIGHBOURS, n), metric="cosine", weights="distance")


def _random_forest(seed: int, n: int) -> Any:
    return RandomForestClassifier(_TREES, n_jobs=os.cpu_count(), random_state=seed)


# From a seed and the number of recordings to learn from to a model of scikit-learn.
BASELINES: Mapping[str, Callable[[int, int], Any]] = {
    "logistic regression": _logistic_regression,
    "k-NN": _nearest_neighbours,
    "random forest": _random_forest,
}


class _WithSmote:
    """Logistic regression on made recordings as well, so that each class has as many as the most frequent one.

    Each lies between a recording and one of its nearest of the class (Chawla et al., "SMOTE", 2002), of scaled
    embeddings: of five, or of as many as there are. A class with one recording has none, and stays as it is.
    """

    def __init__(self, seed: int, n: int) -> None:
        self._seed, self._scale = seed, StandardScaler()
        self._model = LogisticRegression(max_iter=2000, random_state=seed)

    def fit(self, averages: Floats, labels: Ints) -> None:
        """Learn from recordings [n, K] and their classes [n]."""
        from imblearn import over_sampling  # an extra: `compare` asks for it

        scaled, counts = self._scale.fit_transform(averages), np.bincount(labels)
        most, made = int(counts.max()), [(scaled, labels)]
        for column in np.flatnonzero((counts > 1) & (counts < most)).tolist():
            sampler = over_sampling.SMOTE(
                sampling_strategy={column: most}, k_neighbors=min(_NEIGHBOURS, int(counts[column]) - 1),
                random_state=self._seed,
            )  # fmt: skip
            more, of_class = sampler.fit_resample(scaled, labels)
            made.append((more[len(scaled) :], of_class[len(scaled) :]))
        self._model.fit(*(np.concatenate(parts) for parts in zip(*made, strict=True)))
        self.classes_ = self._model.classes_

    def predict_proba(self, averages: Floats) -> Floats:
        """Scores of recordings [n, K]. [n, classes_]"""
        return np.asarray(self._model.predict_proba(self._scale.transform(averages)))


class Baseline:
    """What scikit-learn makes of the averages of the embeddings; they count as they count in the training of a head.

    But for nearest neighbours and with SMOTE, where all count alike.
    """

    def __init__(self, name: str, embedded: Embedded, config: Config) -> None:
        self._make = _WithSmote if name == SMOTE else BASELINES[name]
        self._embedded, self._settings = embedded, config.train
        self._averages = embedded.averages
        self._n_classes = len(embedded.classes)

    def __call__(self, training: Ints, evaluated: Ints) -> Floats:
        return self._learnt(training, self._averages[evaluated])

    def of_windows(self, training: Ints, evaluated: Ints) -> Floats:
        """Scores of the windows of the recordings to evaluate, each as if it were a recording. [their windows, C]"""
        return self._learnt(training, self._embedded.some(evaluated).embeddings)

    def _learnt(self, training: Ints, averages: npt.NDArray[Any]) -> Floats:
        """Scores of embeddings [n, K] by what is learnt from some recordings. [n, C]"""
        weights = recording_weights(self._embedded.some(training), self._settings)
        if not self._embedded.have_several:
            return self._scores(training, self._embedded.labels[training], weights, averages, self._n_classes)
        # Each class on its own, one against the rest, by the recordings of which it is known.
        found = np.zeros((len(averages), self._n_classes))
        for column in range(self._n_classes):
            known = self._embedded.known[training, column]
            is_in = self._embedded.positive[training[known], column]
            if is_in.any() and not is_in.all():
                of_class = self._scores(training[known], is_in.astype(np.int64), weights[known], averages, 2)
                found[:, column] = of_class[:, 1]
            else:
                found[:, column] = float(is_in.any())
        return found

    def _scores(
        self, training: Ints, labels: Ints, weights: Floats, averages: npt.NDArray[Any], n_classes: int
    ) -> Floats:
        """Scores of embeddings [n, K], learnt from recordings with labels and weights [training]. [n, n_classes]"""
        model = self._make(self._settings.seed, len(training))
        name, last = model.steps[-1] if isinstance(model, Pipeline) else ("", model)
        counts = {}
        if has_fit_parameter(last, "sample_weight"):
            counts = {f"{name}__sample_weight" if name else "sample_weight": weights}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged to the last digit is no matter here
            model.fit(self._averages[training], labels, **counts)
        found = np.zeros((len(averages), n_classes))
        found[:, model.classes_] = model.predict_proba(averages)
        return found
