"""SageMaker's contract, `docker run IMAGE train`: what it mounts under /opt/ml becomes a command line, and results go
where it looks for them.

    input/config/hyperparameters.json, input/data/<channel> ─▶ run --setting value ...
    output folder: checkpoints/, which SageMaker keeps in S3 all along and restores
    model, if it was promoted ─▶ model/<name>/<version>;  report ─▶ output/data;  why it failed ─▶ output/failure
    input/config/resourceconfig.json, where it names several machines ─▶ TF_CONFIG
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from birdtune.errors import BirdtuneError, InputError, ended_by, shown
from birdtune.runtime.files import make_folder, read_json
from birdtune.runtime.rank import Cluster, is_chief
from birdtune.runtime.runs import RECORD_NAME
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.text import some

ROOT = Path("/opt/ml")
# Channels → settings. A channel is a folder; where the setting names a file, and the folder has one, it is meant.
_CHANNELS = {
    "input": "input", "data": "data", "train": "data", "training": "data", "background": "background",
    "backbone": "model.checkpoint", "base": "init-from",
}  # fmt: skip
_LONGEST_FAILURE = 1024
_PORT = 2222  # further processes of a machine take the ports behind it


def is_here(root: Path = ROOT) -> bool:
    """Whether SageMaker started this container."""
    return (root / "input/config/hyperparameters.json").is_file()


def train(run: Callable[[list[str]], int], root: Path = ROOT) -> int:
    """Run the job that SageMaker asks for.

    Args:
        run: runs a command line.

    Returns: its exit code.

    Raises:
        InputError: the files are not those of SageMaker's contract, or name what birdtune does not know.
    """
    with _failure_told(root):
        if not os.access(root, os.W_OK):
            raise InputError(
                f"{shown(root)}: cannot be written by user {os.geteuid()}. SageMaker mounts it for root: build an "
                "image for SageMaker with `USER root` (docs/deploy-sagemaker.md)."
            )
        os.environ.update(_cluster(root))
        output = root / "checkpoints"
        _keep_cache_local(output, root)
        code = run(["run", "--output", str(output), *_channels(root), *_hyperparameters(root)])
        if is_chief():
            _hand_over(output, root)
        return code


def _hyperparameters(root: Path) -> Iterator[str]:
    """Hyperparameters as flags. Each is a text, which SageMaker's own library writes as JSON."""
    for name, text in _read(root, "hyperparameters.json").items():
        # What SageMaker's library and its tuning add for others.
        if name.startswith(("sagemaker_", "_tuning_")):
            continue
        try:
            value = json.loads(text)
        except (TypeError, ValueError):
            value = text
        yield from (f"--{name}", value if isinstance(value, str) else str(text))


def _channels(root: Path) -> Iterator[str]:
    """Channels as flags."""
    channels = _read(root, "inputdataconfig.json")
    if unknown := sorted(set(channels) - set(_CHANNELS)):
        raise InputError(
            f"input channels {some(unknown)}: are not known. birdtune takes input (a whole input folder), data, "
            "background, backbone (weights) and base (a model to begin from)."
        )
    if "input" not in channels:
        yield from ("--input", str(root / "input/data"))
    for name in channels:
        folder = root / "input/data" / name
        files = list(folder.iterdir()) if _CHANNELS[name] == "model.checkpoint" and folder.is_dir() else []
        yield from (f"--{_CHANNELS[name]}", str(files[0] if len(files) == 1 else folder))


def _cluster(root: Path) -> dict[str, str]:
    """TF_CONFIG, where there are several machines and nobody has set it."""
    found = _read(root, "resourceconfig.json")
    hosts, own = found.get("hosts", []), found.get("current_host")
    if os.environ.get("TF_CONFIG") or not isinstance(hosts, list) or len(hosts) < 2:
        return {}
    names = sorted(map(str, hosts))
    if own not in names:
        raise InputError(
            f"{shown(root / 'input/config/resourceconfig.json')}: current_host {shown(own)} is none of hosts "
            f"{some(names)}, as SageMaker writes them."
        )
    return Cluster(tuple(f"{name}:{_PORT}" for name in names), names.index(own)).environment()


def _read(root: Path, name: str) -> dict[str, Any]:
    path = root / "input/config" / name
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, dict):
        raise InputError(f"{shown(path)}: is no JSON object, as SageMaker writes it.")
    return found


def _keep_cache_local(output: Path, root: Path) -> None:
    """Keep what is made again from the recordings out of what SageMaker copies to S3."""
    make_folder(output)
    if not (output / "cache").exists():
        (output / "cache").symlink_to(make_folder(root / "cache"))


def _hand_over(output: Path, root: Path) -> None:
    """Copy the report, and a promoted model, to where SageMaker packs them."""
    record = read_json(output / RECORD_NAME) or {}
    version = str(record.get("version"))
    _copy(output / "reports" / version, root / "output/data")
    if record.get("promoted"):
        for folder in (output / "model").glob(f"*/{version}"):
            _copy(folder, root / "model" / folder.parent.name / version)


def _copy(folder: Path, target: Path) -> None:
    if folder.is_dir():
        shutil.copytree(folder, target, dirs_exist_ok=True)


@contextlib.contextmanager
def _failure_told(root: Path) -> Iterator[None]:
    """Leave why the job failed where SageMaker reads it; a job that was stopped did not fail."""
    try:
        with storage_faults(root, verb="used"):  # as where the process ends, so that both name one exit code
            yield
    except Exception as fault:
        code, why = ended_by(fault)
        with contextlib.suppress(BirdtuneError, OSError):  # what stopped the job is the one to report
            make_folder(root / "output")
            (root / "output/failure").write_text(f"exit {code}: {why}"[:_LONGEST_FAILURE], "utf-8")
        raise
