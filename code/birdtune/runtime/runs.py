"""One run: its number, its folders, its record.

    output/run.json        the latest run, for schedulers: status, stage, version, exit_code, stages, ...
    output/logs/<v>/run.json   the same for version v; from it a later start knows what is done

A version is a number, as TensorFlow Serving counts them. A run that did not finish continues under its own number;
one that did gets the next when its data, its settings or the code changed.
"""

import contextlib
import importlib.metadata
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, FiniteFloat

import birdtune
from birdtune.config import Config
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.runtime.files import (
    file_sha256,
    make_folder,
    new_folder,
    read_json,
    remove_unfinished,
    write_bytes,
    write_json,
)
from birdtune.runtime.log import Journal, clock
from birdtune.runtime.rank import is_chief
from birdtune.runtime.storage import gone

STAGES = ("prepare", "train", "evaluate", "export", "report")
RECORD_NAME = "run.json"
FORMAT = 2  # of what lies in an output folder
HISTORY_NAME = "history.json"  # of the training, in the logs of a run

# Space for the last record: a job that a full disk stops could not write why otherwise.
RESERVE_NAME = ".reserve"
_RESERVE_BYTES = 1 << 16
_PACKAGES = (
    "tensorflow-cpu", "tensorflow", "keras", "numpy", "scipy", "soundfile", "soxr", "resampy", "scikit-learn",
)  # fmt: skip


