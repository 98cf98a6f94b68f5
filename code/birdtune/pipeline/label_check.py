"""Labels checked against each other: every recording scored by models that were trained on other sources only.

    recordings ─▶ embeddings by the backbone as it was given ─▶ Panel: a linear model for each fold left out
               ─▶ scores of recordings ─▶ label_issues.csv, label_issues.json
    the same embeddings ─▶ embedding_map.csv, embedding_map.json

The backbone is the one that training began from: one that was trained on these labels would have learnt the wrong ones,
too. Of each recording at most `MOST_WINDOWS` are embedded, and only the mean of their embeddings is kept, so memory
grows with the number of recordings and not with their length (1024 float32 each: 330 MB for 80,000). Digital silence is
left out (`FrontEnd.held`): recordings that were filled up with it have it in common, and nobody hears a bird in it.

Where recordings have several classes, each class is learnt on its own, one against the rest, by the recordings of which
it is known. Recordings with labels that have times are left out: the mean of a recording does not say what is in a few
seconds of it.

Importing this loads TensorFlow.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.special
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from birdtune.audio.front_end import SILENT
from birdtune.config import Config
from birdtune.data.batches import Windows
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.scan import Recording
from birdtune.errors import shown
from birdtune.evaluation import embedding_map, label_issues
from birdtune.evaluation.label_issues import FACTS_NAME, TABLE_NAME
from birdtune.evaluation.scores import Bools, Floats, Ints
from birdtune.runtime.files import write_bytes, write_csv, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count
from birdtune.training.embeddings import first_feed, folds, no_first_backbone, pieces, scored_targets
from birdtune.training.scoring import make_scorer

KEPT_NAME = "kept.npy"
FILES = (TABLE_NAME, FACTS_NAME, embedding_map.TABLE_NAME, embedding_map.FACTS_NAME)

# Of logistic regression on standardised averages: on ESC-10 with 5 % of the labels wrong, 0.1 and 0.01 find as many of
# them, 0.001 fewer.
_REGULARISATION = 0.01
_ITERATIONS = 100
# Of its label, no window loses all: where no window of a recording sounds like it, the best keeps all of it.
_LEAST_KEPT = 0.02
# Below, threads cost more than they bring, and much more beside other work.
_FEW_NUMBERS = 4_000_000


class EmbeddedRecordings:
    """Recordings as a stream of embeddings, by the backbone as it was given."""

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        store: FrameStore,
        part: Sequence[Recording],
        journal: Journal,
        interrupts: Interrupts,
        hop_s: float | None = None,
    ) -> None:
        self._size, self._interrupts, self._journal = config.evaluate.batch_size, interrupts, journal
        self.windows = Windows(
            store, [recording.content for recording in part],
            store.spec.hop(hop_s),
        )
        # Training has them, or will need them; or all are needed here, and more than once.
        is_frozen = config.model.freeze_point == "all-but-head"
        all_needed = bool((self.windows.per_recording <= label_issues.MOST_WINDOWS).all())
        classifier, self._feed, _ = first_feed(
            config, dataset.classes, self.windows, journal, interrupts, what="labels", keep=is_frozen or all_needed
        )
        self._scorer = make_scorer(classifier, self._feed.embed)

    def pieces(self, chosen: Ints, what: str) -> Iterator[tuple[Ints, npt.NDArray[np.float32]]]:
        """Some windows and their embeddings [n, K], piece by piece."""
        with self._journal.progress(what, len(chosen), "windows") as progress:
            for part, embeddings in pieces(self._feed, self._scorer, chosen, self._size, self._interrupts):
                yield part, embeddings
                progress.advance(len(part))

    def held(self, chosen: Ints) -> Floats:
        """How much some windows count: the share of their frames that hold sound. [n]"""
        return self.windows.store.spec.held(self.windows.features(chosen))

    def averages(self) -> npt.NDArray[np.float32]:
        """Mean embedding of each recording, silence left out. [N, K]"""
        chosen = spread(self.windows.per_recording, label_issues.MOST_WINDOWS)
        found: npt.NDArray[np.float32] | None = None
        weights = np.zeros(len(self.windows.per_recording))
        for part, embeddings in self.pieces(chosen, "embedding labels"):
            if found is None:
                found = np.zeros((len(weights), embeddings.shape[1]), np.float32)
            weight = self.held(part)
            np.add.at(found, self.windows.recording[part], (weight[:, None] * embeddings).astype(np.float32))
            np.add.at(weights, self.windows.recording[part], weight)
        assert found is not None, "there is always a window"
        return np.asarray(found / weights[:, None], np.float32)


def spread(per_recording: Ints, most: int) -> Ints:
    """Windows of recordings, at most so many of each, evenly from its beginning to its end; ascending.

    Args:
        per_recording: [N] windows of each, which lie one recording after another.
    """
    first = np.cumsum(per_recording) - per_recording
    kept = [
        begin + (np.arange(count) if count <= most else np.linspace(0, count - 1, most).round().astype(np.int64))
        for begin, count in zip(first.tolist(), per_recording.tolist(), strict=True)
    ]
    return np.concatenate(kept)


@dataclass(frozen=True, eq=False)
class FoldModel:
    """What was learnt from all folds but one: a linear model; its scores are a softmax, or of each class on its own."""

    kernel: Floats  # [K, C'], of the classes that it was trained on
    bias: Floats  # [C']
    columns: Ints  # [C'] ascending
    n_classes: int
    each: bool = False  # of each class on its own

    def scores(self, embeddings: npt.NDArray[Any]) -> Floats:
        """Embeddings [n, K] → scores [n, C]; 0 for classes that it was not trained on."""
        logits = embeddings @ self.kernel + self.bias
        found = np.zeros((len(embeddings), self.n_classes))
        if self.each:
            found[:, self.columns] = scipy.special.expit(logits)
            return found
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        found[:, self.columns] = raised / raised.sum(axis=1, keepdims=True)
        return found


def learn(averages: npt.NDArray[np.float32], labels: Ints, n_classes: int) -> FoldModel:
    """Logistic regression on averages [N, K] with labels [N]."""
    mean, scale = _mean_and_scale(averages)
    model = _regression(((averages - mean) / scale).astype(np.float32), labels)
    kernel, bias = model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)
    if len(model.classes_) == 2:  # sklearn then has one column, the second's logit over the first's
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.concatenate([-bias / 2, bias / 2])
    kernel = kernel / scale[:, None]
    return FoldModel(kernel, bias - mean @ kernel, np.asarray(model.classes_, np.int64), n_classes)


def learn_each(averages: npt.NDArray[np.float32], positive: Bools, known: Bools) -> FoldModel:
    """Logistic regression of each class against the rest on averages [N, K], where it is known; both [N, C]."""
    mean, scale = _mean_and_scale(averages)
    standard = ((averages - mean) / scale).astype(np.float32)
    kernels, biases, columns = [], [], []
    for column in range(positive.shape[1]):
        own = known[:, column]
        if len(np.unique(positive[own, column])) == 2:
            model = _regression(standard[own], positive[own, column])
            kernels.append(model.coef_[0].astype(np.float64) / scale)
            biases.append(float(model.intercept_[0]) - mean @ kernels[-1])
            columns.append(column)
    kernel = np.array(kernels, np.float64).reshape(-1, averages.shape[1]).T
    return FoldModel(kernel, np.array(biases, np.float64), np.array(columns, np.int64), positive.shape[1], each=True)


def _mean_and_scale(averages: npt.NDArray[np.float32]) -> tuple[Floats, Floats]:
    """[K] each; units that never speak stay silent."""
    mean, deviation = averages.mean(axis=0, dtype=np.float64), averages.std(axis=0, dtype=np.float64)
    return mean, deviation + 1e-3 * max(float(deviation.mean()), 1e-6)


def _regression(standard: npt.NDArray[np.float32], labels: npt.NDArray[Any]) -> LogisticRegression:
    model = LogisticRegression(C=_REGULARISATION, max_iter=_ITERATIONS)
    with warnings.catch_warnings(), threadpool_limits(1 if standard.size < _FEW_NUMBERS else None):
        warnings.simplefilter("ignore")  # not converged to the last digit is no matter here
        return model.fit(standard, labels)


@dataclass(frozen=True, eq=False)
class Checked:
    """Recordings without labels with times, whose labels are learnt from and scored.

    Attributes:
        index: [N] which of all recordings they are.
        positive, known: [N, C] their classes, and where these are known.
        fold: [N] as `embeddings.folds`.
    """

    index: Ints
    positive: Bools
    known: Bools
    fold: Ints

    @property
    def have_several(self) -> bool:
        """Whether each class is scored on its own."""
        return bool((self.positive.sum(axis=1) != 1).any() or not self.known.all())


def checked(dataset: Dataset, part: Sequence[Recording], seed: int) -> Checked:
    """What can be checked of some recordings."""
    without = [k for k, recording in enumerate(part) if not any(label.has_times for label in recording.labels)]
    targets, known = dataset.targets([part[k] for k in without]).of_recordings()
    fold = folds(targets > 0, [dataset.places[part[k].name].group for k in without], seed)
    return Checked(np.array(without, np.int64), targets > 0, known > 0, fold)


def out_of_fold_scores(
    averages: npt.NDArray[np.float32],
    positive: Bools,
    fold: Ints,
    interrupts: Interrupts,
    known: Bools | None = None,
) -> tuple[Floats, dict[int, FoldModel]]:
    """Scores of each recording by what was learnt from the other folds [N, C], 0 where it has none; the models.

    Args:
        positive: [N, C] the classes of each recording: one each.
        known: [N, C] where that is known; each class is then learnt on its own, and a recording may have several.
    """
    scores = np.zeros(positive.shape)
    models: dict[int, FoldModel] = {}
    for number in np.unique(fold[fold >= 0]).tolist():
        interrupts.check()
        others = fold != number
        if known is None:
            row, column = np.nonzero(positive & others[:, None])
            models[number] = learn(averages[row], column, positive.shape[1])
        else:
            models[number] = learn_each(averages[others], positive[others], known[others])
        scores[fold == number] = models[number].scores(averages[fold == number])
    return scores, models


def check_labels(
    config: Config, dataset: Dataset, store: FrameStore, folder: Path, journal: Journal, interrupts: Interrupts
) -> None:
    """Write `FILES` into a folder: label issues and the embedding map of all recordings, whatever part they are of.

    Nothing is trained or chosen with what is found, so the test part keeps its worth. Where labels cannot be checked,
    the tables are empty, and label_issues.json and embedding_map.json say why.

    Raises:
        Interrupted, RetryableError.
    """
    everything = dataset.recordings
    given = checked(dataset, everything, config.train.seed)
    part = [everything[k] for k in given.index]
    scored = scored_targets(given.positive, given.fold)
    reason = _why_not(config, given.fold)
    found: list[dict[str, Any]] = []
    plane = embedding_map.no_map(reason)
    if not reason:
        embedded = EmbeddedRecordings(config, dataset, store, part, journal, interrupts)
        averages = embedded.averages()
        found = _issues(dataset, part, given, embedded, averages, interrupts)
        plane = embedding_map.measure(
            averages, given.positive, recordings=[recording.name for recording in part], classes=dataset.classes,
            places=dataset.places, n_bootstrap=config.evaluate.bootstrap, seed=config.train.seed,
        )  # fmt: skip
    n_timed = len(everything) - len(part)
    embedding_map.write(folder, {**plane, "with_times": n_timed})
    alone = np.flatnonzero(given.positive.any(axis=0) & ~scored.any(axis=0))
    write_csv(folder / TABLE_NAME, label_issues.COLUMNS, found)
    facts: dict[str, Any] = {
        "reason": reason, "scored": int(scored.sum()),
        "single_source": sorted(dataset.classes[column] for column in alone),
        "with_times": n_timed, "several": given.have_several,
        "rule": label_issues.RULE_OF_SEVERAL if given.have_several else label_issues.RULE, "rows": found,
    }  # fmt: skip
    write_json(folder / FACTS_NAME, facts)
    if n_timed:
        journal.say(f"  labels with times are not checked: those of {count(n_timed, 'recording')}")
    if reason:
        journal.say(f"  labels were not checked: {reason}")
        return
    journal.say(f"  {_in_words(found, facts)}, in {TABLE_NAME}")


def _issues(
    dataset: Dataset,
    part: Sequence[Recording],
    given: Checked,
    embedded: EmbeddedRecordings,
    averages: npt.NDArray[np.float32],
    interrupts: Interrupts,
) -> list[dict[str, Any]]:
    """Rows of label_issues.csv."""
    scored = given.fold >= 0
    positive, known = given.positive, given.known
    others = None
    if given.have_several:
        scores, models = out_of_fold_scores(averages, positive, given.fold, interrupts, known)
        # A class of a recording that no other fold teaches is not contradicted by its low score.
        positive = scored_targets(positive, given.fold)
        known = known & (positive | ~given.positive)
        issues = label_issues.find_each(scores, positive, known, scored)
        others = label_issues.mean_scores(scores, ~positive & known, scored)
    else:
        scores, models = out_of_fold_scores(averages, positive, given.fold, interrupts)
        issues = label_issues.find(scores, positive, scored)
    return label_issues.rows(
        issues, scores, label_issues.mean_scores(scores, positive, scored), classes=dataset.classes,
        recordings=[recording.name for recording in part], places=dataset.places,
        seconds=[recording.facts.duration_s for recording in part], others=others,
        start_s=_most_telling(embedded, issues, given.fold, models, len(dataset.classes)),
    )  # fmt: skip


def _in_words(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    n = f"{len(rows):,} of {facts['scored']:,} labels may be wrong"
    if facts["several"]:
        too_many = sum(bool(row["class"]) for row in rows)
        n = f"{too_many:,} of {facts['scored']:,} labels may be wrong, and {len(rows) - too_many:,} missing"
    if not rows:
        return n
    first = rows[0]
    may = f"may be {shown(first['suggested'])}" if first["class"] else f"may hold {shown(first['suggested'])}, too"
    if not first["suggested"]:
        may = f"may not be {shown(first['class'])}"
    return f"{n}; first {shown(first['recording'])}, which {may}"


def _why_not(config: Config, fold: Ints) -> str:
    if reason := no_first_backbone(config):
        return reason
    if not len(fold):
        return "labels have times, and the mean of a recording does not say what is in a few seconds of it"
    return "" if (fold >= 0).any() else "no class has recordings of two sources to score each other"


def _most_telling(
    embedded: EmbeddedRecordings,
    issues: Sequence[label_issues.LabelIssue],
    fold: Ints,
    models: dict[int, FoldModel],
    n_classes: int,
) -> list[float]:
    """Where each recording is most like the suggested class, rather than like its label. [issues] seconds

    Where nothing is suggested in place of a label: where it is most like the label all the same.

    Silence is never the clearest window, whatever a model makes of it.
    """
    if not issues:
        return []
    windows = embedded.windows
    kept = spread(windows.per_recording, label_issues.MOST_WINDOWS)
    kept = kept[np.isin(windows.recording[kept], [issue.index for issue in issues])]
    scores, weight = np.zeros((len(kept), n_classes)), np.zeros(len(kept))
    at = 0
    for part, embeddings in embedded.pieces(kept, "scoring label issues"):
        weight[at : at + len(part)] = embedded.held(part)
        for index, embedding in zip(windows.recording[part].tolist(), embeddings, strict=True):
            scores[at] = models[int(fold[index])].scores(embedding[None])[0]
            at += 1
    recording, start_s = windows.recording[kept], windows.start_s[kept]
    found = []
    for issue in issues:
        own = np.flatnonzero(recording == issue.index)
        lead = _column(scores[own], issue.suggested) - _column(scores[own], issue.label)
        if issue.suggested is None:  # whoever listens there, and does not hear it either, can be sure
            lead = -lead
        found.append(float(start_s[own[label_issues.clearest_window(lead, weight[own])]]))
    return found


def _column(scores: Floats, column: int | None) -> Floats:
    return np.zeros(len(scores)) if column is None else scores[:, column]


# ---- windows without what their recording is labelled ---------------------------------------------


def kept_shares(
    config: Config, dataset: Dataset, store: FrameStore, path: Path, journal: Journal, interrupts: Interrupts
) -> npt.NDArray[np.float32] | None:
    """The share of its labels that each training window keeps, by what other training sources teach.

    Labels with times say themselves which windows they are of: these keep all of them.

    Kept in `path`, so that a run that goes on has the same to the last bit. Only training recordings are used.

    Returns:
        [windows], or [windows, C] where recordings have several classes; None, with a word, where labels cannot be
        checked: all windows keep theirs.

    Raises:
        Interrupted, RetryableError.
    """
    part = dataset.part("train")
    windows = Windows(store, [recording.content for recording in part], store.spec.hop(config.train.hop_s))
    given = checked(dataset, part, config.train.seed)
    shape = (len(windows), len(dataset.classes)) if given.have_several else (len(windows),)
    if (found := _read(path, shape)) is not None:
        return found
    if reason := _why_not(config, given.fold):
        journal.warn(f"Every window keeps its recording's label: {reason}.")
        return None
    if n := len(part) - len(given.index):
        journal.say(f"  windows of {count(n, 'recording')} keep their labels: these have times")
    embedded = EmbeddedRecordings(config, dataset, store, part, journal, interrupts, config.train.hop_s)
    _, models = out_of_fold_scores(
        embedded.averages()[given.index], given.positive, given.fold, interrupts,
        given.known if given.have_several else None,
    )  # fmt: skip
    fold = np.full(len(part), -1, np.int64)
    fold[given.index] = given.fold
    scored = np.zeros((len(part), len(dataset.classes)), np.bool_)  # of which classes windows can be scored
    scored[given.index] = scored_targets(given.positive, given.fold)
    label = scored.argmax(axis=1)  # where there is one each
    own = np.ones(shape, np.float32)  # of recordings that no model can score, all
    for chosen, embeddings in embedded.pieces(np.flatnonzero(fold[windows.recording] >= 0), "scoring windows"):
        recording = windows.recording[chosen]
        for number in np.unique(fold[recording]).tolist():
            inside = fold[recording] == number
            scores = models[number].scores(embeddings[inside])
            own[chosen[inside]] = (
                np.where(scored[recording[inside]], scores, 1.0)
                if given.have_several
                else scores[np.arange(len(scores)), label[recording[inside]]]
            )
        own[chosen[embedded.held(chosen) <= SILENT]] *= SILENT  # silence is of no class
    kept = label_issues.refined_targets(own, windows.recording.astype(np.int64), _LEAST_KEPT)
    buffer = io.BytesIO()
    np.save(buffer, kept, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
    of_label = kept if kept.ndim == 1 else kept[scored[windows.recording]]
    journal.say(f"  windows keep {of_label.mean():.0%} of their recordings' labels on average")
    return kept


def _read(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.float32] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not there yet, or damaged: it is made again
    whole_array = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32
    return found if whole_array and ((found > 0) & (found <= 1)).all() else None
