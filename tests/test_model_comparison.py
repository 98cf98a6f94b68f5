"""birdtune.evaluation.model_comparison and what it rests on: one model beside the one that it began from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from makers import recording

from birdtune.audio.logmel import VGGISH
from birdtune.data.batches import Batch
from birdtune.data.dataset import Dataset
from birdtune.data.split import Place
from birdtune.evaluation import class_alignment, model_comparison
from birdtune.evaluation.decision import BACKGROUND, NOMINAL, Thresholds
from birdtune.evaluation.diagnostics import MILD, STRONG
from birdtune.evaluation.scores import Scores, one_hot
from birdtune.models import classifier as classifiers
from birdtune.models.growth import grown
from birdtune.models.registry import BACKBONES
from birdtune.reporting.verdict import all_diagnostics, verdict
from birdtune.settings import TrainSettings
from birdtune.training import inputs
from birdtune.training.step import StepSettings, Trainer

OLD = ("Bubo", "Corvus", "Dryocopus")


def said(labels: list[int], answers: list[int], classes: tuple[str, ...], per_source: int = 1) -> Scores:
    """Recordings of one window each, with the answers given."""
    n = len(labels)
    table = np.full((n, len(classes)), 0.1, np.float32)
    table[np.arange(n), answers] = 0.9
    return Scores(
        classes, tuple(f"{k}.wav" for k in range(n)), tuple(f"source {k // per_source}" for k in range(n)),
        one_hot(labels, len(classes)), table, np.arange(n), np.zeros(n, np.float32),
    )  # fmt: skip


def beside(before: list[int], after: list[int], labels: list[int], per_source: int = 1) -> dict[str, Any]:
    return model_comparison.compare(
        said(labels, before, OLD, per_source), said(labels, after, (*OLD, "Apus"), per_source),
        n_bootstrap=200, seed=1,
    )  # fmt: skip


def row(comparison: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    new = [{"class": "Apus", "column": 3}]
    found = {"title": "version 1", "comparison": comparison, "reason": "", "left_out": 0, "unknown": 0, "new": new}
    return {**found, **changes}


LABELS = [0] * 20 + [1] * 20 + [2] * 20


def test_models_that_say_the_same_do_not_differ() -> None:
    found = beside(LABELS, LABELS, LABELS)
    accuracy = found["accuracy"]
    assert (accuracy["before"], accuracy["after"], accuracy["difference"]) == (1.0, 1.0, 0.0)
    low, high = accuracy["difference_ci"]
    assert -0.07 < low < 0 < high < 0.07  # 60 of 60 are no certainty
    assert (found["regressions"], found["fixes"], found["predicted_as_new"]) == (0, 0, 0)
    assert found["worse"] == [] and list(model_comparison.diagnose(row(found))) == []
    assert "no difference" in model_comparison.sentences(row(found))[0]


def test_regressions_fixes_and_decisions_for_new_classes_are_counted() -> None:
    before, after = LABELS.copy(), LABELS.copy()
    before[0] = 1  # gained
    after[20:23] = [3, 3, 0]  # lost, two of them to the new class
    found = beside(before, after, LABELS)
    assert (found["regressions"], found["fixes"]) == (3, 1)
    assert (found["predicted_as_new"], found["predicted_as_new_regressions"]) == (2, 2)
    corvus = found["per_class"][1]
    assert corvus["class"] == "Corvus" and corvus["predicted_as_new"] == 2 and corvus["confused_with"] == "Apus"
    assert corvus["recall"]["before"] == 1.0 and corvus["recall"]["difference"] == pytest.approx(-0.15)
    low, high = corvus["recall"]["difference_ci"]
    assert -0.4 < low < -0.15 < high < 0.05  # three of twenty sources may be luck
    assert "2 of them are now predicted as a new class, 2 of which" in " ".join(model_comparison.sentences(row(found)))


def test_a_class_is_called_worse_when_so_many_sources_changed_that_chance_does_not_do_it() -> None:
    after = LABELS.copy()
    after[20:27] = [3] * 7  # 7 of 7 changed sources: p = 0.016, below 0.05 / 3
    assert beside(LABELS, after, LABELS)["worse"] == ["Corvus"]
    after[26] = 1  # 6 of 6: p = 0.031, above it
    assert beside(LABELS, after, LABELS)["worse"] == []
    before = [min(answer, 2) for answer in after]
    assert beside(before, LABELS, LABELS)["better"] == []
    assert beside([*before[:26], 0, *before[27:]], LABELS, LABELS)["better"] == ["Corvus"]
    # As many recordings of few sources are no more than these.
    after[20:30] = [3] * 10
    assert beside(LABELS, after, LABELS)["worse"] == ["Corvus"]
    assert beside(LABELS, after, LABELS, per_source=5)["worse"] == []


def test_a_class_that_is_lost_in_each_source_has_an_interval_all_the_same() -> None:
    after = [3 if label == 1 else label for label in LABELS]
    low, high = beside(LABELS, after, LABELS)["per_class"][1]["recall"]["difference_ci"]
    assert low == -1.0 and -0.9 < high < -0.8  # 20 of 20: Clopper-Pearson's 0.83


def test_a_single_source_has_no_interval() -> None:
    labels = [0, 0, 1, 1, 1, 1]
    found = beside(labels, [3, 3, *labels[2:]], labels, per_source=2)
    assert found["per_class"][0]["recall"]["difference_ci"] is None
    assert found["per_class"][0]["ap"]["difference_ci"] is None


def test_a_significant_regression_is_a_warning_and_a_large_one_a_strong_one() -> None:
    some, many = LABELS.copy(), LABELS.copy()
    some[20:27] = [3] * 7
    many[20:50] = [3] * 30
    (mild,) = model_comparison.diagnose(row(beside(LABELS, some, LABELS)))
    assert (mild.code, mild.severity) == ("old-classes-worse", MILD)
    assert "Significantly worse: Corvus." in model_comparison.sentences(row(beside(LABELS, some, LABELS)))
    assert "accuracy 100 % before, 88 % now" in mild.text and "--train.learning-rate" in mild.advice
    (strong,) = model_comparison.diagnose(row(beside(LABELS, many, LABELS)))
    assert strong.severity == STRONG
    spread = [3 if k % 20 < 5 else label for k, label in enumerate(LABELS)]
    told = " ".join(model_comparison.sentences(row(beside(LABELS, spread, LABELS))))
    assert "Together they are significantly worse" in told
    assert strong in all_diagnostics(
        {"epochs": [], "best_epoch": None}, {"model_comparison": row(beside(LABELS, many, LABELS))}
    )


def answers_of(before: Scores, after: Scores, background: str = "") -> dict[str, Any]:
    """Compared with thresholds of a half."""
    limits = [
        Thresholds(
            tuple(0.5 for _ in each.classes),
            tuple(BACKGROUND if name == background else NOMINAL for name in each.classes), "", "",
        )
        for each in (before, after)
    ]  # fmt: skip
    return model_comparison.compare(before, after, n_bootstrap=200, seed=1, thresholds=(limits[0], limits[1]))


def test_decisions_that_are_now_unknown_are_counted_and_a_significant_loss_is_a_warning() -> None:
    before, after = said(LABELS, LABELS, OLD), said(LABELS, LABELS, (*OLD, "Apus"))
    same = answers_of(before, after)
    assert (same["decided"]["before"], same["decided"]["after"], same["decided"]["n_recordings"]) == (1.0, 1.0, 60)
    assert list(model_comparison.diagnose(row(same))) == []
    strange = np.zeros(60, np.float32)
    strange[:20] = 2.0
    table = after.window_scores.copy()
    table[20:30] *= 0.5  # below the threshold, and still the highest
    fewer = answers_of(before, replace(after, window_scores=table, ood_score=strange))
    assert fewer["accuracy"]["after"] == 1.0 and fewer["decided"]["after"] == 0.5
    assert answers_of(replace(before, ood_score=strange), after)["decided"]["before"] == pytest.approx(2 / 3)
    (each,) = model_comparison.diagnose(row(fewer))
    assert (each.code, each.severity) == ("old-classes-rejected", STRONG)
    assert "100 % before, 50 % now" in each.text
    told = " ".join(model_comparison.sentences(row(fewer)))
    assert "With thresholds and OOD rejection" in told and "a difference of -50 percentage points" in told
    assert answers_of(before, after, "Bubo")["decided"]["n_recordings"] == 40  # never a decision
    unknown = " ".join(model_comparison.sentences(row(beside(LABELS, LABELS, LABELS))))
    assert "decisions by the thresholds were not compared" in unknown


def test_classes_that_will_be_rejected_as_unknown_are_a_warning_with_the_reason() -> None:
    (trained,) = model_comparison.diagnose(row(None, unreachable=["Corvus"], backbone_kept=False))
    assert trained.code == "old-classes-unreachable" and "will be rejected as unknown: Corvus" in trained.text
    assert "the backbone was trained further" in trained.text and "--model.freeze all-but-head" in trained.advice
    (unknown,) = model_comparison.diagnose(row(None, unreachable=["Corvus"], backbone_kept=True))
    assert "version 1 does not say where they lie" in unknown.text and "--model.freeze" not in unknown.advice
    assert list(model_comparison.diagnose(row(None, unreachable=[], backbone_kept=False))) == []


def test_a_loss_that_may_be_luck_is_none() -> None:
    after = LABELS.copy()
    after[20:22] = [3, 0]
    assert list(model_comparison.diagnose(row(beside(LABELS, after, LABELS)))) == []


def test_honest_words_where_little_or_nothing_was_measured() -> None:
    few = model_comparison.sentences(row(beside(LABELS[15:25], LABELS[15:25], LABELS[15:25])))
    assert any("So few sources show large changes only" in sentence for sentence in few)
    (none,) = model_comparison.sentences(row(None, reason="there are no test recordings of them"))
    assert none == "Its classes were not compared: there are no test recordings of them."
    assert list(model_comparison.diagnose(None)) == list(model_comparison.diagnose(row(None))) == []
    left = model_comparison.sentences(row(beside(LABELS, LABELS, LABELS), left_out=1))
    assert "1 test recording of the old classes was left out" in left[-1]


@pytest.mark.parametrize(
    ("changes", "had"), [({"left_out": 4}, "was trained on"), ({"unknown": 4}, "may have been trained on")]
)
def test_a_test_that_the_first_weights_were_trained_on_is_not_called_independent(
    changes: dict[str, int], had: str
) -> None:
    (each,) = model_comparison.diagnose(row(None, **changes))
    assert (each.code, each.severity) == ("test-seen-before", MILD)
    assert f"{had} 4 test recordings" in each.text and "split.csv" in each.advice
    word = verdict({"test": {"n_sources": 90}}, [each])
    assert (word.level, word.title) == ("fair", "Better than guessing, but not independently tested")


def test_other_recordings_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same recordings"):
        model_comparison.compare(said([0, 1], [0, 1], OLD), said([0], [0], OLD), n_bootstrap=20, seed=1)


# ---- columns ------------------------------------------------------------------------------------


def dataset(*names: str, sides: dict[str, str] | None = None) -> Dataset:
    found = [recording(name) for name in names]
    classes = tuple(sorted({one.label for one in found}))
    places = {one.name: Place(one.name, (sides or {}).get(one.name, "train")) for one in found}
    return Dataset(
        VGGISH, classes, found, places, [], ["No label map: classes have no external ids.", "mine"], {}, ()
    )


def test_columns_of_an_earlier_model_stay_with_ids_and_background() -> None:
    kept = class_alignment.keep(
        dataset("A/1.wav", "Z/1.wav", "background/1.wav"), ("Z", "background", "M"), {"Z": 5}, "background", "version 1"
    )
    assert kept.classes == ("Z", "background", "M", "A")
    assert kept.class_ids == {"Z": 5} and kept.background == ("background",)
    assert kept.counts(kept.recordings) == [1, 1, 0, 1]
    assert "mine" in kept.notices and "No label map: classes have no external ids." not in kept.notices
    assert any(notice.startswith("Classes of version 1 without recordings now: M.") for notice in kept.notices)
    assert class_alignment.untaught(kept, 3) == (2,)


def test_an_id_that_the_label_map_changes_is_said_and_the_map_counts() -> None:
    found = replace(dataset("A/1.wav", "B/1.wav"), class_ids={"A": 9})
    kept = class_alignment.keep(found, ("A", "B"), {"A": 1, "B": 2}, "background", "version 1")
    assert kept.class_ids == {"A": 9, "B": 2}
    assert "The label map gives classes of version 1 other ids: A (1 before, 9 now)." in kept.notices


@pytest.mark.parametrize("forgets", [True, False])
def test_whether_a_class_without_recordings_will_be_rejected_as_unknown_is_reported_before(forgets: bool) -> None:
    kept = class_alignment.keep(dataset("A", "B"), ("A", "Z"), {}, "background", "version 1", forgets=forgets)
    (notice,) = (notice for notice in kept.notices if "without recordings now: Z" in notice)
    assert ("will be rejected as unknown" in notice) == forgets


def test_a_class_without_training_recordings_is_not_taught() -> None:
    found = dataset("A/1.wav", "B/1.wav", sides={"B/1.wav": "test"})
    kept = class_alignment.keep(found, ("A", "B"), {}, "background", "version 1")
    assert class_alignment.untaught(kept, 2) == (1,)
    assert any("without training recordings now: B." in notice for notice in kept.notices)


def test_recordings_of_an_old_class_under_a_new_name_are_reported_by_name() -> None:
    found = dataset("Cock/1.wav", "Cock/2.wav", "Hen/3.wav", "Apus/4.wav", "Bubo/5.wav")
    content = {one.name: one.content for one in found.recordings}
    learnt = {content[name]: "Rooster" for name in ("Cock/1.wav", "Cock/2.wav", "Hen/3.wav")} | {"gone": "Rooster"}
    # Corrected labels of a class that is still taught are no renamed folder.
    learnt |= {content["Apus/4.wav"]: "Bubo", content["Bubo/5.wav"]: "Bubo"}
    kept = class_alignment.keep(found, ("Bubo", "Rooster"), {}, "background", "version 1", learnt=learnt)
    (row_of,) = class_alignment.moved(kept, learnt)
    assert row_of == {"class": "Rooster", "recordings": 4, "now": {"Cock": 2, "Hen": 1}}
    (notice,) = (notice for notice in kept.notices if notice.startswith("Recordings of Rooster are now in"))
    assert "now in Cock (2 of 4), Hen (1 of 4). Its column is never the right class" in notice
    (each,) = model_comparison.diagnose(row(None, moved=[row_of]))
    assert (each.code, each.severity) == ("old-class-moved", STRONG)
    assert "Cock (2 of 4), Hen (1 of 4)" in each.text and "give it its old name" in each.advice
    assert class_alignment.moved(kept, learnt | {f"gone {n}": "Rooster" for n in range(3)}) == []  # 3 of 7
    assert class_alignment.moved(kept, {}) == []


# ---- weights and loss ---------------------------------------------------------------------------


def test_new_columns_begin_in_the_middle_of_the_old_and_cannot_drown_them() -> None:
    rng = np.random.default_rng(0)
    old = {
        "head/logits/kernel": rng.normal(0, 3, (8, 5)).astype(np.float32),
        "head/logits/bias": rng.normal(0, 3, 5).astype(np.float32),
        "backbone/a/kernel": np.ones((2, 2), np.float32),
    }
    zeros = {"head/logits/kernel": np.zeros((8, 7), np.float32), "head/logits/bias": np.zeros(7, np.float32)}
    found = grown(old, zeros)
    kernel = "backbone/a/kernel"
    assert found[kernel] is old[kernel] or np.array_equal(found[kernel], np.ones((2, 2)))
    np.testing.assert_array_equal(found["head/logits/kernel"][:, :5], old["head/logits/kernel"])
    logits = rng.normal(0, 5, (100, 8)) @ found["head/logits/kernel"] + found["head/logits/bias"]
    odds = np.exp(logits)
    assert (odds[:, 5] / odds[:, :6].sum(axis=1)).max() <= 1 / 6 + 1e-6
    fresh = {"head/logits/kernel": rng.normal(0, 1, (8, 7)).astype(np.float32), "head/logits/bias": np.zeros(7)}
    own = grown(old, fresh)["head/logits/kernel"][:, 5:] - found["head/logits/kernel"][:, 5:]
    np.testing.assert_allclose(own, fresh["head/logits/kernel"][:, 5:], atol=1e-6)


class MadeBatches:
    """Stands where batches come from; nothing is asked of it."""


def gradients(
    scores: str, classes: tuple[str, ...], untaught: tuple[int, ...], labels: Any, head: str = "linear",
    bias_of_b: float = 1.0, n_kept: int = 0,
) -> Any:  # fmt: skip
    """Loss, weight and gradients of the head's logits, of four columns or all but B."""
    classifier = classifiers.build(
        backbone=BACKBONES["vggish-small"], head=head, scores=scores, hidden_units=3, embedding_activation="relu",
        freeze="all-but-head", classes=classes, precision="float32", seed=1,
    )  # fmt: skip
    kernel = np.random.default_rng(0).normal(0, 0.1, (128, 4)).astype(np.float32)
    bias = np.array([0, bias_of_b, 2, 3], np.float32)
    taken = [0, 1, 2, 3] if len(classes) == 4 else [0, 2, 3]
    for variable, array in zip(classifier.head.variables, (kernel, bias), strict=True):
        variable.assign(array[..., taken])
    settings = TrainSettings(jit=False, label_smoothing=0.1)
    step = StepSettings(0.0, np.ones(len(classes), np.float32), "float32", untaught, n_kept)
    trainer = Trainer(classifier, settings, step, inputs.whole(classifier, MadeBatches()))  # type: ignore[arg-type]
    features = np.random.default_rng(1).normal(-3, 1, (4, 96, 64)).astype(np.float16)
    targets = (labels if labels.ndim == 2 else np.eye(len(classes))[labels]).astype(np.float32)
    if head == "linear":
        batch = Batch(features, np.ones(4, np.float32), np.arange(4), targets, np.ones_like(targets))
    else:
        inside = np.ones((2, 2), np.bool_)
        batch = Batch(features, np.ones(2, np.float32), np.arange(2), targets[:2], np.ones_like(targets[:2]), inside)
    loss, weight, found = trainer.gradients(batch, 0)
    return float(loss), float(weight), *(np.asarray(gradient) for gradient in found[:2])


