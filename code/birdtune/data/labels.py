"""The class list, and label maps read without executing anything.

    class folders ─▶ sorted class names; position = logit column
    bird_id_map.pickle / .json / .csv / .yaml ─▶ {name: external id}

A pickle is a program. Here it is only parsed: a handful of its opcodes can build dicts, lists,
strings and integers, those are followed on a stack of our own, and any other opcode ends the reading.
"""

import codecs
import io
import os
import pickletools
import re
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from birdtune.errors import InputError, SettingsError, shown
from birdtune.runtime.files import read_csv
from birdtune.runtime.plain import parse_json, parse_yaml, read_bounded
from birdtune.runtime.storage import refused

LABEL_MAP_NAMES = ("bird_id_map.pickle", "bird_id_map.json", "bird_id_map.csv", "bird_id_map.yaml")
# 195 species make a map of 6 kB; a thousand times that is a mistake or an attack.
_LARGEST_MAP_BYTES = 16_000_000
# Reading YAML takes 3 s for each of these.
_LARGEST_YAML_BYTES = 1_000_000
# Ids are database keys. A larger number could not even be printed (Python stops at 4,300 digits).
_LARGEST_ID = 2**63 - 1

_WHAT = "a label map"
# What tables and predictions have in the place of a class where none is recognised.
NO_ANSWER = "none"

ExternalId = int | str


def background_of(classes: Iterable[str], names: str) -> tuple[str, ...]:
    """Those of the classes that are background: no answer, only what answers must be told from.

    Args:
        names: as in --labels.background, separated by commas; case, `_`, `-` and blanks do not matter.
    """
    wanted = {folded(name) for name in _listed(names)}
    return tuple(name for name in classes if folded(name) in wanted)


def folded(name: str) -> str:
    """A name without what makes no difference in names of background: case, `_`, `-` and blanks."""
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def background_class(folders: Iterable[str], names: str) -> str:
    """The class that sound without a class is put into: the first of the names, as a folder spells it if one does.

    Raises:
        SettingsError: no name is given for it.
    """
    listed = _listed(names)
    if not listed:
        raise SettingsError(
            "--labels.background names no class, and there is a folder of background sound. Give it a name, e.g. "
            "--labels.background background, or take the folder away."
        )
    return next(iter(background_of(folders, listed[0])), listed[0])


def refuse_no_answer(classes: Iterable[str], names: str, where: str, mend: str) -> None:
    """Refuse a class that is called as the answer where no class is recognised, unless it is background.

    Args:
        names: as in --labels.background.
        where: what has the classes.
        mend: how such a class can be called otherwise.

    Raises:
        SettingsError: there is one; also one that differs in case, as people and spreadsheets do not heed it.
    """
    answers = set(classes) - set(background_of(classes, names))
    if found := sorted(name for name in answers if name.strip().casefold() == NO_ANSWER):
        listed = ",".join([*_listed(names), found[0].strip()])
        raise SettingsError(
            f"{where}: there is a class {shown(found[0])}, and `{NO_ANSWER}` is what predictions say where no class is "
            f"recognised, so that one would be taken for the other. {mend}; or, if it is sound in which no class is to "
            f"be heard, say so, as that is never an answer: --labels.background {shown(repr(listed))}."
        )


def _listed(names: str) -> list[str]:
    return [unicodedata.normalize("NFC", name.strip()) for name in names.split(",") if name.strip()]


def find_label_map(folder: Path) -> Path | None:
    """The label map in an input folder, if there is one.

    Raises:
        InputError: there are several, and which one counts cannot be known.
    """
    # Also a link to nothing or an empty folder, as a mount that failed leaves them: reading it will say so.
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
        InputError: unreadable, of another shape, or (pickle) made of anything but dict, list, str, int.
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
        raise refused(fault, path, message) from fault
    except ValueError as fault:
        reason = shown(" ".join(str(fault).split())[:200])
        raise InputError(f"{shown(path)}: is not a whole {path.suffix} file ({reason}).") from fault
    return _checked_map(path, content)


def _checked_map(path: Path, content: Any) -> dict[str, ExternalId]:
    if not isinstance(content, Mapping):
        raise InputError(
            f"{shown(path)}: holds a {type(content).__name__}; expected a mapping from class name to id."
        )
    for name, value in content.items():
        if not isinstance(name, str) or isinstance(value, bool) or not isinstance(value, int | str):
            raise InputError(
                f"{shown(path)}: the entry {_described(name)}: {_described(value)} does not map a class "
                "name (text) to an id (a whole number or text)."
            )
        if isinstance(value, int) and abs(value) > _LARGEST_ID:
            raise InputError(f"{shown(path)}: the id of {_described(name)} has more than 64 bits.")
    return _composed(path, content)


