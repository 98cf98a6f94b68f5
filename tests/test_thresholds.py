"""birdtune.evaluation.thresholds, decision, false_alarms and pipeline.evaluate: how scores become decisions."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from birdtune.audio.logmel import VGGISH, log_mel
from birdtune.audio.synthetic import NOISES, SILENCE, made_noise
from birdtune.evaluation import false_alarms
from birdtune.evaluation.calibration import Calibration
from birdtune.evaluation.decision import BACKGROUND, NOMINAL, OWN, SHARED, UNKNOWN, Thresholds
from birdtune.evaluation.false_alarms import count_alarms, hours_of, of_background
from birdtune.evaluation.ood import OodMeasures, OodModel, OodScale
from birdtune.evaluation.scores import Scores, one_hot, subset
from birdtune.evaluation.thresholds import (
    choose,
    decided,
    evaluate_decisions,
    lowest_for_precision,
)
from birdtune.pipeline import metrics as run_figures
from birdtune.settings import EvaluateSettings

CLASSES = ("background", "owl", "tit")


def scores_of(rows: list[list[list[float]]], labels: list[int], groups: list[str] | None = None) -> Scores:
    """Recordings, each a list of windows, each a list of scores."""
    n = len(rows)
    return Scores(
        classes=CLASSES,
        recordings=tuple(f"r{k}" for k in range(n)),
        groups=tuple(groups or [f"g{k}" for k in range(n)]),
        targets=one_hot(labels, len(CLASSES)),
        window_scores=np.array([patch for row in rows for patch in row], np.float32),
        window_recording=np.repeat(np.arange(n), [len(row) for row in rows]),
        window_start_s=np.concatenate([np.arange(len(row)) * 0.96 for row in rows]).astype(np.float32),
    )


def clips(owls: list[float], tits: list[float], *, wrong: list[float] | None = None) -> Scores:
    """Recordings of owls and tits with these scores for their class, and tits that sound like owls."""
    rows = (
        [[[0.0, s, 1 - s]] for s in owls]
        + [[[0.0, 1 - s, s]] for s in tits]
        + [[[0.0, s, 0.0]] for s in wrong or []]
    )
    return scores_of(rows, [1] * len(owls) + [2] * len(tits) + [2] * len(wrong or []))


def chosen(scores: Scores | None, **changes: Any) -> Thresholds:
    settings = {"precision": 0.9, "alarms_per_hour": None, "window_s": 0.96, **changes}
    return choose(scores, CLASSES, ("background",), **settings)


# ---- by precision -------------------------------------------------------------------------------


def test_the_lowest_threshold_that_keeps_the_precision_is_half_way_to_the_next_score() -> None:
    values = np.array([0.9] * 29 + [0.8, 0.7, 0.6, 0.4])
    right = np.array([True] * 30 + [False] * 3)
    share = np.ones(33)
    # 29 of 29 prove 0.9 (0.9^29 = 0.047); so do 30 of 30; 30 of 31 do not.
    assert lowest_for_precision(values, right, share, 0.9) == pytest.approx(0.75)
    assert lowest_for_precision(values, right, share, 0.92) is None
    assert lowest_for_precision(values[:28], right[:28], share[:28], 0.9) is None  # 28 can never prove 0.9
    assert lowest_for_precision(values, ~right, share, 0.9) is None
    assert lowest_for_precision(values, right, share / 2, 0.9) is None  # two of each source count as one
    assert lowest_for_precision(values, right, share, 0.7) == 0.5  # whatever lies below


def test_equal_scores_pass_together() -> None:
    values = np.array([0.9] * 20)
    right = np.array([True] * 10 + [False] * 10)
    assert lowest_for_precision(values, right, np.ones(20), 0.31) is None
    assert lowest_for_precision(values, right, np.ones(20), 0.30) == 0.5  # 10 of 20 are surely above 0.302


def test_a_class_has_a_lower_threshold_of_its_own_where_its_recordings_prove_it() -> None:
    found = chosen(clips([0.9] * 40, [0.95] * 20, wrong=[0.8] * 20))
    # Sixty are right from 0.9 on; between, tits sound like owls; a tit's 0.95 could be lower, which 20 cannot prove.
    assert found.origins == (BACKGROUND, SHARED, SHARED) and found.values[1:] == pytest.approx((0.85, 0.85))
    more = chosen(clips([0.9] * 40, [0.95] * 40, wrong=[0.8] * 20))
    assert more.origins == (BACKGROUND, SHARED, OWN)
    assert more.values == (float("inf"), pytest.approx(0.85), 0.5)
    assert more.goal == "a precision of 0.9"
    low = chosen(clips([0.6] * 40, [0.95] * 40))
    assert low.values[1:] == (0.5, 0.5)  # not below: an answer is at least as likely right as wrong


def test_a_class_whose_recordings_speak_against_the_shared_threshold_has_a_higher_one() -> None:
    # Of all that pass 0.5, 104 of 107 are right, which keeps the wish; of the owls, 4 of 7, which does not.
    few = chosen(clips([0.9] * 4, [0.95] * 100, wrong=[0.8] * 3))
    assert few.origins == (BACKGROUND, OWN, SHARED) and few.values[1:] == (pytest.approx(0.85), 0.5)
    high = chosen(clips([0.6] * 4, [0.95] * 100, wrong=[0.8] * 3))
    assert high.values[1] == pytest.approx(0.9)  # above all that was wrong
    one = chosen(clips([0.9] * 20, [0.95] * 100, wrong=[0.8] * 2))
    assert one.origins[1] == SHARED  # two of 22 are no reason


def test_classes_with_few_recordings_share_a_threshold_and_say_so() -> None:
    found = chosen(clips([0.9] * 28, [0.95] * 4))
    assert found.origins == (BACKGROUND, SHARED, SHARED)
    assert "2 of 2 classes have too few held-out recordings for a lower" in found.reason
    assert "29 source recordings at least" in found.reason
    none = chosen(clips([0.9] * 2, [0.95] * 2))
    assert none.origins == (BACKGROUND, NOMINAL, NOMINAL) and none.values[1:] == (0.9, 0.9)
    assert "too few held-out recordings" in none.reason
    assert "no held-out recordings" in chosen(None).reason and chosen(None, precision=0.7).values[1] == 0.7


# ---- by false alarms ----------------------------------------------------------------------------


def noisy(minutes: float, owl: list[float]) -> Scores:
    """A background recording of some minutes, in which a few windows sound like owls."""
    features = [[0.9, 0.05, 0.05] for _ in range(round(minutes * 60 / 0.96))]
    for k, score in enumerate(owl):
        features[3 * k + 1][1] = score
    return scores_of([features, [[0.0, 1.0, 0.0]]], [0, 1])


def test_the_threshold_keeps_false_alarms_to_what_is_wished() -> None:
    background = noisy(60, [0.95, 0.9, 0.8, 0.7, 0.6])
    found = chosen(background, alarms_per_hour=4.0)
    assert found.goal == "at most 4 false alarms an hour"
    # Half of four for each class: one is heard and one more allowed for.
    assert found.origins == (BACKGROUND, OWN, OWN)
    assert found.values[1] == pytest.approx((0.95 + 0.9) / 2)
    heard = false_alarms.count(of_background(background, ("background",)) or background, found, 0.96)
    assert heard["alarms"] == 1 and heard["alarms_per_hour"] == pytest.approx(1.0, rel=0.01)
    assert heard["per_class"] == [
        {"class": "owl", "alarms": 1, "alarms_per_hour": pytest.approx(1.0, rel=0.01)}
    ]
    assert chosen(background, alarms_per_hour=1.5).origins == (BACKGROUND, SHARED, SHARED)


def test_too_little_background_for_a_wish_is_said_and_precision_stands_in() -> None:
    found = chosen(noisy(1, [0.9]), alarms_per_hour=1.0)
    assert found.goal == "a precision of 0.9" and "1.0 min of background, too little" in found.reason
    assert "no background among the validation" in chosen(clips([0.9], [0.9]), alarms_per_hour=1.0).reason


def test_an_alarm_is_an_unbroken_run_within_a_recording() -> None:
    high, low = [0.0, 0.9, 0.1], [0.0, 0.1, 0.1]
    scores = scores_of([[high, high, low, high], [high, low, low]], [0, 0])
    assert count_alarms(scores, 1, 0.5) == 3
    assert count_alarms(scores, 1, 0.89) == 3 and count_alarms(scores, 1, 0.95) == 0
    assert count_alarms(scores, 1, 0.05) == 2  # a recording through


def test_a_last_window_that_overlaps_the_one_before_counts_no_sound_and_no_alarm_twice() -> None:
    high, low = [0.0, 0.9, 0.1], [0.0, 0.1, 0.1]
    scores = scores_of([[low, high, high], [low, low, high]], [0, 0])
    scores = dataclasses.replace(scores, window_start_s=np.array([0, 0.96, 1.03, 0, 0.96, 1.03], np.float32))
    assert hours_of(scores, 0.96) == pytest.approx(2 * 1.99 / 3600)
    assert count_alarms(scores, 1, 0.5) == 2


# ---- decisions ----------------------------------------------------------------------------------


def test_the_decision_is_the_highest_score_that_passes_or_unknown() -> None:
    found = Thresholds((float("inf"), 0.5, 0.3), (BACKGROUND, OWN, OWN), "", "")
    said = found.decide(np.array([[0.9, 0.0, 0.1], [0.0, 0.45, 0.4], [0.0, 0.55, 0.4], [0.7, 0.2, 0.1]]))
    assert said.tolist() == [UNKNOWN, 2, 1, UNKNOWN]
    again = Thresholds.of(json.loads(json.dumps(found.row(CLASSES), allow_nan=False)))
    assert again == found


def test_decisions_are_evaluated_with_background_never_asked_for() -> None:
    scores = scores_of(
        [[[0.1, 0.8, 0.1]], [[0.1, 0.1, 0.8]], [[0.8, 0.1, 0.1]], [[0.2, 0.4, 0.4]]], [1, 1, 0, 2]
    )
    found = Thresholds((float("inf"), 0.5, 0.5), (BACKGROUND, OWN, OWN), "", "")
    judged = evaluate_decisions(scores, found, n_bootstrap=100, seed=0)
    assert (judged["decided"], judged["decided_share"], judged["precision"]) == (2, 0.5, 0.5)
    assert judged["recall"] == pytest.approx(1 / 3)  # background is not asked for
    assert judged["per_class"][0] == {"class": "owl", "decided": 1, "precision": 1.0, "recall": 0.5}
    nothing = Thresholds((float("inf"), 0.99, 0.99), (BACKGROUND, OWN, OWN), "", "")
    silent = evaluate_decisions(scores, nothing, n_bootstrap=100, seed=0)
    assert (silent["precision"], silent["precision_ci"], silent["recall"]) == (None, None, 0.0)


def several_labels() -> Scores:
    """Two recordings with an owl and a tit each, one with an owl, one with neither; of the last, tits are not known."""
    clips = [[0.1, 0.9, 0.8], [0.1, 0.9, 0.2], [0.1, 0.9, 0.8], [0.1, 0.7, 0.9]]
    made = scores_of([[clip] for clip in clips], [0] * 4)
    targets = np.array([[0, 1, 1], [0, 1, 1], [0, 1, 0], [0, 0, 0]], np.float32)
    mask = np.ones((4, 3), np.bool_)
    mask[3, 2] = False
    return replace(made, targets=targets, mask=mask)


def test_with_several_classes_a_recording_every_class_that_passes_is_decided_for() -> None:
    scores = several_labels()
    found = Thresholds((float("inf"), 0.5, 0.5), (BACKGROUND, OWN, OWN), "", "")
    assert scores.is_multi_label and scores.labels.tolist() == [-1, -1, 1, -1]
    assert decided(scores, found).astype(int).tolist() == [[0, 1, 1], [0, 1, 0], [0, 1, 1], [0, 1, 1]]
    evaluated = evaluate_decisions(scores, found, n_bootstrap=20, seed=0)
    assert (evaluated["decided"], evaluated["recall"]) == (4, pytest.approx(4 / 5))
    assert evaluated["precision"] == pytest.approx(4 / 6)  # what is not known is neither right nor wrong
    far = replace(scores, ood_score=np.array([0, 0, 2, 0], np.float32))
    assert not decided(far, found)[2].any()


def test_what_is_not_known_plays_no_part_in_a_threshold() -> None:
    rows = [[[0.0, 0.9, 0.1]]] * 40 + [[[0.0, 0.6, 0.1]]] * 40
    targets = np.array([[0, 1, 0]] * 40 + [[0, 0, 0]] * 40, np.float32)
    scores = replace(scores_of(rows, [0] * 80), targets=targets)
    mask = np.ones((80, 3), np.bool_)
    mask[40:, 1] = False  # nobody knows whether these are owls
    assert chosen(scores).values[1] == pytest.approx(0.75)
    assert chosen(replace(scores, mask=mask)).values[1] == 0.5


# ---- made noise, and all together ---------------------------------------------------------------


@pytest.mark.parametrize("name", NOISES)
def test_made_noise_is_the_same_every_time_and_in_bounds(name: str) -> None:
    noise = made_noise(name, 2.0, 16_000)
    assert noise.shape == (32_000,) and noise.dtype == np.float32 and np.abs(noise).max() <= 1
    np.testing.assert_array_equal(noise, made_noise(name, 2.0, 16_000))
    assert np.isfinite(log_mel(noise)).all()


def test_noises_are_what_they_are_called() -> None:
    made = {name: made_noise(name, 4.0, 16_000).astype(float) for name in NOISES}
    assert not made["silence"].any()
    power = {name: np.abs(np.fft.rfft(noise)) ** 2 for name, noise in made.items()}
    hz = np.fft.rfftfreq(64_000, 1 / 16_000)

    def band(name: str, low: float) -> float:
        return float(power[name][(hz >= low) & (hz < 2 * low)].sum())

    assert band("white noise", 2000) / band("white noise", 1000) == pytest.approx(2.0, rel=0.15)
    assert band("pink noise", 2000) / band("pink noise", 1000) == pytest.approx(
        1.0, rel=0.15
    )  # alike in each octave
    assert hz[power["mains hum"].argmax()] == 50.0
    loud = np.abs(made["clicks"]) > 0.05
    assert 0 < loud.mean() < 0.02


def test_noise_is_scored_in_whole_batches() -> None:
    sizes = []

    def scorer(features: Any) -> tuple[Any, Any]:
        sizes.append(len(features))
        return np.tile(features.mean(axis=(1, 2), dtype=np.float32)[:, None], 3), features.mean(axis=1)

    taken: list[tuple[list[int], tuple[int, ...]]] = []
    heard = run_figures.noise_logits(
        scorer, CLASSES, VGGISH, 8, lambda numbers, means: taken.append((numbers.tolist(), means.shape))
    )
    assert taken == [([number], (1, 64)) for number in range(5)]
    assert set(sizes) == {8}
    assert heard.recordings == tuple(NOISES) and len(heard.window_scores) == 5 * VGGISH.window_count(2998)
    assert heard.window_start_s[1] == pytest.approx(0.96)
    assert np.ptp(heard.window_scores[heard.window_recording == 0]) == 0  # silence is silence throughout


def run_of(n: int, seed: int) -> Scores:
    """Logits of some background and birds."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = 3 * np.eye(3)[labels] + rng.normal(size=(n, 3))
    return Scores(
        CLASSES, tuple(f"{k}" for k in range(n)), tuple(f"{k}" for k in range(n)), one_hot(labels, 3),
        logits.astype(np.float32), np.arange(n), np.zeros(n, np.float32),
    )  # fmt: skip


