"""Promoted models in further places: folders, or prefixes in S3, that servers look at.

    run.json `promoted`, model/<name>/<v> ─▶ release ─▶ PLACE/<v> of each --gate.publish-to, and `published` of run.json

A model that the gate keeps back never appears there, and one that it takes back is removed; a place without the one in
service gets that. A place that fails costs nothing that was computed: the others get the model, and the next start of
the same command tries that place alone.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from birdtune.cloud.places import Place, place_of
from birdtune.config import Config
from birdtune.errors import BirdtuneError, InputError, RetryableError, SettingsError, shown
from birdtune.options import paths_of
from birdtune.runtime.files import file_sha256, new_folder, read_json
from birdtune.runtime.log import Journal
from birdtune.runtime.runs import Run
from birdtune.runtime.storage import UNFINISHED, gone, storage_faults
from birdtune.runtime.text import count

_SETTING = "--gate.publish-to"


class _ModelPlace(Protocol):
    """Where versions of a model lie; `cloud.model_copy.ModelPlace` is one."""

    def facts(self, version: int) -> Any: ...
    def newest(self) -> int | None: ...
    def has(self, version: int, digests: Mapping[str, str]) -> bool: ...
    def put(self, folder: Path, version: int, digests: Mapping[str, str]) -> None: ...
    def remove(self, version: int) -> None: ...


class _Folder:
    """Where they lie on a disk. Every method raises as `storage_faults`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def facts(self, version: int) -> Any:
        """model.json of a version; {}: it has none; None: there is no such version."""
        if not self._path.is_dir():
            raise gone(self._path)  # it was there when the run began
        folder = self._path / str(version)
        return (read_json(folder / "model.json") or {}) if os.path.lexists(folder) else None

    def newest(self) -> int | None:
        """The version that a server takes: the highest number; None: there is none."""
        return max((int(path.name) for path in self._path.glob("*") if path.name.isdecimal()), default=None)

    def has(self, version: int, digests: Mapping[str, str]) -> bool:
        """Whether a version has exactly these files: relative name → SHA-256."""
        folder = self._path / str(version)
        files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        return files.keys() == digests.keys() and all(file_sha256(files[name]) == digests[name] for name in files)

    def put(self, folder: Path, version: int, digests: Mapping[str, str]) -> None:
        """Make a version what `folder` is: it appears whole, by one rename."""
        needed = sum((folder / name).stat().st_size for name in digests)
        with new_folder(self._path / str(version), what="a copy of the model", needed=needed) as building:
            shutil.copytree(folder, building, copy_function=shutil.copyfile, dirs_exist_ok=True)

    def remove(self, version: int) -> None:
        """Remove a version."""
        remove_model(self._path / str(version))


def remove_model(folder: Path) -> None:
    """Remove a model; its name goes first, by one rename, so that no server meets half of it."""
    if folder.exists():
        leaving = folder.with_name(f"{UNFINISHED}{folder.name}")
        shutil.rmtree(leaving, ignore_errors=True)
        folder.replace(leaving)
        shutil.rmtree(leaving, ignore_errors=True)


def require(config: Config) -> None:
    """Refuse what cannot be published to before the long work, not after.

    Raises:
        SettingsError: an address in S3 is none, or a folder is that of the models themselves.
        InputError: a folder is not there.
    """
    models = Path(os.path.realpath(config.output))
    for place in _places(config):
        if isinstance(place, Path):
            _require_folder(place)
            if Path(os.path.realpath(place)).is_relative_to(models):
                raise SettingsError(
                    f"{_SETTING} {shown(place)}: lies in the output folder, which has the promoted models in "
                    f"model/{config.export.name} anyway. Give a folder outside of it."
                )


def _require_folder(path: Path) -> None:
    # Not made here: what is not mounted would be filled on the disk below it, and no server would see it.
    if not path.is_dir():
        raise InputError(
            f"{_SETTING} {shown(path)}: there is no such folder; expected the one that a server looks at. Make it, or "
            "mount it, and run again."
        )


def _places(config: Config) -> list[Path | Place]:
    try:
        return [place_of(text) or Path(text) for text in paths_of(config.gate.publish_to or "")]
    except SettingsError as fault:
        raise SettingsError(f"{_SETTING} {fault}") from fault


