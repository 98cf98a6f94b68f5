"""Recordings as embeddings of the backbone as it was given, and folds of them that share no source.

    settings + recordings ─▶ first_feed ─▶ embeddings, computed once ─▶ Embedded ─▶ folds of whole source recordings

Importing this loads TensorFlow.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from birdtune.config import Config
from birdtune.data.batches import Windows, batch_of
from birdtune.data.dataset import Dataset
from birdtune.data.frames import FrameStore
from birdtune.data.scan import Recording
from birdtune.data.targets import Targets
from birdtune.errors import CheckpointError, InputError, shown
from birdtune.models import registry
from birdtune.models.backbone import ALL_BUT_HEAD
from birdtune.models.classifier import Classifier
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count
from birdtune.training import devices
from birdtune.training.first_weights import build_classifier, load_first_weights
from birdtune.training.inputs import Feed, Frozen, whole
from birdtune.training.scoring import Scorer, make_scorer

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MOST_FOLDS = 5


@dataclass(frozen=True, eq=False)
class Embedded:
    """Recordings as embeddings of their windows."""

    windows: Windows  # of all recordings, those of one after those of another
    embeddings: npt.NDArray[np.float32]  # [P, K]
    targets: Targets  # [N]
    groups: tuple[str, ...]  # [N]
    names: tuple[str, ...]  # [N]
    weights: npt.NDArray[np.float32]  # [N] how much each counts in training
    classes: tuple[str, ...]

    @cached_property
    def positive(self) -> Bools:
        """The classes of each recording. [N, C]"""
        return np.asarray(self.targets.positive().toarray())

    @cached_property
    def known(self) -> Bools:
        """Where it is known whether a recording is of a class. [N, C]"""
        return np.asarray(self.targets.of_recordings()[1] > 0)

    @property
    def have_several(self) -> bool:
        """Whether a recording has several classes, or none, or not all of them are known."""
        return bool((self.positive.sum(axis=1) != 1).any() or not self.known.all())

    @cached_property
    def labels(self) -> Ints:
        """The column of each recording's class; -1 where it has none, or several. [N]"""
        return np.where(self.positive.sum(axis=1) == 1, self.positive.argmax(axis=1), -1).astype(np.int64)

    @property
    def averages(self) -> Floats:
        """Mean over the windows of each recording. [N, K]"""
        starts = np.cumsum(self.windows.per_recording) - self.windows.per_recording
        sums = np.add.reduceat(self.embeddings, starts, axis=0, dtype=np.float64)
        return np.asarray(sums / self.windows.per_recording[:, None])

    def some(self, chosen: Ints) -> "Embedded":
        """Some of the recordings, ascending."""
        windows = self.windows
        contents = [windows.contents[number] for number in chosen]
        return Embedded(
            Windows(windows.store, contents, windows.hop_rows),
            self.embeddings[np.isin(windows.recording, chosen)],
            self.targets.some(chosen),
            tuple(self.groups[number] for number in chosen),
            tuple(self.names[number] for number in chosen),
            self.weights[chosen],
            self.classes,
        )


class Rows:
    """Embeddings as a source of batches: what `Windows` is for frames."""

    def __init__(self, embedded: Embedded) -> None:
        self._embeddings = embedded.embeddings

    def __len__(self) -> int:
        return len(self._embeddings)

    def features(self, windows: Ints, shift: Ints | None = None) -> npt.NDArray[np.float32]:
        """The embeddings of some windows. [n, K]"""
        return np.asarray(self._embeddings[windows])


def no_first_backbone(config: Config) -> str:
    """Why there is no backbone that knew sounds before training, in words; "" where there is one."""
    try:
        first = registry.checkpoint_path(config)
    except CheckpointError:
        if config.init_from is None:
            raise
        return "the run began from a served model, and the weights that its backbone once began from are not at hand"
    return "the backbone began from scratch, and knows no sounds to compare by" if first is None else ""


