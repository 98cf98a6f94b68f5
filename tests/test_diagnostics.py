"""birdtune.evaluation.diagnostics and verdict: what speaks against a model, from made figures."""

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from birdtune.config import Config
from birdtune.data import augment
from birdtune.evaluation import diagnostics
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic, of_training, while_training
from birdtune.evaluation.metrics import chance_ap
from birdtune.evaluation.part import evaluate_part
from birdtune.evaluation.scores import Scores, one_hot
from birdtune.reporting import report_data
from birdtune.reporting.verdict import all_diagnostics, of_scores, verdict
from birdtune.runtime import runs
from birdtune.runtime.files import write_json
from birdtune.settings import AugmentSettings

CLASSES = tuple(f"Class_{letter}" for letter in "abcdefghij")
LN10 = 2.3026


def codes(found: list[Diagnostic]) -> dict[str, str]:
    """Code → severity."""
    return {each.code: each.severity for each in found}


# ---- how it was trained -------------------------------------------------------------------------


def trained(*losses: float, best: int | None = None, **more: Any) -> dict[str, Any]:
    """history.json of a run with these training losses, without validation."""
    rows = [{"epoch": 1 + k, "train_loss": loss} for k, loss in enumerate(losses)]
    return {"best_epoch": best or len(rows), "epochs": rows, "constant_loss": LN10, "warmup_epochs": 0.5, **more}


def validated(
    losses: tuple[float, ...], val_losses: tuple[float, ...], accuracies: tuple[float, ...], best: int
) -> dict[str, Any]:
    found = trained(*losses, best=best)
    for row, loss, accuracy in zip(found["epochs"], val_losses, accuracies, strict=True):
        row |= {"val_loss": loss, "val_accuracy": accuracy, "val_macro_ap": accuracy, "val_live_embeddings": 90}
    return found


# Measured: ESC-10, vggish-small from scratch. Learning rates 1e-4, 1e-2 and 1e-5, and the head alone.
HEALTHY = [
    (2.185, 1.749, 1.440, 1.233, 1.090, 0.979, 0.874, 0.816, 0.752, 0.723, 0.696, 0.688),
    (2.065, 1.750, 1.539, 1.303, 1.294, 0.982, 0.840, 0.689, 0.536, 0.393, 0.330, 0.299),
    (2.296, 2.236, 2.214),
    (2.300, 2.247, 2.228, 2.219, 2.215),
    (0.031, 0.031, 0.030, 0.031),  # so many updates in the first epoch that it was learnt there
    (0.031, 0.0020, 0.0019, 0.0031),
]


@pytest.mark.parametrize("losses", HEALTHY)
def test_a_loss_that_fell_raises_no_warning(losses: tuple[float, ...]) -> None:
    assert of_training(trained(*losses)) == []
    assert all(not while_training(trained(*losses[:n])) for n in range(1, len(losses)))


def test_a_loss_that_never_moves_is_said_after_three_epochs_with_its_numbers_and_what_to_do() -> None:
    assert while_training(trained(2.327, 2.327)) == []
    (each,) = while_training(trained(2.327, 2.327, 2.326))
    assert (each.code, each.severity) == ("loss-never-moved", STRONG)
    assert "2.327 in the first epoch, 2.326 at best in 3 epochs" in each.text and "2.303" in each.text
    assert "--train.learning-rate" in each.advice
    assert codes(of_training(trained(2.327, 2.327, 2.326))) == {"loss-never-moved": STRONG}


def test_during_a_long_warm_up_the_loss_need_not_move() -> None:
    still = [2.327] * 7
    assert while_training(trained(*still[:6], warmup_epochs=5.0)) == []
    assert codes(while_training(trained(*still, warmup_epochs=5.0))) == {"loss-never-moved": STRONG}


@pytest.mark.parametrize("losses", [(225951.0, 2.451, 2.391, 2.332, 2.314), (2.40, 2.33, 2.29)])
def test_a_loss_that_falls_to_that_of_a_constant_prediction_means_nothing_learnt(losses: tuple[float, ...]) -> None:
    (each,) = of_training(trained(*losses))
    assert (each.code, each.severity) == ("nothing-learnt", STRONG)
    assert f"{losses[-1]:.3f} at best" in each.text