def release(current: Run, keep: Callable[[], None]) -> None:
    """Bring the model of a run to all places if it is promoted, and remove it from them if it is not.

    Args:
        keep: makes sure of the output before any place is changed. A machine that vanished in between would else leave
            a model in service of whose promotion nobody knows.

    Raises:
        InputError, RetryableError: some could not be written. run.json says which, and why.
    """
    places, promoted = _places(current.config), current.record["promoted"]
    if not places or promoted is None:
        return
    rows, faults = [], list[BirdtuneError]()
    with current.stage("publish"):
        keep()
        for place in places:
            row: dict[str, Any] = {"place": str(place), "version": None, "has_it": False, "error": None}
            try:
                with storage_faults(place if isinstance(place, Path) else current.model, "a copy of the model"):
                    row.update(version=_settle(_open(place, current.config), current), has_it=promoted)
            except (InputError, RetryableError) as fault:
                faults.append(fault)
                row["error"] = str(fault)
            rows.append(row)
        current.record["published"] = rows
    if faults:
        kind = RetryableError if any(isinstance(fault, RetryableError) for fault in faults) else InputError
        raise kind(
            f"{_SETTING}: version {current.version} is not as it should be in {len(faults)} of "
            f"{count(len(places), 'place')}: {'; '.join(map(str, faults))} Everything else of this run is done: the "
            "same command tries this alone."
        )


def _open(place: Path | Place, config: Config) -> _ModelPlace:
    if isinstance(place, Path):
        return _Folder(place)
    # They load boto3, which takes its time.
    from birdtune.cloud.client import connect
    from birdtune.cloud.model_copy import ModelPlace

    return ModelPlace(connect(config.cloud), place)


def _settle(place: _ModelPlace, current: Run) -> int | None:
    """Let a place have the version of a run, or have it no more; the version that its servers take."""
    version, own = int(current.version or 0), _identity(current.record)
    if current.record["promoted"]:
        wanted = (version, current.model, own, _exported(current))
    else:
        if _identity(place.facts(version)) == own:
            place.remove(version)
            current.journal.say(f"  {shown(place)}: version {version} removed, as it is not promoted any more")
        serving = _in_service(current)
        if serving is None:
            return place.newest()
        wanted = (int(serving.name), serving, _identity(read_json(serving / "model.json")), _digests(serving))
    _bring(place, *wanted, current.journal)
    newest = place.newest()
    if newest != wanted[0]:
        current.journal.warn(
            f"{shown(place)}: has version {newest}, which servers take in place of version {wanted[0]}. Remove it, or "
            "give a place of its own."
        )
    return newest


def _identity(facts: Any) -> tuple[Any, Any] | None:
    """What tells a model from those of other outputs; facts: of a model.json or a run.json."""
    return (facts.get("fingerprint"), facts.get("first_started")) if isinstance(facts, dict) else None


def _bring(
    place: _ModelPlace, version: int, folder: Path, identity: tuple[Any, Any] | None, digests: Mapping[str, str],
    journal: Journal,
) -> None:  # fmt: skip
    """Let a place have a version. Raises InputError: it has another model under that number."""
    facts = place.facts(version)
    if facts is not None and _identity(facts) != identity:
        raise InputError(
            f"{shown(place)}: has a version {version} of another output folder. Give each output folder a place of its "
            "own, or remove that version."
        )
    if facts is None or not place.has(version, digests):
        place.put(folder, version, digests)
        journal.say(f"  {shown(place)}: version {version} is there")


def _exported(current: Run) -> dict[str, str]:
    """The files of a run's model: relative name → SHA-256."""
    prefix = f"{current.model.relative_to(current.config.output).as_posix()}/"
    return {
        name.removeprefix(prefix): digest for name, digest in current.record["results"]["export"].items()
        if name.startswith(prefix)
    }  # fmt: skip


def _in_service(current: Run) -> Path | None:
    """The newest promoted version but that of the run; None: there is none."""
    others = [
        path for path in current.model.parent.glob("*")
        if path.name.isdecimal() and path.name != str(current.version) and (path / "model.json").is_file()
    ]  # fmt: skip
    return max(others, key=lambda path: int(path.name), default=None)


def _digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in folder.rglob("*") if path.is_file()}
