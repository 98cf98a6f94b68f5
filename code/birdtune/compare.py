"""Which head suits the data: all of them and two baselines, by grouped cross-validation on embeddings.

    settings ─▶ recordings of train and val ─▶ embeddings, computed once ─▶ each candidate on each fold
             ─▶ one table with intervals, compare.csv, compare.json

The test part is never touched: whoever chooses by it has none left. Slices of one source recording are in one fold.
Nothing is chosen within a fold either: a head is trained for `train.epochs`, and judged as it ends.

Importing this loads TensorFlow.
"""

import math
import os
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from birdtune.check import verify_checkpoint
from birdtune.config import Config
from birdtune.dataset import gather
from birdtune.dataset.batches import Batches, Windows, in_order
from birdtune.dataset.clips import ClipBatches
from birdtune.dataset.frames import FrameStore
from birdtune.dataset.gather import Dataset
from birdtune.errors import EXIT_DONE, DivergedError, InputError, shown
from birdtune.events import Interrupts, Journal
from birdtune.files import write_csv, write_json
from birdtune.learning import build_classifier, load_first_weights
from birdtune.model import classifier as classifiers
from birdtune.model.classifier import Classifier
from birdtune.model.heads import HEADS
from birdtune.model.trunks import TRUNKS
from birdtune.results.metrics import Draws, interval
from birdtune.results.scores import Scores, pool_mean
from birdtune.training import devices
from birdtune.training.checkpoints import Saved, State
from birdtune.training.feeds import Feed, Frozen
from birdtune.training.loop import learning_rate
from birdtune.training.scoring import Attention, make_scorer, noting, score_windows
from birdtune.training.step import StepSettings, Trainer

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# From the training recordings and the ones to judge to scores of the latter. [judged, C]
Candidate = Callable[[Ints, Ints], Floats]

MOST_FOLDS = 5
_TREES = 300
_COLUMNS = (
    "candidate", "accuracy", "low", "high", "macro_ap", "behind", "behind_low", "behind_high", "tie", "seconds",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Embedded:
    """Recordings as embeddings of their patches."""

    windows: Windows  # of all recordings, those of one after those of another
    embeddings: npt.NDArray[np.float32]  # [P, K]
    labels: Ints  # [N]
    groups: tuple[str, ...]  # [N]
    names: tuple[str, ...]  # [N]
    classes: tuple[str, ...]

    @property
    def averages(self) -> Floats:
        """Mean over the patches of each recording. [N, K]"""
        starts = np.cumsum(self.windows.per_recording) - self.windows.per_recording
        sums = np.add.reduceat(self.embeddings, starts, axis=0, dtype=np.float64)
        return np.asarray(sums / self.windows.per_recording[:, None])

    def some(self, chosen: Ints) -> "Embedded":
        """Some of the recordings, ascending."""
        windows = self.windows
        contents = [windows.contents[number] for number in chosen]
        return Embedded(
            Windows(windows.store, contents, self.labels[chosen].tolist(), windows.hop_frames),
            self.embeddings[np.isin(windows.recording, chosen)],
            self.labels[chosen],
            tuple(self.groups[number] for number in chosen),
            tuple(self.names[number] for number in chosen),
            self.classes,
        )


class _Rows:
    """Embeddings as a source of batches."""

    def __init__(self, embedded: Embedded) -> None:
        self.label = embedded.windows.label
        self._embeddings = embedded.embeddings

    def __len__(self) -> int:
        return len(self._embeddings)

    def patches(self, windows: Ints, shift: Ints | None = None) -> npt.NDArray[np.float32]:
        """The embeddings of some windows. [n, K]"""
        return np.asarray(self._embeddings[windows])


def compare(config: Config, journal: Journal, interrupts: Interrupts) -> int:
    """Compare heads and baselines; print the table, and write compare.csv and compare.json to the output folder.

    Raises:
        InputError: no data, too few classes, or fewer than two sources of some class beside the test part.
        Interrupted, PassingError: frames and embeddings that were finished are kept.
    """
    trunk = TRUNKS[config.model.backbone]
    verify_checkpoint(config, remember=True)
    journal.say(f"prepare: {shown(config.data_folder)}")
    dataset, store = gather.prepare(config, trunk.front_end, journal, interrupts)
    for notice in dataset.notices:
        journal.warn(notice)
    journal.say(f"compare:\n  {devices.prepare_devices()}")
    classifier, embedded = _embed(config, dataset, store, journal, interrupts)
    folds = _folds(embedded, config.train.seed)
    candidates: dict[str, Candidate] = {
        head: _Head(head, classifier, embedded, config, interrupts) for head in HEADS
    } | {name: _Baseline(name, embedded, config.train.seed) for name in _BASELINES}
    scores: dict[str, Floats] = {}
    seconds: dict[str, float] = {}
    for name, candidate in candidates.items():
        began = time.monotonic()
        scores[name] = np.zeros((len(embedded.labels), len(embedded.classes)))
        for fold in range(int(folds.max()) + 1):
            interrupts.check()
            scores[name][folds == fold] = candidate(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold))
        seconds[name] = time.monotonic() - began
    rows = judge(scores, embedded.labels, embedded.groups, n=config.evaluate.bootstrap, seed=config.train.seed)
    rows = [{**row, "seconds": round(seconds[str(row["candidate"])], 2)} for row in rows]
    _tell(rows, embedded, int(folds.max()) + 1, config, journal)
    return EXIT_DONE


