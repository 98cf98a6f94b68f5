"""The one training loop.

    Classifier + Batches + State ─▶ train ─▶ checkpoints, history;  validation chooses the best epoch

One update: `accumulate` batches → gradients of the weighted sum of losses, added up → divided by the
sum of weights → clipped → Adam or SGD. All that is random is drawn from (seed, position), never from a
generator with a state of its own, so a restored run goes on bit for bit.

Of several processes each computes the gradients of its part of each batch, and updates its weights by the sum over all
of them. The chief alone validates and saves. All stop after the same update.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from birdtune.data.batches import Batch, Batches, prefetched
from birdtune.data.clips import ClipBatches
from birdtune.errors import DivergedError, InputError, Interrupted, ProcessLostError, RetryableError
from birdtune.models.classifier import weights
from birdtune.runtime.log import Journal, Progress, duration
from birdtune.runtime.signals import Interrupts
from birdtune.settings import TrainSettings
from birdtune.training.checkpoints import Checkpoints, State
from birdtune.training.saver import Saver
from birdtune.training.step import Trainer, viewed
from birdtune.training.tensorboard import Curves
from birdtune.training.world import World

# Scores closer than this count as equal; then the lower loss decides.
_TIE_DIGITS = 4

Validation = Callable[[], Mapping[str, float | None]]


def learning_rate(settings: TrainSettings, update: int, per_epoch: int) -> float:
    """The learning rate of an update (from 0): linear warm-up, then a cosine to zero, or several; or constant.

    With warm restarts (Loshchilov and Hutter, "SGDR", 2017) each cosine but the last is as long as the others.
    """
    warmup = round(settings.warmup_epochs * per_epoch)
    if update < warmup:
        return settings.learning_rate * (update + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    done, total = update - warmup, max(1, settings.epochs * per_epoch - warmup)
    if settings.schedule == "cosine-restarts":
        length = settings.restart_epochs * per_epoch
        done, total = done % length, min(length, max(1, total - done // length * length))
    progress = min(1.0, done / total)
    return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def is_better(row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
    """Whether an epoch beats the best so far.

    By the mean of accuracy and macro average precision over the recordings of the validation split, or over its
    windows where labels have times; among
    equals by its loss; without validation by the training loss. Precision alone ranks within each class and
    does not see one class drowning the others; accuracy alone moves in coarse steps on a small split.
    """
    return best is None or _rank(row) > _rank(best)


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    if row.get("val_loss") is None:
        return 0.0, -float(row["train_loss"])
    figures = [float(row.get(name) or 0.0) for name in ("val_accuracy", "val_macro_ap")]
    return round(sum(figures) / 2, _TIE_DIGITS), -float(row["val_loss"])


class Loop:
    """Runs a Trainer over epochs, and keeps the books.

    Args:
        validate: called after each epoch; returns val_loss, val_accuracy, val_macro_ap (None: no
            validation recordings).
        tensorboard: folder of its event files.
        after_epoch: called with the state once an epoch is logged; its checkpoint may still be being written.
        keep_last: end after the last epoch, and keep its weights, whatever the losses; else the best one's.
        title: of these epochs in the log, where a run has several trainings.
        untrained: what the weights are before the first update, if that may be the best epoch: epoch 0. "": it may not.
        of_windows: whether figures of validation are those of windows.
        world: the processes that train together; only the chief's `validate` and `after_epoch` are called.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches: Batches | ClipBatches,
        settings: TrainSettings,
        checkpoints: Checkpoints,
        *,
        validate: Validation,
        journal: Journal,
        interrupts: Interrupts,
        tensorboard: Path,
        after_epoch: Callable[[State], None] = lambda state: None,
        keep_last: bool = False,
        title: str = "",
        untrained: str = "",
        of_windows: bool = False,
        world: World | None = None,
    ) -> None:
        self.world = world or World()
        self._val = "val window" if of_windows else "val"
        self._keep_last, self._title, self._untrained = keep_last, f"{title} " if title else "", untrained
        self.trainer, self.batches, self.settings, self.checkpoints = trainer, batches, settings, checkpoints
        self.validate, self.journal, self.interrupts = validate, journal, interrupts
        self.after_epoch = after_epoch
        self.per_epoch = -(-len(batches) // settings.accumulate)  # updates
        self.state = State()
        self._tensorboard = tensorboard
        self._saver = Saver(checkpoints)
        self._kept = 0  # updates that a checkpoint stands for, or one that is being written
        self._is_warm = False  # whether this start has done an update, and need not compile any more
        self._saved_at = time.monotonic()
        self._curves: Curves | None = None  # the chief's

    def run(self) -> State:
        """Train to the end, from the newest whole checkpoint if there is one.

        Raises:
            Interrupted: after saving where it stands.
            DivergedError: the loss or the weights are not finite any more.
            ProcessLostError: of several processes one ended; what was done is saved.
        """
        # Of several processes none may leave by itself: they agree on it (`_gradients`, `_validated`).
        with self.interrupts.held() if self.world.size > 1 else contextlib.nullcontext():
            if self.world.is_chief:
                self._resume()
            self._share()
            if self.world.is_chief and not self.state.finished:
                to_come = self.settings.epochs - self.state.epoch + bool(self._untrained)
                self.checkpoints.need_room(self.trainer.state_bytes, to_come, self.trainer.weights_bytes)
            if self.world.is_chief:
                self._curves = Curves(self._tensorboard, self.state, self.per_epoch)
            with self._curves or contextlib.nullcontext(), self._saved():
                if self._untrained and not self.state.history and not self.state.updates:
                    self._epoch_0()
                while not self.state.finished:
                    self._epoch()
        return self.state

    @contextlib.contextmanager
    def _saved(self) -> Iterator[None]:
        """However the block ends, what is to be saved is saved by then."""
        try:
            yield
        except BaseException as fault:
            with self.interrupts.held():
                self._save_and_stop(fault)
            raise
        with self.interrupts.held():
            self._saver.settle()

    def _save_and_stop(self, fault: BaseException) -> None:
        """Save where it stands, if it is stopped; and let what is being written become whole."""
        is_stopped = isinstance(fault, Interrupted | ProcessLostError)
        # Compiling has taken seconds already; the one update behind it is sooner done again than saved. So are those
        # that were done while the checkpoint before them is being written.
        is_busy, is_ahead = self._saver.is_busy, self._is_warm and self.state.updates > self._kept
        try:
            if is_stopped and (is_busy or is_ahead):
                self.journal.say(f"  {'told to stop' if isinstance(fault, Interrupted) else 'a process ended'}: saving")
            self._saver.settle()
            if is_stopped and is_ahead and not is_busy:
                self._save()
        except (RetryableError, InputError) as refused:
            # It stops all the same, and loses no more than since the last checkpoint. The log may refuse, too.
            with contextlib.suppress(RetryableError, InputError):
                self.journal.warn(f"It could not be saved where it stands, only where it was before: {refused}")

    def _share(self) -> None:
        """Let all processes stand where the chief stands."""
        if self.world.size == 1:
            return
        self.state = State(**self.world.broadcast(asdict(self.state)))
        self._kept = self.state.updates
        self.world.share(self.trainer.state_variables)

    def _check(self) -> None:
        """Stop if told to; several processes stop when all know of it."""
        if self.world.size == 1:
            self.interrupts.check()

    def _validated(self) -> Mapping[str, float | None]:
        """The chief's figures of validation. What ends it there ends it in all processes."""
        found: Mapping[str, float | None] = {}
        ended: Interrupted | DivergedError | None = None
        try:
            if self.world.is_chief:
                with self.trainer.averaged():
                    found = self.validate()
                self.interrupts.check()
        except (Interrupted, DivergedError) as fault:
            ended = fault
        signum = ended.signum if isinstance(ended, Interrupted) else 0
        found, signum, text = self.world.broadcast((found, signum, str(ended or "")))
        if text:
            raise ended or (Interrupted(signum) if signum else DivergedError(text))
        return found

    def _resume(self) -> None:
        saved, complaints = self.checkpoints.newest()
        for complaint in complaints:
            self.journal.warn(complaint)
        if saved is None:
            if self.journal.events(f"{self._title}epoch"):  # by a start of which nothing is left
                self.journal.event("resumed", epoch=0, step=0)
            return
        self.trainer.restore(saved)
        self.state = saved.state
        self.checkpoints.tidy(self.state)  # a job that was killed while it did so left halves
        self._kept = self.state.updates
        self._tell_missed_epochs()
        where = f"epoch {self.state.epoch + 1}" + (f", batch {self.state.step}" if self.state.step else "")
        if not self.state.finished:
            self.journal.say(f"  {self._title}resuming before {where}")
        self.journal.event("resumed", epoch=self.state.epoch, step=self.state.step)

    def _tell_missed_epochs(self) -> None:
        """Tell the log of epochs that a killed job saved, but did not live to tell of."""
        name = f"{self._title}epoch"
        told = {event.get("epoch") for event in self.journal.events(name)}
        best: dict[str, Any] | None = None
        for row in self.state.history:
            is_best = self._is_kept(row, best)
            best = row if is_best else best
            if row["epoch"] not in told:
                self.journal.event(name, **row, best=is_best)

    def _is_kept(self, row: Mapping[str, Any], best: Mapping[str, Any] | None) -> bool:
        return self._keep_last or is_better(row, best)

    def _epoch_0(self) -> None:
        """Validate what no update has changed yet; it is the best so far."""
        state, began = self.state, time.monotonic()
        found = self._validated()
        seconds = round(time.monotonic() - began, 2)
        row = {"epoch": 0, "train_loss": None, "learning_rate": None, **found, "seconds": seconds}
        with self.interrupts.held():
            state.history.append(row)
            state.best, state.finished = row, not self.settings.epochs
            self._begin_to_save(lambda: self._note_epoch(row, best=True))
            self._tell(row, best=True)
        self._check()

    def _epoch(self) -> None:
        state = self.state
        began = time.monotonic() - state.seconds
        left = -(-(len(self.batches) - state.step) // self.settings.accumulate)
        self.trainer.begin_epoch(state.epoch)
        train = self._singly if self.trainer.updates_per_call == 1 else self._in_leaps
        with self.journal.progress(f"{self._title}epoch {state.epoch + 1}", left, "updates") as progress:
            train(began, progress)
        found = self._validated()
        with self.interrupts.held():
            self._end_epoch(found)
        self._check()

    def _singly(self, began: float, progress: Progress) -> None:
        """The rest of an epoch, one update after another; between its two halves each can be interrupted."""
        state = self.state
        numbers = range(state.step, len(self.batches))
        made = prefetched(self.batches.batch(state.epoch, number) for number in numbers)
        for first in range(state.step, len(self.batches), self.settings.accumulate):
            sums, signum = self._summed(self._gradients(made, first))
            self._check()
            with self.interrupts.held():
                self._update(sums, first, progress)
                state.seconds = time.monotonic() - began
                self._between_updates()
            self._check()
            self._is_warm = True
            if signum:
                raise Interrupted(signum)

    def _in_leaps(self, began: float, progress: Progress) -> None:
        """The rest of an epoch, as many updates at once as the trainer likes."""
        state, leap = self.state, self.trainer.updates_per_call
        starts = range(state.step, len(self.batches), leap)
        made = prefetched(self.batches.batch(state.epoch, first, leap) for first in starts)
        for first, batches in zip(starts, made, strict=True):
            n = min(leap, len(self.batches) - first)
            rates = [learning_rate(self.settings, state.updates + k, self.per_epoch) for k in range(n)]
            with self.interrupts.held():
                found = self.trainer.updates(batches, state.epoch * len(self.batches) + first, rates)
                for rate, (loss, weight, norm) in zip(rates, found.tolist(), strict=True):
                    self._note(loss, weight, norm, rate, state.step + 1, progress)
                state.seconds = time.monotonic() - began
                self._between_updates()
            self.interrupts.check()
            self._is_warm = True

    def _gradients(self, made: Iterator[Batch], first: int) -> tuple[Any, Any, Any]:
        """Sum of losses, of weights, and of gradients, of the `accumulate` batches from `first` on."""
        position = self.state.epoch * len(self.batches) + first
        sums: tuple[Any, Any, Any] = self._interruptible(self.trainer.gradients, next(made), position)
        for more in range(1, self._end_of(first) - first):
            loss, weight, added = self._interruptible(self.trainer.gradients, next(made), position + more)
            sums = sums[0] + loss, sums[1] + weight, self.trainer.add(sums[2], added)
        return sums

    def _interruptible(self, compute: Callable[..., Any], *arguments: Any) -> Any:
        """What a function computes, in a thread: the main thread hears of a signal at once while it waits, and saves
        without waiting for an update that will not be made; in the library it would hear of it afterwards.

        The first time, when it is compiled, it stays in the thread where the network was made.
        """
        if not self._is_warm:
            return compute(*arguments)
        thread = ThreadPoolExecutor(1, "gradients")
        try:
            return thread.submit(compute, *arguments).result()
        finally:
            thread.shutdown(wait=False)

    def _summed(self, sums: tuple[Any, Any, Any]) -> tuple[tuple[Any, Any, Any], int]:
        """The same over all processes, and the signal to stop that came to one of them; 0: none did."""
        if self.world.size == 1:
            return sums, 0
        told = tf.constant(float(self.interrupts.signum is not None))
        loss, weight, n_told, *gradients = self.world.sum([sums[0], sums[1], told, *sums[2]])
        signum = (self.interrupts.signum or signal.SIGTERM) if float(n_told) else 0
        return (loss, weight, gradients), signum

    def _end_of(self, first: int) -> int:
        return min(first + self.settings.accumulate, len(self.batches))

    def _update(self, sums: tuple[Any, Any, Any], first: int, progress: Progress) -> None:
        """One update of the weights, and of the state with them."""
        state = self.state
        rate = learning_rate(self.settings, state.updates, self.per_epoch)
        loss_value, weight_value = float(sums[0]), float(sums[1])
        if not math.isfinite(loss_value):
            raise _diverged(f"the loss is {loss_value}", state, rate)
        norm = float(self.trainer.apply(sums[2], sums[1], rate))
        self._note(loss_value, weight_value, norm, rate, self._end_of(first), progress)

    def _note(
        self, loss_sum: float, weight_sum: float, norm: float, rate: float, step: int, progress: Progress
    ) -> None:
        """Enter an update into the books, and go on only if all was finite."""
        state = self.state
        if not math.isfinite(loss_sum):
            raise _diverged(f"the loss is {loss_sum}", state, rate)
        # A NaN in the input can pass a ReLU unseen and show in the gradients alone. With loss scaling an
        # infinite gradient is nothing unusual: the optimizer skips the update and lowers the scale.
        if not math.isfinite(norm) and not self.trainer.scales_loss:
            raise _diverged(f"the gradients are {norm}", state, rate)
        state.step, state.updates = step, state.updates + 1
        state.loss_sum += loss_sum
        state.weight_sum += weight_sum
        mean = loss_sum / weight_sum / self.trainer.loss_terms
        progress.advance(note=f"loss {mean:.3f}")
        if self._curves is not None:
            self._curves.draw_update(state, mean, rate)

    def _between_updates(self) -> None:
        """See how the checkpoint fares that is being written, and begin one if the last one is long ago."""
        self._saver.settle(wait=False)
        minutes = (time.monotonic() - self._saved_at) / 60 if self.world.is_chief else 0.0
        if minutes >= self.settings.checkpoint_minutes and self.state.step < len(self.batches):
            self._begin_to_save()

    def _end_epoch(self, found: Mapping[str, float | None]) -> None:
        state = self.state
        row: dict[str, Any] = {
            "epoch": state.epoch + 1,
            "train_loss": state.loss_sum / state.weight_sum / self.trainer.loss_terms,
            "learning_rate": learning_rate(self.settings, state.updates - 1, self.per_epoch),
            **found,
            "seconds": round(state.seconds, 2),
        }
        state.history.append(row)
        best = self._is_kept(row, state.best)
        if best:
            state.best = row
        state.epoch, state.step, state.loss_sum, state.weight_sum, state.seconds = (
            state.epoch + 1,
            0,
            0.0,
            0.0,
            0.0,
        )
        patience = self.settings.early_stopping_patience
        early = bool(patience) and state.stale_epochs >= patience
        state.finished = early or state.epoch >= self.settings.epochs
        self._begin_to_save(lambda: self._note_epoch(row, best))
        self._tell(row, best)
        if self.world.is_chief:
            self.after_epoch(state)
        if early and state.epoch < self.settings.epochs and state.best:
            self.journal.say(f"  stopping early: no better validation since epoch {state.best['epoch']}")
        if state.finished and state.best and state.best["epoch"] == 0:
            self.journal.say(f"  no epoch did better on validation than {self._untrained}: its weights are kept")

    def _tell(self, row: dict[str, Any], best: bool) -> None:
        parts = [f"{self._title}epoch {row['epoch']:>3} of {self.settings.epochs}"]
        if row["epoch"] == 0:
            parts.append(f"{self._untrained}, untrained")
        for name, title in (
            ("train_loss", "loss"),
            ("val_loss", "val loss"),
            ("val_accuracy", f"{self._val} accuracy"),
            ("val_macro_ap", f"{self._val} AP"),
        ):
            if row.get(name) is not None:
                parts.append(f"{title} {row[name]:.3f}")
        parts.append(duration(row["seconds"]))
        self.journal.say("  " + "  ".join(parts) + ("  best so far" if best and not self._keep_last else ""))
        if self._curves is not None:
            self._curves.draw_epoch(row, self.state.updates)

    def _note_epoch(self, row: Mapping[str, Any], best: bool) -> None:
        """Enter an epoch into the events, which name none that was not saved."""
        self.journal.event(f"{self._title}epoch", **row, best=best)

    def _begin_to_save(self, then: Callable[[], None] = lambda: None) -> None:
        """Save where training stands, while it goes on; `then` is called when that is done."""
        arrays = self._finite_weights()
        if self.world.is_chief:
            self._saver.begin(arrays, self.trainer.state_arrays(), self.state, then)
        self._kept, self._saved_at = self.state.updates, time.monotonic()

    def _save(self) -> None:
        """Save where training stands, and nothing is changed meanwhile."""
        arrays = self._finite_weights()
        if self.world.is_chief:
            self.checkpoints.save(arrays, self.trainer.state_arrays(), self.state)
        self._kept = self.state.updates

    def _finite_weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights to save.

        Raises:
            DivergedError: not all are finite.
        """
        with self.trainer.averaged():
            arrays = weights(self.trainer.classifier, viewed)
        for name, array in arrays.items():
            if not np.isfinite(array).all():
                rate = learning_rate(self.settings, max(0, self.state.updates - 1), self.per_epoch)
                raise _diverged(f"{name} holds NaN or infinity", self.state, rate)
        return arrays


def _diverged(what: str, state: State, rate: float) -> DivergedError:
    where = f"Training went astray in epoch {state.epoch + 1}, update {state.updates + 1}: {what}"
    if state.updates == 0:
        return DivergedError(
            f"{where} before any weight was changed. So the cause is not the learning rate, but first weights that "
            "are far too large (--model.checkpoint) or half precision (try --train.precision float32)."
        )
    return DivergedError(
        f"{where} at learning rate {rate:.2e}. Nothing of that was saved. Lower --train.learning-rate (try a tenth), "
        "set --train.clip-norm 1, or try --train.precision float32."
    )
