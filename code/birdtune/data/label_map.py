"""Label maps: the external id of each class, read without executing anything.

    bird_id_map.pickle / .json / .csv / .yaml ─▶ {class name: external id}
"""

import io
import os
import pickle
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from birdtune.errors import InputError, shown
from birdtune.runtime.files import read_csv
from birdtune.runtime.parsing import parse_json, parse_yaml, read_bounded
from birdtune.runtime.storage import read_error

LABEL_MAP_NAMES = ("bird_id_map.pickle", "bird_id_map.json", "bird_id_map.csv", "bird_id_map.yaml")
# 195 species make a map of 6 kB; a thousand times that is a mistake or an attack.
_LARGEST_MAP_BYTES = 16_000_000
# Reading YAML takes 3 s for each of these.
_LARGEST_YAML_BYTES = 1_000_000
# Ids are database keys. A larger number could not even be printed (Python stops at 4,300 digits).
_LARGEST_ID = 2**63 - 1
_WHAT = "a label map"

ExternalId = int | str


def find_label_map(folder: Path) -> Path | None:
    """The label map in an input folder, if there is one.

    Raises:
        InputError: there are several, and which one counts cannot be known.
    """
    # Also a link to nothing or an empty folder, as a failed mount leaves them: reading it reports that.
    found = [folder / name for name in LABEL_MAP_NAMES if os.path.lexists(folder / name)]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(
            f"{shown(folder)}: holds several label maps ({names}). Keep one, or name it: --labels.map PATH."
        )
    return found[0] if found else None


def read_label_map(path: Path) -> dict[str, ExternalId]:
    """Read a label map, class name → external id.

    Args:
        path: .pickle/.pkl (protocols 0-5), .json or .yaml/.yml with one mapping, or .csv whose first
            two columns are name and id.

    Raises:
        InputError: unreadable, of another shape, or (pickle) with anything but plain data.
    """
    readers: dict[str, Callable[[Path], Any]] = {
        ".pickle": read_pickle, ".pkl": read_pickle, ".json": _read_json,
        ".yaml": _read_yaml, ".yml": _read_yaml, ".csv": _read_map_csv,
    }  # fmt: skip
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{shown(path)}: a label map ends in one of {', '.join(readers)}.")
    try:
        content = reader(path)
    except OSError as fault:
        message = f"{shown(path)}: cannot be read ({fault.strerror}). Check the path and its rights."
        raise read_error(fault, path, message) from fault
    except ValueError as fault:
        reason = shown(" ".join(str(fault).split())[:200])
        raise InputError(f"{shown(path)}: is not a whole {path.suffix} file ({reason}).") from fault
    return _checked_map(path, content)


def _checked_map(path: Path, content: Any) -> dict[str, ExternalId]:
    if not isinstance(content, Mapping):
        raise InputError(
            f"{shown(path)}: holds a {type(content).__name__}; expected a mapping from class name to id."
        )
    result: dict[str, ExternalId] = {}
    for name, value in content.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(
                f"{shown(path)}: the entry {_described(name)}: {_described(value)} does not map a class "
                "name (text) to an id (a whole number or text)."
            )
        if isinstance(value, int) and abs(value) > _LARGEST_ID:
            raise InputError(f"{shown(path)}: the id of {_described(name)} has more than 64 bits.")
        composed = unicodedata.normalize("NFC", name)  # as class names are; macOS writes umlauts as two characters
        if composed in result:
            raise InputError(
                f"{shown(path)}: the class {_described(composed)} is listed twice, in two spellings of "
                "the same letters (composed and decomposed Unicode). Keep one."
            )
        result[composed] = value
    return result


def _described(value: Any) -> str:
    """A value for a message. Never `repr` of the whole: a small file can build lists that fill the memory."""
    if isinstance(value, str):
        return shown(repr(value[:80]))
    return f"a {type(value).__name__}" if value is not None else "nothing"


def _read_json(path: Path) -> Any:
    return parse_json(_content(path).decode("utf-8-sig"))


def _read_yaml(path: Path) -> Any:
    return parse_yaml(_content(path, _LARGEST_YAML_BYTES).decode("utf-8-sig"))


def _content(path: Path, most_bytes: int = _LARGEST_MAP_BYTES) -> bytes:
    return read_bounded(path, most_bytes, _WHAT)


def _read_map_csv(path: Path) -> dict[str, ExternalId]:
    rows = read_csv(path, most_bytes=_LARGEST_MAP_BYTES, what=_WHAT)
    if rows and len(rows[0]) < 2:
        raise InputError(f"{shown(path)}: has one column; expected two, class name and id, under a header.")
    result: dict[str, ExternalId] = {}
    for number, row in enumerate(rows, start=2):
        name, value = (cell.strip() for cell in list(row.values())[:2])
        if name in result:
            raise InputError(f"{shown(path)}, row {number}: the class {shown(name)} is listed twice. Keep one.")
        result[name] = int(value) if value.removeprefix("-").isdecimal() else value
    return result


class _PlainUnpickler(pickle._Unpickler):
    """Reads dicts, lists, text and numbers. A pickle can only run a program through a class or function it names.

    It is the unpickler written in Python: in that of C, ten bytes with a large memo index take all memory. Here the
    length of a bytearray would; no map has one, nor objects with a state (BUILD).
    """

    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if code not in (pickle.BYTEARRAY8[0], pickle.BUILD[0])
    }

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, which could run a program")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of it")


def read_pickle(path: Path) -> Any:
    """Read a pickle of plain data, protocols 0 to 5, text of Python 2 as UTF-8; nothing in it can run.

    Raises:
        InputError: it names a class or function, or is damaged.
        OSError: the file cannot be read.
    """
    content = _content(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that Python does not know
            return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except Exception as fault:  # a damaged pickle makes Unpickler raise nearly anything
        raise InputError(
            f"{shown(path)}: is no pickle of plain data ({shown(str(fault)[:200])}). Copy it again; if you trust its "
            "source, save the mapping as JSON instead."
        ) from fault
