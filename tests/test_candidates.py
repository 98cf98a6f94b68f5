"""birdtune.search.candidates: heads on embeddings obey the settings of training that concern their examples."""

from pathlib import Path

import numpy as np
import pytest
from test_job import settings, write_data

from birdtune.dataset import gather
from birdtune.events import Interrupts, Journal
from birdtune.model.trunks import TRUNKS
from birdtune.search import candidates, embedded


@pytest.mark.parametrize("head", ["linear", "attention"])
def test_folds_share_what_is_compiled_and_classes_weigh_by_how_often_they_are_among_a_fold_s_own_examples(
    tmp_path: Path, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(write_data(tmp_path / "in" / "data"), tmp_path / "out", train__class_weight_alpha=1.0)
    journal, interrupts = Journal(quiet=True), Interrupts()
    dataset, store = gather.prepare(config, TRUNKS["vggish-small"].front_end, journal, interrupts)
    classifier, found = embedded.embed(
        config, dataset, store, dataset.recordings, journal, interrupts, what="test"
    )
    learner = candidates.Head(head, classifier, found, config, interrupts)
    shapes: list[object] = []
    forward = learner._scorer
    monkeypatch.setattr(learner, "_scorer", lambda given: shapes.append(given.shape) or forward(given))
    monkeypatch.setattr(candidates, "make_scorer", lambda *given: pytest.fail("compiled anew for a fold"))
    scores = candidates.out_of_fold(learner, np.arange(len(found.labels)) % 2, 3, interrupts)
    assert len(shapes) >= 2 and len(set(shapes)) == 1
    judged = np.flatnonzero(np.arange(len(found.labels)) % 2)
    # By the weights as the last fold left them.
    np.testing.assert_allclose(learner._score(found.some(judged)), scores[judged], atol=1e-6)
    rare = np.concatenate([np.flatnonzero(found.labels == 0)[:1], np.flatnonzero(found.labels != 0)])
    label, weight = learner._examples(found.some(rare))
    alike, _ = learner._examples(found)
    assert len(label) < len(alike)  # fewer, and of one class
    totals = np.bincount(label, weight)
    assert totals == pytest.approx(np.full(3, totals.mean()), rel=1e-4)  # each class counts as much as the others
    assert weight[label == 0].min() > 2 * weight[label != 0].max()