# ---- embeddings -----------------------------------------------------------------------------------


def _embed(
    config: Config, dataset: Dataset, store: FrameStore, journal: Journal, interrupts: Interrupts
) -> tuple[Classifier, Embedded]:
    """The embeddings of all recordings but those of test; they are kept on disk where that spares work."""
    frozen_config = config.model_copy(update={"model": config.model.model_copy(update={"freeze": "all-but-head"})})
    trunk = TRUNKS[config.model.backbone]
    precision, why = devices.choose_precision(config.train.precision, gains_on_cpu=trunk.bfloat16_gain > 1)
    journal.say(f"  precision {precision}: {why}")
    classifier = build_classifier(frozen_config, dataset.classes, precision)
    load_first_weights(classifier, frozen_config)
    part = sorted([*dataset.part("train"), *dataset.part("val")], key=lambda recording: recording.name)
    labels = dataset.labels(part)
    windows = Windows(
        store, [recording.content for recording in part], labels, config.train.hop_frames or store.spec.patch_hop
    )
    frozen = Frozen(
        classifier,
        precision=precision,
        cache=store.folder,
        most_bytes=config.train.frozen_gb * 1e9,
        journal=journal,
        interrupts=interrupts,
    )
    feed = frozen.feed(windows, what="comparison")
    rows = []
    scorer = make_scorer(classifier, feed.embed)
    for batch in in_order(feed.source, config.evaluate.batch_size):
        interrupts.check()
        rows.append(scorer(batch.patches)[1][: int(batch.weights.sum())])
    return classifier, Embedded(
        windows,
        np.concatenate(rows),
        np.array(labels, np.int64),
        tuple(dataset.places[recording.name].group for recording in part),
        tuple(recording.name for recording in part),
        dataset.classes,
    )


def _folds(embedded: Embedded, seed: int) -> Ints:
    """The fold of each recording: classes alike in all, no source in two. [N]"""
    sources = [
        len({group for group, label in zip(embedded.groups, embedded.labels, strict=True) if label == column})
        for column in range(len(embedded.classes))
    ]
    if min(sources) < 2:
        few = embedded.classes[int(np.argmin(sources))]
        raise InputError(
            f"class {shown(few)}: {min(sources)} source recordings beside the test part; a comparison trains on one "
            "and judges by another. Add recordings, or lower --split.test-fraction."
        )
    found = np.zeros(len(embedded.labels), np.int64)
    splitter = StratifiedGroupKFold(min(MOST_FOLDS, *sources), shuffle=True, random_state=seed)
    parts = splitter.split(embedded.labels, embedded.labels, embedded.groups)
    for fold, (_, judged) in enumerate(parts):
        found[judged] = fold
    return found


# ---- candidates -----------------------------------------------------------------------------------


class _Head:
    """A head on the frozen trunk, trained by the step that `run` trains with; compiled once for all folds."""

    def __init__(
        self, head: str, classifier: Classifier, embedded: Embedded, config: Config, interrupts: Interrupts
    ) -> None:
        self._embedded, self._config, self._interrupts = embedded, config, interrupts
        # Folds are small: one batch, one update.
        self._settings = config.train.model_copy(update={"accumulate": 1, "average": 0.0})
        self._classifier = classifiers.on_trunk(
            classifier.trunk,
            head=head,
            scores=config.model.scores,
            hidden_units=config.model.model_copy(update={"head": head}).head_units,
            classes=embedded.classes,
            precision=classifier.trunk.layers[-1].dtype_policy.name,
            seed=config.train.seed,
        )
        weights = np.ones(len(embedded.classes), np.float32)
        feed = Feed(_Rows(embedded), lambda given: given, 0.0, False)
        self._trainer = Trainer(
            self._classifier, self._settings, StepSettings(config.model.dropout, weights, "float32"), feed
        )
        fresh = classifiers.weights(self._classifier)
        self._fresh = Saved(fresh, self._trainer.state_arrays(), State())

    def __call__(self, training: Ints, judged: Ints) -> Floats:
        self._trainer.restore(self._fresh)
        self._train(self._embedded.some(training))
        return self._score(self._embedded.some(judged))

    def _train(self, embedded: Embedded) -> None:
        settings, source = self._settings, _Rows(embedded)
        sizes: dict[str, Any] = {"batch_size": settings.batch_size, "seed": settings.seed}
        learns_clips = self._classifier.attention is not None
        batches = ClipBatches(embedded.windows, source, **sizes) if learns_clips else Batches(source, **sizes)
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
                        "--train.learning-rate or --train.head-rate (try a tenth)."
                    )

    def _score(self, embedded: Embedded) -> Floats:
        attention = Attention(self._classifier)
        scorer = noting(make_scorer(self._classifier, lambda given: given), attention.note)
        found = score_windows(scorer, _Rows(embedded), self._config.evaluate.batch_size, self._interrupts)
        scores = Scores(
            embedded.classes, embedded.names, embedded.groups, embedded.labels, found,
            embedded.windows.recording.astype(np.int64), embedded.windows.start_s,
            attention.shares(embedded.windows.recording),
        )  # fmt: skip
        return pool_mean(scores)


