"""Diagnostics: what a diagnostic is, and those of the course of training.

    history.json ─▶ of_training ─▶ [Diagnostic, …]      (those of the scores, and the verdict: reporting/verdict.py)

A diagnostic is a warning about a model, with its numbers, likely causes and what to do. It stands in the log, in
run.json, in metrics.json and on the report's first screen.

A strong one says: do not use this model, whatever its score. A mild one says: read its figures with care. Whoever
promotes models by machine reads the codes in run.json; they are a file format, see `CODES`.

The thresholds are far from what healthy runs show (ESC-10 and the demonstration, from scratch and fine-tuned): a
warning that comes every time is read by nobody.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from birdtune.runtime.text import count, some

Row = Mapping[str, Any]

STRONG, MILD = "strong", "mild"
CODES: Mapping[str, str] = {
    "dead-input": "the recordings of a class hold nothing, or all the same",
    "diverged": "the loss, the gradients, the weights or the scores became NaN or infinite; there is no model",
    "embeddings-dead": "the network gives the same embedding for every input",
    "weights-unmoved": "layers that were to be trained still have their first weights",
    "loss-never-moved": "the training loss stayed where it began",
    "nothing-learnt": "the training loss moved, but not below that of a constant prediction",
    "loss-rose": "the training loss went up again",
    "overfitting": "validation got worse while the training loss fell",
    "augmented": "nothing useful was learnt, and augmentation was on",
    "nothing-measured": "there are neither test nor validation recordings",
    "no-test": "the figures come from the validation recordings that the model was selected on",
    "not-above-baseline": "accuracy is not above the majority baseline by more than its interval",
    "not-above-chance": "average precision is not above that of a random order by more than its interval",
    "test-too-small": "accuracy is above the baseline, but on so few sources that it may be chance",
    "collapsed": "nearly all predictions are a few classes",
    "never-predicted": "classes that have recordings were never predicted",
    "never-right": "classes were predicted, and never correctly",
    "small-test": "the interval around the accuracy is wide",
    "label-issues": "a model trained on other recordings contradicts some labels",
    "noise-accepted": "a class is decided for in synthetic noise",
    "test-leak": "test recordings share the noise floor of training recordings",
    "shortcut": "recording conditions (sample rate, format, level, place, …) predict the classes as well as the model",
    "one-source": "classes are evaluated on a single source recording",
    "test-seen-before": "the base model was trained or selected on test recordings, or may have been",
    "old-classes-worse": "classes of the base model are recognised significantly worse",
    "old-classes-rejected": "recordings of these classes are rejected as unknown far more often than before",
    "old-class-moved": "recordings of a class of the base model have another label now: a renamed folder",
    "confused-with-untrained": "recordings of a class are predicted as one that has no training recordings",
    "old-classes-unreachable": "these classes have no training recordings, and will be rejected as unknown",
}

# A loss that still falls by this from one epoch to the next is on its way down: published weights may begin high.
_STEEP = 0.9
# Of a loss: what moved less did not move; and what is not lower than a constant prediction's by this, learnt nothing.
# Healthy first epochs came as near as 0.4 %, third ones 4 %.
_MOVED = 0.02
# Epochs before anything is said of the loss, and how many of them at the full learning rate.
_PATIENCE_EPOCHS, _WARM_EPOCHS = 3, 2
# Of a layer: distance from its first weights over their own size. One update of Adam at 1e-6 is 3e-5.
_MOVED_WEIGHTS = 1e-6
# A rise of the loss counts from this share of a constant prediction's loss, and of the lowest epoch's.
_RISE, _RELATIVE_RISE = 0.1, 1.2
# Overfitting: the training loss fell to this share, and the validation loss of the last epoch is so many times
# its lowest, and the training loss. Where validation is nearly perfect all the same, it does not matter.
_LEARNT, _WORSE, _APART, _FINE = 0.9, 1.5, 3.0, 0.95


@dataclass(frozen=True)
class Diagnostic:
    """A warning about a model.

    Attributes:
        code: a key of `CODES`.
        severity: `STRONG` or `MILD`.
        text: what was found, a sentence with the numbers; before its first colon stands the finding in brief.
        advice: likely causes, and what to do.
    """

    code: str
    severity: str
    text: str
    advice: str

    def __post_init__(self) -> None:
        assert self.code in CODES and self.severity in (STRONG, MILD), self

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"

    def row(self) -> dict[str, str]:
        """As it stands in run.json and metrics.json."""
        return asdict(self)


def _loss(value: float) -> str:
    return f"{value:.3f}" if value < 1000 else f"{value:.1e}"


# ---- how it was trained -------------------------------------------------------------------------


def of_training(trained: Row) -> list[Diagnostic]:
    """Warnings from the course of training.

    Args:
        trained: history.json: `epochs` (a row each: `epoch`, `train_loss`, `val_loss`, `val_accuracy`,
            `val_macro_ap`, `val_live_embeddings`), `best_epoch`, and, each of which may be missing:
            `constant_loss` (of the best constant prediction), `warmup_epochs`, `moved` (layer to train →
            how far its kernel is from its first weights, relative), `inputs` (rows as `health.class_inputs`),
            `freeze_next` (a freeze point behind that of the run; None: all is frozen).
    """
    rows = [row for row in trained["epochs"] if row["epoch"]]  # epoch 0 is what training began with
    return [
        *_dead_input(trained.get("inputs") or []),
        *_dead_embeddings(rows),
        *_unmoved(trained.get("moved") or {} if trained["best_epoch"] != 0 else {}),
        *_course(rows, trained.get("constant_loss"), trained.get("warmup_epochs") or 0.0),
        *_overfitting(rows, trained["best_epoch"], trained.get("freeze_next", "all-but-head")),
    ]


def while_training(trained: Row) -> list[Diagnostic]:
    """What is certain before training ends; takes what `of_training` takes."""
    certain = ("embeddings-dead", "loss-never-moved", "nothing-learnt")
    return [each for each in of_training(trained) if each.code in certain]


def diverged(what: str) -> Diagnostic:
    """Training came to an end in NaN or infinity; `what` is the error's message."""
    return Diagnostic(
        "diverged", STRONG, what, "Running again unchanged ends the same; there is no model of this version."
    )


