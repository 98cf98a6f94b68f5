"""The OOD model: one pass of the trained network over training recordings, or over enough of them.

    scorer + Windows of training ─▶ fit_ood ─▶ OodModel, or None
    scorer ─▶ watched ─▶ the same scorer, which hands over the mean embedding of each recording on the way
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from birdtune.data.batches import Source, Windows
from birdtune.evaluation.ood import OodModel, OodStatistics, Pooler, Take
from birdtune.runtime.signals import Interrupts
from birdtune.training.scoring import Scorer

Ints = npt.NDArray[np.int64]

# Means and a covariance become no better by more windows than these, nor a recording's mean by more of its own.
MOST_WINDOWS = 50_000
MOST_OF_ONE = 1_000


def watched(
    scorer: Scorer, windows: Windows, take: Take, numbers: Ints | None = None, *, source: Source | None = None
) -> Scorer:
    """The same function, which hands over mean embeddings of recordings on the way.

    Args:
        numbers: of the windows that it will be given, in their order; None: all of them.
        source: what it is given of them, if not their features.
    """
    order = np.arange(len(windows)) if numbers is None else numbers
    pooler = Pooler(windows.recording[order].astype(np.int64), windows.store.spec, take)
    at = 0

    def score(given: npt.NDArray[np.generic]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        nonlocal at
        scores, embeddings = scorer(given)
        # How much a window counts is seen in its features alone.
        features = given if source is None or source is windows else windows.features(order[at : at + len(given)])
        at += len(given)
        pooler.note(features, embeddings)
        return scores, embeddings

    return score


def chosen_windows(windows: Windows, positive: csr_array, most: int = MOST_WINDOWS, of_one: int = MOST_OF_ONE) -> Ints:
    """Windows to look at: whole recordings, of all classes in turn, until there are enough windows; ascending.

    Args:
        positive: [recordings, C] classes of each; one with several takes the turn of the class where it comes first,
            and one without any is left out.
        of_one: of a recording with more windows, so many, evenly taken.
    """
    counts = np.minimum(windows.per_recording, of_one)
    # By content, so that whatever the names sort by is mixed.
    by_content = np.array(sorted(range(len(windows.contents)), key=lambda k: windows.contents[k]), np.int64)
    own = positive[by_content].tocsc()  # of each class, its recordings in this order
    column = np.repeat(np.arange(own.shape[1]), np.diff(own.indptr))
    turn = np.arange(own.nnz) - own.indptr[column]  # how many of the class come before it
    in_turn = by_content[own.indices[np.lexsort((column, turn))]]
    order = in_turn[np.sort(np.unique(in_turn, return_index=True)[1])]  # each at its first turn
    enough = order[np.cumsum(counts[order]) - counts[order] < most]
    first = np.cumsum(windows.per_recording) - windows.per_recording
    return np.concatenate(
        [
            first[k] + np.arange(counts[k]) * windows.per_recording[k] // counts[k]
            for k in np.sort(enough)
        ]
    )  # fmt: skip


def fit_ood(
    scorer: Scorer,
    windows: Windows,
    targets: csr_array,
    numbers: Ints,
    batch_size: int,
    interrupts: Interrupts,
    advance: Callable[[int], None] = lambda n: None,
    source: Source | None = None,
) -> OodModel | None:
    """Means and covariance of training recordings, as the network embeds them; None where they do not differ.

    Args:
        scorer: the trained network.
        targets: [recordings, C] as `ood.centre_targets`.
        numbers: of the windows to look at, as `chosen_windows` gives them.
        source: as `watched`.
        batch_size: windows at a time; the last batch is filled up, so that nothing is compiled anew.

    Raises:
        Interrupted: when told to stop.
    """
    statistics = OodStatistics(targets.shape[1])
    score = watched(
        scorer, windows, lambda found, pooled: statistics.add(targets[found].toarray(), pooled), numbers, source=source
    )
    for part in _parts(numbers, batch_size):
        interrupts.check()
        score((source or windows).features(np.resize(part, batch_size)))
        advance(len(part))
    return statistics.model()


def _parts(numbers: Ints, size: int) -> Iterator[Ints]:
    for start in range(0, len(numbers), size):
        yield numbers[start : start + size]