def judge(
    val: Scores | None, test: Scores | None, heard: dict[str, OodMeasures] | None = None,
    *, target_recall: float = 0.9, **settings: Any,
) -> run_figures.RunMetrics:
    return run_figures.run_metrics(
        {"val": val, "test": test}, run_of(5, 9), kind="softmax", classes=CLASSES, background=("background",),
        train_counts=np.array([9, 9, 9]), window_s=0.96, settings=EvaluateSettings(bootstrap=50, **settings), seed=1,
        measured=heard or {}, target_recall=target_recall,
    )  # fmt: skip


def test_validation_chooses_and_test_is_evaluated_as_it_is_served(tmp_path: Path) -> None:
    val, test = run_of(100, 0), run_of(60, 1)
    found = judge(val, test)
    calibration = Calibration.of(found.figures["calibration"])
    assert calibration.window.slope != 1.0
    np.testing.assert_array_equal(found.scores["test"].window_scores, calibration.windows(test.window_scores))
    other = judge(val, run_of(60, 2))  # another test chooses nothing
    assert [other.figures[key] for key in ("calibration", "thresholds")] == [
        found.figures[key] for key in ("calibration", "thresholds")
    ]
    heard = found.figures["false_alarms"]
    assert heard["background"]["part"] == "test"
    assert heard["background"]["recordings"] == int((test.labels == 0).sum())
    assert len(heard["noise"]) == 5 and heard["background"]["chosen_on"] is False
    (tmp_path / "metrics.json").write_text(json.dumps(found.figures, allow_nan=False))
    read = run_figures.read_served(tmp_path, 3, "softmax")
    thresholds = Thresholds.of(found.figures["thresholds"])
    assert read == (calibration, thresholds, None)
    of_detections = replace(thresholds, values=(np.inf, 0.3, 0.4))
    given = {**found.figures, "detection_thresholds": of_detections.row(CLASSES)}
    (tmp_path / "metrics.json").write_text(json.dumps(given, allow_nan=False))
    assert run_figures.read_served(tmp_path, 3, "softmax") == (calibration, thresholds, of_detections)
    (tmp_path / "metrics.json").write_text("{}")
    lost, *none = run_figures.read_served(tmp_path, 3, "softmax")
    assert "holds no calibration" in lost.reason and none == [None, None]


