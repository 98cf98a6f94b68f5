"""Where settings are given: flags, environment, INPUT/job.yaml → one Config.

    flags, environment, INPUT/job.yaml ─▶ load() ─▶ Config

The first that names a setting wins: flag > environment > job.yaml > default. Where a value came
from is remembered, so that a complaint can say which file or variable to mend. The layers are
flattened here and checked by pydantic; pydantic-settings would do the layering, but not the
provenance, nor the nearest name for an unknown one.
"""

import difflib
import os
import re
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import yaml

from birdtune.config import LATEST, Config, options
from birdtune.errors import InputError, SettingsError, shown
from birdtune.options import ENVIRONMENT_PREFIX, PATHS, Option, paths_of
from birdtune.runtime.files import write_text
from birdtune.runtime.parsing import parse_yaml, read_bounded
from birdtune.runtime.storage import read_error

# Variables with the prefix that are no settings: the image's own, and those that Kubernetes sets in every
# container of a namespace in which a service is called birdtune.
_OTHER_VARIABLES = re.compile(
    r"BIRDTUNE_(IN_IMAGE|(\w+_)?SERVICE_(HOST|PORT\w*)|(\w+_)?PORT(_\d+_(TCP|UDP)\w*)?)"
)

JOB_YAML = "job.yaml"
# All settings with a line of remarks each take 10 kB.
_LARGEST_YAML_BYTES = 1_000_000
# Settings by their earlier names.
_RENAMED = {
    "sound": "audio", "sound.short": "audio.short-clips", "labels.background": "labels.negative-classes",
    "model.scores": "model.output", "train.average": "train.ema-decay", "train.head-rate": "train.head-lr-multiplier",
    "train.head-epochs": "train.head-warmup-epochs", "train.balance": "train.sampling-power",
    "train.rare": "train.min-samples-action", "train.min-per-class": "train.min-samples-per-class",
    "train.quality": "train.sample-weights", "train.frozen-gb": "train.cache-gb",
    "train.patience": "train.early-stopping-patience", "train.weak-labels": "train.label-refinement",
    "train.keep": "train.keep-checkpoints", "evaluate.suspects": "evaluate.label-issues",
    "evaluate.remedies": "evaluate.rare-class-ablation", "evaluate.keep-known": "ood.target-recall",
    "augment.shift-bands": "augment.pitch-shift", "augment.shift-frames": "augment.time-roll-s",
    "augment.time-roll": "augment.time-roll-s", "augment.time-mask": "augment.time-mask-s",
    "train.hop-frames": "train.hop-s", "train.jitter-frames": "train.jitter-s",
    "from-version": "init-from", "unseen.taxonomy": "evaluate.taxonomy",
}  # fmt: skip
# Of a value that is refused, as much is shown as helps to find it.
_LONGEST_SHOWN = 200


@dataclass(frozen=True)
class _Given:
    value: Any
    origin: str


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    defaults: Mapping[str, Any] = types.MappingProxyType({}),
    *,
    job_yaml: bool | Path = True,
) -> Config:
    """Join all layers into one checked Config.

    Args:
        flags: settings from the command line, full name → value.
        environment: variables; those that begin with BIRDTUNE_ must name settings; empty ones are not given.
        defaults: a command's own, for what is given nowhere else.
        job_yaml: whether INPUT/job.yaml is read, or the folder that has it in the place of INPUT; relative paths in it
            begin there.

    Raises:
        SettingsError: an unknown setting (with the nearest known one), or a value of the wrong type
            or out of range, with where it was given.
        InputError: job.yaml cannot be read or is not a mapping.
    """
    known = {option.name: option for option in options()}
    given = {name: _Given(value, f"--{name}") for name, value in flags.items()}
    for name, item in _from_environment(environment, known).items():
        given.setdefault(name, item)
    if job_yaml:
        folder = Path(str(given["input"].value)) if "input" in given else Path("input")
        folder = job_yaml if isinstance(job_yaml, Path) else folder
        for name, item in _from_yaml(folder, known).items():
            given.setdefault(name, item)
    for name, value in defaults.items():
        given.setdefault(name, _Given(value, name))
    tree: dict[str, Any] = {}
    for name, item in given.items():
        if isinstance(item.value, str) and not _is_usable(item.value):
            raise SettingsError(
                f"{item.origin} = {_in_short(item.value)}: expected {known[name].type}, which is not empty and has no "
                f"NUL characters and no halves of characters ({known[name].help})."
            )
        *sections, key = known[name].path
        branch = tree
        for section in sections:
            branch = branch.setdefault(section, {})
        branch[key] = item.value
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as fault:
        raise SettingsError("; ".join(_complaint(error, given, known) for error in fault.errors())) from fault


