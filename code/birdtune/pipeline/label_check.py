"""Labels checked against each other: every recording scored by models that were trained on other sources only.

    recordings ─▶ embeddings by the backbone as it was given ─▶ Panel: a linear model for each fold left out
               ─▶ scores of recordings ─▶ label_issues.csv, label_issues.json

The backbone is the one that training began from: one that was trained on these labels would have learnt the wrong ones,
too. Of each recording at most `MOST_WINDOWS` are embedded, and only the mean of their embeddings is kept, so memory
grows with the number of recordings and not with their length (1024 float32 each: 330 MB for 80,000). Digital silence is
left out (`FrontEnd.held`): recordings that were filled up with it have it in common, and nobody hears a bird in it.

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
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from birdtune.audio.front_end import SILENT
from birdtune.config import Config
from birdtune.data.batches import Windows
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.scan import Recording
from birdtune.errors import shown
from birdtune.evaluation import label_issues
from birdtune.evaluation.label_issues import FACTS_NAME, TABLE_NAME
from birdtune.evaluation.scores import Floats, Ints
from birdtune.runtime.files import write_bytes, write_csv, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training.embeddings import first_feed, folds, no_first_backbone, pieces
from birdtune.training.scoring import make_scorer

KEPT_NAME = "kept.npy"
FILES = (TABLE_NAME, FACTS_NAME)

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
        is_frozen = config.model.freeze == "all-but-head"
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
    """What was learnt from all folds but one: a linear model."""

    kernel: Floats  # [K, C'], of the classes that it was trained on
    bias: Floats  # [C']
    columns: Ints  # [C'] ascending
    n_classes: int

    def scores(self, embeddings: npt.NDArray[Any]) -> Floats:
        """Embeddings [n, K] → scores [n, C]; 0 for classes that it was not trained on."""
        logits = embeddings @ self.kernel + self.bias
        raised = np.exp(logits - logits.max(axis=1, keepdims=True))
        found = np.zeros((len(embeddings), self.n_classes))
        found[:, self.columns] = raised / raised.sum(axis=1, keepdims=True)
        return found


def learn(averages: npt.NDArray[np.float32], labels: Ints, n_classes: int) -> FoldModel:
    """Logistic regression on averages [N, K] with labels [N]."""
    mean, deviation = averages.mean(axis=0, dtype=np.float64), averages.std(axis=0, dtype=np.float64)
    scale = deviation + 1e-3 * max(float(deviation.mean()), 1e-6)  # units that never speak stay silent
    model = LogisticRegression(C=_REGULARISATION, max_iter=_ITERATIONS)
    with warnings.catch_warnings(), threadpool_limits(1 if averages.size < _FEW_NUMBERS else None):
        warnings.simplefilter("ignore")  # not converged to the last digit is no matter here
        model.fit(((averages - mean) / scale).astype(np.float32), labels)
    kernel, bias = model.coef_.T.astype(np.float64), model.intercept_.astype(np.float64)
    if len(model.classes_) == 2:  # sklearn then has one column, the second's logit over the first's
        kernel, bias = np.hstack([-kernel / 2, kernel / 2]), np.concatenate([-bias / 2, bias / 2])
    kernel = kernel / scale[:, None]
    return FoldModel(kernel, bias - mean @ kernel, np.asarray(model.classes_, np.int64), n_classes)


def out_of_fold_scores(
    averages: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_], fold: Ints, interrupts: Interrupts
) -> tuple[Floats, dict[int, FoldModel]]:
    """Scores of each recording by what was learnt from the other folds [N, C], 0 where it has none; the models.

    Args:
        positive: [N, C] the classes of each recording; one with several is learnt from as each of them.
    """
    scores = np.zeros(positive.shape)
    models: dict[int, FoldModel] = {}
    for number in np.unique(fold[fold >= 0]).tolist():
        interrupts.check()
        row, column = np.nonzero(positive & (fold != number)[:, None])
        models[number] = learn(averages[row], column, positive.shape[1])
        scores[fold == number] = models[number].scores(averages[fold == number])
    return scores, models


def check_labels(
    config: Config, dataset: Dataset, store: FrameStore, folder: Path, journal: Journal, interrupts: Interrupts
) -> None:
    """Write label_issues.csv and label_issues.json into a folder; of all recordings, whatever part they are of.

    Nothing is trained or chosen with what is found, so the test part keeps its worth. Where labels cannot be checked,
    the table is empty, and label_issues.json says why.

    Raises:
        Interrupted, RetryableError.
    """
    part = dataset.recordings
    labels = np.array(dataset.labels(part), np.int64)
    fold = folds(labels, [dataset.places[recording.name].group for recording in part], config.train.seed)
    reason = _why_not(config, fold)
    found: list[dict[str, Any]] = []
    if not reason:
        embedded = EmbeddedRecordings(config, dataset, store, part, journal, interrupts)
        averages = embedded.averages()
        positive = dataset.targets(part).of_recordings()[0] > 0
        scores, models = out_of_fold_scores(averages, positive, fold, interrupts)
        scored = fold >= 0
        issues = label_issues.find(scores, positive, scored)
        found = label_issues.rows(
            issues, scores, label_issues.mean_scores(scores, positive, scored), classes=dataset.classes,
            recordings=[recording.name for recording in part], places=dataset.places,
            seconds=[recording.facts.duration_s for recording in part],
            start_s=_most_telling(embedded, issues, fold, models, len(dataset.classes)),
        )  # fmt: skip
    alone = sorted({dataset.classes[label] for label in labels[fold < 0]})
    write_csv(folder / TABLE_NAME, label_issues.COLUMNS, found)
    n_scored = int((fold >= 0).sum())
    facts = {"reason": reason, "scored": n_scored, "single_source": alone, "rule": label_issues.RULE, "rows": found}
    write_json(folder / FACTS_NAME, facts)
    if reason:
        journal.say(f"  labels were not checked: {reason}")
        return
    most = f"; first {shown(found[0]['recording'])}, which may be {shown(found[0]['suggested'])}" if found else ""
    journal.say(f"  {len(found):,} of {facts['scored']:,} labels may be wrong, in {TABLE_NAME}{most}")


def _why_not(config: Config, fold: Ints) -> str:
    if reason := no_first_backbone(config):
        return reason
    return "" if (fold >= 0).any() else "no class has recordings of two sources to score each other"


def _most_telling(
    embedded: EmbeddedRecordings,
    issues: Sequence[label_issues.LabelIssue],
    fold: Ints,
    models: dict[int, FoldModel],
    n_classes: int,
) -> list[float]:
    """Where each recording is most like the suggested class, rather than like its label. [issues] seconds

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
        lead = scores[own, issue.suggested] - scores[own, issue.label]
        found.append(float(start_s[own[label_issues.clearest_window(lead, weight[own])]]))
    return found


