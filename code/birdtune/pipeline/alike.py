"""Detections that sound alike, behind one another: what was decided on the first is soon decided on the others.

    Doubtful + model ─▶ embedding of the window with the highest score ─▶ groups within each class ─▶ order
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from birdtune.audio.front_end import FrontEnd
from birdtune.audio.resample import resampled
from birdtune.reporting import listening
from birdtune.reporting.review_page import Doubtful

# Groups are joined while the cosines of their embeddings differ by less, on average. Of the training calls of `bench
# learn_soundscapes` (BirdNET; compared once, 2026-11-30, by a script that was not kept) those of one recording differ
# by 0.24 in the median, those of other recordings of the species by 0.37, those of other species by 0.48.
_LARGEST_DISTANCE = 0.35

Embed = Callable[[Sequence[Doubtful]], npt.NDArray[np.float32]]


def grouped(some: Sequence[Doubtful], embed: Embed) -> list[Doubtful]:
    """The same detections, those that sound alike behind one another within each class.

    Args:
        some: class behind class; in each, the first stay first: a group stands where its first detection stood.
        embed: detections → embeddings [n, K]; rows of NaN: of what cannot be read.
    """
    if len(some) < 3:
        return list(some)
    embeddings, found = embed(some), list[Doubtful]()
    for name in dict.fromkeys(one.class_name for one in some):
        own = [k for k, one in enumerate(some) if one.class_name == name]
        group = _groups(embeddings[own])
        first = {number: place for place, number in reversed(list(enumerate(group)))}
        found += [some[own[place]] for place in sorted(range(len(own)), key=lambda k: (first[group[k]], k))]
    return found


def _groups(embeddings: npt.NDArray[np.float32]) -> list[int]:
    """The group of each row; one that is not known is alone."""
    from scipy.cluster import hierarchy

    known = np.flatnonzero(np.isfinite(embeddings).all(axis=1) & (np.linalg.norm(embeddings, axis=1) > 0))
    group = -1 - np.arange(len(embeddings))
    if len(known) > 1:
        tree = hierarchy.linkage(embeddings[known], "average", "cosine")
        group[known] = hierarchy.fcluster(np.maximum(tree, 0.0), _LARGEST_DISTANCE, "distance")
    return [int(number) for number in group]


def embedder(folder: Path) -> Embed:
    """Embeddings by an exported model, of the window of each detection that has the highest score.

    Raises:
        CheckpointError: the model is damaged.
    """
    from birdtune.serving.verify import open_model

    model = open_model(folder)
    spec = model.front_end

    def embed(some: Sequence[Doubtful]) -> npt.NDArray[np.float32]:
        rows: dict[int, npt.NDArray[np.float32]] = {}
        for place, one in enumerate(some):
            if (window := _window(one, spec)) is not None:
                rows[place] = np.asarray(model.scores(window[None])[1], np.float32)[0]
        nothing = np.full(next((row.size for row in rows.values()), 1), np.nan, np.float32)
        return np.stack([rows.get(place, nothing) for place in range(len(some))])

    return embed


def _window(one: Doubtful, spec: FrontEnd) -> npt.NDArray[Any] | None:
    clip = listening.from_file(one.given, one.peak_s, spec.window_s, most_hz=None)
    if clip is None:
        return None
    samples = np.concatenate(list(resampled(iter([clip.waveform]), clip.rate_hz, spec.rate_hz, "soxr")))
    return np.asarray(spec.windows_of(samples)[0], np.float32)
