"""Calibration, decisions and false alarms, for people: sentences and pictures.

    figures of test or validation, trust ─▶ section ─▶ the report's section "Calibration"
                           decisions ─▶ decided_sentence ─▶ what its first screen says of them
"""

from collections.abc import Mapping
from typing import Any

from birdtune.evaluation.decision import BACKGROUND, NOMINAL, OWN, SHARED
from birdtune.evaluation.genera import FAMILY
from birdtune.reporting import figures
from birdtune.runtime.text import NBSP, count, percent, some, span

Row = Mapping[str, Any]

# A calibration error below this is negligible.
_CLOSE = 0.05
# Of fewer sources, or where chance alone makes a larger error than this, nothing can be said.
_ENOUGH_SOURCES, _TELLING = 30, 0.1
# A share of fewer recordings than these says little of the next one.
_FEW = 10
# Where fewer recordings than this get a class, they are few.
_MOST_DECIDED = 0.8
# Recordings shorter than this are clips: a continuous sound raises an alarm in each of them.
_CLIP_S = 60.0


def section(metrics: Row, part: str, trust: Row | None) -> Row | None:
    """Sentences and figures, before calibration and after; None where it was not evaluated.

    Args:
        metrics: figures of the part that the report speaks of; part: its name, for people.
        trust: `calibration`, `thresholds` and `false_alarms` of metrics.json; None: it has none.
    """
    found = metrics.get("calibration")
    if found is None:
        return None
    noun = found["of"].removesuffix("s")
    calibrated = trust is not None and not trust["calibration"]["reason"]
    origins = {row["from"] for row in trust["thresholds"]["classes"]} if trust is not None else set()
    chosen_on = part == "validation" and not {OWN, SHARED}.isdisjoint(origins)
    return {
        "noun": noun,
        "sentence": calibration_sentence(found["after"], sources=metrics["n_sources"], calibrated=calibrated),
        "meaning": meaning_sentence(found["around"], f"{part} {noun}"),
        "decisions": _events_sentence(metrics["events"])
        if metrics.get("events")
        else decisions_sentence(metrics["decisions"], metrics["n_recordings"], part, chosen_on=chosen_on),
        "thresholds": thresholds_sentence(thresholds_of(trust)) if trust is not None else "",
        "genera": " ".join(genera_sentence((trust or {}).get(name)) for name in ("genera", "families")).strip(),
        "why": thresholds_of(trust)["reason"] if trust is not None else "",
        "background": background_words(trust["false_alarms"]["background"]) if trust is not None else "",
        "alarms": alarms_sentence(trust["false_alarms"]["background"]) if trust is not None else "",
        # What was not calibrated is served as it was before.
        "before": figures.reliability(found["before"]["bins"], "before calibration") if calibrated else None,
        "after": figures.reliability(found["after"]["bins"], "as served"),
        "rows": [*([("before calibration", found["before"])] if calibrated else []), ("as served", found["after"])],
    }


def calibration_sentence(after: Row, *, sources: int, calibrated: bool) -> str:
    """Whether confidence can be read as accuracy.

    Args:
        after: of `reliability.evaluate_calibration`.
        sources: source recordings that it rests on; calibrated: whether anything was fitted.
    """
    lean, upper = after["confidence"] - after["accuracy"], after["ece_null_upper"]
    off = count(round(100 * after["ece"]), "percentage point")
    most = f"{100 * upper:.0f}"
    telling = sources >= _ENOUGH_SOURCES and upper < _TELLING
    if after["ece"] < _CLOSE and telling:
        if calibrated:
            return f"Well calibrated: confidence and accuracy differ by {off} on average."
        return f"Confidence and accuracy differ by {off} on average, though nothing was calibrated."
    if after["ece"] <= upper and telling:
        return (
            f"Confidence and accuracy differ by {off} on average, no more than by chance under perfect calibration "
            f"(up to {most})."
        )
    if after["ece"] <= upper:
        return (
            f"Too few recordings to tell: confidence and accuracy differ by {off} on average, and under perfect "
            f"calibration they might by up to {most}."
        )
    if after["ece"] < _CLOSE:
        return f"Confidence and accuracy differ by {off} on average, measured on few source recordings."
    if abs(lean) < after["ece"] / 2:
        return f"Overconfident at some levels and underconfident at others, by {off} on average."
    word = "Overconfident: it is right less often" if lean > 0 else "Underconfident: it is right more often"
    return f"{word} than its confidence says, by {off} on average."


def meaning_sentence(around: Row, what: str) -> str:
    """What a score of 0.8 means, from data; `what` has scores, e.g. "test recording"."""
    between = f"a score between {around['lo']:.1f} and {around['hi']:.1f}"
    if not around["count"]:
        return f"What a score of {around['score']:g} means is not known: no {what} had {between}."
    was = "was" if around["right"] == 1 else "were"
    found = (
        f"Of the {count(around['count'], what)} with {between}, {around['right']} {was} right: "
        f"{percent(around['share'])}"
    )
    interval = f" (95{NBSP}% interval: {span(around['share_ci'])})" if around["share_ci"] else ""
    little = around["count"] < _FEW
    means = f"a score of {around['score']:g} means here"
    return f"{found}{interval}. " + (f"So few say little of what {means}." if little else f"That is what {means}.")


