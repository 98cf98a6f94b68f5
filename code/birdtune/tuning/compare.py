"""Which head suits the data: all of them and two baselines, by grouped cross-validation on embeddings.

    settings ─▶ recordings of train and val ─▶ embeddings, computed once ─▶ each candidate on each fold
             ─▶ one table with intervals, compare.csv, compare.json ─▶ settings to train the best head with
    the best ─▶ its mistakes, and maps before and after it ─▶ mistakes.csv, compare.html

The test part is never touched: whoever chooses by it has none left. Slices of one source recording are in one fold.
Nothing is chosen within a fold either: a head is trained for `train.epochs`, and scored as it ends.

Importing this loads TensorFlow.
"""

import math
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data.dataset import Dataset
from birdtune.errors import shown
from birdtune.evaluation import embedding_map, mistakes
from birdtune.evaluation.bootstrap import Bootstrap
from birdtune.evaluation.paired import figures
from birdtune.evaluation.scores import Scores
from birdtune.models.heads import HEADS
from birdtune.models.registry import front_end
from birdtune.models.weights import verify_checkpoint
from birdtune.reporting import compare_page
from birdtune.reporting.embedding_map import CROSS_VALIDATED
from birdtune.runtime.files import write_csv, write_json
from birdtune.runtime.log import Journal, clock
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count
from birdtune.settings import SEQUENCE_HEADS
from birdtune.training import devices
from birdtune.training.embeddings import (
    Bools,
    Embedded,
    Floats,
    Ints,
    embed,
    evaluated,
    few_sources,
    folds,
    listed,
    require_judges,
)
from birdtune.training.probes import (
    BASELINES,
    SMOTE,
    Baseline,
    Head,
    WithWindows,
    out_of_fold,
    windows_out_of_fold,
)
from birdtune.tuning.space import run_flags, with_chosen

_COLUMNS = (
    "candidate", "accuracy", "low", "high", "macro_ap", "behind", "behind_low", "behind_high", "tie", "seconds",
)  # fmt: skip

_SEVERAL = (
    "  recordings have several classes: a baseline learns each class on its own, from the recordings of which it is "
    "known; accuracy is how often the highest score is that of one of a recording's classes"
)
_WITH_TIMES = (
    "; labels have times: heads learn from windows with targets of their own, baselines from the averages of whole "
    "recordings, and recordings are compared"
)


def compare(config: Config, journal: Journal, interrupts: Interrupts, *, smote: bool = False) -> Config:
    """Compare heads and baselines; print the table, and write compare.csv, .json and .html, and mistakes.csv.

    Args:
        smote: whether SMOTE is a candidate, which imbalanced-learn makes.

    Returns:
        the settings that train the best head; of the backbone what `model.freeze` says, where somebody gave that.

    Raises:
        InputError: no data, or fewer than two classes with two sources beside the test part.
        Interrupted, RetryableError: frames and embeddings that were finished are kept.
    """
    verify_checkpoint(config, remember=True)
    journal.say(f"prepare: {shown(config.data_folder)}")
    dataset, store = gather.prepare(config, front_end(config), journal, interrupts)
    config = config.with_output(dataset.output)
    for notice in dataset.notices:
        journal.warn(notice)
    journal.say(f"compare:\n  {devices.prepare_devices()}")
    part = [*dataset.part("train"), *dataset.part("val")]
    require_judges(dataset, part, [config.train.seed], "a comparison", journal)
    classifier, embedded = embed(config, dataset, store, part, journal, interrupts, what="comparison")
    fold = folds(embedded.positive, embedded.groups, config.train.seed)
    if embedded.have_several:
        journal.say(_SEVERAL + (_WITH_TIMES if embedded.targets.have_times else ""))
    baselines = [*BASELINES, *([SMOTE] if smote else [])]
    if config.train.focal_gamma:
        journal.warn(
            f"--train.focal-gamma {config.train.focal_gamma:g} plays no part in {', '.join(baselines)}; heads "
            "are trained with it."
        )
    candidates: dict[str, WithWindows] = {
        # Heads over time take minutes where others take seconds: one is compared if it is set.
        head: Head(head, classifier, embedded, config, interrupts)
        for head in HEADS
        if head not in SEQUENCE_HEADS or head == config.model.head
    } | {name: Baseline(name, embedded, config) for name in baselines}
    scores: dict[str, Floats] = {}
    seconds: dict[str, float] = {}
    for name, candidate in candidates.items():
        began = time.monotonic()
        scores[name] = out_of_fold(candidate, fold, len(embedded.classes), interrupts)
        seconds[name] = time.monotonic() - began
    scored = fold >= 0
    positive, known = evaluated(embedded, fold)
    rows = evaluate(
        {name: found[scored] for name, found in scores.items()}, positive[scored], known[scored],
        np.asarray(embedded.groups, object)[scored].tolist(), n=config.evaluate.bootstrap, seed=config.train.seed,
    )  # fmt: skip
    rows = [{**row, "seconds": round(seconds[str(row["candidate"])], 2)} for row in rows]
    best = str(rows[0]["candidate"])
    of_windows = windows_out_of_fold(candidates[best], fold, embedded, interrupts)
    wrong = _mistakes(scores[best], of_windows, embedded, fold, dataset)
    chosen, told = _report(rows, embedded, fold, config, journal)
    _draw(rows, scores[best], wrong, embedded, fold, dataset, config, told)
    n_wrong = len({row["recording"] for row in wrong})
    journal.say(f"wrong   {shown(config.output / mistakes.TABLE_NAME)}: {count(n_wrong, 'recording')}, by {best}")
    journal.say(f"page    {shown(config.output / compare_page.PAGE_NAME)}")
    return chosen