def first_feed(
    config: Config,
    classes: tuple[str, ...],
    windows: Windows,
    journal: Journal,
    interrupts: Interrupts,
    *,
    what: str,
    keep: bool,
) -> tuple[Classifier, Feed, str]:
    """The backbone with the weights that training begins from, all of it frozen, and what it is fed with.

    Args:
        what: it is for, as the journal says it.
        keep: what the frozen layers make on disk, where training keeps it, too.

    Returns:
        the classifier, its head a linear one that knows nothing; its feed; the precision, in words.
    """
    linear = {"head": "linear", "hidden_units": None, "prototypes": None}
    model = config.model.model_copy(update={"freeze": ALL_BUT_HEAD, **linear})
    backbone = registry.backbone_of(config)
    precision, why = devices.choose_precision(config.train.precision, gains_on_cpu=backbone.bfloat16_gain > 1)
    config = config.model_copy(update={"model": model})
    classifier = build_classifier(config, classes, precision)
    load_first_weights(classifier, config)
    words = f"precision {precision}: {why}"
    if not keep:
        return classifier, whole(classifier, windows), words
    frozen = Frozen(
        classifier, store=windows.store, most_bytes=config.train.cache_gb * 1e9,
        journal=journal, interrupts=interrupts,
    )  # fmt: skip
    return classifier, frozen.feed(windows, what=what), words


def pieces(
    feed: Feed, scorer: Scorer, chosen: Ints, size: int, interrupts: Interrupts
) -> Iterator[tuple[Ints, npt.NDArray[np.float32]]]:
    """Some windows and their embeddings [n, K], so many at a time."""
    for begin in range(0, len(chosen), size):
        interrupts.check()
        part = chosen[begin : begin + size]
        yield part, scorer(batch_of(feed.source, part, size).features)[1][: len(part)]