def _is_usable(text: str) -> bool:
    """Whether a text could be a path, as most texts among the settings are; YAML can write what none can."""
    try:
        return text != "" and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


# Kinds of pydantic's errors whose own words are for programmers.
_EXPECTED = {
    "int_type": "expected a whole number",
    "int_parsing": "expected a whole number",
    "int_from_float": "expected a whole number",
    "float_type": "expected a number",
    "float_parsing": "expected a number",
    "bool_type": "expected true or false",
    "bool_parsing": "expected true or false",
    "string_type": "expected text (in quotes, if it is made of digits)",
}


def _complaint(error: Any, given: Mapping[str, _Given], known: Mapping[str, Option]) -> str:
    name = ".".join(str(part) for part in error["loc"]).replace("_", "-")
    message = str(error["msg"]).removeprefix("Value error, ")
    if name not in given:
        return message
    item, option = given[name], known[name]
    expected = _EXPECTED.get(error["type"], message[:1].lower() + message[1:])
    if error["type"] == "literal_error":
        choices = option.type.split("|")
        expected = f"expected one of {', '.join(choices)}{nearest(str(item.value), choices)}"
    unit = f" {option.unit}" if option.unit else ""
    return (
        f"{item.origin} = {_in_short(item.value)}: {expected} "
        f"({name} is {option.type}{unit}: {option.help}; default {option.default_text})"
    )


def _in_short(value: Any) -> str:
    text = repr(value)
    return shown(text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…")


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Option]) -> dict[str, _Given]:
    by_variable = {option.variable: name for name, option in known.items()}
    found = {}
    for variable, value in environment.items():
        # Empty is how compose files and schedulers write "not given".
        if not variable.startswith(ENVIRONMENT_PREFIX) or not value:
            continue
        if variable not in by_variable:
            if _OTHER_VARIABLES.fullmatch(variable):
                continue
            raise _unknown("environment variable ", variable, by_variable)
        found[by_variable[variable]] = _Given(value, variable)
    return found


