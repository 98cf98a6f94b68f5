"""How the whole suite runs: one thread a process, and long tests only where they are asked for.

    ./entrypoint.sh test          what a change must pass, on all cores
    ./entrypoint.sh test --long   with it the tests of faults and endurance: kills, full disks, hostile bytes at length
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

# Several processes test at once, and the networks are tiny: more threads than one would only wait for each other.
# Set here, before anything loads NumPy or TensorFlow, and inherited by the commands that tests start.
for _variable in (
    "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
):  # fmt: skip
    os.environ.setdefault(_variable, "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

_LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked long, too (half an hour more)")


@pytest.hookimpl(trylast=True)  # after -k and -m have chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("long"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.stash[_LEFT_OUT] = len(long)
    config.hook.pytest_deselected(items=long)


# pytest-xdist collects in its workers alone, and says nothing of what they left out.


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(_LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: "xdist.workermanage.WorkerController") -> None:  # noqa: F821
    node.config.stash[_LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if left_out := config.stash.get(_LEFT_OUT, 0):
        terminalreporter.line(f"{left_out} long tests were left out: ./entrypoint.sh test --long runs them.")


@pytest.fixture(scope="session")
def at_length(request: pytest.FixtureRequest) -> bool:
    """Whether somebody waits for the long tests: those that try things at random try more of them."""
    return bool(request.config.getoption("long"))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings from outside, and an empty folder to stand in."""
    for variable in [name for name in os.environ if name.startswith("BIRDTUNE_")]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def in_one_process() -> Iterator[None]:
    """The job without its helper processes, each of which would load TensorFlow for seconds.

    Those are tested where they are the subject: test_workers, test_frames, test_export, test_predict, test_bad_input.
    """
    from makers import Here, without_processes

    from birdtune.models import saved_model, tf_checkpoint, yamnet
    from birdtune.serving import export, inference, verify

    with pytest.MonkeyPatch.context() as patch:
        without_processes(patch)
        for module in (saved_model, tf_checkpoint, yamnet, inference):
            patch.setattr(module, "Isolated", Here)
        patch.setattr(export, "fresh_process", lambda: nullcontext(verify.answers))
        yield