def embed(
    config: Config,
    dataset: Dataset,
    store: FrameStore,
    part: Sequence[Recording],
    journal: Journal,
    interrupts: Interrupts,
    *,
    what: str,
    keep: bool = True,
    most: int | None = None,
) -> tuple[Classifier, Embedded]:
    """Embeddings of some recordings by the backbone as it is given.

    Args:
        what: they are for, as the journal says it.
        keep: on disk, where that spares work.
        most: about so many windows; of more, every second, third, … of each recording. None: all.

    Returns:
        the classifier whose backbone made them, all but its head frozen; and the embeddings, recordings by name.
    """
    part = sorted(part, key=lambda recording: recording.name)
    contents = [recording.content for recording in part]
    hop = store.spec.hop(config.train.hop_s)
    windows = Windows(store, contents, hop)
    every = 1 if most is None else max(1, -(-len(windows) // most))
    classifier, feed, words = first_feed(
        config, dataset.classes, windows, journal, interrupts, what=what, keep=keep or every == 1
    )
    journal.say(f"  {words}")
    # From every m-th window to the next are m hops; the last of each recording is the same.
    heard = windows if every == 1 else Windows(store, contents, every * hop)
    is_last = np.diff(windows.recording, append=-1) != 0
    chosen = np.flatnonzero((windows.offset % (every * hop) == 0) | is_last)
    found = []
    with journal.progress(f"embeddings, {what}", len(chosen), "windows") as progress:
        for numbers, embeddings in pieces(
            feed, make_scorer(classifier, feed.embed), chosen, config.evaluate.batch_size, interrupts
        ):
            found.append(embeddings)
            progress.advance(len(numbers))
    return classifier, Embedded(
        heard,
        np.concatenate(found),
        dataset.targets(part),
        tuple(dataset.places[recording.name].group for recording in part),
        tuple(recording.name for recording in part),
        np.array([dataset.weights.get(recording.name, 1.0) for recording in part], np.float32),
        dataset.classes,
    )


def folds(positive: Bools, groups: Sequence[str], seed: int, n: int | None = None) -> Ints:
    """The fold of each recording, -1 for those that cannot be scored: no other source has a class of theirs. [N]

    No source is in two folds. Those of each class are dealt out in turn, so that classes are alike in all folds, and a
    class with two has one beside each that is scored. Where recordings have several classes, a source counts for each:
    the rarest class is dealt out first, and each source goes to the fold with fewest of that class, of equals with
    fewest sources (iterative stratification: Sechidis et al. 2011).

    Args:
        positive: [N, C] the classes of each recording.
        groups: [N] source recordings.
        n: most folds; None: `MOST_FOLDS`.
    """
    n = n or MOST_FOLDS
    generator = np.random.default_rng(seed)
    names, source = np.unique(np.asarray(groups, object).astype(str), return_inverse=True)
    order = generator.permutation(len(names))
    holds = np.zeros((len(names), positive.shape[1]), np.bool_)  # [sources, C]
    np.logical_or.at(holds, source, positive)
    several = bool((positive.sum(axis=1) != 1).any())
    columns = np.flatnonzero(holds.any(axis=0))
    if several:
        columns = columns[np.argsort(holds.sum(axis=0)[columns], kind="stable")]
    fold_of = np.full(len(names), -1, np.int64)
    dealt = np.zeros((n, positive.shape[1]), np.int64)  # sources of each class in each fold
    sizes = np.zeros(n, np.int64)
    for column in columns.tolist():
        for number in order[holds[order, column]]:
            if fold_of[number] < 0:
                fewest = np.lexsort((sizes, dealt[:, column]))[0]
                fold_of[number] = fold = fewest if several else sizes.sum() % n
                dealt[fold] += holds[number]
                sizes[fold] += 1
    found = fold_of[source]
    found[~scored_targets(positive, found).any(axis=1)] = -1
    return found


def scored_targets(positive: Bools, fold: Ints) -> Bools:
    """The classes of each recording that it is scored by: those that another fold teaches, too. [N, C]

    Args:
        positive: [N, C] the classes of each recording; fold: [N].
    """
    taught = np.array([len(set(fold[own & (fold >= 0)].tolist())) > 1 for own in positive.T], np.bool_)
    return np.asarray(positive & taught & (fold >= 0)[:, None])


def evaluated(embedded: Embedded, fold: Ints) -> tuple[Bools, Bools]:
    """Targets that recordings are evaluated by, and where these are known. [N, C] each

    Not known is, beside what the labels leave open, a class of a recording that no other fold teaches.
    """
    scored = scored_targets(embedded.positive, fold)
    return scored, embedded.known & (scored | ~embedded.positive)


def judgeable(positive: Bools, groups: Sequence[str], seeds: Iterable[int]) -> Bools:
    """The classes by which recordings are scored with whichever of these seeds the folds are dealt. [N, C]"""
    return np.asarray(
        np.all([scored_targets(positive, folds(positive, groups, seed)) for seed in seeds], axis=0)
    )


def _sources(positive: Bools, groups: Sequence[str]) -> Counter[int]:
    """How many source recordings each class has, by its column."""
    row, column = np.nonzero(positive)
    return Counter(each for each, _ in set(zip(column.tolist(), np.asarray(groups, object)[row].tolist(), strict=True)))


def few_sources(
    positive: Bools, groups: Sequence[str], classes: Sequence[str], scored: Bools
) -> dict[str, int]:
    """The classes by which no recording is scored, and how many source recordings each has.

    Args:
        positive: [N, C] the classes of each recording; scored: [N, C] as `scored_targets`.
    """
    sources = _sources(positive, groups)
    return {name: sources[column] for column, name in enumerate(classes) if not scored[:, column].any()}


def listed(few: Mapping[str, int]) -> str:
    """Classes and how many source recordings each has, in words."""
    return ", ".join(f"{shown(name)} ({count(n, 'source recording')})" for name, n in few.items())


def classes_of(dataset: Dataset, part: Sequence[Recording]) -> Bools:
    """The classes that each recording holds anywhere. [N, C]"""
    return np.asarray(dataset.targets(part).positive().toarray())


def require_judges(
    dataset: Dataset, part: Sequence[Recording], seeds: Sequence[int], purpose: str, journal: Journal
) -> None:
    """Name the classes that cannot be evaluated; to be asked before anything is embedded.

    Args:
        part: what is to be embedded.
        purpose: what trains on some and judges by others, for people.

    Raises:
        InputError: fewer than two classes can be evaluated.
    """
    positive = classes_of(dataset, part)
    groups = [dataset.places[recording.name].group for recording in part]
    few = few_sources(positive, groups, dataset.classes, judgeable(positive, groups, seeds))
    if (n := len(dataset.classes) - len(few)) < 2:
        everything = [dataset.places[recording.name].group for recording in dataset.recordings]
        known = _sources(classes_of(dataset, dataset.recordings), everything)
        in_test = any(known[column] > 1 for column, name in enumerate(dataset.classes) if name in few)
        raise InputError(
            f"{purpose} learns from one source recording of a class and judges by another, which takes two classes "
            f"with two each beside the test part: there {'is one' if n else 'are none'}. Too few have {listed(few)}. "
            f"Add recordings of other sources{', or lower --split.test-fraction' if in_test else ''}."
        )
    if few:
        journal.warn(
            f"not evaluated: {listed(few)}; that takes two beside the test part. What is tried learns from them all "
            "the same, and may take others for them."
        )