class Run:
    """The run under way: where its things go, and what is written about it.

    Of a distributed job the chief alone writes.
    """

    def __init__(self, config: Config, journal: Journal) -> None:
        self.config = config
        self.journal = journal
        self._writes = is_chief()
        # The record of the last start replaces that of its version, should that be damaged.
        self._last = _record(config.output / RECORD_NAME)
        self.version: int | None = None
        self._reported: bool | None = None  # `promoted` of this version, where an earlier start ended with it
        self._saved = False
        self._reserve = config.output / RESERVE_NAME
        self.record: dict[str, Any] = {
            "status": "running",
            "stage": "prepare",
            "version": None,
            "exit_code": None,
            "birdtune": birdtune.__version__,
            "format": FORMAT,
            "started": clock(),
            "finished": None,
            "stages": {},
            "init_from": None,
            "head_start": None,  # classes that begin from the classifier which was published with the backbone
            "refit": None,  # of the second training, if there is one: `epochs`, `recordings`
            "ensemble": None,  # its members, if there is one, see training/ensemble.py
            "processes": 1,  # that trained together
            "weights_sha256": None,
            "outcome": None,  # what a scheduler asks first, see `_outcome`
            "promoted": None,  # into model/<name>/; not known before the export
            "gate": None,
            "published": None,  # places beside model/<name>/ that were to get the model, see pipeline/release.py
            "tracking": None,  # what MLflow has of the run, see reporting/tracking.py
            "verdict": None,
            "warnings": [],
            "settings": config.flat(),
            "packages": _package_versions(),
            "done": {},
            "results": {},
        }

    @property
    def logs(self) -> Path:
        return self._folder("logs")

    @property
    def checkpoints(self) -> Path:
        return self._folder("checkpoints")

    @property
    def reports(self) -> Path:
        return self._folder("reports")

    @property
    def model(self) -> Path:
        return self._folder(f"model/{self.config.export.name}")

    @property
    def candidate(self) -> Path:
        """Where the model goes that the gate does not promote."""
        return self._folder("candidates")

    def _folder(self, name: str) -> Path:
        assert self.version is not None, "the run has no number yet"
        return self.config.output / name / str(self.version)

    def continues(self, fingerprint: str) -> bool:
        """Whether a run of this fingerprint would continue the newest version."""
        earlier = self._earlier(newest_version(self.config.output))
        return earlier is not None and earlier.get("fingerprint") == fingerprint

    def _earlier(self, newest: int) -> dict[str, Any] | None:
        found = read_record(self.config.output, newest)
        if found is None and self._last is not None and self._last.get("version") == newest:
            return self._last
        return found

    def take_version(self, fingerprint: str) -> bool:
        """Determine the number of this run. Returns whether it continues an earlier start of itself.

        Args:
            fingerprint: of all that decides what is trained.
        """
        newest = newest_version(self.config.output)
        earlier = self._earlier(newest)
        if newest and earlier is None:
            self.journal.warn(
                f"{shown(self.config.output / 'logs' / str(newest) / RECORD_NAME)} is missing or damaged: version "
                f"{newest} cannot be continued. What there is of it stays; the next version is trained."
            )
        same = earlier is not None and earlier.get("fingerprint") == fingerprint
        self.version = newest if same else newest + 1
        if same:
            assert earlier is not None
            kept = (
                "done", "results", "weights_sha256", "promoted", "gate", "verdict", "warnings", "precision",
                "refit", "ensemble", "first_started", "hardware", "tracking", "processes", "published",
            )  # fmt: skip
            self.record.update({key: earlier[key] for key in kept if key in earlier})
            self._reported = earlier.get("promoted") if earlier.get("status") == "done" else None
            for stage, seconds in earlier.get("stages", {}).items():
                self.record["stages"][stage] = round(self.record["stages"].get(stage, 0.0) + seconds, 3)
        self.record.update(version=self.version, fingerprint=fingerprint)
        self.record.setdefault("first_started", self.record["started"])
        if not same and self._writes:
            # The number and its record appear together: a job killed in between would leave a number that no start
            # continues.
            with new_folder(self.logs) as building:
                write_json(building / RECORD_NAME, self.record)
        return same

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Note that a stage is under way, and how long it took; time adds up over restarts."""
        self.record["stage"] = name
        self.journal.event("stage", stage=name, state="begin", version=self.version)
        began = time.monotonic()
        self.save()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            self.record["stages"][name] = round(self.record["stages"].get(name, 0.0) + seconds, 3)
        self.journal.event("stage", stage=name, state="end", seconds=round(seconds, 3))

    def is_current(self, stage: str, fingerprint: str) -> bool:
        """Whether a stage was done with these very inputs and all files that came of it are as they were written."""
        written = self.record["results"].get(stage, {})
        return (
            self.record["done"].get(stage) == fingerprint
            and len(written) > 0
            and all(_digest(self.config.output / name) == digest for name, digest in written.items())
        )

    def done(self, stage: str, fingerprint: str, results: Sequence[Path]) -> None:
        """Note that a stage is done, what it was made from, and the files that came of it.

        Args:
            results: files, and folders of files, below the output folder; those that are not there count for nothing.
        """
        files = [path for result in results for path in ([result] if result.is_file() else result.rglob("*"))]
        self.record["done"][stage] = fingerprint
        self.record["results"][stage] = {
            path.relative_to(self.config.output).as_posix(): file_sha256(path)
            for path in sorted(files)
            if path.is_file()
        }
        self.save()

    def save(self) -> None:
        """Write the record.

        Raises:
            RetryableError, InputError: the storage refuses (see storage.storage_faults), or the output folder was
                removed since the last time.
        """
        if not self._writes:
            return
        if not self._saved:
            make_folder(self.config.output)
            write_bytes(self._reserve, os.urandom(_RESERVE_BYTES))  # zeros, some file systems would not store
        elif not self._reserve.exists():
            raise gone(self.config.output)
        self._write()
        self._saved = True

    def _write(self) -> None:
        if self.version is not None:
            write_json(make_folder(self.logs) / RECORD_NAME, self.record)
        write_json(self.config.output / RECORD_NAME, self.record)

    def end(self, status: str, exit_code: int, error: str | None = None) -> None:
        """Write how the run ended: "done", "failed" or "interrupted". Raises as `save`."""
        if not self._writes:
            return
        if not self._saved:
            make_folder(self.config.output)  # it ended before it began, and its record says why
        elif not self._reserve.exists():
            raise gone(self.config.output)
        self.record.update(status=status, exit_code=exit_code, finished=clock(), error=error, outcome=status)
        if exit_code == EXIT_DONE:
            self.record.update(stage="done", outcome=self._outcome())
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)
        try:
            if error is not None:
                self.journal.log(f"{status}: {shown(error)}")
            self.journal.event("end", status=status, exit_code=exit_code, error=error)
        finally:
            self._write()

    def _outcome(self) -> str | None:
        """What a start that ended well has changed: "promoted", "not-promoted" or "unchanged"; None: it exported no
        model, and none was before."""
        promoted = self.record["promoted"]
        if promoted is None or promoted == self._reported:
            return None if promoted is None else "unchanged"
        return "promoted" if promoted else "not-promoted"


def _digest(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


class _Warning(BaseModel):
    """A warning, as `evaluation.diagnostics` writes it."""

    code: str
    severity: str
    text: str
    advice: str


class _Written(BaseModel):
    """What a later start relies on in a record."""

    model_config = ConfigDict(strict=True, extra="ignore")

    fingerprint: str | None = None
    done: dict[str, str]
    results: dict[str, dict[str, str]] = {}
    stages: dict[str, FiniteFloat]
    weights_sha256: str | None
    verdict: str | None = None
    warnings: list[_Warning] = []
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] | None = None
    first_started: str | None = None
    refit: dict[str, int] | None = None
    ensemble: list[dict[str, Any]] | None = None
    hardware: dict[str, str] | None = None
    processes: int = 1
    classes: list[str] | None = None
    tracking: dict[str, Any] | None = None


def versions(output: Path) -> list[int]:
    """Numbers of the runs in an output folder, ascending."""
    names = (entry.name for entry in (output / "logs").glob("*"))
    return sorted(int(name) for name in names if name.isascii() and name.isdigit())


def _taken(output: Path) -> list[int]:
    """Numbers under which anything is kept: a run whose logs were deleted must not lend its checkpoints to another."""
    folders = ("logs", "checkpoints", "reports", "model/*", "candidates")
    names = [entry.name for folder in folders for entry in output.glob(f"{folder}/*")]
    return [int(name) for name in names if name.isascii() and name.isdigit()]


def newest_version(output: Path) -> int:
    """The highest number under which anything is kept: the run that may be continued; 0: there is none."""
    return max(_taken(output), default=0)


_FORMATS = ("keras", "onnx", "slim", "tflite")  # folders of `export --format`


def clear_unfinished(output: Path) -> None:
    """Remove what killed jobs left half-made. Only the holder of the folder's lock may do that."""
    if not is_chief():
        return
    inside = ("cache", "cache/*", "checkpoints/*", "candidates", "logs", "logs/*", "model/*", "reports/*", *_FORMATS)
    for folder in [output, *(path for pattern in inside for path in output.glob(pattern))]:
        remove_unfinished(folder)


