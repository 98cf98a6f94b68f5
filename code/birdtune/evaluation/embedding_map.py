"""The recordings' embeddings on a plane, and how often the nearest recording of another source has the same class.

    mean embeddings [N, K], targets, source recordings ─▶ measure ─▶ write ─▶ embedding_map.csv, embedding_map.json

The plane is t-SNE (van der Maaten & Hinton 2008) of embeddings scaled to length 1, after PCA: points that lie close
were neighbours by their cosine, and nothing else can be read from it. So a number goes with it that does not depend on
the picture: the share of recordings whose nearest neighbour by cosine has the same class. Only other source recordings
count as neighbours, because clips of one recording are alike whatever they hold.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.evaluation.bootstrap import Bootstrap, divide
from birdtune.evaluation.scores import Bools, Floats, Ints
from birdtune.runtime.files import write_csv, write_json

TABLE_NAME, FACTS_NAME = "embedding_map.csv", "embedding_map.json"
COLUMNS = (
    "recording", "class", "source_recording", "split", "x", "y", "nearest", "nearest_class", "similarity", "same_class",
)  # fmt: skip
MOST_POINTS = 2_000
# Fewer points than this have no neighbourhoods to keep.
_FEWEST_POINTS = 5
_COMPONENTS = 50
_PERPLEXITY = 30.0
_STEPS = 750  # 250 of them exaggerate, as in openTSNE; 2,000 points take 10 s
_BLOCK = 256  # recordings that are compared with all at a time

Array = npt.NDArray[np.float32]


def measure(
    embeddings: Array,
    positive: Bools,
    *,
    recordings: Sequence[str],
    classes: Sequence[str],
    places: Mapping[str, Any],
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """A place on the plane, and the nearest neighbour, of each recording; of many, of a sample of all classes.

    Args:
        embeddings: [N, K] mean embedding of each recording.
        positive: [N, C] the classes of each.
        places: name → with `group` and `split`.

    Returns:
        `reason`: why there is no map, or ""; `recordings`: N; `perplexity`; `compared`: recordings of the map whose
        class has another source recording; `same`: the share of them whose nearest neighbour has their class, with
        `same_ci` and `same_by_chance` (a neighbour drawn at random); `rows`: a dict with `COLUMNS` for each point, and
        `classes`, a list. What is undefined is None.
    """
    unit = _unit(embeddings)
    if reason := _why_not(unit):
        return no_map(reason)
    groups = np.array([places[name].group for name in recordings], object)
    _, source = np.unique(groups.astype(str), return_inverse=True)
    first = np.where(positive.any(axis=1), positive.argmax(axis=1), positive.shape[1])  # those of no class are one, too
    chosen = balanced_sample(first, MOST_POINTS, seed)
    nearest, similarity, by_chance = neighbours(unit, positive, source, chosen)
    same: Bools = np.any(positive[chosen] & positive[nearest], axis=1)
    compared = by_chance > 0
    share, ends = Bootstrap(list(groups[chosen]), n_bootstrap, seed).share(same, compared)
    perplexity = min(_PERPLEXITY, (len(chosen) - 1) / 3)
    plane = on_a_plane(unit[chosen], perplexity, seed)
    named = [[classes[column] for column in np.flatnonzero(row).tolist()] for row in positive]
    rows = [
        {
            "recording": recordings[index],
            "class": ";".join(named[index]),
            "classes": named[index],
            "source_recording": groups[index],
            "split": places[recordings[index]].split,
            "x": round(float(x), 4),
            "y": round(float(y), 4),
            "nearest": recordings[near],
            "nearest_class": ";".join(named[near]),
            "similarity": round(float(cosine), 4),
            "same_class": ("yes" if is_same else "no") if is_compared else None,
        }
        for index, (x, y), near, cosine, is_same, is_compared in zip(
            chosen.tolist(), plane, nearest.tolist(), similarity, same.tolist(), compared.tolist(), strict=True
        )
    ]
    return {
        "reason": "",
        "recordings": len(recordings),
        "perplexity": round(perplexity, 2),
        "compared": int(compared.sum()),
        "same": share,
        "same_ci": ends,
        "same_by_chance": float(by_chance[compared].mean()) if compared.any() else None,
        "rows": rows,
    }


def no_map(reason: str) -> dict[str, Any]:
    """What `measure` returns where there is nothing to show, and why."""
    return {"reason": reason, "rows": []}


def write(folder: Path, found: Mapping[str, Any]) -> None:
    """Write embedding_map.csv and embedding_map.json. Raises as `files.storage_faults`.

    Args:
        found: as `measure`, and `with_times`: how many recordings are left out, as their labels have times.
    """
    write_csv(folder / TABLE_NAME, COLUMNS, _table(found["rows"]))
    write_json(folder / FACTS_NAME, dict(found))


def _table(rows: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return ({name: row[name] for name in COLUMNS} for row in rows)


def _unit(embeddings: Array) -> Array:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def _why_not(unit: Array) -> str:
    if len(unit) < _FEWEST_POINTS:
        return f"there are only {len(unit)} recordings"
    return "" if np.ptp(unit, axis=0).any() else "the embeddings of all recordings are the same"


def balanced_sample(labels: Ints, most: int, seed: int) -> Ints:
    """At most so many recordings, ascending; where not all, as many of each class as it has, up to a common limit.

    Args:
        labels: [N] one class of each.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.zeros(len(labels), np.int64)  # how many of its class come before it
    for label in np.unique(labels):
        own = order[labels[order] == label]
        turn[own] = np.arange(len(own))
    return np.sort(order[np.argsort(turn[order], kind="stable")[:most]])


def neighbours(unit: Array, positive: Bools, source: Ints, chosen: Ints) -> tuple[Ints, Floats, Floats]:
    """The nearest recording of another source, for some recordings.

    Args:
        unit: [N, K] embeddings of length 1.
        positive: [N, C] the classes of each.
        source: [N] number of its source recording; there are two or more.

    Returns:
        index of the nearest [n], its cosine [n], and the share of recordings of other sources that have a class in
        common [n].
    """
    nearest, similarity, by_chance = [], [], []
    members = positive.astype(np.float32)
    for begin in range(0, len(chosen), _BLOCK):
        block = chosen[begin : begin + _BLOCK]
        other = source[block, None] != source  # [block, N]
        cosine = np.where(other, unit[block] @ unit.T, -np.inf)
        common = (members[block] @ members.T > 0) & other
        nearest.append(cosine.argmax(axis=1))
        similarity.append(cosine.max(axis=1))
        by_chance.append(divide(common.sum(axis=1), other.sum(axis=1)))
    return np.concatenate(nearest), np.concatenate(similarity), np.concatenate(by_chance)


def on_a_plane(unit: Array, perplexity: float, seed: int) -> Floats:
    """Embeddings [n, K] → places [n, 2]; the longer side goes from 0 to 1."""
    from sklearn.decomposition import PCA  # both take as long to load as `check` takes for a hundred clips
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    n_components = min(_COMPONENTS, *unit.shape)
    # In several threads sums are added in another order each time, and the picture comes out otherwise.
    with threadpool_limits(1):
        reduced = PCA(n_components, random_state=seed).fit_transform(unit)
        plane = TSNE(
            perplexity=perplexity, init="pca" if n_components > 1 else "random", max_iter=_STEPS, random_state=seed
        ).fit_transform(reduced)
    low, high = plane.min(axis=0), plane.max(axis=0)
    return np.asarray((plane - low) / max(float((high - low).max()), 1e-9), np.float64)
