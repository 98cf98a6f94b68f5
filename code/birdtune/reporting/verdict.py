"""Figures → doubts, and with those of the training → a verdict.

    metrics.json ─▶ of_scores, of_noise ───┐
    suspects.json ─▶ of_labels ────────────┤
    metrics.json ─▶ leak.of_leak ──────────┤
    its `shortcuts` ─▶ of_shortcuts ───────┤
    history.json ─▶ of_training ───────────┴▶ all_doubts ─▶ verdict: none, poor, fair or good

This is the one place that says how far to trust a model; log, run.json, metrics.json and report repeat it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from birdtune.evaluation.diagnostics import MILD, STRONG, Doubt, Row, dead_embeddings, of_training
from birdtune.evaluation.leak import of_leak
from birdtune.evaluation.model_comparison import of_succession
from birdtune.reporting.shortcut_section import of_shortcuts
from birdtune.runtime.text import count, plain, points, some, span
from birdtune.runtime.text import percent as _percent

# Below this many source recordings, or above this width of the interval, a test is called small.
SMALL_TEST_GROUPS = 30
WIDE_INTERVAL = 0.2
# Labels to check: this share of those that were judged, or so many of test, is a doubt; fewer than so many never are.
# Right labels come as one or two in 400 (ESC-10).
_SUSPECT_SHARE, _FEW_SUSPECTS = 0.01, 3
# Of doubts, those that say that nothing useful was learnt.
_UNLEARNT = ("loss-never-moved", "nothing-learnt", "not-above-baseline", "not-above-chance", "collapsed")
# Collapsed: this share of the answers is a third of the classes that make up as much of the recordings, or fewer.
_COLLAPSED_SHARE, _COLLAPSED_TO = 0.9, 3


@dataclass(frozen=True)
class Verdict:
    """How far to trust a model, in a word and in a sentence or two."""

    level: str  # "none" (not measured), "poor", "fair" or "good"
    title: str
    text: str


def all_doubts(
    trained: Row,
    figures: Mapping[str, Row | None],
    succession: Row | None = None,
    noise: Sequence[Row] = (),
    suspects: Row | None = None,
    leak: Row | None = None,
    shortcuts: Row | None = None,
) -> list[Doubt]:
    """Everything that speaks against a model: strong doubts first, causes before what comes of them.

    Args:
        trained: as `doubts.of_training`, with `augmented` (what is done to patches, in words); figures: as
            `of_scores`; succession: as `succession.of_succession`; noise: as `of_noise`; suspects: as `of_labels`;
            leak: as `leak.of_leak`; shortcuts: as `of_shortcuts`.
    """
    of_weights = of_training(trained)
    told = {doubt.code for doubt in of_weights}
    found = [*of_weights, *(doubt for doubt in of_scores(figures) if doubt.code not in told)]
    found += [*of_leak(leak), *of_shortcuts(shortcuts), *of_labels(suspects), *of_noise(noise)]
    found += of_succession(succession)
    ordered = sorted(found, key=lambda doubt: doubt.severity != STRONG)
    return [*_augmented(ordered, trained.get("augmented") or []), *ordered]


def _augmented(found: Sequence[Doubt], settings: Sequence[str]) -> Iterator[Doubt]:
    """What may have spoilt the patches, before all that may be wrong with labels and learning rate."""
    if settings and any(doubt.code in _UNLEARNT and doubt.severity == STRONG for doubt in found):
        yield Doubt(
            "augmented",
            STRONG,
            f"Nothing useful was learnt, and augmentation was on: {some(settings, len(settings))}.",
            "Leave it out first, before anything that is advised below. Where that helps, turn one after another on "
            "again, weaker: `augment` draws what is left of the patches.",
        )


def verdict(figures: Mapping[str, Row | None], doubts: Sequence[Doubt]) -> Verdict:
    """How far to trust a model, for somebody who knows birds and no statistics."""
    strong = [doubt.code for doubt in doubts if doubt.severity == STRONG]
    mild = {doubt.code: doubt for doubt in doubts if doubt.severity == MILD}
    judged = figures.get("test") or figures.get("val")
    if judged is None or "nothing-measured" in strong:
        return Verdict("none", "Nothing was measured", "Do not rely on it.")
    if strong:
        guessing = {"not-above-baseline", "test-too-small", "not-above-chance"} & set(strong)
        title = (
            "Not shown to be better than guessing"
            if guessing
            else "Better than guessing, but something is wrong"
        )
        if strong == ["shortcut"]:
            title = "Better than guessing, perhaps not by the bird"
        return Verdict("poor", title, "Do not rely on its answers.")
    if "shortcut" in mild:
        return Verdict("fair", "Better than guessing, perhaps not only by the bird", str(mild["shortcut"]))
    for code in ("no-test", "test-heard-before"):
        if code in mild:
            return Verdict("fair", "Better than guessing, but not independently tested", str(mild[code]))
    if "small-test" in mild:
        return Verdict("fair", "Better than guessing, measured on little", str(mild["small-test"]))
    groups = count(judged["n_groups"], "source recording")
    return Verdict(
        "good",
        "Clearly better than guessing",
        f"The test rests on {groups} that it never heard while training. It was not tested elsewhere: other "
        "places, recorders and seasons may be harder.",
    )


# ---- how it was judged --------------------------------------------------------------------------


def of_scores(figures: Mapping[str, Row | None]) -> list[Doubt]:
    """What the figures of validation and test say against the model.

    Args:
        figures: "val" and "test" → what `metrics.judge` returned, with `live_embeddings` where it is known; or None.
    """
    val, test = figures.get("val"), figures.get("test")
    chief = test or val
    if chief is None:
        return [
            Doubt(
                "nothing-measured",
                STRONG,
                "Nothing was measured: there were too few source recordings to keep any apart for a test.",
                "Nobody knows how good it is; add recordings of other individuals, places or days, and run again.",
            )
        ]
    part = "test" if test else "validation"
    found = [*_dead_scores(part, chief), *_against_guessing(part, chief, STRONG)]
    if test and val:
        found += _against_guessing("validation", val, MILD)
    found += [*_collapsed(part, chief), *_classes(part, chief)]
    if not test:
        found.append(
            Doubt(
                "no-test",
                MILD,
                "There is no test: the figures come from validation recordings, which also chose the model.",
                "They are too kind. Expect less in the field; more source recordings leave some for a test.",
            )
        )
    return [*found, *_small(part, chief)]


def of_labels(suspects: Row | None) -> Iterator[Doubt]:
    """Labels that other recordings speak against, where they are more than a few; `suspects`: suspects.json."""
    rows = suspects["rows"] if suspects else []
    of_test = len([row for row in rows if row["split"] == "test"])
    if suspects and len(rows) >= _FEW_SUSPECTS:
        if len(rows) < _SUSPECT_SHARE * suspects["judged"] and of_test < _FEW_SUSPECTS:
            return
        first = rows[0]
        beside = f", {of_test} of them of test recordings" if of_test else ""
        yield Doubt(
            "labels-suspect",
            MILD,
            f"{len(rows):,} of {suspects['judged']:,} labels may be wrong{beside}: first {some([first['recording']])}, "
            f"labelled {some([first['class']])}, which sounds like {some([first['suggested']])}.",
            "Listen to them (“Labels to check”; all are in suspect_labels.csv), mend what is wrong, and run "
            "again. In training they mislead the model; in test its right answers count as errors.",
        )


def of_noise(noise: Sequence[Row]) -> Iterator[Doubt]:
    """What is answered, as `predict` would, to sound that holds nothing.

    Args:
        noise: of metrics.json's `false_alarms`; rows of an older birdtune have no `answer`, and are passed over.
    """
    heard = [row for row in noise if row.get("answer") is not None]
    if heard:
        names = some([f"{row['noise']} ({row['answer']}, {percent(row['score'])} sure)" for row in heard])
        yield Doubt(
            "noise-answered",
            MILD,
            f"Made noise is answered with a class: {names}.",
            "Unless the class sounds like that, expect false alarms where nothing calls. Put recordings without any of "
            "the classes into input/background/, and set --evaluate.false-alarms-per-hour.",
        )


def _dead_scores(part: str, judged: Row) -> Iterator[Doubt]:
    if judged.get("live_embeddings") == 0:
        yield dead_embeddings(f"The network gives the same embedding for every {part} patch")


def _against_guessing(part: str, judged: Row, severity: str) -> Iterator[Doubt]:
    """Accuracy against the majority class; where that is fine, average precision against a random order."""
    clip, baseline, ends = judged["clip"], judged["majority_baseline"], judged["accuracy_gain_ci"]
    right = (
        f"the model is right for {percent(clip['accuracy'])} of the {judged['n_recordings']:,} recordings, the "
        f"constant answer {some([judged['majority_class']])} for {percent(baseline)}"
    )
    order = _against_random_order(judged)
    sources = count(judged["n_groups"], "source recording")
    nothing = "It has learnt nothing useful. Do the labels fit the sounds? Are there enough recordings?"
    also = f"; nor is average precision above a random order's: {order}" if order else ""
    if clip["accuracy"] <= baseline:
        below = ends is not None and ends[1] <= 0  # by more than luck; of few recordings, any may be wrong
        text = f"On {part}, accuracy is not above the majority baseline: {right}{also}."
        yield Doubt("not-above-baseline", STRONG if below else severity, text, nothing)
    elif ends is None or (ends[0] <= 0 and judged["n_groups"] < SMALL_TEST_GROUPS):
        text = f"On {part}, accuracy may be luck: {right}, but they come from {sources} only."
        yield Doubt("test-too-small", severity, text, "More source recordings would show whether it is.")
    elif ends[0] <= 0:
        text = (
            f"On {part}, accuracy is not above the majority baseline by more than its interval: {right} ({sources}; "
            f"95 % interval of the difference {points(ends)}){also}."
        )
        yield Doubt("not-above-baseline", severity, text, nothing)
    elif order:
        text = f"On {part}, average precision is not above that of a random order by more than its interval: {order}."
        # Where all of few sources came out first, the interval is a rule of thumb (metrics.interval).
        lucky = judged["n_groups"] < SMALL_TEST_GROUPS and clip["macro_ap"] > judged["macro_ap_chance"]
        advice = "Recordings of a class do not score higher for it than others do."
        yield Doubt("not-above-chance", MILD if lucky else severity, text, advice)


def _against_random_order(judged: Row) -> str:
    """Macro average precision beside chance, in words; "" where it is above by more than its interval."""
    clip, chance = judged["clip"], judged.get("macro_ap_chance")
    if chance is None or clip["macro_ap_ci"] is None or clip["macro_ap_ci"][0] > chance:
        return ""
    return f"{percent(clip['macro_ap'])} ({plain(span(clip['macro_ap_ci']))}) against {percent(chance)}"


def _collapsed(part: str, judged: Row) -> Iterator[Doubt]:
    rows = judged["per_class"]
    given = _fewest(rows, "predicted")
    true = _fewest(rows, "support")
    if len(given) < len(true) and len(given) <= max(1, len(true) // _COLLAPSED_TO):
        yield Doubt(
            "collapsed",
            STRONG,
            f"On {part}, answers collapsed onto few classes: {percent(_COLLAPSED_SHARE)} of them are {some(given)}; it "
            f"takes {count(len(true), 'class')} to make up as much of the recordings.",
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


def _classes(part: str, judged: Row) -> Iterator[Doubt]:
    taken = list(_taken(judged))
    if taken:
        parts = [f"{n} of {count(row['support'], 'recording')} of {row['class']} as {by}" for row, by, n in taken]
        yield Doubt(
            "taken-by-untaught",
            STRONG,
            f"On {part}, classes are mostly answered as one without training recordings: {some(parts)}.",
            "Put the recordings back that taught it: what tells the two apart can then be learnt. If its folder was "
            "renamed, give it its old name.",
        )
    explained = [row["class"] for row, *_ in taken]
    tested = [row for row in judged["per_class"] if row["support"]]
    missed = [row for row in tested if not row["recall"] and row["class"] not in explained]
    never = [row for row in missed if not row["predicted"]]
    wrong = [row for row in missed if row["predicted"]]
    for code, rows, what in (
        ("never-predicted", never, "never the answer"),
        ("never-right", wrong, "never right"),
    ):
        if rows:
            yield Doubt(
                code,
                MILD,
                f"On {part}, {len(rows)} of {len(tested)} classes {'was' if len(rows) == 1 else 'were'} {what}: "
                f"{some([_with_count(row) for row in rows])}.",
                "More recordings of them help most; --train.class-weight-alpha 0.5 lets rare classes count for more.",
            )
    alone = [row for row in tested if row["groups"] == 1]
    if alone:
        yield Doubt(
            "one-source",
            MILD,
            f"{len(alone)} of {len(tested)} classes {'is' if len(alone) == 1 else 'are'} judged by a single {part} "
            f"source each: {some([row['class'] for row in alone])}.",
            "Their own figures say next to nothing.",
        )


def _taken(judged: Row) -> Iterator[tuple[Row, str, int]]:
    """Classes most of whose recordings are answered as one that was not taught, that class, and how many are."""
    rows = judged["per_class"]
    untaught = [c for c, row in enumerate(rows) if row.get("train_recordings") == 0]
    for row, answers in zip(rows, judged.get("confusion") or [], strict=False):
        by = max(untaught, key=lambda c: int(answers[c]), default=None)
        if by is not None and rows[by]["class"] != row["class"] and 2 * answers[by] > row["support"]:
            yield row, str(rows[by]["class"]), int(answers[by])


def _with_count(row: Row) -> str:
    return f"{row['class']} ({count(row['support'], 'recording')})"


def _small(part: str, judged: Row) -> Iterator[Doubt]:
    ends = judged["clip"]["accuracy_ci"]
    if ends is None or judged["n_groups"] < SMALL_TEST_GROUPS or ends[1] - ends[0] > WIDE_INTERVAL:
        yield Doubt(
            "small-test",
            MILD,
            f"The {part} rests on {count(judged['n_groups'], 'source recording')}: accuracy may lie anywhere from "
            f"{plain(span(ends))}.",
            "More source recordings would narrow that.",
        )


def percent(value: float | None) -> str:
    """A share in words, for logs too."""
    return plain(_percent(value))