def _dead_input(inputs: Sequence[Row]) -> Iterator[Diagnostic]:
    silent = [row for row in inputs if row["recordings"] and 2 * row["silent"] >= row["recordings"]]
    alike = [row for row in inputs if row["recordings"] > 1 and row["distinct"] == 1 and row not in silent]
    if silent:
        names = some([f"{row['class']} ({row['silent']} of {row['recordings']})" for row in silent])
        yield Diagnostic(
            "dead-input",
            STRONG,
            f"Classes with training recordings in which nothing ever changes: {names}.",
            "Likely causes: stereo whose channels cancel out, a constant offset, a muted recorder. Listen to them; "
            "a class of silence is recognised by its silence.",
        )
    if alike:
        names = some([f"{row['class']} ({row['recordings']} recordings)" for row in alike])
        yield Diagnostic(
            "dead-input",
            STRONG,
            f"Classes whose training recordings all hold the same sound: {names}.",
            "Likely cause: copies in other formats. The classifier has learnt that one recording; add others.",
        )


def _dead_embeddings(rows: Sequence[Row]) -> Iterator[Diagnostic]:
    if rows and rows[-1].get("val_live_embeddings") == 0:
        epoch = rows[-1]["epoch"]
        yield dead_embeddings(
            f"After epoch {epoch}, the network gives the same embedding for every validation window"
        )


def dead_embeddings(what: str) -> Diagnostic:
    """The network's output does not depend on its input; `what` says where that was seen."""
    return Diagnostic(
        "embeddings-dead",
        STRONG,
        f"{what}: its output does not depend on the sound.",
        "Likely causes: a learning rate so high that no unit of a layer is active any more (try a tenth of "
        "--train.learning-rate), or first weights that are not a trained network's (--model.checkpoint).",
    )


