"""--track mlflow: what MLflow has of a run, also when the run is stopped or MLflow is away.

The short tests write to a folder, as on a machine without a network; the long one to a real server.
"""

import contextlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from makers import StopAt
from test_job import settings, write_data

from birdtune.errors import EXIT_DONE, InputError, Interrupted
from birdtune.pipeline import run as job
from birdtune.reporting import tracking
from birdtune.runtime import configure
from birdtune.runtime.files import read_json, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import Run
from birdtune.runtime.signals import Interrupts

Captured = pytest.CaptureFixture[str]

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow-skinny is not installed: ./entrypoint.sh extras mlflow"
)

HAS_SERVER = any(each.name == "mlflow" for each in metadata.distributions())

INTERVAL = {"accuracy": 0.9, "accuracy_ci": [0.8, 0.95], "macro_ap": None, "macro_ap_ci": None}
TEST = {
    "n_recordings": 20, "n_sources": 10, "clip": {**INTERVAL, "log_loss": 0.3}, "majority_baseline": 0.3,
    "majority_baseline_ci": [0.2, 0.4],
    "headline": [
        {"metric": "f1", "of": "events", "value": 0.7, "ci": [0.6, 0.8]},
        {"metric": "accuracy", "of": "recordings", "value": 0.9, "ci": None},
    ],
}  # fmt: skip


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where MLflow writes, with none of its variables from outside, and none left behind."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    for name, value in tracking._QUIET.items():
        monkeypatch.setenv(name, value)
    found = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", found)
    return found


def client(place: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(place, place)


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, "train_loss": 1 / number, "val_accuracy": 0.5, "val_macro_ap": None, "seconds": 2.5}


class Start:
    """A start of a run that tracks, without training: its journal, and its lines."""

    def __init__(self, output: Path, **flags: Any) -> None:
        self.config = configure.load({"output": output, "track": "mlflow", "train.epochs": 3, **flags}, {})
        self.journal = Journal()
        self.run = Run(self.config, self.journal)
        self.run.take_version("0" * 64)
        self.run.record["classes"] = ["a", "b"]
        self.journal.write_to(self.run.logs)

    def train(self, *epochs: int) -> None:
        for number in epochs:
            self.journal.event("epoch", **epoch(number), best=True)

    def end(self) -> None:
        self.run.end("done", EXIT_DONE)
        self.journal.close()

    def leave_results(self, *, promoted: bool = True, threshold: str = "0.5") -> None:
        reports, model = self.run.reports, self.run.model if promoted else self.run.candidate
        for folder in (reports, model):
            folder.mkdir(parents=True, exist_ok=True)
        write_json(reports / "metrics.json", {"test": TEST})
        (reports / "report.html").write_text("a report")
        (model / "labels.csv").write_text(f"a,{threshold}")
        self.run.record.update(promoted=promoted, verdict="good", weights_sha256="f" * 64)
        self.run.done("evaluate", "", [reports / "metrics.json"])
        self.run.done("export", "", [model])
        self.run.done("report", "", [reports / "report.html"])


def the_run(place: str) -> Any:
    """The one run that MLflow has."""
    found = client(place).search_runs([each.experiment_id for each in client(place).search_experiments()])
    assert len(found) == 1
    return found[0]


def steps(place: str, metric: str = "train_loss") -> list[int]:
    return [each.step for each in client(place).get_metric_history(the_run(place).info.run_id, metric)]


# ---- what is refused before the long work --------------------------------------------------------


def test_without_the_package_the_command_that_installs_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"\./entrypoint\.sh extras mlflow .*EXTRAS=mlflow"):
        tracking.require(configure.load({"track": "mlflow"}, {}))
    tracking.require(configure.load({}, {}))


@needs_mlflow
def test_an_address_that_the_client_does_not_know_is_refused_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    with pytest.raises(InputError, match=r"MLFLOW_TRACKING_URI postgresql://host/db") as caught:
        tracking.require(configure.load({"track": "mlflow"}, {}))
    assert "secret" not in str(caught.value)


# ---- what MLflow has -----------------------------------------------------------------------------