def test_without_validation_or_test_there_is_still_a_judgement() -> None:
    for val, test in ((None, run_of(20, 0)), (run_of(20, 0), None), (None, None)):
        figures = judge(val, test).figures
        json.dumps(figures, allow_nan=False)
        assert bool(figures["calibration"]["reason"]) == (val is None)
        assert (figures["test"] is None) == (test is None)
        assert len(figures["false_alarms"]["noise"]) == 5


def test_false_alarms_on_the_background_that_thresholds_were_chosen_on_say_so() -> None:
    val, test = run_of(400, 0), run_of(60, 1)
    named = subset(test, test.labels != 0)
    heard = judge(val, named).figures["false_alarms"]["background"]
    assert (heard["part"], heard["chosen_on"]) == ("val", True)
    few = judge(run_of(20, 0), named, precision=0.99).figures  # which 20 cannot prove: the score stands in
    assert few["false_alarms"]["background"]["chosen_on"] is False


def test_what_is_far_from_all_training_is_rejected_as_unknown_at_the_cost_that_is_stated(tmp_path: Path) -> None:
    val, test, rng = run_of(100, 0), run_of(60, 1), np.random.default_rng(0)
    heard = {
        "val": OodMeasures(rng.uniform(0, 10, 100), np.zeros(100)),
        "test": OodMeasures(np.append(rng.uniform(0, 8, 50), np.full(10, 20.0)), np.zeros(60)),
        "noise": OodMeasures(np.array([0.0, 30.0, 30.0, 30.0, 30.0]), np.zeros(5)),
    }
    found, plain = judge(val, test, heard), judge(val, test)
    scale = found.figures["ood"]["scale"]
    assert (scale["target_recall"], scale["sources"]) == (0.9, 100) and 8.5 < scale["limit"] < 9.6
    strange = found.scores["test"].ood_score
    assert strange is not None and (strange > 1).tolist() == [False] * 50 + [True] * 10
    assert found.figures["val"]["ood"]["accepted"] == pytest.approx(0.91, abs=0.01)
    kept = found.figures["test"]["ood"]
    assert kept["accepted"] == pytest.approx(50 / 60) and kept["accepted_ci"][0] < 50 / 60 < kept["accepted_ci"][1]
    answered = plain.scores["test"].pooled
    assert answered is not None
    chosen = Thresholds.of(found.figures["thresholds"])
    passing = chosen.decide(answered) != UNKNOWN
    assert found.figures["test"]["decisions"]["decided"] == int(passing[:50].sum()) < int(passing.sum())
    assert plain.figures["test"]["decisions"]["decided"] == int(passing.sum())
    noise = found.figures["false_alarms"]["noise"]
    assert [row["ood_score"] > 1 for row in noise] == [False, True, True, True, True]
    assert not any(row["recordings_decided"] for row in noise[1:])
    json.dumps(found.figures, allow_nan=False)
    # As the export reads it.
    known = OodModel(np.zeros(2, "f4"), np.eye(2, dtype="f4"), np.zeros((3, 2), "f4"), np.array([9, 9, 9]))
    known.save(tmp_path / run_figures.OOD_NAME)
    (tmp_path / "metrics.json").write_text(json.dumps(found.figures))
    read = run_figures.read_ood(tmp_path)
    assert read is not None and read[1] == OodScale.of(scale)
    (tmp_path / "metrics.json").write_text(json.dumps(plain.figures))
    assert run_figures.read_ood(tmp_path) is None