def _logistic_regression(seed: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, random_state=seed))


def _random_forest(seed: int) -> Any:
    return RandomForestClassifier(_TREES, n_jobs=os.cpu_count(), random_state=seed)


_BASELINES: Mapping[str, Callable[[int], Any]] = {
    "logistic regression": _logistic_regression,
    "random forest": _random_forest,
}


class _Baseline:
    """What scikit-learn makes of the averages of the embeddings."""

    def __init__(self, name: str, embedded: Embedded, seed: int) -> None:
        self._make, self._seed = _BASELINES[name], seed
        self._averages, self._labels = embedded.averages, embedded.labels
        self._n_classes = len(embedded.classes)

    def __call__(self, training: Ints, judged: Ints) -> Floats:
        model = self._make(self._seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # not converged to the last digit is no matter here
            model.fit(self._averages[training], self._labels[training])
        found = np.zeros((len(judged), self._n_classes))
        found[:, model.classes_] = model.predict_proba(self._averages[judged])
        return found


# ---- judgement ------------------------------------------------------------------------------------


def judge(
    scores: Mapping[str, Floats], labels: Ints, groups: Sequence[str], *, n: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table, the best first.

    Args:
        scores: candidate → [N, C].
        labels: [N].
        groups: [N] source recordings, which intervals draw from.
        n: replicates of the bootstrap.

    Returns:
        `candidate`, `accuracy` with its 95 % interval `low`, `high`; `macro_ap`; how far it is `behind` the best, with
        an interval of that difference, source by source, and whether that leaves it open which is better (`tie`).
    """
    draws = Draws(tuple(groups), n, seed)
    present = np.unique(labels)
    everything = draws.per_group(np.ones(len(labels)), draws.index)  # [G]
    right = {name: (table.argmax(axis=1) == labels).astype(np.float64) for name, table in scores.items()}
    precision = {
        name: float(np.mean([average_precision_score(labels == c, table[:, c]) for c in present]))
        for name, table in scores.items()
    }
    order = sorted(scores, key=lambda name: (-right[name].mean(), -precision[name]))  # of equals, the simpler one
    rows = []
    for name in order:
        low_high = interval(
            draws.ratio(draws.per_group(right[name], draws.index), everything), draws.n_groups
        ) or [math.nan, math.nan]
        lost = draws.ratio(draws.per_group(right[order[0]] - right[name], draws.index), everything)  # [n]
        low, high = np.nanpercentile(lost, [2.5, 97.5]).tolist()
        rows.append({
            "candidate": name, "accuracy": float(right[name].mean()), "low": low_high[0], "high": low_high[1],
            "macro_ap": precision[name], "behind": float((right[order[0]] - right[name]).mean()),
            "behind_low": low, "behind_high": high, "tie": name != order[0] and low <= 0,
        })  # fmt: skip
    return rows


def _tell(
    rows: Sequence[dict[str, Any]], embedded: Embedded, n_folds: int, config: Config, journal: Journal
) -> None:
    for line in table(rows):
        journal.say(f"  {line}")
    best, ties = rows[0], [str(row["candidate"]) for row in rows if row["tie"]]
    head = next(str(row["candidate"]) for row in rows if row["candidate"] in HEADS)
    journal.say(
        f"by {n_folds}-fold cross-validation over {len(set(embedded.groups)):,} source recordings, test left alone; "
        f"best: {best['candidate']}" + (f"; a tie with it, on these recordings: {', '.join(ties)}" if ties else "")
    )
    changed = {**config.changed(), "model.head": head, "model.freeze": "all-but-head"}
    command = shlex.join(["./entrypoint.sh", "run", *(f"--{name}={value}" for name, value in changed.items())])
    journal.say(f"to train {'it' if best['candidate'] == head else f'the best head, {head}'}: {command}")
    write_csv(config.output / "compare.csv", _COLUMNS, rows)
    write_json(
        config.output / "compare.json",
        {
            "best": best["candidate"], "head": head, "ties": ties, "folds": n_folds, "command": command,
            "rows": list(rows),
        },
    )  # fmt: skip
    journal.say(f"table   {shown(config.output / 'compare.csv')}")


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table as people read it."""
    lines = [f"{'':<20}{'accuracy':>9}  {'95 % interval':<15}{'AP':>6}  {'behind the best':<24}{'time':>7}"]
    for number, row in enumerate(rows):
        behind = f"{row['behind']:.3f} ({row['behind_low']:+.3f} to {row['behind_high']:+.3f})"
        lines.append(
            f"{row['candidate']:<20}{row['accuracy']:>9.3f}  {row['low']:.3f} to {row['high']:.3f} "
            f"{row['macro_ap']:>6.3f}  {behind if number else 'best':<24}{row['seconds']:>5.1f} s"
            + (" tie" if row["tie"] else "")
        )
    return lines