def read_record(output: Path, version: int) -> dict[str, Any] | None:
    """The record of a version; None if there is none, or it is not as `Run` writes them.

    Raises:
        InputError: it was written by an earlier birdtune.
    """
    return _record(output / "logs" / str(version) / RECORD_NAME)


def _record(path: Path) -> dict[str, Any] | None:
    record = read_json(path)
    try:
        _Written.model_validate(record)
    except pydantic.ValidationError:
        return None
    found: dict[str, Any] = record
    if found.get("format") != FORMAT:
        raise InputError(
            f"{shown(path)}: was written by an earlier birdtune, whose output folders this one does not read. Give "
            "another folder with --output; the same command trains the model anew."
        )
    return found


def newest_settings(output: Path) -> tuple[int, dict[str, Any]] | None:
    """The newest version with trained weights, and its settings that differ from the defaults, by name; None: none."""
    try:
        version, record = newest_trained(output)
    except InputError:
        return None
    defaults, found = Config().flat(), record.get("settings", {})
    changed = {name: found[name] for name in found.keys() & defaults.keys() if found[name] != defaults[name]}
    return version, {name: value for name, value in changed.items() if name != "output"}


def newest_trained(output: Path) -> tuple[int, dict[str, Any]]:
    """The newest version with trained weights, and its record.

    Raises:
        InputError: there is none.
    """
    for version in reversed(versions(output)):
        record = read_record(output, version)
        if record is not None and "train" in record["done"] and record.get("classes"):
            return version, record
    raise InputError(
        f"{shown(output)}: no trained model in this output folder. Run `./entrypoint.sh run` first, "
        "or give --output of one that has."
    )


def newest_exported(config: Config) -> Path:
    """The newest model of the output folder. Raises InputError: there is none."""
    for version in reversed(versions(config.output)):
        folder = config.output / "model" / config.export.name / str(version)
        if (folder / "model.json").exists():
            return folder
    raise InputError(
        f"{shown(config.output)}: there is no exported model in this output folder. Run `./entrypoint.sh run` first, "
        "give another --output, or name a model's folder with --model (e.g. output/model/birdtune/1)."
    )


def _package_versions() -> Mapping[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