def _from_yaml(folder: Path, known: Mapping[str, Option]) -> dict[str, _Given]:
    path = folder / JOB_YAML
    content = _read_yaml(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(
            f"{shown(path)}: holds a {type(content).__name__}; expected `section:` with `name: value` below."
        )
    found: dict[str, _Given] = {}
    for name, value in _flatten(content, known, path):
        if name not in known:
            raise _unknown(f"{shown(path)}: setting ", name, known)
        if name == "input":
            raise SettingsError(f"{shown(path)}: `input` cannot be set here; this file is found through it.")
        if name in found:
            raise SettingsError(f"{shown(path)}: {name} is set twice. Keep one.")
        if isinstance(value, str) and known[name].unit == PATHS:
            value = ",".join(_below(folder, each) for each in paths_of(value, folder))
        elif isinstance(value, str) and _is_place(known[name], value, folder):
            value = str(folder / value)
        found[name] = _Given(value, f"{name} in {shown(path)}")
    return found


def _below(folder: Path, value: str) -> str:
    """One of several paths in job.yaml."""
    return value if value == "none" or value.startswith("s3://") else str(folder / value)


def _is_place(option: Option, value: str, folder: Path) -> bool:
    """Whether a text in job.yaml is a path, which begins at INPUT."""
    if value.startswith("s3://"):
        return False
    if option.unit in ("names|path", "classes|path"):
        return os.path.isfile(folder / value)  # noqa: PTH113 - names may be longer than a path can be
    if option.unit == "version|path":
        return value not in ("", LATEST) and not value.isdecimal()
    return option.unit == "path" and value not in ("", "none")


def _read_yaml(path: Path) -> Any:
    try:
        return parse_yaml(read_bounded(path, _LARGEST_YAML_BYTES, "settings").decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise InputError(
                f"{shown(path)}: is a link to nothing. Is what it leads to mounted? Restore it, or remove the link to "
                "go by the defaults."
            ) from None
        if path.with_suffix(".yml").exists():
            raise InputError(
                f"{shown(path.with_suffix('.yml'))}: is not read. Rename it to job.yaml."
            ) from None
        return None
    except OSError as fault:
        message = f"{shown(path)}: cannot be read ({fault.strerror}). Check its rights."
        raise read_error(fault, path, message) from fault
    except ValueError as fault:
        first = shown(" ".join(str(fault).split())[:300])
        raise InputError(
            f"{shown(path)}: is not plain YAML ({first}). Write `section: {{name: value}}`."
        ) from fault


def _flatten(
    content: Mapping[Any, Any], known: Mapping[str, Option], path: Path, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = prefix + str(key).replace("_", "-")
        inside = [option.path[-1] for option in known.values() if option.name.startswith(f"{name}.")]
        if inside and value is None:
            continue  # a section whose settings are all commented out
        if isinstance(value, dict) and name not in known:
            yield from _flatten(value, known, path, f"{name}.")
        elif inside:
            raise SettingsError(
                f"{shown(path)}: {name} is a section; expected settings below it, e.g. `{name}: {{{inside[0]}: ...}}`, "
                f"not {shown(repr(value)[:80])}."
            )
        else:
            yield name, value


def _unknown(what: str, name: str, known: Iterable[str]) -> SettingsError:
    if new := renamed(name):
        return SettingsError(f"{what}{shown(name[:_LONGEST_SHOWN])} is called {new} now.")
    return SettingsError(
        f"{what}{shown(name[:_LONGEST_SHOWN])} is not known{nearest(name, known)}. "
        "`./entrypoint.sh --help` lists all settings."
    )


def renamed(name: str) -> str | None:
    """The present name of a setting by its earlier one ("--train.patience", "BIRDTUNE_TRAIN__PATIENCE")."""
    plain = name.removeprefix("--").removeprefix(ENVIRONMENT_PREFIX)
    is_variable = name.startswith(ENVIRONMENT_PREFIX)
    old = plain.lower().replace("__", ".").replace("_", "-")
    section, _, rest = old.partition(".")
    new = _RENAMED.get(old) or (f"{_RENAMED[section]}.{rest}" if rest and section in _RENAMED else None)
    if new is None:
        return None
    if is_variable:
        return ENVIRONMENT_PREFIX + new.replace(".", "__").replace("-", "_").upper()
    return f"--{new}" if name.startswith("--") else new


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint at the known name that is most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def write_job_yaml(path: Path, config: Config) -> None:
    """Write the settings that are not at their default as a job.yaml, folders and files left out."""
    tree: dict[str, dict[str, Any]] = {}
    changed = config.changed()
    for option in options():
        if option.name in changed and len(option.path) == 2 and option.type != "path":
            tree.setdefault(option.path[0], {})[option.name.split(".")[1]] = changed[option.name]
    if config.model.checkpoint == "none":
        tree.setdefault("model", {})["checkpoint"] = "none"
    write_text(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
