"""The published classes that a model keeps, for people.

    `published` of metrics.json ─▶ section ─▶ the report's section "Published classes";  ─▶ sentences, also for the log
"""

from collections.abc import Mapping
from typing import Any

from birdtune.reporting import figures
from birdtune.runtime.text import count, percent, points, span

Row = Mapping[str, Any]

_SAME = (
    " Both have the same weights: in this model the classes compete in each window (softmax), there each is scored "
    "on its own."
)


def section(row: Row | None) -> Row | None:
    """`row`, `sentences`, and `picture` (None where there was no test recording); None: no published class is kept."""
    if row is None:
        return None
    test = row["test"]
    picture = figures.reliability(test["calibration"]["after"]["bins"], "published classes") if test else None
    return {"row": row, "sentences": sentences(row), "picture": picture}


def sentences(row: Row) -> list[str]:
    """What the calibration rests on, and how the published classifier does beside the head."""
    others = [_others(row)] if row["others"] else []
    return [_calibration(row), _threshold(row["threshold"]), _test(row["test"]), *others]


def _calibration(row: Row) -> str:
    found = row["calibration"]
    if found["reason"]:
        return f"Published scores are not calibrated (a = 1, b = 0): {found['reason']}."
    window, clip = ({name: f"{found[part][name]:.2f}" for name in ("slope", "offset")} for part in ("window", "clip"))
    return (
        f"Published scores are sigmoid(a · logit + b) with a = {window['slope']}, b = {window['offset']} for windows, "
        f"and a = {clip['slope']}, b = {clip['offset']} for the log odds of their mean over a recording, fitted on "
        f"{count(found['sources'], 'source recording')} of validation by "
        f"{count(len(set(row['matched'].values())), 'published class')} that the data have as well."
    )


def _threshold(found: Row) -> str:
    whole, window = found["recording"], found["window"]
    if not whole["sources"]:
        return f"A published class counts from {whole['score']:g} on: there is no validation recording to choose by."
    return (
        f"A published class counts from {whole['score']:.3f} on for a recording, and from {window['score']:.3f} on for "
        f"one window. By {count(whole['sources'], 'source recording')} of validation, one of them reaches that on at "
        f"most {percent(whole['expected'])} of recordings, and on about {percent(window['expected'])} of windows, "
        "without any."
    )


def _test(test: Row | None) -> str:
    if test is None:
        return "No test recording has a published class, so the published scores were not tested."
    published, head = test["published"], test["head"]
    low, high = test["difference_ci"] or (0.0, 0.0)
    interval = f" (95 %: {points((-high, -low))})" if test["difference_ci"] else ""
    after = test["calibration"]["after"]
    return (
        f"Among the {count(test['classes'], 'class')} that both have, on {count(test['recordings'], 'test recording')} "
        f"of {count(test['sources'], 'source')}, the published classifier is right for {percent(published['accuracy'])}"
        f"{_span(published)}, the head of this model for {percent(head['accuracy'])}{_span(head)}: "
        f"{round(-100 * test['difference']) or 0:+d} percentage points{interval}. Mean confidence of the published "
        f"scores {percent(after['confidence'])}, calibration error {after['ece']:.3f} ({after['ece_null']:.3f} under "
        "perfect calibration)."
    )


def alone(row: Row) -> str:
    """How the published classifier does alone beside the head that began from it."""
    low, high = row["difference_ci"] or (0.0, 0.0)
    difference = round(-100 * row["difference"]) or 0  # of this model to the published one
    interval = f" (95 %: {points((-high, -low))})" if row["difference_ci"] else ""
    return (
        f"{row['backbone']}'s own classifier, asked for the {count(row['classes'], 'class')} that it knows, is right "
        f"for {percent(row['published']['accuracy'])}{_span(row['published'])} of "
        f"{count(row['recordings'], 'test recording')}, this model for {percent(row['head']['accuracy'])}"
        f"{_span(row['head'])}. Difference: {difference:+d} percentage points{interval}."
        + (_SAME if row["same_weights"] else "")
    )


def _others(row: Row) -> str:
    found, windows = row["others"]["recording"], row["others"]["window"]
    return (
        f"On {found['above']:,} of {count(found['n'], 'test recording')}, and {windows['above']:,} of "
        f"{count(windows['n'], 'window')} of them, one of the {count(row['n_kept'], 'published class')} that are kept "
        f"reaches its threshold (0.5: {found['above_least']:,} and {windows['above_least']:,}; their highest is "
        f"{found['median']:.2f} in the median of recordings): it sings there without a label, or that is a false alarm."
    )


def _span(row: Row) -> str:
    return f" ({span(row['accuracy_ci'])})" if row["accuracy_ci"] else ""