def _composed(path: Path, content: Mapping[str, ExternalId]) -> dict[str, ExternalId]:
    """Names as class names are: macOS writes umlauts in two characters."""
    result: dict[str, ExternalId] = {}
    for name, value in content.items():
        composed = unicodedata.normalize("NFC", name)
        if composed in result:
            raise InputError(
                f"{shown(path)}: the class {_described(composed)} stands there twice, in two spellings of "
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
            raise InputError(
                f"{shown(path)}, row {number}: the class {shown(name)} stands there twice. Keep one."
            )
        result[name] = int(value) if value.removeprefix("-").isdecimal() else value
    return result


_MARK = object()


def read_pickle(path: Path) -> Any:
    """Read a pickle made of dict, list, str and int, by parsing alone; nothing in it can run.

    Understands protocols 0 to 5, Python 2's text and byte strings included (as UTF-8).

    Raises:
        InputError: an opcode that such data does not need (with its name and position), or a
            damaged file.
        OSError: the file cannot be read.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for name, argument, position in _instructions(_content(path)):
            if name not in _ALLOWED:
                raise InputError(
                    f"{shown(path)}: refused. At byte {position} it holds the instruction {name}, which plain "
                    "data (dict, list, text, whole numbers) does not need and which could run a program. "
                    "If you trust its source, save the mapping as JSON instead."
                )
            if name == "STOP":
                return stack.pop()
            _ALLOWED[name](stack, memo, argument)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as fault:
        raise InputError(f"{shown(path)}: is a damaged pickle ({shown(fault)}). Copy it again.") from fault
    raise InputError(f"{shown(path)}: is a pickle that stops early. Copy it again.")


_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}


def _instructions(content: bytes) -> Iterator[tuple[str, Any, int]]:
    """Name, argument and position of each instruction.

    As `pickletools.genops`, except that the byte strings of Python 2 arrive as bytes; there they are
    taken for ASCII or Latin-1, which names in UTF-8 are not.
    """
    file = io.BytesIO(content)
    while code := file.read(1):
        position = file.tell() - 1
        opcode = _OPCODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError(f"byte {position} is no instruction")
        argument: Any = None
        if opcode.name == "STRING":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # of escapes that Python does not know
                argument = codecs.escape_decode(pickletools.read_stringnl(file, decode=False))[0]
        elif opcode.arg is not None:
            # Typeshed has the reader as a method; it is a plain function.
            argument = opcode.arg.reader(file)
        yield opcode.name, argument.encode("latin-1") if opcode.name in _BYTE_STRINGS else argument, position


_Step = Callable[[list[Any], dict[int, Any], Any], None]


def _since_mark(stack: list[Any]) -> list[Any]:
    """Take everything above the topmost mark, searched from the top so that many marks cost no more."""
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    items.reverse()
    return items


def _push(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    stack.append(argument.decode("utf-8") if isinstance(argument, bytes) else argument)


def _remember(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    memo[len(memo) if argument is None else int(argument)] = stack[-1]


def _recall(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    stack.append(memo[int(argument)])


def _set_items(stack: list[Any], pairs: list[Any]) -> None:
    if len(pairs) % 2 or not isinstance(stack[-1], dict):
        raise ValueError("keys and values do not pair up")
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        if key in stack[-1]:
            raise ValueError(f"the key {_described(key)} stands in it twice")
        stack[-1][key] = value


def _set_item(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    value, key = stack.pop(), stack.pop()
    _set_items(stack, [key, value])


def _extend(stack: list[Any], items: list[Any]) -> None:
    if not isinstance(stack[-1], list):
        raise ValueError("items without a list")
    stack[-1].extend(items)


def _dict_since_mark(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    pairs = _since_mark(stack)
    stack.append({})
    _set_items(stack, pairs)


def _nothing(stack: list[Any], memo: dict[int, Any], argument: Any) -> None:
    """Framing and protocol numbers carry no data."""


_BYTE_STRINGS = ("BINSTRING", "SHORT_BINSTRING")
_STRINGS = (
    "STRING",
    *_BYTE_STRINGS,
    "UNICODE",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
)
_INTEGERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4")
# The whole language that is understood: opcode name → what it does to the stack.
_ALLOWED: dict[str, _Step] = {
    **dict.fromkeys((*_STRINGS, *_INTEGERS), _push),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _recall),
    **dict.fromkeys(("PROTO", "FRAME"), _nothing),
    "MARK": lambda stack, memo, argument: stack.append(_MARK),
    "EMPTY_DICT": lambda stack, memo, argument: stack.append({}),
    "EMPTY_LIST": lambda stack, memo, argument: stack.append([]),
    "DICT": _dict_since_mark,
    "LIST": lambda stack, memo, argument: stack.append(_since_mark(stack)),
    "SETITEM": _set_item,
    "SETITEMS": lambda stack, memo, argument: _set_items(stack, _since_mark(stack)),
    "APPEND": lambda stack, memo, argument: _extend(stack, [stack.pop()]),
    "APPENDS": lambda stack, memo, argument: _extend(stack, _since_mark(stack)),
    "STOP": _nothing,
}