COLUMNS_OF = np.array([0, 2, 3, 3], np.int32)
SHARES = np.eye(4, dtype=np.float32)[COLUMNS_OF] * 0.7 + np.eye(4, dtype=np.float32)[[2, 0, 0, 2]] * 0.3


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("mixed", [False, True])
def test_a_column_that_is_not_taught_and_does_not_fire_is_as_if_it_were_not_there(scores: str, mixed: bool) -> None:
    labels = SHARES + 0.25 if mixed else COLUMNS_OF  # what weak labels spread over all columns, it gets nothing of
    loss, weight, kernel, bias = gradients(scores, ("A", "B", "C", "D"), (1,), labels, bias_of_b=-1e3)
    assert not kernel[:, 1].any() and bias[1] == 0.0
    without = np.delete(labels, 1, axis=1) if mixed else np.array([0, 1, 2, 2], np.int32)
    loss3, weight3, kernel3, _ = gradients(scores, ("A", "C", "D"), (), without)
    assert loss == pytest.approx(loss3, rel=1e-5) and weight == weight3
    np.testing.assert_allclose(np.delete(kernel, 1, axis=1), kernel3, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_what_is_true_is_lifted_above_a_column_that_is_not_taught_and_fires(scores: str, head: str) -> None:
    of = {fires: gradients(scores, ("A", "B", "C", "D"), (1,), COLUMNS_OF, head, fires) for fires in (-1e3, 20.0)}
    (quiet, _, _, quiet_bias), (loud, _, loud_kernel, loud_bias) = of[-1e3], of[20.0]
    assert loud > quiet + 10
    assert not loud_kernel[:, 1].any() and loud_bias[1] == 0.0  # and it is not pushed down
    true = COLUMNS_OF if head == "linear" else COLUMNS_OF[:2]
    for column in set(true.tolist()):
        assert loud_bias[column] < quiet_bias[column] - 0.01


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("head", ["linear", "attention"])
@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
def test_only_new_classes_are_lifted_so_that_the_others_do_not_take_the_sounds_of_the_one_that_is_gone(
    scores: str, head: str, mixed: bool
) -> None:
    old, new = np.array([0, 2, 0, 2], np.int32), np.array([3, 3, 3, 3], np.int32)
    shares = np.eye(4, dtype=np.float32)
    of_old, of_new = (shares[old], 0.5 * shares[old] + 0.5 * shares[new]) if mixed else (old, new)

    def loss_and_bias(labels: Any, fires: float) -> tuple[float, Any]:
        loss, _, _, bias = gradients(scores, ("A", "B", "C", "D"), (1,), labels, head, fires, n_kept=3)
        return loss, bias

    (quiet, quiet_bias), (loud, loud_bias) = (loss_and_bias(of_old, fires) for fires in (-1e3, 20.0))
    assert loud == pytest.approx(quiet, rel=1e-5)
    np.testing.assert_allclose(loud_bias, quiet_bias, atol=1e-6)
    assert loss_and_bias(of_new, 20.0)[0] > loss_and_bias(of_new, -1e3)[0] + 5
