"""What a setting is to the program, a checked field, and to people: flag, variable, type, unit, default, help.

    class XSettings(Section): field = setting(...)  ─▶  options_of(Section) ─▶ help, docs/settings.md, configure.py
"""

import os
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ENVIRONMENT_PREFIX = "BIRDTUNE_"

_WHERE_GIVEN = (
    "Each is a flag (`--train.epochs 5`), an environment variable (`BIRDTUNE_TRAIN__EPOCHS=5`) and a key of\n"
    "`input/job.yaml` (`train: {epochs: 5}`). The first of these that names it wins. Relative paths in `job.yaml`\n"
    "begin at the input folder."
)


class Section(BaseModel):
    """Settings of one subject, named by the first line of its docstring; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


def setting(default: Any, help_line: str, *, unit: str = "", unset: str = "unset", **limits: Any) -> Any:
    """A field; `unset` is what people read as the default of a setting that has none of its own."""
    extra: dict[str, Any] = {"unit": unit, "unset": unset}
    return Field(default, description=help_line, json_schema_extra=extra, **limits)


@dataclass(frozen=True)
class Option:
    """One setting as a person meets it."""

    name: str  # "train.batch-size"
    path: tuple[str, ...]  # ("train", "batch_size")
    type: str
    unit: str
    default: Any
    default_text: str  # as a person reads it
    help: str
    section: str

    @property
    def flag(self) -> str:
        """The command-line flag."""
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return ENVIRONMENT_PREFIX + "__".join(self.path).upper()


def options_of(section: type[Section]) -> list[Option]:
    """Every setting of a section and those in it, in the order of the help text."""
    return list(_walk(section, (), "The run"))


PATHS = "paths"  # unit of a setting that takes several, separated by commas


def paths_of(text: str, folder: Path = Path()) -> list[str]:
    """The paths of such a setting. What has a comma in it and is there is one path.

    Args:
        folder: where relative ones begin.
    """
    parts, found = text.split(","), list[str]()
    while parts:
        longer = range(len(parts), 1, -1)
        n = next((n for n in longer if os.path.lexists(folder / ",".join(parts[:n]).strip())), 1)
        found.append(",".join(parts[:n]).strip())
        parts = parts[n:]
    return [path for path in found if path]


def settings_page(options: Sequence[Option]) -> str:
    """Settings as a page of Markdown, a table for each section."""
    lines = ["# Settings", "", "Written by `./entrypoint.sh settings`.", "", _WHERE_GIVEN]
    section = ""
    for option in options:
        if option.section != section:
            section = option.section
            lines += ["", f"## {section}", "", "| setting | value | default | |", "|---|---|---|---|"]
        value = " ".join(dict.fromkeys(filter(None, [option.type, option.unit]))).replace("|", " \\| ")
        what = option.help.replace("|", "\\|")
        lines.append(f"| `{option.name}` | {value} | {option.default_text} | {what} |")
    return "\n".join(lines) + "\n"


def _walk(model: type[BaseModel], path: tuple[str, ...], section: str) -> Iterator[Option]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _walk(field.annotation, (*path, key), (field.annotation.__doc__ or key).rstrip("."))
            continue
        extra = typing.cast(dict[str, Any], field.json_schema_extra or {})
        where = (*path, key)
        name = ".".join(where).replace("_", "-")
        yield Option(
            name,
            where,
            _type_name(field.annotation),
            extra["unit"],
            field.default,
            _default_text(field.default, extra["unset"]),
            field.description or "",
            section,
        )


def _default_text(default: Any, unset: str) -> str:
    if default is None:
        return unset
    return str(default).lower() if isinstance(default, bool) else str(default)


def _type_name(annotation: Any) -> str:
    if typing.get_origin(annotation) is Literal:
        return "|".join(typing.get_args(annotation))
    if isinstance(annotation, types.UnionType):
        return _type_name(next(part for part in typing.get_args(annotation) if part is not type(None)))
    name = str(annotation.__name__)
    return {"str": "text", "Path": "path", "bool": "true|false"}.get(name, name)