def _unmoved(moved: Mapping[str, float]) -> Iterator[Diagnostic]:
    still = [name for name, distance in moved.items() if not distance >= _MOVED_WEIGHTS]
    if not still:
        return
    advice = (
        "Likely causes: a learning rate far too low (--train.learning-rate), or units that are never active, so that "
        "no gradient reaches what lies before them."
    )
    if len(still) == len(moved):
        text = (
            f"The weights never moved: {count(len(still), 'layer')} to train, each as it was before training."
        )
        yield Diagnostic("weights-unmoved", STRONG, text, advice)
    else:
        text = f"Not frozen, and yet as before training: {some(still)} ({len(still)} of {len(moved)} layers to train)."
        yield Diagnostic("weights-unmoved", MILD, text, advice)


def _course(rows: Sequence[Row], constant: float | None, warmup_epochs: float) -> Iterator[Diagnostic]:
    losses = [float(row["train_loss"]) for row in rows if row.get("train_loss") is not None]
    if len(losses) < max(_PATIENCE_EPOCHS, _WARM_EPOCHS + math.ceil(warmup_epochs)):
        return
    first, lowest, last = losses[0], min(losses), losses[-1]
    # A loss that is low from the first epoch on need not move.
    learnt = constant is not None and lowest < (1 - _MOVED) * constant
    beside = "" if constant is None else f"; a constant prediction would give {_loss(constant)}"
    if not learnt and max(losses) - lowest < _MOVED * first:
        yield Diagnostic(
            "loss-never-moved",
            STRONG,
            f"The training loss never moved: {_loss(first)} in the first epoch, {_loss(lowest)} at best in "
            f"{len(losses)} epochs{beside}.",
            "Likely causes: a learning rate far too low (--train.learning-rate), a network without active units, or "
            "recordings that do not differ between the classes.",
        )
    elif constant is not None and not learnt and last > _STEEP * losses[-2]:
        yield Diagnostic(
            "nothing-learnt",
            STRONG,
            f"Nothing was learnt: the training loss was {_loss(lowest)} at best in {len(losses)} epochs{beside}.",
            "Likely causes: a learning rate too high (try a tenth of --train.learning-rate) or too low, or labels "
            "that do not fit the recordings.",
        )
    scale = first if constant is None else constant
    if last - lowest > _RISE * scale and last > _RELATIVE_RISE * lowest:
        yield Diagnostic(
            "loss-rose",
            STRONG if last >= first else MILD,
            f"The training loss rose: {_loss(lowest)} after epoch {1 + losses.index(lowest)}, {_loss(last)} at the end "
            f"(epoch {len(losses)}).",
            "Likely cause: a learning rate too high. Lower --train.learning-rate (try a tenth), or set "
            "--train.clip-norm 1.",
        )


def _overfitting(rows: Sequence[Row], best_epoch: int | None, freeze: str | None) -> Iterator[Diagnostic]:
    known = [row for row in rows if row.get("val_loss") is not None and row.get("val_accuracy") is not None]
    if not best_epoch or len(known) != len(rows) or len(rows) <= _PATIENCE_EPOCHS:
        return
    best, last = rows[best_epoch - 1], rows[-1]
    lowest = min(rows, key=lambda row: float(row["val_loss"]))
    if best["val_accuracy"] >= _FINE or last["train_loss"] > _LEARNT * rows[0]["train_loss"]:
        return
    advice = (
        f"More sources help most; else {f'--model.freeze {freeze}, ' if freeze else ''}--model.dropout 0.3, "
        "--train.jitter-s 0.5 or a lower --train.learning-rate."
    )
    train_loss, val_loss = float(last["train_loss"]), float(last["val_loss"])
    apart = f"training loss {_loss(train_loss)}, validation loss {_loss(val_loss)} in epoch {last['epoch']}"
    if best_epoch == 1:
        text = f"Overfitting: validation was best after the first of {len(rows)} epochs ({apart})."
    elif val_loss > _WORSE * float(lowest["val_loss"]) and val_loss > _APART * train_loss:
        rose = f"rose from {_loss(lowest['val_loss'])} in epoch {lowest['epoch']}"
        text = f"Overfitting: the validation loss {rose} on ({apart})."
    else:
        return
    yield Diagnostic("overfitting", MILD, text, advice)