def test_noise_is_accepted_as_the_decision_of_most_of_its_windows() -> None:
    # One long alarm of tits, two short ones of owls; the second noise only background passes for.
    tit, owl, neither = [0.0, 0.05, 0.95], [0.0, 0.95, 0.05], [0.9, 0.1, 0.0]
    heard = scores_of([[owl, tit, tit, tit, owl, neither], [neither] * 3], [0, 0])
    rows = run_figures._of_noise(heard, chosen(None), 0.96)
    assert [row["confused_with"] for row in rows] == ["tit", None]
    assert rows[0]["windows_passing"] == pytest.approx(5 / 6)
    assert rows[0]["per_class"][0]["class"] == "owl"  # which has more alarms


def test_made_noise_is_decided_as_a_recording_of_it_would_be() -> None:
    tit, neither = [0.0, 0.05, 0.95], [0.9, 0.1, 0.0]
    heard = replace(
        scores_of([[tit] * 3, [tit] * 3, [neither] * 3, [tit] * 3], [0] * 4),
        recordings=("white noise", "pink noise", "clicks", SILENCE),
        ood_score=np.array([0.5, 1.5, 0.5, 0.5], np.float32),
    )
    rows = run_figures._of_noise(heard, chosen(None), 0.96)
    assert [row["decision"] for row in rows] == ["tit", None, None, None]  # OOD, below its threshold, silent
    assert [row["recordings_decided"] for row in rows] == [1, 0, 0, 0]
    assert rows[0]["score"] == pytest.approx(0.95) and rows[3]["score"] is None
    assert [row["windows_passing"] for row in rows] == [1.0, 1.0, 0.0, 1.0]  # each window alone


def test_the_reason_why_nothing_is_called_out_of_distribution_is_reported() -> None:
    few = {part: OodMeasures(np.arange(5.0), np.zeros(5)) for part in ("val", "noise")}
    for found, why in (
        (judge(run_of(5, 0), None, few), "validation has too few source recordings (5)"),
        (judge(run_of(5, 0), None), "embeddings of training recordings do not differ"),
        (judge(run_of(5, 0), None, target_recall=1.0), "--ood.target-recall 1"),
    ):
        assert why in found.figures["ood"]["reason"] and found.figures["ood"]["scale"] is None
        assert found.scores["val"].ood_score is None and found.figures["val"]["ood"] is None


def test_scores_keep_the_ood_scores_of_recordings(tmp_path: Path) -> None:
    scores = replace(run_of(9, 0), ood_score=np.arange(9, dtype=np.float32))
    scores.save(tmp_path / "s.npz")
    found = Scores.load(tmp_path / "s.npz").ood_score
    assert found is not None and found.tolist() == list(range(9))
    assert subset(scores, np.arange(9) > 6).ood_score.tolist() == [7, 8]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="OOD scores of 9 recordings"):
        replace(scores, ood_score=np.zeros(3, np.float32))
