"""birdtune.evaluation.detections: from window scores to calls with times, by hand."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from birdtune.evaluation.decision import Thresholds
from birdtune.evaluation.detections import Detection, Detector, Rule, detect, smoothed


def rule(on: float = 0.8, off: float = 0.4, n_classes: int = 1, **more: Any) -> Rule:
    return Rule(np.full(n_classes, on), np.full(n_classes, off), **more)


def found(scores: list[float], how: Rule, *, hop_s: float = 1.0, window_s: float = 1.0) -> list[tuple[float, ...]]:
    """Start, end and score of the detections in one class's scores."""
    start_s = np.arange(len(scores)) * hop_s
    column = np.array(scores, np.float32)[:, None]
    made = detect(start_s, column, how, window_s=window_s, end_s=start_s[-1] + window_s)
    return [(each.start_s, each.end_s, pytest.approx(each.score)) for each in made]


def test_windows_above_the_threshold_are_a_detection_from_the_first_to_the_last() -> None:
    assert found([0, 0.9, 0.85, 0, 0, 0.8, 0], rule()) == [(1, 3, 0.9), (5, 6, 0.8)]


def test_nothing_is_detected_in_low_scores_nor_in_no_window() -> None:
    assert found([0.1, 0.79, 0.5], rule()) == []
    assert detect(np.zeros(0), np.zeros((0, 1)), rule(), window_s=1.0, end_s=0.0) == []


def test_a_detection_lasts_until_the_score_falls_below_off_and_needs_one_window_at_on() -> None:
    scores = [0.1, 0.5, 0.9, 0.4, 0.39, 0.5, 0.6, 0.5, 0.1]
    assert found(scores, rule()) == [(1, 4, 0.9)]
    assert found(scores, rule(off=0.8)) == [(2, 3, 0.9)]


def test_the_first_and_last_windows_reach_to_the_ends_of_the_recording() -> None:
    assert found([0.9, 0, 0.9], rule(), hop_s=0.5, window_s=2.0) == [(0, 1.25, 0.9), (1.75, 3, 0.9)]


def test_an_overlapping_window_speaks_for_the_time_around_its_centre() -> None:
    # Windows of 3 s each 1.5 s: centres at 1.5, 3, 4.5, 6; edges at 2.25, 3.75, 5.25.
    assert found([0, 0.9, 0.9, 0], rule(), hop_s=1.5, window_s=3.0) == [(2.25, 5.25, 0.9)]


def test_windows_at_uneven_distances_meet_half_way() -> None:
    start_s = np.array([0.0, 1.0, 1.6])  # the last ends with the recording
    made = detect(start_s, np.array([[0.0], [0.9], [0.0]]), rule(), window_s=1.0, end_s=2.6)
    assert [(each.start_s, each.end_s) for each in made] == [(1.0, pytest.approx(1.8))]


@pytest.mark.parametrize(
    ("gap_s", "wanted"),
    [(0.0, [(0, 1), (2, 3), (6, 7)]), (1.0, [(0, 3), (6, 7)]), (2.9, [(0, 3), (6, 7)]), (3.0, [(0, 7)])],
)
def test_detections_with_a_short_gap_between_are_merged(gap_s: float, wanted: list[tuple[float, float]]) -> None:
    made = found([0.9, 0, 0.95, 0, 0, 0, 0.9, 0], rule(merge_gap_s=gap_s))
    assert [each[:2] for each in made] == wanted
    assert max(each[2].expected for each in made) == pytest.approx(0.95)


def test_a_run_without_a_score_of_on_neither_counts_nor_bridges_a_gap() -> None:
    assert [each[:2] for each in found([0.9, 0, 0.5, 0, 0.9], rule(merge_gap_s=2.0))] == [(0, 1), (4, 5)]


def test_short_detections_are_left_out_after_merging() -> None:
    scores = [0.9, 0, 0, 0, 0.9, 0, 0.9, 0]
    assert found(scores, rule(min_s=2.0)) == []
    assert found(scores, rule(min_s=2.0, merge_gap_s=1.0)) == [(4, 7, 0.9)]


def test_smoothing_takes_the_mean_of_log_odds_so_that_single_peaks_go_and_single_gaps_are_filled() -> None:
    scores = [0.01, 0.9, 0.01, 0.01, 0.95, 0.95, 0.4, 0.95, 0.9, 0.01, 0.01]
    wanted = (4, 9, pytest.approx(expit((3 * logit(0.95) + logit(0.4)) / 4)))  # the window itself counts twice
    assert found(scores, rule(smooth_windows=3, off=0.5)) == [wanted]
    # Beyond the ends, the outermost window stands again.
    ends = smoothed(np.array([[0.9], [0.5], [0.1]]), 3)[:, 0]
    assert ends == pytest.approx([expit(3 * logit(0.9) / 4), 0.5, expit(3 * logit(0.1) / 4)])


