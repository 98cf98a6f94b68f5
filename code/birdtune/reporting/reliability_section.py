"""Whether the certainty of answers can be believed, for people: sentences and pictures.

    figures of test or validation, trust ─▶ section ─▶ what the report says under "Can its certainty be believed?"
                             answers ─▶ answered_sentence ─▶ what it says of that on its first screen
"""

from collections.abc import Mapping
from typing import Any

from birdtune.evaluation.decision import BACKGROUND, NOMINAL, OWN, SHARED
from birdtune.reporting import figures
from birdtune.runtime.text import NBSP, count, percent, span

Row = Mapping[str, Any]

# Certainty and truth that differ by less than this are taken for equal.
_CLOSE = 0.05
# Of fewer sources, or where luck alone makes a larger difference than this, nobody can vouch for a certainty.
_ENOUGH_SOURCES, _TELLING = 30, 0.1
# Of fewer recordings than these, a share says little of the next one.
_FEW = 10
# Fewer recordings than these with an answer are few.
_MOST_ANSWERED = 0.8
# Recordings shorter than this are clips: what goes on and on is heard in each of them anew.
_CLIP_S = 60.0


def section(judged: Row, part: str, trust: Row | None) -> Row | None:
    """Sentences and figures, before calibration and after; None where nobody looked.

    Args:
        judged: figures of the part that the report speaks of; part: its name, for people.
        trust: `calibration`, `thresholds` and `false_alarms` of metrics.json; None: it has none.
    """
    found = judged.get("certainty")
    if found is None:
        return None
    calibrated = trust is not None and not trust["calibration"]["reason"]
    origins = {row["from"] for row in trust["thresholds"]["classes"]} if trust is not None else set()
    chosen_on = part == "validation" and not {OWN, SHARED}.isdisjoint(origins)
    return {
        "sentence": calibration_sentence(found["after"], sources=judged["n_groups"], calibrated=calibrated),
        "meaning": meaning_sentence(found["around"], part),
        "answers": answers_sentence(judged["answers"], judged["n_recordings"], part, chosen_on=chosen_on),
        "thresholds": thresholds_sentence(trust["thresholds"]) if trust is not None else "",
        "background": background_words(trust["false_alarms"]["background"]) if trust is not None else "",
        "alarms": alarms_sentence(trust["false_alarms"]["background"]) if trust is not None else "",
        "before": figures.reliability(found["before"]["reliability"], "before calibration"),
        "after": figures.reliability(found["after"]["reliability"], "as it is served"),
        "rows": [("before calibration", found["before"]), ("as it is served", found["after"])],
    }


def calibration_sentence(after: Row, *, sources: int, calibrated: bool) -> str:
    """Whether the stated certainty can be taken at its word.

    Args:
        after: of `certainty.certainty`.
        sources: that were asked; calibrated: whether anything was.
    """
    lean, luck = after["certainty"] - after["accuracy"], after["ece_if_true_most"]
    off = count(round(100 * after["ece"]), "percentage point")
    most = f"{100 * luck:.0f}"
    telling = sources >= _ENOUGH_SOURCES and luck < _TELLING
    if after["ece"] < _CLOSE and telling:
        if calibrated:
            return f"What it says can be taken at its word: certainty and truth differ by {off} on average."
        return f"Certainty and truth differ by {off} on average, though nothing was calibrated."
    if after["ece"] <= luck and telling:
        return f"Certainty and truth differ by {off} on average, as luck makes exactly true certainties (up to {most})."
    if after["ece"] <= luck:
        return (
            "Beyond what luck makes of so few recordings, nothing can be said: certainty and truth differ by "
            f"{off} on average, and exactly true certainties might by up to {most}."
        )
    if after["ece"] < _CLOSE:
        return f"Certainty and truth differ by {off} on average, of few source recordings."
    if abs(lean) < after["ece"] / 2:
        return f"It is too sure at some levels and too modest at others, by {off} on average."
    too = "too sure of itself: it is right less often" if lean > 0 else "too modest: it is right more often"
    return f"It is {too} than it says, by {off} on average."