def thresholds_of(trust: Row) -> Row:
    """Those that the page speaks of: of detections where they were chosen, else of recordings; of metrics.json."""
    found: Row = trust.get("detection_thresholds") or trust["thresholds"]
    return found


def thresholds_sentence(chosen: Row) -> str:
    """Where the thresholds come from; `chosen`: as `Thresholds.row`."""
    asked = [row for row in chosen["classes"] if row["from"] != BACKGROUND]
    stand_in = [row["threshold"] for row in asked if row["from"] == NOMINAL]
    nominal = f"nominal: a score of {stand_in[0]:g}" if stand_in else ""
    if not nominal:
        return f"The thresholds were chosen on held-out recordings, for {chosen['goal']}."
    if len(stand_in) == len(asked):
        return f"The thresholds are {nominal}."
    of = f"{len(asked) - len(stand_in)} of {count(len(asked), 'class')}"
    goal = f"for {chosen['goal']}"
    return f"The thresholds of {of} were chosen on held-out recordings, {goal}; those of the others are {nominal}."


def decisions_sentence(decisions: Row, n: int, part: str, *, chosen_on: bool) -> str:
    """What the thresholds do; `chosen_on`: whether they were chosen on these recordings."""
    if not decisions["decided"]:
        return f"All {count(n, part + ' recording')} were rejected as unknown: no score reached its threshold."
    rejected = n - decisions["decided"]
    interval = f" ({span(decisions['precision_ci'])})" if decisions["precision_ci"] else ""
    others = f"; {rejected:,} {'was' if rejected == 1 else 'were'} rejected as unknown" if rejected else ""
    same = " The thresholds were chosen on these very recordings: of others, fewer will be right." if chosen_on else ""
    return (
        f"A class was decided for in {decisions['decided']:,} of the {count(n, part + ' recording')}, "
        f"{percent(decisions['precision'])} of them correctly{interval}{others}.{same}"
    )


def genera_sentence(found: Row | None) -> str:
    """What is decided where no class passes; `found`: `genera` or `families` of metrics.json."""
    if found is None:
        return ""
    names = some([f"{name} ({count(len(members), 'class')})" for name, members in found["genera"].items()])
    rank = found["rank"]
    before = "class nor genus" if rank == FAMILY else "class"
    words = f"Where {'neither' if rank == FAMILY else 'no'} {before} passes, a {rank} may, by what its classes have "
    words += f"together: {names}."
    test = found["test"]
    if test is None:
        return words
    if not test["decided"]:
        return f"{words} In the test, none did."
    ci = f" ({span(test['precision_ci'])})" if test["precision_ci"] else ""
    return (
        f"{words} In the test, {test['decided']:,} of the {count(test['recordings'], 'recording')} got a {rank} so, "
        f"{percent(test['precision'])} of these the right one{ci}; a class was decided for in "
        f"{percent(test['of_classes_share'])} of the recordings."
    )


def _events_sentence(events: Row) -> str:
    """What the thresholds do where labels have times; `events`: of metrics.json."""
    row = events["events"]
    return (
        f"At the thresholds there are {count(row['detections'], 'detection')} in the "
        f"{count(events['recordings'], 'test recording')}. Of these {percent(row['precision'])} are right, and of the "
        f"{count(row['events'], 'annotated event')} {percent(row['recall'])} are detected."
    )


def decided_sentence(metrics: Row) -> str:
    """How many recordings get a class at all, for the first screen; "" where all do, or it is not known.

    Nor where events were detected: the mean over a recording may be below every threshold.
    """
    decisions = metrics.get("decisions")
    if metrics.get("window_answers") or decisions is None or decisions["decided_share"] in (None, 1):
        return ""
    if not decisions["decided"]:
        return "With the thresholds, every recording is rejected as unknown."
    got = decisions["decided"]
    only = "only " if decisions["decided_share"] < _MOST_DECIDED else ""
    return (
        f"With the thresholds, {only}{got:,} of the {metrics['n_recordings']:,} get a class, "
        f"{percent(decisions['precision'])} of these correctly; the others are rejected as unknown."
    )


def background_words(background: Row | None) -> str:
    """What part the background had in choosing; `background`: of `false_alarms` of metrics.json."""
    if background is None or background["part"] == "test":
        return "that the model was neither trained nor selected on"
    if background["chosen_on"]:
        return "on which the thresholds were chosen"
    return "on which the best epoch was chosen"


def alarms_sentence(background: Row | None) -> str:
    """What an alarm is, and what its rate is worth; `background`: as `false_alarms.count`, None: there is none."""
    found = (
        "An alarm is an unbroken run of windows whose score for one class reaches its threshold, whatever the OOD "
        "score of the whole recording."
    )
    if background is None:
        return found
    each_s = 3600 * background["hours"] / background["recordings"]
    decided = count(background["recordings_decided"], "recording")
    if background["part"] == "val":
        found += (
            " This rate is too low for other background, because there is none in the test part: more source "
            "recordings in input/background/, or a larger --split.test-fraction, put some there."
        )
    found += f" As wholes, {decided} of the {background['recordings']:,} would get a class."
    if each_s < _CLIP_S:
        found += (
            f" The recordings last {each_s:.0f} s on average, and an alarm ends with its recording: a continuous sound "
            f"raises one alarm in a long recording, and up to {3600 / each_s:,.0f} an hour in clips like these. "
            "Compare this rate only with that of recordings as short."
        )
    return found
