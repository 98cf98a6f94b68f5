"""Figures → words for people: shares, intervals, numbers with their noun, lists of names."""

from collections.abc import Sequence

from birdtune.errors import shown

NBSP = "\N{NO-BREAK SPACE}"
UNKNOWN = "–"  # noqa: RUF001


def percent(value: float | None) -> str:
    """A share in words; never 100 % or 0 % for what is not quite."""
    if value is None:
        return UNKNOWN
    if 0.0 < value < 0.005 or 0.995 <= value < 1.0:
        return f"{min(max(100 * value, 0.1), 99.9):.1f}{NBSP}%"
    return f"{100 * value:.0f}{NBSP}%"


def plain_percent(value: float | None) -> str:
    """A share in words with a plain space, for logs too."""
    return plain(percent(value))


def span(ends: Sequence[float] | None) -> str:
    """An interval of shares in words."""
    if ends is None:
        return "not known"
    low, high = (percent(end).removesuffix(f"{NBSP}%") for end in ends)
    return f"{low} to {high}{NBSP}%"


def points(ends: Sequence[float]) -> str:
    """An interval of a difference of shares in words."""
    return f"{100 * ends[0]:+.0f} to {100 * ends[1]:+.0f} percentage points"


def number(value: float | None) -> str:
    """A figure with three decimals."""
    return UNKNOWN if value is None else f"{value:.3f}"


def plain(text: str) -> str:
    """With plain spaces: logs are searched for words as people type them."""
    return text.replace(NBSP, " ")


def count(n: int, what: str) -> str:
    """A number with its noun."""
    plural = "es" if what.endswith("s") else "s"
    return f"{n:,} {what}{'' if n == 1 else plural}"


def some(names: Sequence[str], most: int = 6) -> str:
    """The first few names, safe to print, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(shown(name) for name in names[:most]) + more