def test_a_loss_that_begins_high_and_still_falls_steeply_says_nothing_yet() -> None:
    assert while_training(trained(7.57, 5.1, 3.9)) == []
    assert codes(while_training(trained(7.57, 3.9, 3.8))) == {"nothing-learnt": STRONG}


def test_where_the_loss_of_a_constant_prediction_is_not_known_only_standing_still_counts() -> None:
    assert codes(of_training(trained(2.3, 2.3, 2.3, constant_loss=None))) == {"loss-never-moved": STRONG}
    assert of_training(trained(9.0, 3.0, 2.3, constant_loss=None)) == []


@pytest.mark.parametrize(
    ("losses", "severity"),
    [
        ((2.2, 0.8, 0.5, 1.4), MILD),
        ((1.1, 0.8, 0.5, 2.2), STRONG),
        ((2.2, 0.8, 0.7, 0.8), None),
        ((2.2, 1.9, 1.7, 1.95), None),
    ],
)
def test_a_loss_that_rises_is_grave_if_it_ends_above_its_beginning(
    losses: tuple[float, ...], severity: str | None
) -> None:
    found = of_training(trained(*losses))
    assert codes(found) == ({"loss-rose": severity} if severity else {})
    if found:
        assert f"{min(losses):.3f} after epoch 3, {losses[-1]:.3f} at the end (epoch 4)" in found[0].text


def test_overfitting_is_detected_by_the_first_epoch_being_the_best_or_by_validation_rising() -> None:
    falling = (2.0, 1.0, 0.3, 0.1)
    first = validated(falling, (1.5, 1.6, 1.6, 1.7), (0.6, 0.5, 0.5, 0.5), best=1)
    rising = validated(falling, (1.5, 0.9, 1.2, 1.5), (0.5, 0.6, 0.7, 0.7), best=3)
    fine = validated(falling, (1.5, 0.9, 0.9, 1.0), (0.5, 0.6, 0.7, 0.8), best=4)
    perfect = validated(falling, (0.1, 0.2, 0.3, 0.4), (1.0, 0.9, 0.9, 0.9), best=1)
    assert codes(of_training(first)) == {"overfitting": MILD} == codes(of_training(rising))
    assert "after the first of 4 epochs" in of_training(first)[0].text
    assert "rose from 0.900 in epoch 2" in of_training(rising)[0].text
    assert of_training(fine) == [] == of_training(perfect)
    # Only freeze points that the backbone has are named.
    assert "--model.freeze all-but-head, " in of_training(first)[0].advice
    assert "--model.freeze conv, " in of_training({**first, "freeze_next": "conv"})[0].advice
    assert "--model.freeze" not in of_training({**first, "freeze_next": None})[0].advice
    together = validated((2.0, 1.5, 1.0, 0.8), (1.5, 0.9, 1.2, 1.5), (0.5, 0.6, 0.7, 0.7), best=3)
    barely = validated((2.0, 1.9, 1.9, 1.9), (1.5, 1.6, 1.6, 1.7), (0.6, 0.5, 0.5, 0.5), best=1)
    assert of_training(together) == [] == of_training(barely)


def test_an_embedding_that_is_the_same_for_every_window_is_reported_at_once() -> None:
    dead = validated((2.3,), (2.3,), (0.1,), best=1)
    dead["epochs"][0]["val_live_embeddings"] = 0
    (each,) = while_training(dead)
    assert (each.code, each.severity) == ("embeddings-dead", STRONG)
    assert "After epoch 1" in each.text


def test_weights_that_never_moved_are_grave_if_none_did() -> None:
    some = of_training(trained(2.0, 1.0, moved={"backbone/conv1": 0.0, "backbone/fc2": 1e-9, "head/logits": 0.3}))
    every = of_training(trained(2.0, 1.0, moved={"backbone/conv1": 0.0, "head/logits": float("nan")}))
    assert codes(some) == {"weights-unmoved": MILD} and codes(every) == {"weights-unmoved": STRONG}
    assert "backbone/conv1, backbone/fc2 (2 of 3 layers" in some[0].text
    assert of_training(trained(2.0, 1.0, moved={"backbone/conv1": 3e-5})) == []


