"""Praat's TextGrid, long or short: the intervals of its tiers.

Praat itself reads such a text as a row of numbers, texts in quotes and flags (<exists>), whatever words stand between
them; so the long form with its `xmin = 0.5` and the short one with the bare numbers are one format.
"""

import bisect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from birdtune.data.annotations.rows import Options, Row

# A comment, a text, a flag or a number that stands alone; the number of `intervals [3]` does not.
_TOKEN = re.compile(r'!.*|"((?:[^"]|"")*)"|(?<![^\s=])(<\w+>|[-+]?[\d.,]+(?:[eE][-+]?\d+)?)(?!\S)')


@dataclass(frozen=True)
class _Token:
    text: str
    is_text: bool
    line: int


def recognises(text: str) -> bool:
    """Whether a text is a TextGrid by its first words."""
    return '"TextGrid"' in text[:200]


def read(text: str, options: Options) -> list[Row]:
    """The intervals that have a text; those without one are the gaps between them.

    Raises:
        ValueError: it breaks off, or is none.
    """
    tokens = _tokens(text)
    while (token := next(tokens, _END)).text != "TextGrid":  # the words that say what it is
        if token is _END:
            _refuse(token, "a TextGrid")
    _pass_numbers(tokens, 2)  # where it begins and ends
    if next(tokens, _END).text != "<exists>":
        return []
    rows: list[Row] = []
    for _ in range(_count(tokens)):
        kind, name = _text(tokens), _text(tokens)
        _pass_numbers(tokens, 2)
        for _ in range(_count(tokens)):
            start = next(tokens, _END)
            end = next(tokens, _END) if kind.text == "IntervalTier" else start
            value = _text(tokens)
            if options.tiers and name.text.strip() not in options.tiers:
                continue
            if value.text.strip():
                class_name = name.text if options.columns.get("label") == "tier" else value.text
                cells = {"start_s": start.text, "end_s": end.text}
                fault = "" if kind.text == "IntervalTier" else f"is a point at {start.text} s, expected an interval"
                rows.append(Row(len(rows) + 1, class_name.strip(), cells, fault=fault))
    return rows


_END = _Token("", False, 0)


def _tokens(text: str) -> Iterator[_Token]:
    ends = [match.start() for match in re.finditer("\n", text)]
    for match in _TOKEN.finditer(text):
        if match[0].startswith("!"):
            continue
        is_text = match[1] is not None
        content = match[1].replace('""', '"') if is_text else match[2]
        yield _Token(content, is_text, bisect.bisect_left(ends, match.start()) + 1)


def _text(tokens: Iterator[_Token]) -> _Token:
    token = next(tokens, _END)
    return token if token.is_text else _refuse(token, "a text in quotes")


def _pass_numbers(tokens: Iterator[_Token], n: int) -> None:
    for _ in range(n):
        token = next(tokens, _END)
        if token.is_text or not token.text:
            _refuse(token, "a number")


def _count(tokens: Iterator[_Token]) -> int:
    token = next(tokens, _END)
    if token.is_text or not token.text.isdecimal() or len(token.text) > 9:
        _refuse(token, "a count")
    return int(token.text)


def _refuse(token: _Token, expected: str) -> NoReturn:
    raise ValueError(f"line {token.line}: {token.text[:40]!r} is not {expected}" if token.line else "it ends early")