def meaning_sentence(around: Row, part: str) -> str:
    """What a score of 0.8 means, from data."""
    between = f"a score between {around['lo']:.1f} and {around['hi']:.1f}"
    if not around["count"]:
        return f"What a score of {around['score']:g} means was not seen: no {part} recording had {between}."
    was = "was" if around["right"] == 1 else "were"
    found = (
        f"Of the {count(around['count'], part + ' recording')} with {between}, {around['right']} {was} right: "
        f"{percent(around['share'])}"
    )
    interval = f" (95{NBSP}% interval: {span(around['share_ci'])})" if around["share_ci"] else ""
    little = around["count"] < _FEW
    means = f"a score of {around['score']:g} means here"
    return f"{found}{interval}. " + (f"So few tell little of what {means}." if little else f"That is what {means}.")


def thresholds_sentence(chosen: Row) -> str:
    """Where the thresholds come from; `chosen`: as `Thresholds.row`."""
    asked = [row for row in chosen["classes"] if row["from"] != BACKGROUND]
    stand_in = [row["threshold"] for row in asked if row["from"] == NOMINAL]
    nominal = f"nominal: a score of {stand_in[0]:g}" if stand_in else ""
    if not nominal:
        return f"The thresholds were chosen on validation, for {chosen['wish']}."
    if len(stand_in) == len(asked):
        return f"The thresholds are {nominal}."
    of = f"{len(asked) - len(stand_in)} of {count(len(asked), 'class')}"
    wish = f"for {chosen['wish']}"
    return f"The thresholds of {of} were chosen on validation, {wish}; those of the others are {nominal}."


def answers_sentence(answers: Row, n: int, part: str, *, chosen_on: bool) -> str:
    """What the thresholds do to answers; `chosen_on`: whether they were chosen on these recordings."""
    if not answers["answered"]:
        return f"None of the {count(n, part + ' recording')} got an answer: no score passed its threshold."
    found = (
        f"{answers['answered']:,} of the {count(n, part + ' recording')} got an answer, and of these "
        f"{percent(answers['precision'])} were right"
    )
    interval = f" ({span(answers['precision_ci'])})" if answers["precision_ci"] else ""
    others = "; the others got none" if answers["answered"] < n else ""
    same = " The thresholds were chosen on these very recordings: of others, fewer will be right." if chosen_on else ""
    return f"{found}{interval}{others}.{same}"


def answered_sentence(judged: Row) -> str:
    """How many recordings get an answer at all, beside the share of right names; "" where all do, or nobody knows."""
    answers = judged.get("answers")
    if answers is None or answers["answered_share"] is None or answers["answered_share"] == 1:
        return ""
    if not answers["answered"]:
        return "With its thresholds, no recording gets an answer."
    got = answers["answered"]
    right = round(answers["precision"] * got)
    only = "only " if answers["answered_share"] < _MOST_ANSWERED else ""
    of = f"{only}{got:,} of the {judged['n_recordings']:,}"
    return f"With its thresholds, {of} get an answer, {right:,} of them a right one; the others get “none”."


def background_words(heard: Row | None) -> str:
    """What part the background had in choosing; `heard`: `false_alarms.background` of metrics.json."""
    if heard is None or heard["part"] == "test":
        return "that it was neither trained on nor chosen with"
    # A run of an older birdtune does not say.
    chosen_on = heard.get("chosen_on", True)
    return "on which its thresholds were chosen" if chosen_on else "by which its best epoch was chosen"


def alarms_sentence(heard: Row | None) -> str:
    """What an alarm is, and what its rate is worth; `heard`: as `thresholds.false_alarms`, None: no background."""
    found = "An alarm is an unbroken run of patches that pass for one class, however strange the whole recording is."
    if heard is None:
        return found
    each_s = 3600 * heard["hours"] / heard["recordings"]
    answered = count(heard["recordings_answered"], "recording")
    if heard["part"] == "val":
        found += (
            " This rate is too low for other background, because there is none in the test part: more source "
            "recordings in input/background/, or a larger --split.test-fraction, put some there."
        )
    found += f" As a whole, {answered} of the {heard['recordings']:,} would be answered with a class."
    if each_s < _CLIP_S:
        found += (
            f" The recordings last {each_s:.0f} s on average, and an alarm ends with its recording: of the "
            f"{3600 / each_s:,.0f} that make an hour, each gives one of its own, where a long recording has one for "
            "all that goes on and on. Compare this rate only with that of recordings as short."
        )
    return found