def test_classes_that_are_silent_or_one_and_the_same_sound_are_named() -> None:
    rows = [
        {"class": "Mute", "recordings": 16, "silent": 8, "distinct": 16},
        {"class": "Copy", "recordings": 3, "silent": 0, "distinct": 1},
        {"class": "Fine", "recordings": 16, "silent": 7, "distinct": 16},
        {"class": "Alone", "recordings": 1, "silent": 0, "distinct": 1},
        {"class": "Untrained", "recordings": 0, "silent": 0, "distinct": 0},
    ]
    silent, alike = of_training(trained(2.0, 1.0, inputs=rows))
    assert silent.severity == alike.severity == STRONG
    assert "Mute (8 of 16)." in silent.text and "Copy (3 recordings)." in alike.text


# ---- how it was judged --------------------------------------------------------------------------


def judged(labels: list[int], said: list[int], *, slices: int = 1, sure: float = 0.9, **more: Any) -> dict[str, Any]:
    """What `judge` makes of answers; `slices` recordings from each source."""
    n, c = len(labels), len(CLASSES)
    table = np.full((n, c), (1 - sure) / (c - 1), np.float32)
    table[np.arange(n), said] = sure
    scores = Scores(
        classes=CLASSES,
        recordings=tuple(f"{k}.wav" for k in range(n)),
        groups=tuple(f"source {k // slices}" for k in range(n)),
        targets=one_hot(labels, c),
        window_scores=table,
        window_recording=np.arange(n),
        window_start_s=np.zeros(n, np.float32),
    )
    return {**evaluate_part(scores, train_counts=np.arange(c, 0, -1), n_bootstrap=200, seed=1), **more}


