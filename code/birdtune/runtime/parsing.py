"""Text, JSON and YAML that people wrote, read as plain data and nothing else.

    path ─▶ read_bounded ─▶ bytes        a regular file of at most so many bytes
    bytes ─▶ decode_text ─▶ text         UTF-8, or UTF-16 with a mark
    bytes ─▶ decode_old_text ─▶ text     the same, else Windows-1252, and a sentence that says so
    text ─▶ parse_json, parse_yaml ─▶ dict, list, str, int, float, bool, None (YAML: dates as well)

A key that is given twice is refused by its name, where the libraries would keep the last and drop the others in
silence. YAML's tags make nothing but plain data here, and its aliases, of which a few lines unfold to more than any
memory holds, are not read.
"""

import codecs
import errno
import io
import json
import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from birdtune.errors import InputError, shown

# A whole number that is longer is no setting and no id; YAML's numbers to the base of 60 take time with
# the square of their length.
_LONGEST_NUMBER = 40
_BLOCK_BYTES = 1 << 16
# Of UTF-16 text in Latin letters each second byte is zero. Of names that end in a null character, as
# `find -print0` writes them, as many are only where each has a single character.
_WIDE_SHARE = 0.7
_WIDE_BYTES = 4096
_AROUND = 24  # characters on each side of an odd one, in a message


def read_bounded(path: Path, most_bytes: int, what: str) -> bytes:
    """The content of a file, if it is one and not too large.

    Args:
        what: what the file should be, for the message ("a label map").

    Raises:
        InputError: it is no regular file, or larger than `most_bytes`.
        OSError: it cannot be opened or read.
    """
    with open_regular(path, what) as file:
        facts = os.fstat(file.fileno())
        content = bytearray()
        # In blocks, because the size that the system reports (0 in /proc) may be too small.
        while facts.st_size <= most_bytes >= len(content) and (block := file.read(_BLOCK_BYTES)):
            content += block
    if (size := max(facts.st_size, len(content))) > most_bytes:
        raise InputError(
            f"{shown(path)}: {size:,} bytes are too many for {what} (at most {most_bytes:,}). Is it another file?"
        )
    return bytes(content)


def open_regular(path: Path, what: str = "content") -> io.BufferedReader:
    """Open a file for reading; pipes and devices, of which a reader might see no end, are not.

    Raises:
        InputError: it is a pipe, a socket or a device.
        OSError: it cannot be opened, or is a folder.
    """
    # O_NONBLOCK: to open a pipe would be to wait for somebody to write into it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise InputError(f"{shown(path)}: is a pipe or a device; expected {what} in a file.")


def decode_text(content: bytes, path: Path) -> str:
    """Text of a table in UTF-8, with or without a mark, or in UTF-16 with one, as Windows writes it.

    Args:
        path: where it was read, for the message.

    Raises:
        InputError: it is neither. Which of the old character sets it is cannot be known, and a wrong guess would be
            in the names of classes.
    """
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    if not wide and is_wide(content):
        raise InputError(f"{shown(path)}: is UTF-16 without a mark. Save it as CSV UTF-8.")
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as fault:
        if wide:
            raise InputError(f"{shown(path)}: is UTF-16 that breaks off. Save it as CSV UTF-8.") from fault
        place = fault.start + (len(codecs.BOM_UTF8) if content.startswith(codecs.BOM_UTF8) else 0)
        row = content.count(b"\n", 0, place) + 1
        begin = content.rfind(b"\n", 0, place) + 1
        line = content[begin:].partition(b"\n")[0].decode("cp1252", "replace")  # of which each byte is a character
        near = _cell_around(line, place - begin)
        raise InputError(
            f"{shown(path)}, row {row:,}: is not UTF-8 text (byte {place}): {near!r}, if it is Windows-1252 or "
            'Latin-1, as Excel saves "CSV". Save it as CSV UTF-8, or: iconv -f WINDOWS-1252 -t UTF-8.'
        ) from fault


