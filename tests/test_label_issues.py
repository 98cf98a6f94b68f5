"""Labels that others of their class speak against: who is doubted, how surely, and what is written about it."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import soundfile
from makers import make_store, one_class_each
from test_job import run, settings, write_data

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data.batches import Windows
from birdtune.data.dataset import Dataset
from birdtune.errors import InputError, Interrupted
from birdtune.evaluation import label_issues
from birdtune.evaluation.scores import one_hot
from birdtune.models.registry import BACKBONES
from birdtune.pipeline import label_check
from birdtune.runtime.files import read_csv, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.training.embeddings import folds, scored_targets


def embeddings(seed: int, n: int = 60, classes: int = 3) -> tuple[Any, Any]:
    """Averages that tell their classes apart, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    return (rng.normal(size=(n, 8)) + 3 * np.eye(8)[labels]).astype(np.float32), labels


class StopWhen(Interrupts):
    """A signal that comes once a file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def check(self) -> None:
        if self.path.exists():
            raise Interrupted(15)


# ---- who is doubted -----------------------------------------------------------------------------


def test_a_class_that_never_scores_high_is_measured_by_its_own_usual_score() -> None:
    # The second class scores 0.4 as a rule: 0.4 for it speaks more against a label than 0.45 does for it.
    scores = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4], [0.6, 0.4], [0.55, 0.45]])
    labels = np.array([0, 0, 0, 1, 1, 1, 0])
    found = label_issues.find(scores, np.eye(2)[labels] > 0, np.ones(7, bool))
    assert [(issue.index, issue.suggested) for issue in found] == [(6, 1)]
    assert found[0].score == pytest.approx((0.45 - 0.4) - (0.55 - 3.25 / 4))


def test_all_that_were_scored_are_ranked_and_none_else() -> None:
    averages, labels = embeddings(1)
    wrong = labels.copy()
    wrong[[5, 17]] = (labels[[5, 17]] + 1) % 3
    fold = folds(one_hot(wrong, 3) > 0, [f"s{k}" for k in range(60)], 1)
    positive = np.eye(3)[wrong] > 0
    scores, _ = label_check.out_of_fold_scores(averages, positive, fold, Interrupts())
    judged = np.ones(60, bool)
    judged[3] = False

    order = label_issues.ranked(scores, positive, judged)
    assert {issue.index for issue in order[:2]} == {5, 17}
    assert {issue.index for issue in order} == set(range(60)) - {3}
    assert [issue.score for issue in order] == sorted((issue.score for issue in order), reverse=True)
    assert {(issue.index, issue.suggested) for issue in label_issues.find(scores, positive, judged)} >= {
        (5, labels[5]), (17, labels[17])
    }  # fmt: skip


def test_a_class_that_nobody_could_judge_is_never_suggested() -> None:
    scores = np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    found = label_issues.ranked(scores, np.eye(3)[[0, 0, 1]] > 0, np.ones(3, bool))
    assert all(issue.suggested != 2 for issue in found)


def test_the_table_says_in_words_what_speaks_against_a_label() -> None:
    scores = np.array([[0.1, 0.9], [0.8, 0.2], [0.1, 0.9]])
    positive = np.eye(2)[[0, 0, 1]] > 0
    means = label_issues.mean_scores(scores, positive, np.ones(3, bool))
    place = SimpleNamespace(group="g", split="test")
    (row,) = label_issues.rows(
        label_issues.find(scores, positive, np.ones(3, bool)), scores, means, classes=("Apus", "Bubo"),
        recordings=("a.wav", "b.wav", "c.wav"), seconds=(5.0, 5.0, 5.0), places=dict.fromkeys(("a.wav",), place),
        start_s=[1.44],
    )  # fmt: skip
    assert tuple(row) == label_issues.COLUMNS
    assert (row["rank"], row["recording"], row["class"], row["suggested"], row["start_s"], row["split"]) == (
        1, "a.wav", "Apus", "Bubo", 1.44, "test",
    )  # fmt: skip
    assert row["why"].replace("\xa0", " ") == (
        "by other sources Bubo scores 90 % (its recordings average 90 %), Apus 10 % (average 45 %)"
    )


def test_of_several_classes_each_label_is_checked_and_each_class_that_is_missing() -> None:
    scores = np.array([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.9, 0.1, 0.9], [0.1, 0.1, 0.9]])
    positive = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    known, everyone = np.ones_like(positive), np.ones(5, bool)
    found = label_issues.find_each(scores, positive, known, everyone)
    assert [(issue.index, issue.label, issue.suggested) for issue in found] == [(3, None, 2), (3, 1, None)]
    known[3, 2] = False  # where nobody knows, nothing is missing
    (wrong,) = label_issues.find_each(scores, positive, known, everyone)
    assert (wrong.index, wrong.label, wrong.suggested) == (3, 1, None)
    assert not label_issues.find_each(scores, positive, known, np.arange(5) != 3)


# ---- who judges ---------------------------------------------------------------------------------


def test_no_recording_is_scored_by_a_model_trained_on_its_own_source() -> None:
    labels = np.repeat([0, 1], 12)
    groups = [f"{label}-{k // 2}" for label in (0, 1) for k in range(12)]
    positive = one_hot(labels, 2) > 0
    fold = folds(positive, groups, 1)
    assert all(len(set(fold[np.array(groups) == group])) == 1 for group in groups)
    assert sorted(set(fold)) == [0, 1, 2, 3, 4]
    assert not np.array_equal(fold, folds(positive, groups, 2))


def test_two_sources_of_a_class_score_each_other_and_one_alone_has_no_score() -> None:
    labels = np.array([0] * 10 + [1, 1, 2, 2])
    fold = folds(one_hot(labels, 3) > 0, [*(f"a{k}" for k in range(10)), "b1", "b2", "c", "c"], 1)
    assert fold[10] != fold[11] and min(fold[:12]) >= 0
    assert set(fold[12:]) == {-1}


def test_sources_of_several_classes_are_spread_so_that_each_class_is_in_all_folds() -> None:
    # Of the rare class five sources, each with a common class, too: whoever deals by the first class leaves it to luck.
    common = np.arange(60) % 3
    positive = np.hstack([one_hot(common, 3) > 0, (np.arange(60) < 5)[:, None]])
    for seed in range(20):
        fold = folds(positive, [f"s{k}" for k in range(60)], seed)
        assert [np.bincount(fold[own], minlength=5).tolist() for own in positive.T] == [[4] * 5] * 3 + [[1] * 5]
    # One recording holds a class of one source: it is scored by its other class, and not by this.
    positive = np.hstack([positive, (np.arange(60) == 7)[:, None]])
    fold = folds(positive, [f"s{k}" for k in range(60)], 1)
    assert fold[7] >= 0 and scored_targets(positive, fold)[7].tolist() == [False, True, False, False, False]


def test_of_several_classes_each_is_learnt_against_the_rest_where_it_is_known() -> None:
    rng = np.random.default_rng(5)
    positive = rng.random((300, 3)) < 0.4
    averages = (rng.normal(size=(300, 8)) + 4 * positive @ np.eye(3, 8)).astype(np.float32)
    known = np.ones_like(positive)
    known[200:, 1] = False
    swapped = positive.copy()
    swapped[200:, 1] = ~positive[200:, 1]  # what nobody knows is not learnt from
    model, same = (label_check.learn_each(averages, each, known) for each in (positive, swapped))
    np.testing.assert_array_equal(model.scores(averages), same.scores(averages))
    assert ((model.scores(averages) > 0.5) == positive).mean() > 0.9
    assert (model.scores(averages).sum(axis=1) > 1.5).any(), "no softmax: two classes at once"
    misled = label_check.learn_each(averages, swapped, np.ones_like(known))
    assert not np.allclose(misled.scores(averages)[:, 1], model.scores(averages)[:, 1], atol=0.05)


def test_a_judge_is_the_regression_on_standardised_averages_whatever_their_size() -> None:
    averages, labels = embeddings(2)
    for n_classes in (2, 3):
        some = labels < n_classes
        plain = label_check.learn(averages[some], labels[some], 3).scores(averages[some])
        scaled = label_check.learn(100 * averages[some] + 7, labels[some], 3).scores(100 * averages[some] + 7)
        np.testing.assert_allclose(plain, scaled, atol=1e-3)
        np.testing.assert_allclose(plain.sum(axis=1), 1.0)
        assert (plain.argmax(axis=1) == labels[some]).mean() > 0.95
        assert (plain[:, n_classes:] == 0).all()


def test_windows_of_long_recordings_are_taken_from_beginning_to_end() -> None:
    assert label_check.spread(np.array([2, 9, 1]), 3).tolist() == [0, 1, 2, 6, 10, 11]


def test_the_moment_to_listen_to_holds_sound_whatever_a_judge_makes_of_silence() -> None:
    # The third window has the last tenth of a second of sound, the fourth none.
    lead, held = np.array([0.1, 0.3, 0.8, 0.9]), np.array([1.0, 0.6, 0.1, 1e-6])
    assert label_issues.clearest_window(lead, held) == 1
    assert label_issues.clearest_window(lead, np.full(4, 1e-6)) == 3  # nothing to choose by but the lead


# ---- in a run -----------------------------------------------------------------------------------


def prepared(data: Path, output: Path) -> tuple[Config, Dataset, Any]:
    config = settings(data, output, model__checkpoint="none")
    spec = BACKBONES[config.model.backbone].front_end
    dataset, store = gather.prepare(config, spec, Journal(quiet=True), Interrupts())
    return config.with_output(dataset.output), dataset, store


def test_a_recording_in_the_wrong_folder_heads_the_list_with_the_moment_to_listen_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "in" / "data")
    moved = data / "Apus_apus" / "Corvus_corax-5003_0.wav"
    (data / "Corvus_corax" / "Corvus_corax-5003_0.wav").rename(moved)
    (data / "Corvus_corax" / "Corvus_corax-5003_1.wav").unlink()
    config, dataset, store = prepared(data, tmp_path / "out")
    out = tmp_path / "found"
    out.mkdir()

    def check(dataset: Dataset, interrupts: Interrupts) -> Any:
        label_check.check_labels(config, dataset, store, out, Journal(quiet=True), interrupts)
        return read_json(out / "label_issues.json")

    found = check(dataset, Interrupts())
    assert found["rows"] == [] and "from scratch" in found["reason"]
    assert read_json(out / "embedding_map.json") == {"reason": found["reason"], "rows": [], "with_times": 0}
    assert read_csv(out / "label_issues.csv") == []

    # Fresh weights stand for a backbone that knows sounds: these differ in pitch alone.
    monkeypatch.setattr("birdtune.models.registry.checkpoint_path", lambda config: Path("known"))
    monkeypatch.setattr("birdtune.training.embeddings.load_first_weights", lambda classifier, config: None)
    found = check(dataset, Interrupts())
    rows = read_csv(out / "label_issues.csv")
    assert (rows[0]["recording"], rows[0]["class"], rows[0]["suggested"]) == (
        "Apus_apus/Corvus_corax-5003_0.wav", "Apus_apus", "Corvus_corax",
    )  # fmt: skip
    assert (
        0 <= float(rows[0]["start_s"]) <= 2 and rows[0]["split"] == dataset.places[rows[0]["recording"]].split
    )
    assert found["scored"] == len(dataset.recordings) and len(found["rows"]) == len(rows) < 10
    plane = read_csv(out / "embedding_map.csv")
    assert [row["recording"] for row in plane] == [recording.name for recording in dataset.recordings]
    first = (out / "label_issues.csv").read_bytes()
    check(dataset, Interrupts())
    assert (out / "label_issues.csv").read_bytes() == first

    alone = {name: replace(place, group=name.split("/")[0]) for name, place in dataset.places.items()}
    assert "two sources" in check(replace(dataset, places=alone), Interrupts())["reason"]

    stopped = Interrupts()
    stopped._signum = 15
    with pytest.raises(Interrupted):
        check(dataset, stopped)


def test_silence_that_fills_up_a_recording_is_left_out_of_what_it_sounds_like(tmp_path: Path) -> None:
    data = write_data(tmp_path / "in" / "data")
    filled = next(data.glob("*/*.wav"))
    sound, rate_hz = soundfile.read(filled)
    soundfile.write(filled, np.concatenate([sound, np.zeros(8 * rate_hz)]), rate_hz)
    config, dataset, store = prepared(data, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("birdtune.training.embeddings.load_first_weights", lambda classifier, config: None)
        sounds = label_check.EmbeddedRecordings(
            config, dataset, store, dataset.recordings, Journal(quiet=True), Interrupts()
        )
    (number,) = np.flatnonzero(sounds.windows.per_recording == sounds.windows.per_recording.max())
    heard = np.flatnonzero(sounds.windows.recording == number)[:2]  # two seconds
    ((_, embeddings),) = sounds.pieces(heard, "")
    whole, found = embeddings.mean(axis=0), sounds.averages()[number]
    assert np.linalg.norm(found - whole) < 0.1 * np.linalg.norm(whole)
    assert sounds.held(heard).min() == pytest.approx(1.0, abs=1e-3)


# ---- windows without what their recording is labelled ---------------------------------------------


def test_the_window_that_sounds_most_like_its_label_keeps_all_of_it_and_others_their_share() -> None:
    own = np.array([0.8, 0.2, 0.0, 0.05, 0.05], np.float32)
    kept = label_issues.refined_targets(own, np.array([0, 0, 0, 1, 1]), 0.02)
    np.testing.assert_allclose(kept, [1.0, 0.25, 0.02, 1.0, 1.0], rtol=1e-6)


def test_what_a_window_does_not_keep_of_its_label_is_all_classes_alike_or_none(tmp_path: Path) -> None:
    lengths = {"a": 96, "b": 96, "c": 96}
    windows = Windows(make_store(tmp_path, lengths), list(lengths), 96)
    kept = np.array([1.0, 0.5, 0.25], np.float32)

    def targets(kind: str) -> npt.NDArray[np.float32]:
        whole = one_class_each(windows, [0, 3, 1], kind)
        return replace(whole, kept=kept).of(np.array([2, 0]))[0]

    np.testing.assert_allclose(targets("softmax"), [[3 / 16, 7 / 16, 3 / 16, 3 / 16], [1, 0, 0, 0]])
    np.testing.assert_allclose(targets("sigmoid"), [[0, 0.25, 0, 0], [1, 0, 0, 0]])


def test_labels_are_not_shared_twice(tmp_path: Path) -> None:
    for more in ({"model__head": "attention"}, {"augment__mixup": 0.5}):
        with pytest.raises(InputError, match="label-refinement"):
            settings(tmp_path, tmp_path / "out", train__label_refinement=True, **more)


def test_quiet_windows_lose_their_label_test_is_left_out_and_a_killed_run_trains_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "in" / "data")
    for path in data.glob("*/*.wav"):  # two seconds of bird, four of noise
        sound, rate_hz = soundfile.read(path)
        noise = 0.02 * np.random.default_rng(len(path.name)).standard_normal(4 * rate_hz)
        soundfile.write(path, np.concatenate([sound, noise]), rate_hz)
    monkeypatch.setattr("birdtune.models.registry.checkpoint_path", lambda config: None)
    changes = {"train__label_refinement": True, "train__epochs": 1, "model__freeze": "all-but-head"}
    changes["train__refit"] = False
    config = settings(data, tmp_path / "out", **changes)
    assert run(config, until="train") == 0
    assert not (tmp_path / "out/logs/1/kept.npy").exists()  # from scratch

    monkeypatch.setattr(label_check, "_why_not", lambda config, fold: "")
    heard: list[list[str]] = []
    made = label_check.EmbeddedRecordings.__init__

    def watched(self: Any, config: Any, dataset: Any, store: Any, part: Any, *more: Any) -> None:
        heard.append([dataset.places[recording.name].split for recording in part])
        made(self, config, dataset, store, part, *more)

    monkeypatch.setattr(label_check.EmbeddedRecordings, "__init__", watched)
    other = settings(data, tmp_path / "other", **changes)
    whole = settings(data, tmp_path / "whole", **changes)
    with pytest.raises(Interrupted):
        run(other, StopWhen(tmp_path / "other/logs/1/kept.npy"), until="train")
    assert run(other, until="train") == 0
    assert run(whole, until="train") == 0
    assert [set(sides) for sides in heard] == [{"train"}, {"train"}]  # not again after the stop

    kept = np.load(tmp_path / "other/logs/1/kept.npy").reshape(-1, 7)  # windows of 0.96 s: two of bird
    assert kept[:, :2].mean() > kept[:, 3:].mean() + 0.2
    weights = [(tmp_path / name / "run.json") for name in ("other", "whole", "out")]
    first, again, trusting = (read_json(path)["weights_sha256"] for path in weights)
    assert first == again != trusting