# ---- windows without what their recording is labelled ---------------------------------------------


def kept_shares(
    config: Config, dataset: Dataset, store: FrameStore, path: Path, journal: Journal, interrupts: Interrupts
) -> npt.NDArray[np.float32] | None:
    """The share of its label that each training window keeps, by what other training sources teach. [windows]

    Kept in `path`, so that a run that goes on has the same to the last bit. Only training recordings are used.

    Returns:
        None, with a word, where labels cannot be checked: all windows keep theirs.

    Raises:
        Interrupted, RetryableError.
    """
    part = dataset.part("train")
    labels = np.array(dataset.labels(part), np.int64)
    windows = Windows(store, [recording.content for recording in part], store.spec.hop(config.train.hop_s))
    if (found := _read(path, len(windows))) is not None:
        return found
    fold = folds(labels, [dataset.places[recording.name].group for recording in part], config.train.seed)
    if reason := _why_not(config, fold):
        journal.warn(f"Every window keeps its recording's label: {reason}.")
        return None
    embedded = EmbeddedRecordings(config, dataset, store, part, journal, interrupts, config.train.hop_s)
    positive = dataset.targets(part).of_recordings()[0] > 0
    _, models = out_of_fold_scores(embedded.averages(), positive, fold, interrupts)
    own = np.ones(len(windows), np.float32)  # of recordings that no model can score, all
    for chosen, embeddings in embedded.pieces(np.flatnonzero(fold[windows.recording] >= 0), "scoring windows"):
        recording = windows.recording[chosen]
        for number in np.unique(fold[recording]).tolist():
            inside = fold[recording] == number
            scores = models[number].scores(embeddings[inside])
            own[chosen[inside]] = scores[np.arange(len(scores)), labels[recording[inside]]]
        own[chosen[embedded.held(chosen) <= SILENT]] *= SILENT  # silence is of no class
    kept = label_issues.refined_targets(own, windows.recording.astype(np.int64), _LEAST_KEPT)
    buffer = io.BytesIO()
    np.save(buffer, kept, allow_pickle=False)
    write_bytes(path, buffer.getvalue())
    journal.say(f"  windows keep {kept.mean():.0%} of their recordings' labels on average")
    return kept


def _read(path: Path, n: int) -> npt.NDArray[np.float32] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not there yet, or damaged: it is made again
    whole_array = isinstance(found, np.ndarray) and found.shape == (n,) and found.dtype == np.float32
    return found if whole_array and ((found > 0) & (found <= 1)).all() else None
