"""birdtune.tuning.class_maps and class_trials: maps learnt on seen classes recognise unseen ones, and nothing leaks."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from birdtune.tuning import class_maps, class_trials
from birdtune.tuning.class_embedding import TrainedEmbedding
from birdtune.tuning.class_maps import MAPS, Generalised, generalised, stacking, top1
from birdtune.tuning.class_trials import Draw, Recordings, trial

CLASSES, PER_CLASS, SIZE = 12, 16, 24
DRAW = Draw(tuple(range(8)), tuple(range(8, 12)), seed=3)


def made(noise: float = 0.3, seed: int = 0) -> tuple[Recordings, np.ndarray]:
    """Recordings whose embeddings are a linear function of their class's vector of 4 numbers, and noise."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((CLASSES, 4))
    labels = np.repeat(np.arange(CLASSES), PER_CLASS)
    embeddings = vectors[labels] @ rng.standard_normal((4, SIZE)) + noise * rng.standard_normal((len(labels), SIZE))
    return Recordings(embeddings, labels, np.arange(len(labels)) // 2), vectors


@pytest.mark.parametrize("name", ["ridge", "compatibility", "two-layer"])
def test_unseen_classes_are_recognised_by_vectors_that_embeddings_depend_on(name: str) -> None:
    recordings, vectors = made()
    found = trial(recordings, DRAW, name, vectors, 0)
    assert found.unseen > 0.6 and found.ceiling == 1.0 and found.n_scored == 4 * PER_CLASS
    wrong = trial(recordings, DRAW, name, np.random.default_rng(9).standard_normal((CLASSES, 4)), 0)
    assert wrong.unseen < found.unseen - 0.2
    assert all(0 <= share <= 1 for share in (found.both.seen, found.both.unseen, found.plain.seen, found.plain.unseen))


def test_prototypes_of_a_few_recordings_are_not_scored_by_themselves() -> None:
    recordings, _ = made()
    found = trial(recordings, DRAW, "prototype", None, 3)
    assert found.unseen > 0.9
    assert found.n_scored == 4 * (PER_CLASS - 3 * 2)  # the other recording of each source is not scored either
    noise = Recordings(np.random.default_rng(0).standard_normal((192, 400)), recordings.labels, recordings.sources)
    assert trial(noise, DRAW, "prototype", None, 3).unseen < 0.5  # chance is 0.25; a prototype of itself would win


def test_nothing_of_an_unseen_class_is_learnt() -> None:
    recordings, vectors = made()
    found = trial(recordings, DRAW, "ridge", vectors, 0)
    strange = recordings.embeddings.copy()
    strange[recordings.labels >= 8] += 100.0
    after = trial(Recordings(strange, recordings.labels, recordings.sources), DRAW, "ridge", vectors, 0)
    # Of each seen class a quarter of the sources is scored, and not learnt from.
    assert len(found.learnt) == 8 * (PER_CLASS - 4)
    assert np.array_equal(found.learnt, after.learnt) and set(recordings.labels[found.learnt]) == set(DRAW.seen)
    with_validation = trial(recordings, replace(DRAW, seen=DRAW.seen[:6], validation=(6, 7)), "ridge", vectors, 0)
    assert set(recordings.labels[with_validation.learnt]) == set(range(6))


def test_strength_and_calibration_are_chosen_without_the_unseen_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Draw] = []
    scores = class_trials._scores
    monkeypatch.setattr(
        class_trials, "_scores", lambda recordings, draw, *more: drawn.append(draw) or scores(recordings, draw, *more)
    )
    recordings, vectors = made()
    trial(recordings, DRAW, "ridge", vectors, 0)
    *inner, last = drawn
    assert last == DRAW and len(inner) == 3 * len(MAPS["ridge"].strengths)
    assert all(set(one.seen) | set(one.unseen) == set(DRAW.seen) for one in inner)
    assert {column for one in inner for column in one.unseen} == set(DRAW.seen)
    drawn.clear()
    trial(recordings, replace(DRAW, seen=DRAW.seen[:6], validation=(6, 7)), "prototype", None, 2)
    assert [one.unseen for one in drawn] == [(6, 7), DRAW.unseen]


def test_equal_scores_share_the_credit_and_classes_count_alike() -> None:
    scores = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]])
    assert top1(scores, np.array([0, 1, 2, 2]), range(3)) == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert top1(scores, np.array([0, 1, 1, 0]), range(2)) == pytest.approx((0.5 + 0.5) / 2)


def test_calibrated_stacking_finds_the_constant_that_seen_scores_are_above() -> None:
    rng = np.random.default_rng(0)
    labels, is_unseen = np.arange(200) % 4, np.array([False, False, True, True])
    scores = np.eye(4)[labels] + 0.1 * rng.standard_normal((200, 4)) + 2.0 * ~is_unseen
    assert generalised(scores, labels, is_unseen, 0.0).unseen == 0
    constant = stacking([(scores, labels, is_unseen)])
    assert 1 < constant < 3 and generalised(scores, labels, is_unseen, constant).harmonic > 0.95
    assert stacking([]) == 0 and Generalised(0.0, 0.0).harmonic == 0
    assert Generalised(0.8, 0.4).harmonic == pytest.approx(0.5333, abs=1e-3)


def test_the_ceiling_counts_classes_that_the_vectors_tell_apart_in_what_is_taught() -> None:
    seen = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])  # two genera
    unseen = np.array([[1.0, 0, 0, 0], [1.0, 0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])  # one of them, and two new ones
    assert class_maps.ceiling(seen, unseen) == 0.5


def test_an_embedding_is_trained_on_what_is_learnt_from_alone_and_once_for_all_maps() -> None:
    recordings, vectors = made()
    embedding, given = TrainedEmbedding(wide=32, epochs=15), []

    def noting(embeddings: Any, labels: Any, learnt: Any, seed: int) -> Any:
        given.append((labels[learnt], embedding(embeddings, labels, learnt, seed)))
        return given[-1][1]

    found = trial(replace(recordings, trained=noting), DRAW, "ridge", vectors, 0)
    assert found.unseen > 0.4 and all(set(labels) <= set(DRAW.seen) for labels, _ in given)
    assert len({id(embeddings) for _, embeddings in given}) == 4  # three inner folds, and all seen classes
    assert given[-1][1].shape == (len(recordings.labels), 128)
    strange = np.where(recordings.labels[:, None] >= 8, 9.0, recordings.embeddings)
    again = TrainedEmbedding(wide=32, epochs=15)(strange, recordings.labels, found.learnt, DRAW.seed)
    assert np.allclose(again[found.learnt], given[-1][1][found.learnt], atol=1e-4)
