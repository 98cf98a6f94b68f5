"""A run in MLflow: its settings, the figures of each epoch and of the test, its report, and its model by an alias.

    --track mlflow ─▶ followed(Run) ─▶ a run of an experiment, and a version in the model registry

What is sent is what lies in the output folder and MLflow has not got yet. So what a server missed while it was away
comes with the next call, and a later start that has nothing else to do sends the rest. A fault of MLflow is said once,
counted in run.json, and stops nothing. MLflow's own variables say where it is and who may write: no setting holds a
secret.
"""

import contextlib
import functools
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from birdtune.config import Config
from birdtune.errors import BirdtuneError, InputError, shown
from birdtune.evaluation.headline import RECORDINGS
from birdtune.runtime.files import read_json, value_sha256
from birdtune.runtime.rank import is_chief
from birdtune.runtime.runs import HISTORY_NAME, Run
from birdtune.runtime.text import count

STORE_NAME: Final = "mlruns"  # in the output folder, where no server is named
CHAMPION, CHALLENGER = "champion", "challenger"
_URI, _EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"
# The client alone has no databases.
_SCHEMES = ("", "file", "http", "https", "databricks")
# A batch job reports neither to MLflow's makers nor to standard output. Files are what a machine without a network has.
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false", "MLFLOW_LOGGING_LEVEL": "ERROR", "MLFLOW_ALLOW_FILE_STORE": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}  # fmt: skip
# Between epochs nothing waits for a server, which would wait for minutes by default; nor is it asked again at once.
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "5", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
_REST_S = 300.0
_LONGEST_VALUE = 6000  # characters of a parameter
_STATUS = {"done": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
# Prefix of a training's figures → the event that each of its epochs ends with.
_EPOCHS = {"": "epoch", "refit_": "refit epoch"}


def require(config: Config) -> None:
    """Refuse what cannot be tracked, before the long work.

    Raises:
        InputError: the client is not installed, or MLFLOW_TRACKING_URI is of a kind that it does not know.
    """
    if config.track == "none":
        return
    if importlib.util.find_spec("mlflow") is None:
        raise InputError(
            "--track mlflow: needs mlflow-skinny, which is not installed. Give ./entrypoint.sh extras mlflow (in an "
            "image: build it with --build-arg EXTRAS=mlflow)."
        )
    place = os.environ.get(_URI, "")
    if (scheme := urlsplit(place).scheme) not in _SCHEMES:
        raise InputError(
            f"{_URI} {shown(_without_password(place))}: {shown(scheme)}: is nothing that MLflow's client can write to. "
            "Expected the address of a server (https://...) or a folder; without it, --track mlflow writes to "
            f"{STORE_NAME}/ in the output folder."
        )


@contextlib.contextmanager
def followed(run: Run) -> Iterator[None]:
    """Send to MLflow what a run leaves while the block lasts, and how the run ends, if the settings ask for it."""
    if run.config.track == "none" or not is_chief():
        yield
        return
    tracker = _Tracker(run)
    tracker.try_to(tracker.send_epochs)
    run.journal.follow(tracker.take)
    yield
    tracker.finish()


class _Tracker:
    """Sends what MLflow has not got yet.

    `tracking` of run.json: `experiment` and `run_id`; `sent`, file or model → digest of what was sent; `model_version`,
    in the registry; `failures`, calls of this start that failed.
    """

    def __init__(self, run: Run) -> None:
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient  # takes seconds

        self._run = run
        self._place = os.environ.get(_URI) or (run.config.output.absolute() / STORE_NAME).as_uri()
        registry = os.environ.get("MLFLOW_REGISTRY_URI") or self._place
        self._connect: Callable[[], Any] = lambda: MlflowClient(self._place, registry)
        self._client: Any = None  # until MLflow has answered
        self._steps: dict[str, set[int]] = {}  # of epochs that it has
        self._failures, self._quiet_until = 0, 0.0

    @property
    def _row(self) -> dict[str, Any]:
        return self._run.record["tracking"] or {}

    def _note(self, **more: Any) -> None:
        self._run.record["tracking"] = {**self._row, **more, "failures": self._failures}
        self._run.save()

    # ---- what never stops a run ------------------------------------------------------------------

    def take(self, kind: str, fields: Mapping[str, Any]) -> None:
        """What the journal reports."""
        if kind in _EPOCHS.values():
            self.try_to(self.send_epochs)
        elif kind == "end" and self._client is not None:
            self.try_to(lambda: self._client.set_terminated(self._row["run_id"], _STATUS[fields["status"]]))

    def try_to(self, send: Callable[[], None], *, patiently: bool = False) -> bool:
        """Send something; False where MLflow does not answer, or did not a short while ago.

        Args:
            patiently: wait as long as MLflow itself would, as for large files.
        """
        if time.monotonic() < self._quiet_until:
            return False
        try:
            # Some of MLflow's own code asks the variable, and makes a database where it finds none.
            with _environment({_URI: self._place, **({} if patiently else _IMPATIENT)}):
                send()
        except BirdtuneError:
            raise  # run.json cannot be written
        except Exception as fault:  # whatever it is: figures that are not seen are no reason to lose a training
            self._failed(fault)
            return False
        return True

    def _failed(self, fault: Exception) -> None:
        self._failures += 1
        self._quiet_until = time.monotonic() + _REST_S
        reason = shown(_without_password(" ".join(str(fault).split()))[:300])
        self._run.journal.event("tracking", fault=reason, failures=self._failures)
        if self._failures == 1:
            self._run.journal.warn(
                f"MLflow at {self._where} does not take what is sent ({type(fault).__name__}: {reason}). The job goes "
                "on; what is missing there is sent later."
            )

    @property
    def _where(self) -> str:
        return shown(_without_password(self._place))

    # ---- what is sent ----------------------------------------------------------------------------

    def send_epochs(self) -> None:
        """The epochs that MLflow has not got."""
        from mlflow.entities import Metric

        client, run_id = self._open()
        now = round(time.time() * 1000)
        for prefix, rows in self._epochs().items():
            steps = self._steps.setdefault(prefix, _steps(client, run_id, f"{prefix}epoch_seconds"))
            for step in sorted(rows.keys() - steps):
                figures = {f"{prefix}{name}": value for name, value in _epoch_figures(rows[step]).items()}
                client.log_batch(run_id, metrics=[Metric(name, value, now, step) for name, value in figures.items()])
                steps.add(step)

    def _epochs(self) -> dict[str, dict[int, Mapping[str, Any]]]:
        """Prefix → epoch → its figures, as far as the run has come."""
        history = read_json(self._run.logs / HISTORY_NAME) or {}
        whole = {"": history.get("epochs", []), "refit_": (history.get("refit") or {}).get("history", [])}
        return {
            prefix: {row["epoch"]: row for row in [*whole[prefix], *self._run.journal.events(event)]}
            for prefix, event in _EPOCHS.items()
        }

    def _open(self) -> tuple[Any, str]:
        """The client and the id of MLflow's run: that which an earlier start began, if it is still there."""
        if self._client is None:
            client = self._connect()
            found = _find_run(client, self._row.get("run_id"))
            if found is None:
                name = f"{self._run.config.export.name} {self._run.version}"
                found = client.create_run(_experiment(client, self._run.config), run_name=name)
                self._run.record["tracking"] = None
                self._note(experiment=found.info.experiment_id, run_id=found.info.run_id)
            client.update_run(found.info.run_id, status="RUNNING")
            self._send_settings(client, found)
            self._client = client
        return self._client, self._row["run_id"]

    def _send_settings(self, client: Any, found: Any) -> None:
        """Settings that differ from their defaults. MLflow changes none later: those of the first start stay."""
        from mlflow.entities import Param, RunTag

        changed = {name: _without_password(str(value)) for name, value in self._run.config.changed().items()}
        params = [
            Param(name, value[:_LONGEST_VALUE]) for name, value in changed.items() if name not in found.data.params
        ]
        tags = [
            RunTag("birdtune.version", str(self._run.version)),
            RunTag("birdtune.classes", str(len(self._run.record["classes"]))),
        ]
        client.log_batch(found.info.run_id, params=params, tags=tags)

    # ---- what is sent at the end of the job ------------------------------------------------------

    def finish(self) -> None:
        """Send all that there is, and say where it is."""
        self._quiet_until = 0.0
        sent = self.try_to(self.send_epochs) and self.try_to(self._send_results, patiently=True)
        self._note()
        if sent:
            name, model = self._run.config.export.name, self._row.get("model_version")
            version = f", model {name} version {model} ({self._alias})" if model is not None else ""
            self._run.journal.say(f"  mlflow: run {self._row['run_id']}{version} at {self._where}")
        else:
            self._run.journal.warn(
                f"MLflow has not got all of this run ({count(self._failures, 'call')} failed). When it answers again, "
                "give the same command once more: it sends the rest, and trains nothing."
            )

    def _send_results(self) -> None:
        from mlflow.entities import Metric, RunTag

        client, run_id = self._open()
        figures = read_json(self._run.reports / "metrics.json") or {}
        known, now = client.get_run(run_id).data.metrics, round(time.time() * 1000)
        metrics = [
            Metric(name, value, now, 0) for name, value in test_figures(figures.get("test")).items()
            if known.get(name) != value
        ]  # fmt: skip
        tags = [
            RunTag(f"birdtune.{name}", str(self._run.record[name]))
            for name in ("verdict", "promoted", "weights_sha256") if self._run.record[name] is not None
        ]  # fmt: skip
        client.log_batch(run_id, metrics=metrics, tags=tags)
        for path in (self._run.reports / "report.html", self._run.reports / "metrics.json"):
            if digest := self._digest(path):
                self._send_once(path.name, digest, functools.partial(client.log_artifact, run_id, str(path)))
        if self._run.record["promoted"] is not None:
            self._send_model(client, run_id)

    def _digest(self, path: Path) -> str | None:
        """SHA-256 of a file that a stage has left."""
        name = path.relative_to(self._run.config.output).as_posix()
        results: dict[str, dict[str, str]] = self._run.record["results"]
        return next((files[name] for files in results.values() if name in files), None)

    def _send_once(self, name: str, digest: str, send: Callable[[], None]) -> None:
        sent = self._row.get("sent", {})
        if sent.get(name) != digest:
            send()
            self._note(sent={**sent, name: digest})

    @property
    def _alias(self) -> str:
        return CHAMPION if self._run.record["promoted"] else CHALLENGER

    def _send_model(self, client: Any, run_id: str) -> None:
        """The exported model as a version in the registry, under the alias of whether it is in service."""
        name = self._run.config.export.name
        digest = value_sha256(sorted(self._run.record["results"]["export"].values()))

        def send() -> None:
            place = f"model-{digest[:12]}"  # a version in the registry keeps its files when it is exported anew
            folder = self._run.model if self._run.record["promoted"] else self._run.candidate
            client.log_artifacts(run_id, str(folder), place)
            source = f"{client.get_run(run_id).info.artifact_uri}/{place}"
            self._note(model_version=str(_register(client, name, source, run_id, self._run)))

        self._send_once("model", digest, send)
        version, other = self._row["model_version"], CHALLENGER if self._alias == CHAMPION else CHAMPION
        aliases = {alias: str(number) for alias, number in client.get_registered_model(name).aliases.items()}
        if aliases.get(self._alias) != version:
            client.set_registered_model_alias(name, self._alias, version)
        if aliases.get(other) == version:  # the gate decided otherwise before
            client.delete_registered_model_alias(name, other)


def test_figures(test: Mapping[str, Any] | None) -> dict[str, float]:
    """Figures of the test by their names in MLflow, each with the ends of its interval, `_low` and `_high`.

    Args:
        test: `test` of metrics.json; None: there was no test.
    """
    if test is None:
        return {}
    found = _with_ends("test_", test["clip"])
    found |= _with_ends("test_", {name: test[name] for name in ("majority_baseline", "majority_baseline_ci")})
    for row in test["headline"]:  # of windows and events, where labels have times
        if row["of"] != RECORDINGS:
            found |= _with_ends(f"test_{row['of']}_", {row["metric"]: row["value"], f"{row['metric']}_ci": row["ci"]})
    return {**found, "test_recordings": test["n_recordings"], "test_sources": test["n_sources"]}


def _with_ends(prefix: str, row: Mapping[str, Any]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, value in row.items():
        if value is not None and name.endswith("_ci"):
            found |= {f"{prefix}{name[:-3]}_low": value[0], f"{prefix}{name[:-3]}_high": value[1]}
        elif value is not None:
            found[f"{prefix}{name}"] = value
    return found


def _epoch_figures(row: Mapping[str, Any]) -> dict[str, float]:
    """Figures of an epoch; its seconds come last: who has them has all."""
    numbers = {name: value for name, value in row.items() if name not in ("epoch", "best", "seconds")}
    return {
        name: float(value) for name, value in {**numbers, "epoch_seconds": row["seconds"]}.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }  # fmt: skip


def _steps(client: Any, run_id: str, metric: str) -> set[int]:
    return {found.step for found in client.get_metric_history(run_id, metric)}


def _find_run(client: Any, run_id: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        found = client.get_run(run_id)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return found if found.info.lifecycle_stage == "active" else None


def _experiment(client: Any, config: Config) -> str:
    name = os.environ.get(_EXPERIMENT) or config.export.name
    found = client.get_experiment_by_name(name)
    return str(client.create_experiment(name) if found is None else found.experiment_id)


def _register(client: Any, name: str, source: str, run_id: str, run: Run) -> str:
    """A new version of the registered model; its number."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {"birdtune.version": str(run.version), "birdtune.weights_sha256": str(run.record["weights_sha256"])}
    return str(client.create_model_version(name, source, run_id, tags=tags, await_creation_for=0).version)


def _without_password(text: str) -> str:
    """A text without the user's name and password in the addresses in it."""
    return re.sub(r"(?<=//)[^/@\s]*@|(?<=/)[^/@\s]*:[^/@\s]*@", "", text)  # a path has lost a slash


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for as long as the block lasts; those that somebody set stay."""
    ours = {name: value for name, value in values.items() if not os.environ.get(name)}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]
