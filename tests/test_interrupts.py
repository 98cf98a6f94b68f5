"""birdtune.runtime.signals: how a run is stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from birdtune.errors import BirdtuneError, Interrupted, RetryableError
from birdtune.runtime import signals
from birdtune.runtime.signals import Interrupts


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_the_work_where_it_is(signum: signal.Signals, code: int) -> None:
    with Interrupts().watching() as interrupts:
        interrupts.check()
        with pytest.raises(Interrupted) as caught:
            os.kill(os.getpid(), signum)
        assert caught.value.exit_code == code
        with pytest.raises(Interrupted):
            interrupts.check()  # should a library have swallowed it


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_what_must_not_be_torn_apart(signum: signal.Signals, code: int) -> None:
    survived = 0
    with Interrupts().watching() as interrupts:
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), signum)
                survived += 1
            survived += 1
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
    assert survived == 2
    assert caught.value.exit_code == code


def stop_in_a_destructor() -> None:
    """A signal where Python drops whatever is raised."""

    class Stopped:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    Stopped()


def test_an_interruption_that_is_dropped_comes_again_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    with Interrupts().watching():
        stop_in_a_destructor()
        with pytest.raises(Interrupted):
            time.sleep(300)
    assert capfd.readouterr() == ("", "")


def test_an_interruption_that_a_library_catches_comes_again() -> None:
    with Interrupts().watching():
        with contextlib.suppress(BaseException):
            os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            time.sleep(300)


def test_one_that_was_held_back_needs_no_check() -> None:
    with Interrupts(0.04).watching() as interrupts:
        with interrupts.held():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
        with pytest.raises(Interrupted):
            time.sleep(300)


def test_what_cleans_up_after_an_interruption_is_not_disturbed() -> None:
    cleaned = []

    def clean(name: str) -> None:
        time.sleep(0.1)
        cleaned.append(name)

    def work() -> Iterator[None]:
        try:
            yield
        finally:
            clean("generator")

    with Interrupts(0.01).watching(), pytest.raises(Interrupted):
        for _ in work():
            try:
                try:
                    os.kill(os.getpid(), signal.SIGTERM)
                except BaseException as fault:
                    clean("except")
                    raise ValueError from fault
            except ValueError as fault:
                clean("made something else of")
                raise fault.__cause__ from None
            finally:
                clean("finally")
    assert sorted(cleaned) == ["except", "finally", "generator", "made something else of"]


def test_what_a_library_made_of_an_interruption_is_one() -> None:
    interrupts = Interrupts()
    other = ImportError("cannot import name")
    assert interrupts.unmasked(other) is other
    with interrupts.watching(), pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)
    for fault in (other, BirdtuneError("TensorFlow cannot be loaded")):
        found = interrupts.unmasked(fault)
        assert isinstance(found, Interrupted) and found.exit_code == 143
    full = RetryableError("the disk is full")
    assert interrupts.unmasked(full) is full
    full.__cause__ = Interrupted(signal.SIGTERM)
    assert isinstance(interrupts.unmasked(full), Interrupted)


def test_handlers_are_put_back() -> None:
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    before = [signal.getsignal(signum) for signum in watched], sys.unraisablehook
    with pytest.raises(Interrupted), Interrupts().watching():
        assert signal.getsignal(signal.SIGTERM) != before[0][0]
        os.kill(os.getpid(), signal.SIGTERM)
    assert ([signal.getsignal(signum) for signum in watched], sys.unraisablehook) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import os, signal; from birdtune.runtime.signals import Interrupts\n"
        "with Interrupts().watching() as interrupts, interrupts.held():\n"
        "    os.kill(os.getpid(), signal.SIGTERM); print('still here', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGINT); print('not here', flush=True)\n"
    )
    code = Path(signals.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(code)}
    )
    assert (done.stdout, done.returncode) == ("still here\n", 130)
