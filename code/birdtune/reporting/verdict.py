"""Diagnostics of the figures, and with those of training a verdict.

    metrics.json ─▶ of_scores, of_noise ─────────┐
    label_issues.json ─▶ of_labels ──────────────┤
    metrics.json ─▶ leak.diagnose ───────────────┤
    its `shortcuts` ─▶ of_shortcuts ─────────────┤
    its `model_comparison` ─▶ its `diagnose` ────┤
    history.json ─▶ of_training ─────────────────┴▶ all_diagnostics ─▶ verdict: none, poor, fair or good

This is the one place that says how far to trust a model; log, run.json, metrics.json and report repeat it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from birdtune.evaluation import leak, model_comparison
from birdtune.evaluation.diagnostics import MILD, STRONG, Diagnostic, Row, dead_embeddings, of_training
from birdtune.reporting.shortcut_section import of_shortcuts
from birdtune.runtime.text import count, plain, points, some, span
from birdtune.runtime.text import plain_percent as percent

# Below this many source recordings, or above this width of the interval, a test is called small.
SMALL_TEST_SOURCES = 30
WIDE_INTERVAL = 0.2
# Label issues: this share of the scored labels, or so many of test, is a warning; fewer than so many never are.
# Right labels are listed at a rate of one or two in 400 (ESC-10).
_ISSUE_SHARE, _FEW_ISSUES = 0.01, 3
# The codes that say that nothing useful was learnt.
_UNLEARNT = ("loss-never-moved", "nothing-learnt", "not-above-baseline", "not-above-chance", "collapsed")
# Read first: it says what a good figure may be worth, where one of the test's size only says how well it is known.
_FIRST = ("shortcut",)
# Collapsed: this share of the predictions is a third of the classes that make up as much of the recordings, or fewer.
_COLLAPSED_SHARE, _COLLAPSED_TO = 0.9, 3
_FEWEST_PREDICTED = 10  # of fewer predictions, nothing follows


@dataclass(frozen=True)
class Verdict:
    """How far to trust a model, in a word and in a sentence or two."""

    level: str  # "none" (not measured), "poor", "fair" or "good"
    title: str
    text: str


def all_diagnostics(trained: Row, figures: Row, label_issues: Row | None = None) -> list[Diagnostic]:
    """All warnings about a model: strong ones first, causes before their consequences.

    Args:
        trained: as `diagnostics.of_training`, with `augmented` (what is done to windows, in words).
        figures: metrics.json, as far as it goes: `val` and `test` (as `of_scores`), `leak`, `shortcuts`,
            `false_alarms`, `model_comparison`.
        label_issues: label_issues.json; None: labels were not checked.
    """
    of_weights = of_training(trained)
    codes = {each.code for each in of_weights}
    found = [*of_weights, *(each for each in of_scores(figures) if each.code not in codes)]
    found += [*leak.diagnose(figures.get("leak")), *of_shortcuts(figures.get("shortcuts"))]
    found += [*of_labels(label_issues), *of_noise((figures.get("false_alarms") or {}).get("noise", []))]
    found += model_comparison.diagnose(figures.get("model_comparison"))
    ordered = sorted(found, key=lambda each: (each.severity != STRONG, each.code not in _FIRST))
    return [*_augmented(ordered, trained.get("augmented") or []), *ordered]


def _augmented(found: Sequence[Diagnostic], settings: Sequence[str]) -> Iterator[Diagnostic]:
    """What may have spoilt the windows, before all that may be wrong with labels and learning rate."""
    if settings and any(each.code in _UNLEARNT and each.severity == STRONG for each in found):
        yield Diagnostic(
            "augmented",
            STRONG,
            f"Nothing useful was learnt, and augmentation was on: {some(settings, len(settings))}.",
            "Leave it out first, before anything that is advised below. Where that helps, turn one after another on "
            "again, weaker: `augment` draws what is left of the windows.",
        )


def verdict(figures: Row, found: Sequence[Diagnostic]) -> Verdict:
    """How far to trust a model, for somebody who knows birds and no statistics.

    Args:
        figures: "val" and "test" of metrics.json, which may be missing; found: as `all_diagnostics`.
    """
    strong = {each.code for each in found if each.severity == STRONG}
    mild = {each.code: each for each in found if each.severity == MILD}
    part = figures.get("test") or figures.get("val")
    if part is None or "nothing-measured" in strong:
        return Verdict("none", "Nothing was measured", "Do not rely on it.")
    if strong:
        return Verdict("poor", _poor_title(strong), "Do not rely on its predictions.")
    if "shortcut" in mild:
        return Verdict(
            "fair", "Better than guessing, perhaps by the recording conditions in part", str(mild["shortcut"])
        )
    for code in ("no-test", "test-seen-before"):
        if code in mild:
            return Verdict("fair", "Better than guessing, but not independently tested", str(mild[code]))
    if "small-test" in mild:
        return Verdict("fair", "Better than guessing, measured on little", str(mild["small-test"]))
    sources = count(part["n_sources"], "source recording")
    return Verdict(
        "good",
        "Clearly better than guessing",
        f"The test rests on {sources} that are not in training. It was not tested elsewhere: other places, recorders "
        "and seasons may be harder.",
    )


def _poor_title(strong: set[str]) -> str:
    if {"not-above-baseline", "not-above-chance"} & strong:
        return "Not shown to be better than guessing"
    if "shortcut" in strong and strong <= {"shortcut", "test-too-small"}:
        return "It may recognise the recording conditions, not the bird"
    if "test-leak" in strong and strong <= {"test-leak", "test-too-small"}:
        return "It may recognise recordings, not the bird"
    if "test-too-small" in strong:
        return "Not shown to be better than guessing"
    return "Better than guessing, but something is wrong"


# ---- figures -------------------------------------------------------------------------------------


def of_scores(figures: Row) -> list[Diagnostic]:
    """Warnings from the figures of validation and test.

    Args:
        figures: "val" and "test" → as `part.evaluate_part`, with `live_embeddings` where it is known; or None.
    """
    val, test = figures.get("val"), figures.get("test")
    chief = test or val
    if chief is None:
        return [
            Diagnostic(
                "nothing-measured",
                STRONG,
                "Nothing was measured: there were too few source recordings to keep any apart for a test.",
                "How good it is, is unknown; add recordings of other individuals, places or days, and run again.",
            )
        ]
    part = "test" if test else "validation"
    answers = chief.get("window_answers")
    against = _windows_against_guessing if answers else _against_guessing
    found = [*_dead_scores(part, chief), *against(part, chief, STRONG)]
    if test and val:
        found += against("validation", val, MILD)
    if not answers:  # where labels have times, the mean over a recording may be below every threshold
        found += _collapsed(part, chief)
    found += _classes(part, chief)
    if not test:
        found.append(
            Diagnostic(
                "no-test",
                MILD,
                "There is no test: the figures come from validation recordings, on which the model was selected.",
                "They are optimistic. Expect less in the field; more source recordings leave some for a test.",
            )
        )
    return [*found, *_small(part, chief)]


def of_labels(found: Row | None) -> Iterator[Diagnostic]:
    """Label issues, where they are more than a few; `found`: label_issues.json."""
    rows = found["rows"] if found else []
    of_test = len([row for row in rows if row["split"] == "test"])
    if found and len(rows) >= _FEW_ISSUES:
        if len(rows) < _ISSUE_SHARE * found["scored"] and of_test < _FEW_ISSUES:
            return
        first = rows[0]
        missing = " or missing" if found.get("several") else ""
        beside = f", {of_test} of them of test recordings" if of_test else ""
        yield Diagnostic(
            "label-issues",
            MILD,
            f"{len(rows):,} of {found['scored']:,} labels may be wrong{missing}{beside}: first "
            f"{some([first['recording']])}, {_contradiction(first)}.",
            "Listen to them (“Label issues”; all are in label_issues.csv), correct what is wrong, and run "
            "again. In training they mislead the model; in test its right predictions count as errors.",
        )


def _contradiction(row: Row) -> str:
    if not row["suggested"]:
        return f"labelled {some([row['class']])}, which scores low by other sources"
    if not row["class"]:
        return f"without the label {some([row['suggested']])}, which it sounds like"
    return f"labelled {some([row['class']])}, which sounds like {some([row['suggested']])}"


def of_noise(noise: Sequence[Row]) -> Iterator[Diagnostic]:
    """Classes that are decided for, as `predict` would, in synthetic noise; `noise`: of `false_alarms`."""
    accepted = [row for row in noise if row["decision"] is not None]
    if accepted:
        names = some([f"{row['noise']} ({row['decision']}, {percent(row['score'])})" for row in accepted])
        yield Diagnostic(
            "noise-accepted",
            MILD,
            f"Synthetic noise is classified, not rejected: {names}.",
            "Unless the class sounds like that, expect false alarms where nothing calls. Put recordings without any of "
            "the classes into input/background/, and set --evaluate.false-alarms-per-hour.",
        )


def _dead_scores(part: str, figures: Row) -> Iterator[Diagnostic]:
    if figures.get("live_embeddings") == 0:
        yield dead_embeddings(f"The network gives the same embedding for every {part} window")


def _against_guessing(part: str, figures: Row, severity: str) -> Iterator[Diagnostic]:
    """Accuracy against the majority class; where that is fine, average precision against a random order."""
    clip, baseline, ends = figures["clip"], figures["majority_baseline"], figures["accuracy_gain_ci"]
    right = (
        f"the model is right for {percent(clip['accuracy'])} of the {figures['n_recordings']:,} recordings, the "
        f"constant prediction {some([figures['majority_class']])} for {percent(baseline)}"
    )
    order = _against_random_order(figures)
    sources = count(figures["n_sources"], "source recording")
    nothing = "It has learnt nothing useful. Do the labels fit the recordings? Are there enough of them?"
    also = f"; nor is average precision above a random order's: {order}" if order else ""
    if clip["accuracy"] is not None and clip["accuracy"] <= baseline:
        below = ends is not None and ends[1] <= 0  # significantly; of few recordings, any may be wrong
        text = f"On {part}, accuracy is not above the majority baseline: {right}{also}."
        yield Diagnostic("not-above-baseline", STRONG if below else severity, text, nothing)
    elif clip["accuracy"] is not None and (
        ends is None or (ends[0] <= 0 and figures["n_sources"] < SMALL_TEST_SOURCES)
    ):
        text = f"On {part}, accuracy may be chance: {right}, but they come from {sources} only."
        yield Diagnostic("test-too-small", severity, text, "More source recordings would show whether it is.")
    elif ends is not None and ends[0] <= 0:
        text = (
            f"On {part}, accuracy is not above the majority baseline by more than its interval: {right} ({sources}; "
            f"95 % interval of the difference {points(ends)}){also}."
        )
        yield Diagnostic("not-above-baseline", severity, text, nothing)
    elif order:
        text = f"On {part}, average precision is not above that of a random order by more than its interval: {order}."
        # Where all of few sources came out first, the interval is a rule of thumb (bootstrap.interval).
        by_chance = figures["n_sources"] < SMALL_TEST_SOURCES and clip["macro_ap"] > figures["macro_ap_chance"]
        advice = "Recordings of a class do not score higher for it than others do."
        yield Diagnostic("not-above-chance", MILD if by_chance else severity, text, advice)


def _windows_against_guessing(part: str, figures: Row, severity: str) -> Iterator[Diagnostic]:
    """Accuracy of windows against the answer that is right most often."""
    row = figures["window_answers"]
    if row["accuracy"] is None:
        return
    ends = row["gain_ci"]
    right = (
        f"the model is right for {percent(row['accuracy'])} of the {row['windows']:,} windows, the constant prediction "
        f"{some([row['majority']])} for {percent(row['majority_baseline'])}"
    )
    if row["gain"] <= 0 or ends is None or ends[0] <= 0:
        below = row["gain"] <= 0 and ends is not None and ends[1] <= 0
        few = row["gain"] > 0 and figures["n_sources"] < SMALL_TEST_SOURCES
        code = "test-too-small" if few else "not-above-baseline"
        advice = "More source recordings would show whether it is." if few else "Do the times of the labels fit?"
        text = f"On {part}, accuracy of windows is not above the majority baseline by more than its interval: {right}."
        yield Diagnostic(code, STRONG if below else severity, text, advice)


def _against_random_order(figures: Row) -> str:
    """Macro average precision beside chance, in words; "" where it is above by more than its interval."""
    clip, chance = figures["clip"], figures.get("macro_ap_chance")
    if chance is None or clip["macro_ap_ci"] is None or clip["macro_ap_ci"][0] > chance:
        return ""
    return f"{percent(clip['macro_ap'])} ({plain(span(clip['macro_ap_ci']))}) against {percent(chance)}"


def _collapsed(part: str, figures: Row) -> Iterator[Diagnostic]:
    rows = figures["per_class"]
    given = _fewest(rows, "predicted")
    true = _fewest(rows, "support")
    n_predicted = sum(row["predicted"] for row in rows)
    if n_predicted < _FEWEST_PREDICTED:
        return
    share = sum(row["predicted"] for row in rows if row["class"] in given) / n_predicted
    if len(given) < len(true) and len(given) <= max(1, len(true) // _COLLAPSED_TO):
        yield Diagnostic(
            "collapsed",
            STRONG,
            f"On {part}, predictions collapsed onto few classes: {percent(share)} are {some(given)}; "
            f"it takes {count(len(true), 'class')} to make up as much of the recordings.",
            "Likely causes: one class with far more recordings than others (--train.class-weight-alpha 0.5), or a "
            "network that has not learnt (see the loss).",
        )


def _fewest(rows: Sequence[Row], key: str) -> list[str]:
    """The fewest classes that together make up 90 % of a column, the largest first."""
    left = _COLLAPSED_SHARE * sum(row[key] for row in rows)
    chosen = []
    for row in sorted(rows, key=lambda row: -int(row[key])):
        if left <= 0:
            break
        chosen.append(str(row["class"]))
        left -= row[key]
    return chosen


def _classes(part: str, figures: Row) -> Iterator[Diagnostic]:
    confused = list(_confused(figures))
    if confused:
        parts = [f"{n} of {count(row['support'], 'recording')} of {row['class']} as {by}" for row, by, n in confused]
        yield Diagnostic(
            "confused-with-untrained",
            STRONG,
            f"On {part}, classes are mostly predicted as one without training recordings: {some(parts)}.",
            "Put its training recordings back, so that the two can be told apart. If its folder was renamed, give it "
            "its old name.",
        )
    explained = [row["class"] for row, *_ in confused]
    tested = [row for row in figures["per_class"] if row["support"]]
    asked, verb, what_of = _decided(figures, tested)
    missed = [row for row in asked if not row["recall"] and row["class"] not in explained]
    never = [row for row in missed if not row["predicted"]]
    wrong = [row for row in missed if row["predicted"]]
    for code, rows, what in (
        ("never-predicted", never, f"never {verb}"),
        ("never-right", wrong, f"never {verb} correctly"),
    ):
        if rows:
            yield Diagnostic(
                code,
                MILD,
                f"On {part}, {len(rows)} of {len(asked)} classes {'was' if len(rows) == 1 else 'were'} {what}: "
                f"{some([_with_count(row, what_of) for row in rows])}.",
                "More recordings of them help most; --train.class-weight-alpha 0.5 lets rare classes count for more.",
            )
    alone = [row for row in tested if row["n_sources"] == 1]
    if alone:
        yield Diagnostic(
            "one-source",
            MILD,
            f"{len(alone)} of {len(tested)} classes {'is' if len(alone) == 1 else 'are'} evaluated on one {part} "
            f"source each: {some([row['class'] for row in alone])}.",
            "Their own figures mean next to nothing.",
        )


def _decided(figures: Row, tested: list[Row]) -> tuple[list[Row], str, str]:
    """What of each class was decided, how that is called, and of what.

    Where labels have times, that is events: the mean over a recording may be below every threshold.
    """
    if not figures.get("window_answers"):
        return tested, "predicted", "recording"
    events = figures.get("events")
    rows = events["events"]["per_class"] if events else []
    own: list[Row] = [
        {**row, "support": row["events"], "predicted": row["detections"]} for row in rows if row["events"]
    ]
    return own, "detected", "event"


def _confused(figures: Row) -> Iterator[tuple[Row, str, int]]:
    """Classes most of whose recordings are predicted as one without training recordings, that class, and how many."""
    rows = figures["per_class"]
    untrained = [c for c, row in enumerate(rows) if row.get("train_recordings") == 0]
    for row, predicted in zip(rows, figures.get("confusion") or [], strict=False):
        by = max(untrained, key=lambda c: int(predicted[c]), default=None)
        if by is not None and rows[by]["class"] != row["class"] and 2 * predicted[by] > row["support"]:
            yield row, str(rows[by]["class"]), int(predicted[by])


def _with_count(row: Row, what: str = "recording") -> str:
    return f"{row['class']} ({count(row['support'], what)})"


def _small(part: str, figures: Row) -> Iterator[Diagnostic]:
    answers = figures.get("window_answers")
    ends, of = (answers or figures["clip"])["accuracy_ci"], " of windows" if answers else ""
    if ends is None or figures["n_sources"] < SMALL_TEST_SOURCES or ends[1] - ends[0] > WIDE_INTERVAL:
        lies = f"may lie anywhere from {plain(span(ends))}" if ends else "has no interval, so it may be far off"
        yield Diagnostic(
            "small-test",
            MILD,
            f"The {part} rests on {count(figures['n_sources'], 'source recording')}: accuracy{of} {lies}.",
            "More source recordings would narrow that." if ends else "More source recordings would give one.",
        )