# ---- evaluation ----------------------------------------------------------------------------------


def evaluate(
    scores: Mapping[str, Floats], positive: Bools, known: Bools, groups: Sequence[str], *, n: int, seed: int
) -> list[dict[str, Any]]:
    """Rows of the table, the best first.

    Args:
        scores: candidate → [N, C].
        positive, known: [N, C] the classes of each recording, and where that is known.
        groups: [N] source recordings, which intervals draw from.
        n: replicates of the bootstrap.

    Returns:
        `candidate`, `accuracy` with its 95 % interval `low`, `high`; `macro_ap`; how far it is `behind` the best, with
        an interval of that difference, source by source, and whether that leaves it open which is better (`tie`).
    """
    bootstrap = Bootstrap(groups, n, seed)
    everything = np.ones(len(positive), np.bool_)
    found = {name: figures(table, positive, bootstrap, known) for name, table in scores.items()}
    right = {
        name: np.take_along_axis(positive, table.argmax(axis=1)[:, None], axis=1)[:, 0]
        for name, table in scores.items()
    }
    order = sorted(
        scores, key=lambda name: (-found[name].accuracy, -found[name].macro_ap)
    )  # of equals, the simpler one
    rows = []
    for name in order:
        own = found[name]
        behind, ends = bootstrap.difference(right[order[0]], right[name], everything)
        low, high = (name != order[0] and ends) or (behind, behind)
        rows.append({
            "candidate": name, "accuracy": own.accuracy, "low": math.nan if own.low is None else own.low,
            "high": math.nan if own.high is None else own.high, "macro_ap": own.macro_ap, "behind": behind,
            "behind_low": low, "behind_high": high, "tie": name != order[0] and low <= 0,
        })  # fmt: skip
    return rows


