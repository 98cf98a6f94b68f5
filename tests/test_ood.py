"""birdtune.evaluation.ood and training.ood_fit: recordings far from the training data get high OOD scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import make_store
from scipy.sparse import csr_array
from sklearn.covariance import OAS

from birdtune.audio.logmel import VGGISH, YAMNET
from birdtune.data.batches import Windows
from birdtune.errors import InputError
from birdtune.evaluation import ood
from birdtune.evaluation.ood import (
    OodMeasures,
    OodModel,
    OodScale,
    OodStatistics,
    Pooler,
    fit_scale,
    signed_root,
)
from birdtune.runtime.signals import Interrupts
from birdtune.training.ood_fit import chosen_windows, fit_ood, watched

WIDTH = 12


def birds(n: int, column: int, seed: int = 0) -> Any:
    """Mean embeddings of a class, which differ more in some directions than in others. [n, WIDTH] ≥ 0"""
    rng = np.random.default_rng([seed, column])
    middle = np.random.default_rng(column).uniform(1.0, 3.0, WIDTH)
    return (middle + rng.normal(size=(n, WIDTH)) * np.linspace(0.02, 0.4, WIDTH)) ** 2


def of(n: int, column: int, n_classes: int = 4) -> Any:
    """Targets of recordings of one class. [n, C]"""
    return np.eye(n_classes)[np.full(n, column)]


def learnt(counts: tuple[int, ...] = (40, 30, 20)) -> OodModel:
    statistics = OodStatistics(len(counts))
    for column, n in enumerate(counts):
        statistics.add(of(n, column, len(counts)), birds(n, column))
    found = statistics.model()
    assert found is not None
    return found


# ---- means of recordings ------------------------------------------------------------------------


def test_a_window_counts_by_the_share_of_its_frames_that_hold_sound() -> None:
    for spec in (VGGISH, YAMNET):
        features = np.full((3, 96, 64), np.log(spec.log_offset), np.float16)
        features[1, :24, 5] += 1.0  # one band is enough
        features[2] += 1.0
        np.testing.assert_allclose(spec.held(features), [0.0, 0.25, 1.0], atol=1e-5)
        assert (spec.held(features) > 0).all()  # a recording of silence has a mean, too


@pytest.mark.parametrize("batch", [1, 2, 5, 7, 64])
def test_recordings_are_pooled_without_their_silence_however_batches_fall(batch: int) -> None:
    rng = np.random.default_rng(0)
    recording = np.repeat([0, 1, 2, 3], [3, 1, 6, 2])
    features = np.full((12, 96, 64), np.log(VGGISH.log_offset))
    sounding = rng.integers(0, 97, 12)
    sounding[recording == 3] = 0  # nothing but silence
    for patch, n in zip(features, sounding, strict=True):
        patch[:n] += 2.0
    embeddings = rng.normal(size=(12, 5))
    found: dict[int, Any] = {}
    pooler = Pooler(recording, VGGISH, lambda numbers, rows: found.update(zip(numbers.tolist(), rows, strict=True)))
    for at in range(0, 12, batch):
        filled = np.arange(at, at + batch) % 12  # the last batch is filled up
        pooler.note(features[filled], embeddings[filled])
    assert list(found) == [0, 1, 2, 3]
    for number in (0, 1, 2):
        mine = recording == number
        mean = np.average(embeddings[mine], axis=0, weights=sounding[mine])
        np.testing.assert_allclose(found[number], mean, atol=1e-4)
    np.testing.assert_allclose(found[3], embeddings[recording == 3].mean(axis=0), atol=1e-9)


# ---- the distance -------------------------------------------------------------------------------


def test_sums_in_any_portions_give_the_means_and_the_shrunk_covariance_of_scikit_learn() -> None:
    whole = learnt()
    portions = OodStatistics(3)
    for column, n in ((2, 20), (0, 40), (1, 30)):
        for part in np.array_split(birds(n, column), 7):
            portions.add(of(len(part), column, 3), part)
    again = portions.model()
    assert again is not None
    rows = np.concatenate([signed_root(birds(n, column)) for column, n in enumerate((40, 30, 20))])
    labels = np.repeat([0, 1, 2], (40, 30, 20))
    residuals = rows - np.stack([rows[labels == column].mean(axis=0) for column in range(3)])[labels]
    expected = OAS(assume_centered=True).fit(residuals).covariance_
    np.testing.assert_allclose(ood.shrunk(residuals.T @ residuals / 90, 90), expected)
    used = ood.shrunk(residuals.T @ residuals / 87, 87)  # three means were taken from the same recordings
    np.testing.assert_allclose(whole.whitening.T @ used @ whole.whitening, np.eye(WIDTH), atol=1e-4)
    others = birds(9, 1, seed=5)
    for found in (whole, again):
        nearest = np.min(
            [
                np.einsum("ni,ij,nj->n", apart, np.linalg.inv(used), apart) * n / (n + 1)
                for column, n in enumerate((40, 30, 20))
                for apart in [signed_root(others) - rows[labels == column].mean(axis=0)]
            ],
            axis=0,
        )
        np.testing.assert_allclose(found.distances(others), np.sqrt(nearest), rtol=1e-4)


def test_what_was_not_trained_on_is_farther_than_what_was() -> None:
    known = learnt()
    own = np.concatenate([known.distances(birds(50, column, seed=1)) for column in range(3)])
    other = np.concatenate([known.distances(birds(50, column, seed=1)) for column in (7, 8, 9)])
    assert other.min() > own.max()
    # About the root of the number of directions, as of any normal cloud.
    assert own.mean() == pytest.approx(np.sqrt(WIDTH), rel=0.15)


def test_a_class_of_few_recordings_is_not_stricter_with_its_own() -> None:
    known = learnt((60, 60, 2))
    assert known.widening.tolist() == pytest.approx([60 / 61, 60 / 61, 2 / 3])
    rare, common = known.distances(birds(200, 2, seed=3)).mean(), known.distances(birds(200, 0, seed=3)).mean()
    assert rare == pytest.approx(common, rel=0.25)


def test_a_recording_of_two_classes_counts_half_for_each_and_one_of_none_not_at_all() -> None:
    rows = birds(60, 0)
    both, none, single = OodStatistics(2), OodStatistics(2), OodStatistics(2)
    both.add(np.ones((60, 2)), rows)
    assert both.counts.tolist() == [30, 30]
    none.add(np.zeros((60, 2)), rows)
    assert none.counts.tolist() == [0, 0] and none.model() is None
    single.add(np.eye(2)[np.zeros(60, np.int64)], rows)
    two, one = both.model(), single.model()
    assert two is not None and one is not None
    np.testing.assert_allclose(two.centres[0], two.centres[1], atol=1e-5)
    np.testing.assert_allclose(two.distances(rows), one.distances(rows), rtol=0.05)


def test_recordings_that_do_not_differ_teach_nothing() -> None:
    same, single, empty = OodStatistics(2), OodStatistics(2), OodStatistics(2)
    same.add(np.eye(2)[[0, 0, 0, 1, 1]], np.array([[1.0, 2.0]] * 3 + [[0.0, 1.0]] * 2))
    single.add(np.eye(2), np.array([[1.0, 2.0], [0.0, 1.0]]))
    assert [each.model() for each in (same, single, empty)] == [None, None, None]


def test_a_class_without_recordings_is_known_by_what_an_earlier_model_knew() -> None:
    before = learnt()
    statistics = OodStatistics(4)
    statistics.add(of(20, 0), birds(20, 0, seed=1))
    statistics.add(of(50, 3), birds(50, 3))
    found = statistics.model()
    assert found is not None
    again = birds(50, 1, seed=2)
    assert found.distances(again).min() > 2 * before.distances(again).max()
    taken = found.with_centres_of(before, np.array([1]))
    assert taken.counts.tolist() == [20, 30, 0, 50] and found.counts.tolist() == [20, 0, 0, 50]
    # Where it lies and how its recordings differ is as if all had been heard.
    everything = OodStatistics(4)
    for column, n, seed in ((0, 40, 0), (1, 30, 0), (2, 20, 0), (0, 20, 1), (3, 50, 0)):
        everything.add(of(n, column), birds(n, column, seed))
    whole = everything.model()
    assert whole is not None
    np.testing.assert_allclose(taken.distances(again), whole.distances(again), rtol=0.1)
    own = birds(50, 3, seed=2)
    np.testing.assert_allclose(taken.distances(own), whole.distances(own), rtol=0.1)
    assert np.isinf(taken.with_centres_of(taken, np.array([2])).widening[2])  # nobody ever knew it


def test_a_class_that_differs_otherwise_than_all_others_is_as_near_as_it_was() -> None:
    def waving(n: int, seed: int) -> Any:
        """As class 1, and much more so where the others hardly differ."""
        found = np.sqrt(birds(n, 1, seed))
        found[:, 0] += np.random.default_rng(seed).normal(size=n)
        return found**2

    statistics = [OodStatistics(2), OodStatistics(2)]
    for each in statistics:
        each.add(of(60, 0, 2), birds(60, 0))
    statistics[0].add(of(60, 1, 2), waving(60, 1))
    before, now = (each.model() for each in statistics)
    assert before is not None and now is not None
    taken, again = now.with_centres_of(before, np.array([1])), waving(60, 2)
    assert np.median(taken.distances(again)) < 1.5 * np.median(before.distances(again))


def test_what_was_learnt_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = learnt()
    known.save(tmp_path / "ood.npz")
    again = OodModel.load(tmp_path / "ood.npz")
    np.testing.assert_array_equal(again.distances(birds(5, 1)), known.distances(birds(5, 1)))
    (tmp_path / "ood.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"ood\.npz: cannot be read"):
        OodModel.load(tmp_path / "ood.npz")


# ---- the limit ----------------------------------------------------------------------------------


def names(n: int) -> list[str]:
    return [f"g{k}" for k in range(n)]


def test_the_limit_keeps_the_wished_share_of_recordings_to_come() -> None:
    rng = np.random.default_rng(0)
    kept = []
    for _ in range(400):
        heard = OodMeasures(*rng.normal(size=(2, 39)))
        found = fit_scale(heard, names(39), 0.9)
        assert found is not None
        coming = OodMeasures(*rng.normal(size=(2, 200)))
        kept.append((found.ood_score(coming) <= 1).mean())
        assert np.median(found.ood_score(heard)) == 0
    assert np.mean(kept) == pytest.approx(0.9, abs=0.01)  # not 0.88, as the quantile of so few would


def test_far_and_quiet_have_ood_scores_each_by_its_spread() -> None:
    rng = np.random.default_rng(1)
    heard = OodMeasures(30 + 5 * rng.normal(size=99), 8 + 0.5 * rng.normal(size=99))
    found = fit_scale(heard, names(99), 0.9)
    assert found is not None and found.energy_weight == pytest.approx(10, rel=0.2)
    usual, far, quiet, both = found.ood_score(
        OodMeasures(np.array([30.0, 40.0, 30.0, 40.0]), np.array([8.0, 8.0, 7.0, 7.0]))
    )
    assert usual < 0.4 < 0.9 < far < both and far == pytest.approx(quiet, rel=0.2)
    assert OodScale.of(found.row()) == found


def test_clips_of_one_source_do_not_set_the_limit() -> None:
    for place, limit in ((50.0, 19), (-1.0, 18)):  # of 20 and one sources 19.8 stay within
        heard = OodMeasures(np.append(np.arange(20.0), np.full(300, place)), np.zeros(320))
        one = fit_scale(heard, [*names(20), *["same"] * 300], 0.9)
        assert one is not None and (one.limit, one.sources) == (limit, 21)
        many = fit_scale(heard, [*names(20), *(f"h{k}" for k in range(300))], 0.9)
        assert many is None or many.limit != limit


def test_too_few_sources_promise_nothing() -> None:
    distances = np.arange(30.0)
    assert fit_scale(OodMeasures(distances, distances * 0), ["a", "b", "c"] * 10, 0.9) is None
    assert fit_scale(OodMeasures(distances[:15], np.zeros(15)), names(15), 0.9) is not None
    assert fit_scale(OodMeasures(distances[:15], np.zeros(15)), names(15), 0.97) is None  # 15 cannot tell 97 %


def test_recordings_of_one_class_make_its_mean_and_those_of_several_only_where_there_is_none() -> None:
    positive = np.array([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]], bool)
    found, mixed = ood.centre_targets(csr_array(positive))
    # The third and the fourth class are never alone.
    targets = found.toarray().astype(int)
    assert targets.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1], [0, 1, 0, 0]]
    assert mixed.tolist() == [False, False, True, True]
    alone = np.eye(4)[[0, 2, 1]] > 0
    np.testing.assert_array_equal(ood.centre_targets(csr_array(alone))[0].toarray(), alone)


# ---- over recordings on disk --------------------------------------------------------------------


def windows_of(folder: Path, lengths: dict[str, int]) -> Windows:
    return Windows(make_store(folder, lengths), list(lengths), 96)


def test_classes_take_turns_until_there_are_enough_windows(tmp_path: Path) -> None:
    lengths = {"a1": 960, "a2": 960, "a3": 960, "a4": 960, "b1": 9600, "c1": 192}
    windows = windows_of(tmp_path, lengths)
    positive = np.eye(3)[[0, 0, 0, 0, 1, 2]] > 0

    def looked_at(**limits: int) -> list[int]:
        numbers = chosen_windows(windows, csr_array(positive), **limits)
        assert (np.diff(numbers) > 0).all()
        return np.bincount(windows.recording[numbers], minlength=6).tolist()

    assert looked_at() == [10, 10, 10, 10, 100, 2]
    assert looked_at(of_one=20) == [10, 10, 10, 10, 20, 2]
    assert looked_at(most=31, of_one=20) == [10, 0, 0, 0, 20, 2]  # b has but one, and so has c
    assert looked_at(most=33, of_one=20) == [10, 10, 0, 0, 20, 2]
    evenly = chosen_windows(windows, csr_array(positive), of_one=20)
    assert evenly[windows.recording[evenly] == 4].tolist() == list(range(40, 140, 5))
    # b holds the third class, too, and c counts for nothing.
    positive[4, 2], positive[5, 2] = True, False
    assert looked_at(most=31, of_one=20) == [10, 10, 0, 0, 20, 0]


def test_one_pass_learns_what_all_recordings_at_once_would_teach(tmp_path: Path) -> None:
    windows = windows_of(tmp_path, {f"r{k}": 96 * (1 + k % 4) for k in range(30)})
    labels = np.arange(30) % 3

    def scorer(features: Any) -> tuple[Any, Any]:
        assert len(features) == 8  # one size alone, so that nothing is compiled anew
        return np.zeros((8, 3), np.float32), np.abs(features.astype(np.float32)).mean(axis=1)[:, :WIDTH]

    targets = np.eye(3)[labels] > 0
    of_class = csr_array(targets)
    found = fit_ood(scorer, windows, of_class, chosen_windows(windows, of_class), 8, Interrupts())
    rows: list[Any] = []
    seen = watched(scorer, windows, lambda numbers, pooled: rows.extend(pooled))
    everything = np.arange(len(windows))
    for at in range(0, len(windows), 8):
        seen(windows.features(np.resize(everything[at : at + 8], 8)))
    statistics = OodStatistics(3)
    statistics.add(np.eye(3)[labels], np.stack(rows))
    expected = statistics.model()
    assert found is not None and expected is not None and found.counts.tolist() == [10, 10, 10]
    np.testing.assert_allclose(found.distances(np.stack(rows)), expected.distances(np.stack(rows)), rtol=1e-4)