@needs_mlflow
def test_a_run_that_is_stopped_goes_on_in_mlflow_and_has_each_epoch_once(tmp_path: Path, place: str) -> None:
    first = Start(tmp_path / "o")
    with contextlib.suppress(Interrupted), tracking.followed(first.run):
        first.train(1)
        raise Interrupted(15)
    first.run.end("interrupted", 143)
    first.journal.close()
    assert (the_run(place).info.status, steps(place)) == ("KILLED", [1])

    second = Start(tmp_path / "o")
    with tracking.followed(second.run):
        assert the_run(place).info.status == "RUNNING"
        second.train(2, 3)
    second.end()
    found = the_run(place)
    assert (found.info.status, found.info.run_name, steps(place)) == ("FINISHED", "birdtune 1", [1, 2, 3])
    assert found.data.params == {"output": str(tmp_path / "o"), "track": "mlflow", "train.epochs": "3"}
    assert found.data.metrics["epoch_seconds"] == 2.5 and "val_macro_ap" not in found.data.metrics
    assert read_json(tmp_path / "o/run.json")["tracking"]["run_id"] == found.info.run_id


@needs_mlflow
def test_figures_of_the_test_have_their_intervals_and_the_report_is_there(tmp_path: Path, place: str) -> None:
    start = Start(tmp_path / "o")
    with tracking.followed(start.run):
        start.leave_results()
    start.end()
    metrics = the_run(place).data.metrics
    assert {name: value for name, value in metrics.items() if name.startswith("test_")} == {
        "test_accuracy": 0.9, "test_accuracy_low": 0.8, "test_accuracy_high": 0.95, "test_log_loss": 0.3,
        "test_majority_baseline": 0.3, "test_majority_baseline_low": 0.2, "test_majority_baseline_high": 0.4,
        "test_events_f1": 0.7, "test_events_f1_low": 0.6, "test_events_f1_high": 0.8,
        "test_recordings": 20, "test_sources": 10,
    }  # fmt: skip
    run_id = the_run(place).info.run_id
    names = sorted(each.path for each in client(place).list_artifacts(run_id))
    assert names[0] == "metrics.json" and names[1].startswith("model-") and names[2] == "report.html"


@needs_mlflow
def test_a_model_in_service_is_the_champion_another_the_challenger(tmp_path: Path, place: str) -> None:
    def again(**how: Any) -> dict[str, str]:
        start = Start(tmp_path / "o")
        with tracking.followed(start.run):
            if how:
                start.leave_results(**how)
        start.end()
        found = client(place).get_registered_model("birdtune").aliases
        return {alias: str(version) for alias, version in found.items()}

    assert again(promoted=True) == {"champion": "1"}
    source = client(place).get_model_version_by_alias("birdtune", "champion").source
    assert (Path(source.removeprefix("file://")) / "labels.csv").read_text() == "a,0.5"
    assert again() == {"champion": "1"}  # nothing is new
    assert again(promoted=True, threshold="0.6") == {"champion": "2"}
    assert (Path(source.removeprefix("file://")) / "labels.csv").read_text() == "a,0.5"  # version 1 is what it was
    assert again(promoted=False, threshold="0.6") == {"challenger": "2"}  # the gate decided anew
    assert again(promoted=True, threshold="0.6") == {"champion": "2"}


@needs_mlflow
@pytest.mark.filterwarnings("ignore")  # of SQLAlchemy, without which the database would not be made
def test_without_a_server_the_output_folder_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    start = Start(tmp_path / "o")
    with tracking.followed(start.run):
        start.train(1)
        start.leave_results()
    start.end()
    assert steps((tmp_path / "o/mlruns").as_uri()) == [1]
    assert list((tmp_path / "here").iterdir()) == []  # MLflow's own default is a database there


@needs_mlflow
def test_what_is_deleted_in_mlflow_is_sent_anew(tmp_path: Path, place: str) -> None:
    for _ in range(2):
        start = Start(tmp_path / "o")
        with tracking.followed(start.run):
            start.leave_results()
            start.train(1)
        start.end()
        assert steps(place) == [1] and "test_accuracy" in the_run(place).data.metrics
        client(place).delete_run(the_run(place).info.run_id)


# ---- when MLflow is away -------------------------------------------------------------------------