def test_a_score_of_zero_outweighs_certain_neighbours_only_so_far() -> None:
    scores = np.array([[1.0], [1.0], [0.0], [1.0], [1.0]])  # of weights 1, 2, 3, 2, 1
    assert smoothed(scores, 5)[2, 0] == pytest.approx(expit(logit(1 - 1e-6) / 3))


def test_classes_are_detected_side_by_side_each_by_its_own_thresholds() -> None:
    how = Rule(np.array([0.5, 0.9, np.inf]), np.array([0.25, 0.45, np.inf]))
    scores = np.array([[0.6, 0.6, 1.0], [0.6, 0.95, 1.0], [0.1, 0.5, 1.0], [0.1, 0.1, 1.0]])
    made = detect(np.arange(4.0), scores, how, window_s=1.0, end_s=4.0)
    assert [(each.column, each.start_s, each.end_s) for each in made] == [(0, 0, 2), (1, 0, 3)]


def test_the_highest_window_is_the_peak_and_what_was_given_is_summed_over_the_windows() -> None:
    detector = Detector(rule(merge_gap_s=1.0), 1.0)
    scores = np.array([[0.9], [0.1], [0.85], [0.95], [0.2]])
    (made,) = [*detector.add(np.arange(5.0), scores, 10.0 ** np.arange(5)[:, None]), *detector.end(5.0)]
    assert (made.peak_s, made.score) == (3.0, 0.95)
    assert made.sums is not None and made.sums.tolist() == [1101.0]


@given(
    scores=st.lists(st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.85, 0.9])] * 2), min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 12), max_size=8),
    smooth=st.sampled_from([1, 3, 5]), gap_s=st.sampled_from([0.0, 1.0, 2.5]), min_s=st.sampled_from([0.0, 2.0]),
)  # fmt: skip
def test_parts_give_what_the_whole_gives(
    scores: list[tuple[float, float]], cuts: list[int], smooth: int, gap_s: float, min_s: float
) -> None:
    how = rule(n_classes=2, smooth_windows=smooth, merge_gap_s=gap_s, min_s=min_s)
    start_s, values = np.arange(len(scores)) * 0.75, np.array(scores)
    end_s = float(start_s[-1]) + 2.0
    whole = detect(start_s, values, how, window_s=2.0, end_s=end_s)
    detector, parts, at = Detector(how, 2.0), list[Detection](), 0
    for size in [*cuts, len(scores)]:
        parts += detector.add(start_s[at : at + size], values[at : at + size], values[at : at + size])
        at += size
    parts += detector.end(end_s)
    parts.sort(key=lambda each: (each.start_s, each.column))

    def rows(given: list[Detection]) -> list[tuple[float, ...]]:
        return [(each.column, each.start_s, each.end_s, each.score, each.peak_s) for each in given]

    assert rows(parts) == rows(whole)


def test_detections_are_given_out_as_soon_as_nothing_can_be_merged_with_them() -> None:
    detector = Detector(rule(merge_gap_s=2.0), 1.0)
    made = [len(detector.add(np.array([k]), np.array([[0.9 if k % 10 == 0 else 0.0]]))) for k in range(31)]
    assert [k for k, n in enumerate(made) if n] == [4, 14, 24]  # three windows later, when the gap is above 2 s
    assert len(detector.end(31.0)) == 1


def test_the_rule_of_a_model_takes_its_thresholds_or_the_scores_that_are_asked_for() -> None:
    model = Thresholds((0.6, 0.9, np.inf), ("class", "all classes", "background"), "", "")
    assert Rule.of(model).on.tolist() == [0.6, 0.9, np.inf]
    assert Rule.of(model).off.tolist() == pytest.approx([0.45, 0.675, np.inf])
    asked = Rule.of(model, 0.5, 0.7, min_s=1.0)
    assert (asked.on.tolist(), asked.off.tolist(), asked.min_s) == ([0.5, 0.5, np.inf], [0.5, 0.5, np.inf], 1.0)
    only = asked.only([1])
    assert (only.on.tolist(), only.min_s) == ([np.inf, 0.5, np.inf], 1.0)


@pytest.mark.parametrize("wrong", [{"smooth_windows": 2}, {"smooth_windows": 0}, {"off": 0.9}])
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no middle one|off above on"):
        rule(**wrong)
