"""Addresses in S3 among the settings, and where this machine keeps what lies there.

    s3://bucket/key ─▶ Place ─▶ CLOUD.FOLDER/bucket/key
"""

import os
import re
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from birdtune.config import Config
from birdtune.config import options as settings_options
from birdtune.errors import SettingsError, shown
from birdtune.options import PATHS, Option, paths_of

# A Path has no empty parts, so that one made of `s3://bucket/key` has lost a slash.
_ADDRESS = re.compile(r"s3:/+([^/]*)/*(.*)", re.DOTALL)
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]|arn:aws[a-z-]*:s3:[^/]+")
_LONGEST_NAME_BYTES = 255
# What lies there is not read: `pipeline.release` writes to it by itself.
_WRITTEN = frozenset({"gate.publish-to"})


@dataclass(frozen=True)
class Place:
    """A bucket, and a key in it or the beginning of keys; no slash at its end."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def prefix(self) -> str:
        """What the keys of everything below it begin with."""
        return f"{self.key}/" if self.key else ""

    def is_below(self, other: "Place") -> bool:
        """Whether it lies in another place."""
        return self.bucket == other.bucket and self.key.startswith(other.prefix)

    def below(self, name: str) -> "Place":
        """What lies below it under a relative name."""
        return Place(self.bucket, self.prefix + name)

    def local(self, folder: Path) -> Path:
        """Where a machine that keeps S3 under `folder` has it."""
        return folder / self.bucket.replace(":", "_") / self.key


def place_of(value: object) -> Place | None:
    """The place that a setting names; None for a path of this machine.

    Raises:
        SettingsError: it begins as an address in S3, and is none.
    """
    match = _ADDRESS.fullmatch(str(value)) if isinstance(value, str | Path) else None
    if match is None:
        return None
    bucket, key = match[1], match[2].rstrip("/")
    if not _BUCKET.fullmatch(bucket) or not is_safe(key or "-"):
        raise SettingsError(
            f"{shown(value)}: is no address in S3; expected s3://BUCKET/KEY, e.g. s3://my-recordings/2026/input, with "
            "a bucket's name of small letters, digits, `-` and `.`, and no empty part, `.` or `..` in the key."
        )
    return Place(bucket, key)


def is_safe(name: str) -> bool:
    """Whether a relative key can be a file below a folder: it stays there, and file systems take its name."""
    return all(
        part not in ("", ".", "..") and "\0" not in part and len(os.fsencode(part)) <= _LONGEST_NAME_BYTES
        for part in name.split("/")
    )


def settings(config: Config) -> dict[str, list[Place]]:
    """The settings that name places in S3, by full name. Raises SettingsError: one of them is no address."""
    found = {}
    for option in settings_options():
        if "path" in f"{option.type}|{option.unit}" and option.name not in _WRITTEN:
            try:
                each = [place_of(value) for value in _values(option, _value(config, option.path))]
            except SettingsError as fault:
                raise SettingsError(f"--{option.name} {fault}") from fault
            if places := [place for place in each if place is not None]:
                found[option.name] = places
    return found


def with_local_settings(config: Config, locate: Callable[[Place], Path]) -> Config:
    """The same settings with paths of this machine in place of addresses."""
    tree: dict[str, Any] = {}
    by_name = {option.name: option for option in settings_options()}
    for name in settings(config):
        *sections, key = by_name[name].path
        given = _value(config, by_name[name].path)
        each = [(one, place_of(one)) for one in _values(by_name[name], given)]
        local = ",".join(str(one if place is None else locate(place)) for one, place in each)
        value = Path(local) if isinstance(given, Path) else local
        if sections:
            section = tree.get(sections[0], getattr(config, sections[0]))
            tree[sections[0]] = section.model_copy(update={key: value})
        else:
            tree[key] = value
    return config.model_copy(update=tree)


def arguments(options: Namespace) -> dict[str, list[Place]]:
    """The arguments of a command that name places in S3, by name. Raises SettingsError: one of them is no address."""
    found = {}
    own = vars(options).keys() - {option.name for option in settings_options()}
    for name, value in ((name, getattr(options, name)) for name in own):
        each = [place_of(item) for item in (value if isinstance(value, list) else [value])]
        if places := [place for place in each if place is not None]:
            found[name] = places
    return found


def with_local_arguments(options: Namespace, locate: Callable[[Place], Path]) -> Namespace:
    """The same arguments with paths of this machine in place of addresses."""

    def local(value: Any) -> Any:
        if isinstance(value, list):
            return [local(item) for item in value]
        place = place_of(value)
        if place is None:
            return value
        return str(locate(place)) if isinstance(value, str) else locate(place)

    ours = {option.name for option in settings_options()}  # which stand in the configuration
    return Namespace(**{name: value if name in ours else local(value) for name, value in vars(options).items()})


def _values(option: Option, value: Any) -> list[Any]:
    """What a setting names: several paths, where it takes several."""
    return paths_of(value) if option.unit == PATHS and isinstance(value, str) else [value]


def _value(config: Config, path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = getattr(value, key)
    return value