@needs_mlflow
def test_a_server_that_is_away_stops_nothing_is_said_once_and_gets_the_rest_later(
    tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"http://me:secret@127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", away)
    start = Start(tmp_path / "o", **{"labels.table": "https://me:secret@host/labels.csv"})
    with tracking.followed(start.run):
        start.train(1, 2, 3)
        start.leave_results()
    start.end()
    said = capsys.readouterr().out
    assert said.count("does not take what is sent") == 1
    assert "2 calls failed" in said and "give the same command once more" in said  # at the beginning, and at the end
    assert read_json(tmp_path / "o/run.json")["status"] == "done"
    assert read_json(tmp_path / "o/run.json")["tracking"]["failures"] == 2
    written = [path.read_text("utf-8") for path in start.run.logs.glob("*.*")]
    assert "secret" not in said and not any("secret@127" in text for text in written)

    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)  # it is back
    again = Start(tmp_path / "o", **{"labels.table": "https://me:secret@host/labels.csv"})
    with tracking.followed(again.run):
        pass
    again.end()
    found = the_run(place)
    assert steps(place) == [1, 2, 3] and found.data.metrics["test_accuracy"] == 0.9
    assert found.data.params["labels.table"] == "https://host/labels.csv"
    assert read_json(tmp_path / "o/run.json")["tracking"]["failures"] == 0
    assert "model birdtune version 1 (champion)" in capsys.readouterr().out


@needs_mlflow
def test_a_server_that_goes_away_is_not_asked_at_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    start = Start(tmp_path / "o")
    with tracking.followed(start.run):
        start.train(1)
        shutil.move(tmp_path / "mlflow", tmp_path / "elsewhere")
        (tmp_path / "mlflow").write_text("no folder")
        start.train(2, 3)
        assert len(start.journal.events("tracking")) == 1
        (tmp_path / "mlflow").unlink()
        shutil.move(tmp_path / "elsewhere", tmp_path / "mlflow")
    start.end()
    assert steps(place) == [1, 2, 3]


# ---- whole jobs ----------------------------------------------------------------------------------


@needs_mlflow
@pytest.mark.usefixtures("in_one_process")
def test_a_training_that_is_stopped_and_one_that_was_done_before_are_tracked_whole(tmp_path: Path, place: str) -> None:
    data = write_data(tmp_path / "in/data", range(4))
    stop, journal = StopAt(1_000_000), Journal(quiet=True)

    def take(kind: str, fields: dict[str, Any]) -> None:
        if kind == "epoch":
            stop.left = 1

    journal.follow(take)
    with pytest.raises(Interrupted):
        job.run(settings(data, tmp_path / "o", track="mlflow"), journal, stop, until="train")
    journal.close()
    assert (the_run(place).info.status, steps(place)) == ("KILLED", [1])
    for track in ("none", "mlflow"):  # finished untracked; then there is nothing to do but to send the rest
        journal = Journal(quiet=True)
        assert job.run(settings(data, tmp_path / "o", track=track), journal, Interrupts(), until="train") == EXIT_DONE
        journal.close()
    assert (the_run(place).info.status, steps(place)) == ("FINISHED", [1, 2, 3])


@contextlib.contextmanager
def server(folder: Path, *store: str) -> Iterator[str]:
    """MLflow's own server, with a store that it is told of; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = {**os.environ, "PYTHONPATH": ""}
    with (folder / "server.log").open("wb") as log, subprocess.Popen(
        [*command, *store], cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
    ) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(600):
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.5)
            yield address
        finally:
            os.killpg(process.pid, 15)


@needs_mlflow
@pytest.mark.long
@pytest.mark.skipif(not HAS_SERVER, reason="MLflow's server is not installed: pip install mlflow")
@pytest.mark.usefixtures("in_one_process")
@pytest.mark.parametrize("kind", ["a server", "a folder that a server shows later"])
def test_a_server_of_mlflow_has_the_run_and_gives_the_model_by_its_alias(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    data, journal = write_data(tmp_path / "in/data", range(4)), Journal(quiet=True)
    store = ["--backend-store-uri", f"sqlite:///{tmp_path}/db", "--artifacts-destination", str(tmp_path / "files")]
    with contextlib.ExitStack() as stack:
        if kind == "a server":
            place = stack.enter_context(server(tmp_path, *store))
            monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
        assert job.run(settings(data, tmp_path / "o", track="mlflow"), journal, Interrupts()) == EXIT_DONE
        journal.close()
        if kind != "a server":
            place = stack.enter_context(server(tmp_path, "--backend-store-uri", place, "--serve-artifacts"))
        assert (the_run(place).info.status, steps(place)) == ("FINISHED", [1, 2, 3])
        assert 0 <= the_run(place).data.metrics["test_accuracy_low"] <= the_run(place).data.metrics["test_accuracy"]
        version = client(place).get_model_version_by_alias("birdtune", "champion")
        found = client(place).download_artifacts(version.run_id, version.source.rsplit("/", 1)[-1], str(tmp_path))
        made = tmp_path / "o/model/birdtune/1"
        names = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
        assert names and all((made / name).read_bytes() == (Path(found) / name).read_bytes() for name in names)