def _report(
    rows: Sequence[dict[str, Any]], embedded: Embedded, fold: Ints, config: Config, journal: Journal
) -> tuple[Config, dict[str, Any]]:
    """Print and write the table; the settings to train with, and what compare.json says."""
    scored, n_folds = fold >= 0, len(np.unique(fold[fold >= 0]))
    n_sources = len(set(np.asarray(embedded.groups, object)[scored]))
    few = few_sources(embedded.positive, embedded.groups, embedded.classes, evaluated(embedded, fold)[0])
    for line in table(rows):
        journal.say(f"  {line}")
    best, ties = rows[0], [str(row["candidate"]) for row in rows if row["tie"]]
    head = next(row for row in rows if row["candidate"] in HEADS)
    journal.say(
        f"by {n_folds}-fold cross-validation, {scored.sum():,} recordings of {n_sources:,} sources scored, test left "
        f"alone; best: {best['candidate']}"
        + (f"; a tie with it, on these recordings: {', '.join(ties)}" if ties else "")
    )
    if few:
        journal.say(f"learnt from, and not scored for want of another source: {listed(few)}")
    what = "it"
    if best is not head:
        what = f"the best head, {head['candidate']}"
        journal.say(
            f"{best['candidate']} is a baseline, and no model that is served has it: {what}, is {head['behind']:.3f} "
            "behind it"
        )
    freeze = config.model.freeze if config.model.freeze != "auto" else "all-but-head"
    wanted = {"model.head": str(head["candidate"]), "model.freeze": freeze}
    flags, gone = run_flags(config, wanted)
    command = shlex.join(["./entrypoint.sh", "run", *flags])
    advice = f"to train {what}{f' ({gone})' if gone else ''}"
    journal.say(f"{advice}: {command}")
    told = {
        "best": best["candidate"], "head": head["candidate"], "ties": ties, "folds": n_folds, "command": command,
        "recordings": int(scored.sum()), "sources": n_sources, "unjudged": few,
        "rows": list(rows),
    }  # fmt: skip
    write_csv(config.output / "compare.csv", _COLUMNS, rows)
    write_json(config.output / "compare.json", told)
    journal.say(f"table   {shown(config.output / 'compare.csv')}")
    return with_chosen(config, wanted), {**told, "advice": advice}


def _mistakes(
    scores: Floats, of_windows: Floats, embedded: Embedded, fold: Ints, dataset: Dataset
) -> list[dict[str, Any]]:
    """The mistakes of out-of-fold scores [N, C] and [P, C]."""
    chosen = np.flatnonzero(fold >= 0)
    windows = embedded.windows
    peak_s = mistakes.peaks(of_windows, windows.recording.astype(np.int64), windows.start_s)
    _, known = evaluated(embedded, fold)
    return mistakes.mistakes(
        scores[chosen], peak_s[chosen], embedded.positive[chosen], known[chosen],
        recordings=[embedded.names[n] for n in chosen], groups=[embedded.groups[n] for n in chosen],
        classes=embedded.classes, several=embedded.have_several, negative=dataset.background,
    )  # fmt: skip


def _draw(
    rows: Sequence[dict[str, Any]], scores: Floats, wrong: Sequence[dict[str, Any]], embedded: Embedded, fold: Ints,
    dataset: Dataset, config: Config, told: Mapping[str, Any],
) -> None:  # fmt: skip
    """Write mistakes.csv and compare.html, by the best candidate's scores [N, C]."""
    listing = ({**row, **{key: ";".join(row[key]) for key in ("true_classes", "predicted")}} for row in wrong)
    write_csv(config.output / mistakes.TABLE_NAME, mistakes.COLUMNS, listing)
    some = embedded.some(np.flatnonzero(fold >= 0))
    own = scores[fold >= 0].astype(np.float32)
    of_best = Scores(
        some.classes, some.names, some.groups, some.positive.astype(np.float32), own,
        np.arange(len(own)), np.zeros(len(own), np.float32), mask=some.known,
    )  # fmt: skip
    before, after = (
        embedding_map.measure(
            numbers, some.positive, recordings=some.names, classes=some.classes,
            places={name: replace(dataset.places[name], split=CROSS_VALIDATED) for name in some.names},
            n_bootstrap=config.evaluate.bootstrap, seed=config.train.seed,
        )
        for numbers in (some.averages.astype(np.float32), own)
    )  # fmt: skip
    compare_page.write_page(config.output / compare_page.PAGE_NAME, compare_page.Compared(
        clock(), rows, told["folds"], told["sources"], told["unjudged"], told["advice"], told["command"],
        of_best, before, after, wrong, embedded.have_several,
    ))  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The table as people read it."""
    lines = [f"{'':<20}{'accuracy':>9}  {'95 % interval':<15}{'AP':>6}  {'behind the best':<24}{'time':>7}"]
    for number, row in enumerate(rows):
        behind = f"{row['behind']:.3f} ({row['behind_low']:+.3f} to {row['behind_high']:+.3f})"
        lines.append(
            f"{row['candidate']:<20}{row['accuracy']:>9.3f}  {row['low']:.3f} to {row['high']:.3f} "
            f"{row['macro_ap']:>6.3f}  {behind if number else 'best':<24}{row['seconds']:>5.1f} s"
            + (" tie" if row["tie"] else "")
        )
    return lines