TRUE = [k % 10 for k in range(100)]
# Nine of ten right in each class; the errors go round.
GOOD = [(label + (k // 10 == label)) % 10 for k, label in enumerate(TRUE)]


def test_good_figures_raise_no_warning_and_get_the_best_verdict() -> None:
    figures = {"val": judged(TRUE, GOOD), "test": judged(TRUE, GOOD, live_embeddings=80)}
    assert figures["test"]["clip"]["accuracy"] == pytest.approx(0.9)
    assert of_scores(figures) == []
    word = verdict(figures, [])
    assert (word.level, word.title) == ("good", "Clearly better than guessing")
    assert "100 source recordings" in word.text


def test_a_score_under_the_baseline_is_grave_and_both_numbers_are_said() -> None:
    wrong = judged(TRUE, [(label + 1) % 10 or 1 for label in TRUE])
    found = of_scores({"val": None, "test": wrong})
    (each,) = [each for each in found if each.code == "not-above-baseline"]
    assert each.severity == STRONG
    assert "On test, accuracy is not above the majority baseline:" in each.text
    assert "right for 0 % of the 100 recordings, the constant prediction Class_a for 10 %" in each.text
    assert "nor is average precision above a random order's" in each.text
    assert verdict({"test": wrong}, found).title == "Not shown to be better than guessing"


def test_above_the_baseline_by_less_than_the_interval_is_not_enough() -> None:
    lucky = [label if k < 13 else (label + 5) % 10 for k, label in enumerate(TRUE)]
    found = of_scores({"val": None, "test": judged(TRUE, lucky)})
    (each,) = [each for each in found if each.code == "not-above-baseline"]
    assert each.severity == STRONG and "by more than its interval" in each.text and "13 %" in each.text


def test_of_validation_beside_a_good_test_only_what_is_significantly_worse_is_strong() -> None:
    test = judged(TRUE, GOOD)
    unlucky = of_scores({"val": judged([0, 0, 1, 2], [1, 0, 0, 2]), "test": test})
    swapped = of_scores({"val": judged([0] * 20 + [1] * 20, [1] * 20 + [2] * 20), "test": test})
    assert codes(unlucky) == {"not-above-baseline": MILD}
    assert codes(swapped) == {"not-above-baseline": STRONG}
    assert all(each.text.startswith("On validation") for each in unlucky + swapped)


def test_all_right_on_three_sources_may_be_luck() -> None:
    few = judged([0, 1, 2], [0, 1, 2])
    found = codes(of_scores({"val": None, "test": few}))
    assert found["test-too-small"] == STRONG and "not-above-baseline" not in found
    alone = codes(of_scores({"val": None, "test": judged([0, 1], [0, 1], slices=2)}))
    assert alone["test-too-small"] == STRONG


def test_accuracy_above_the_baseline_with_scores_in_random_order_is_a_warning() -> None:
    test = judged(TRUE, GOOD)
    low = {**test["clip"], "macro_ap": 0.15, "macro_ap_ci": [0.11, 0.19]}
    (each,) = of_scores({"val": None, "test": {**test, "clip": low}})
    assert (each.code, each.severity) == ("not-above-chance", STRONG)
    assert "15 % (11 to 19 %) against 1" in each.text


def test_answers_that_fall_on_few_classes_are_grave_unless_the_recordings_do_too() -> None:
    collapsed = judged(TRUE, [0 if label < 8 else label for label in TRUE])
    found = of_scores({"val": None, "test": collapsed})
    assert codes(found)["collapsed"] == STRONG
    assert "are Class_a, Class_i; it takes 9 classes" in next(d for d in found if d.code == "collapsed").text
    # Measured: ESC-10 after three epochs at a third of the learning rate.
    barely = [{0: 0, 1: 1, 2: 2}.get(label, k % 2 if k < 90 else 2) for k, label in enumerate(TRUE)]
    assert codes(of_scores({"val": None, "test": judged(TRUE, barely)}))["collapsed"] == STRONG
    weak = [label if label < 6 else 0 for label in TRUE]
    assert "collapsed" not in codes(of_scores({"val": None, "test": judged(TRUE, weak)}))
    none = judged(TRUE, weak)
    none["per_class"] = [{**row, "predicted": 0} for row in none["per_class"]]  # no score reached its threshold
    assert "collapsed" not in codes(of_scores({"val": None, "test": none}))
    one_sided = [0] * 95 + [1] * 5
    assert "collapsed" not in codes(of_scores({"val": None, "test": judged(one_sided, one_sided)}))
    # Of three classes, predictions of two are not few, and of one they are.
    thirds = [k % 3 for k in range(99)]
    for n, is_few in ((1, True), (2, False)):
        found = of_scores({"val": None, "test": judged(thirds, [label % n for label in thirds])})
        assert ("collapsed" in codes(found)) == is_few


def test_classes_never_predicted_and_never_right_are_named_with_their_recordings() -> None:
    said = [{3: 4, 5: 6, 6: 5}.get(label, label) for label in TRUE]
    found = {each.code: each for each in of_scores({"val": None, "test": judged(TRUE, said)})}
    assert set(found) == {"never-predicted", "never-right"}
    assert "1 of 10 classes was never predicted: Class_d (10 recordings)." in found["never-predicted"].text
    assert "2 of 10 classes were never predicted correctly: Class_f (10 rec" in found["never-right"].text
    assert {each.severity for each in found.values()} == {MILD}


def test_where_labels_have_times_it_is_events_that_are_never_detected() -> None:
    figures = judged(TRUE, [{3: 4}.get(label, label) for label in TRUE])
    figures["window_answers"] = {"accuracy": None, "accuracy_ci": None}
    assert "never-predicted" not in codes(of_scores({"val": None, "test": figures}))
    rows = [{"class": name, "events": n, "detections": found, "recall": found / 9}
            for name, n, found in (("Owl", 9, 4), ("Tit", 7, 0), ("Auk", 0, 0))]  # fmt: skip
    figures["events"] = {"events": {"per_class": rows}}
    (found,) = (each for each in of_scores({"val": None, "test": figures}) if each.code == "never-predicted")
    assert "1 of 2 classes was never detected: Tit (7 events)." in found.text


def test_recordings_predicted_as_a_class_that_was_not_trained_are_reported_with_it_and_not_as_too_few() -> None:
    said = [{3: 9}.get(label, label) for label in TRUE]
    figures = judged(TRUE, said)
    assert codes(of_scores({"val": None, "test": figures})) == {"never-predicted": MILD}
    figures["per_class"][9]["train_recordings"] = 0
    (found,) = of_scores({"val": None, "test": figures})
    assert (found.code, found.severity) == ("confused-with-untrained", STRONG)
    assert "10 of 10 recordings of Class_d as Class_j." in found.text
    assert "Put its training recordings back" in found.advice
    # Its own recordings are rightly its; and half of a class's are not most.
    assert "Class_j as" not in found.text
    half = [9 if label == 3 and k < 50 else label for k, label in enumerate(TRUE)]
    figures = judged(TRUE, half)
    figures["per_class"][9]["train_recordings"] = 0
    assert "confused-with-untrained" not in codes(of_scores({"val": None, "test": figures}))


def test_a_test_of_few_sources_and_classes_of_one_source_are_mild_and_make_the_verdict_fair() -> None:
    few = judged(TRUE, GOOD, slices=10)
    figures = {"val": None, "test": few}
    found = of_scores(figures)
    assert codes(found) == {"small-test": MILD}
    word = verdict(figures, found)
    assert word.level == "fair" and "10 source recordings" in word.text
    assert "accuracy may lie anywhere from 55 to 99.7 %." in found[0].text
    few["clip"]["accuracy_ci"] = None
    (alone,) = of_scores(figures)
    assert "accuracy has no interval, so it may be far off." in alone.text and "not known" not in alone.text
    single = judged([k // 4 for k in range(40)], [k // 4 for k in range(40)], slices=4)
    assert "10 of 10 classes are evaluated on one test source" in str(of_scores({"val": None, "test": single}))


def test_without_a_test_or_with_nothing_measured_it_says_so() -> None:
    validated_only = {"val": judged(TRUE, GOOD), "test": None}
    found = of_scores(validated_only)
    assert codes(found) == {"no-test": MILD}
    word = verdict(validated_only, found)
    assert word.level == "fair" and "the model was selected" in word.text
    nothing = {"val": None, "test": None}
    assert codes(of_scores(nothing)) == {"nothing-measured": STRONG}
    assert verdict(nothing, of_scores(nothing)).level == "none"


def test_synthetic_noise_that_is_not_rejected_is_a_warning_and_its_windows_alone_are_not() -> None:
    def noise(name: str, decision: str | None, score: float | None) -> dict[str, Any]:
        return {"noise": name, "windows_passing": 1.0, "decision": decision, "score": score}

    def found(*rows: dict[str, Any]) -> list[Diagnostic]:
        return all_diagnostics(trained(2.0, 1.0), {**good, "false_alarms": {"noise": list(rows)}})

    quiet, loud = noise("mains hum", None, None), noise("white noise", "Class_b", 0.98)
    good = {"test": judged(TRUE, GOOD, slices=2)}
    assert found(quiet) == []
    (diagnostic,) = found(quiet, loud)
    assert (diagnostic.code, diagnostic.severity) == ("noise-accepted", MILD)
    assert diagnostic.text == "Synthetic noise is classified, not rejected: white noise (Class_b, 98 %)."
    assert "input/background/" in diagnostic.advice and "--evaluate.false-alarms-per-hour" in diagnostic.advice
    assert verdict(good, [diagnostic]).level == "good"


def test_where_nothing_was_learnt_augmentation_is_blamed_first_and_only_there(tmp_path: Path) -> None:
    strong = augment.spoken(AugmentSettings(gain_db=60, pink_noise=1, time_mask_s=0.95))
    assert strong == ["--augment.pink-noise 1", "--augment.gain-db 60", "--augment.time-mask-s 0.95"]
    good = {"test": judged(TRUE, GOOD, slices=2)}
    assert all_diagnostics(trained(2.0, 1.0, augmented=strong), good) == []
    stuck = (2.327, 2.327, 2.327, 2.327)
    assert all_diagnostics(trained(*stuck), good)[0].code == "loss-never-moved"
    first, *others = all_diagnostics(trained(*stuck, augmented=strong), good)
    assert (first.code, first.severity) == ("augmented", STRONG)
    assert f"augmentation was on: {', '.join(strong)}." in first.text and "Leave it out first" in first.advice
    assert others == all_diagnostics(trained(*stuck), good)
    figures = {"test": judged(TRUE, [0] * len(TRUE), slices=2)}  # one answer for all
    assert all_diagnostics(trained(2.0, 1.0, augmented=strong), figures)[0].code == "augmented"

    write_json(tmp_path / runs.HISTORY_NAME, trained(*stuck))
    config = Config.model_validate({"augment": {"gain_db": 60}, "evaluate": {"label_issues": False}})
    found, _ = report_data.diagnose(SimpleNamespace(logs=tmp_path, config=config), good)  # type: ignore[arg-type]
    assert found[0].code == "augmented" and "--augment.gain-db 60" in found[0].text


def test_label_issues_are_a_warning_where_they_are_more_than_a_few_or_sit_in_the_test() -> None:
    def issues(of_train: int, of_test: int, scored: int = 400) -> dict[str, Any]:
        row = {"recording": "a/3.wav", "class": "Fire", "suggested": "Helicopter"}
        splits = ["train"] * of_train + ["test"] * of_test
        return {"scored": scored, "rows": [{**row, "split": split} for split in splits]}

    good = {"test": judged(TRUE, GOOD, slices=2)}

    def found(listed: dict[str, Any] | None) -> list[Diagnostic]:
        return all_diagnostics(trained(2.0, 1.0), good, listed)

    assert found(None) == found(issues(2, 0, 40)) == found(issues(3, 0)) == found(issues(1, 2)) == []
    assert codes(found(issues(0, 3))) == codes(found(issues(4, 0))) == {"label-issues": MILD}
    (diagnostic,) = found(issues(16, 6))
    assert diagnostic.text == (
        "22 of 400 labels may be wrong, 6 of them of test recordings: first a/3.wav, labelled Fire, which sounds like "
        "Helicopter."
    )
    assert "Label issues" in diagnostic.advice and "of test recordings" not in found(issues(4, 0))[0].text


def test_strong_warnings_come_first_and_forbid_a_good_verdict() -> None:
    figures = {"val": None, "test": judged(TRUE, GOOD, live_embeddings=0)}
    found = all_diagnostics(trained(1.1, 0.8, 0.5, 1.0, moved={"a": 0.0, "b": 1.0}), figures)
    assert codes(found) == {"embeddings-dead": STRONG, "weights-unmoved": MILD, "loss-rose": MILD}
    assert found[0].severity == STRONG
    word = verdict(figures, found)
    assert (word.level, word.title) == ("poor", "Better than guessing, but something is wrong")


def test_a_dead_embedding_is_reported_once_though_training_and_test_both_show_it() -> None:
    dead = validated((2.3, 1.2), (2.3, 2.3), (0.1, 0.1), best=1)
    dead["epochs"][-1]["val_live_embeddings"] = 0
    found = all_diagnostics(dead, {"val": None, "test": judged(TRUE, GOOD, live_embeddings=0)})
    assert [each.code for each in found] == ["embeddings-dead"]


def test_a_row_holds_all_of_a_diagnostic_and_hostile_names_stay_on_one_line() -> None:
    row = {"class": "a\nb\u202e", "recordings": 2, "silent": 2, "distinct": 1}
    (each,) = of_training(trained(2.0, 1.0, inputs=[row]))
    assert each.row() == {name: getattr(each, name) for name in ("code", "severity", "text", "advice")}
    assert "a\\nb\\u202e" in each.text and "\n" not in each.text
    assert diagnostics.diverged("the loss is nan").code in diagnostics.CODES


@pytest.mark.parametrize("support", [(1, 4), (2, 3), (3,), (1, 1, 3)])
def test_chance_is_the_mean_average_precision_over_all_orders(support: tuple[int, ...]) -> None:
    n = sum(support)
    labels = np.repeat(np.arange(len(support)), support)
    orders = [labels[list(order)] for order in itertools.permutations(range(n))]

    def average_precision(order: np.ndarray[Any, Any], label: int) -> float:
        hits = order == label
        precision = np.cumsum(hits) / np.arange(1, n + 1)
        return float(precision[hits].mean())

    expected = np.mean([[average_precision(order, label) for label in range(len(support))] for order in orders])
    assert chance_ap(np.array([*support, 0]), n) == pytest.approx(expected)