def decode_old_text(content: bytes, path: Path) -> tuple[str, str]:
    """Text as of `decode_text`, but lines that are not UTF-8 are read as Windows-1252, else Latin-1.

    By lines, so that one odd byte does not misspell the names in all others.

    Returns:
        the text, and what is to be said of how it was read; "" for nothing.

    Raises:
        InputError: it is UTF-16 that breaks off or has no mark, or no text at all.
    """
    try:
        return decode_text(content, path), ""
    except InputError:
        if b"\0" in content:
            raise
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    odd = [number for number, line in enumerate(lines) if not _decodes(line, "utf-8")]
    encoding = "cp1252" if all(_decodes(lines[number], "cp1252") for number in odd) else "latin-1"
    text = [line.decode("utf-8" if _decodes(line, "utf-8") else encoding) for line in lines]
    first = next(k for k, char in enumerate(text[odd[0]]) if ord(char) > 127)
    near = _cell_around(text[odd[0]], first)
    name = {"cp1252": "Windows-1252", "latin-1": "Latin-1"}[encoding]
    return "\n".join(text), (
        f"{shown(path)}: {len(odd):,} of {len(lines):,} lines are not UTF-8 and are read as {name}, line "
        f"{odd[0] + 1:,} as {near!r}. If that is misspelt, save the file as UTF-8."
    )


def _cell_around(line: str, place: int) -> str:
    """The cell of a line that has a character at a place; of a long one what is around it, with … where it is cut."""
    cell = next(found for found in re.finditer(r"[^,;\t]+", line) if place < found.end())
    begin, end = max(cell.start(), place - _AROUND), min(cell.end(), place + _AROUND)
    return shown(
        ("" if begin == cell.start() else "…") + line[begin:end].strip(" \"\r") + ("" if end == cell.end() else "…")
    )


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def is_wide(content: bytes) -> bool:
    """Whether bytes are UTF-16 text without a mark: zero at most second places, and nowhere else."""
    head = content[:_WIDE_BYTES]
    zeros = sorted(half.count(0) for half in (head[::2], head[1::2]))
    return len(head) >= 8 and zeros[0] == 0 and zeros[1] >= _WIDE_SHARE * (len(head) // 2)


def parse_json(text: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is not JSON, nested too deeply, or a key is given twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except RecursionError as fault:
        raise ValueError("it is nested too deeply") from fault


def finite(value: Any) -> float:
    """A number out of a file. Raises TypeError or ValueError if it is none, infinite, or too large to be one."""
    try:
        found = float(value)
    except OverflowError as fault:
        raise ValueError("a number is too large") from fault
    if not math.isfinite(found):
        raise ValueError(f"{found} is no finite number")
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key[:80]!r} is given twice in one mapping; keep one of them")
        found[key] = value
    return found


def parse_yaml(text: str) -> Any:
    """What a YAML text says.

    Raises:
        ValueError: it is not YAML, nested too deeply, has tags or aliases, or a key is given twice.
    """
    try:
        return yaml.load(text, _PlainLoader)
    except RecursionError as fault:
        raise ValueError("it is nested too deeply") from fault
    except yaml.YAMLError as fault:
        raise ValueError(str(fault)) from fault
    except (AttributeError, KeyError, TypeError, IndexError, OverflowError) as fault:
        # PyYAML's own way of failing over `!!bool maybe` and the like.
        raise ValueError("a tag (!!...) does not fit its value") from fault


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, and with each key once."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            line = self.current_event.start_mark.line + 1
            raise yaml.YAMLError(f"it has aliases (*name), which are not read; the first is in line {line}")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    name, line = str(key.value)[:80], node.start_mark.line + 1
                    raise yaml.YAMLError(f"{name!r} is given twice in the mapping that begins in line {line}")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds a number of {len(node.value):,} digits")
        return int(super().construct_yaml_int(node))

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        if len(node.value) > _LONGEST_NUMBER:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} holds a number of {len(node.value):,} digits")
        return float(super().construct_yaml_float(node))


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)
_PlainLoader.add_constructor("tag:yaml.org,2002:float", _PlainLoader.construct_yaml_float)
