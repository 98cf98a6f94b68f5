"""Which recordings are of one source recording: names and links joined, and how each was found.

    recordings, --split.group-regex, links ─▶ find_sources ─▶ Sources(keys: name → source key, how they were found)

A *link* says of two recordings that they are of one source recording, and by which rule. It joins their sources, or
where it is only a sign, it leads to a warning. Names are evidence too: recordings whose names give the same key are of
one source. --split.group-regex goes before all other evidence: with it, links only warn.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from birdtune.data.scan import Recording
from birdtune.data.source_names import read
from birdtune.data.source_numbers import decide

NUMBERED_RULE = "numbered names of equally long files"
# Of sources.csv.
SOURCE_COLUMNS = ("recording", "source_recording", "rule")


@dataclass(frozen=True)
class Link:
    """Evidence that two recordings are of one source recording."""

    first: str  # names of recordings
    second: str
    rule: str  # what shows it, as it is printed: "time stamps in the files"
    joins: bool  # whether it joins the sources, or only warns
    shown: str = ""  # what both have in common, as it is printed: "SM4 S4A03895, 2023-05-01 05:00:00 UTC"


@dataclass(frozen=True)
class Found:
    """How some recordings were found to be of one source each."""

    rule: str
    recordings: int
    sources: int
    examples: tuple[str, ...]  # names of recordings of one source
    source: str  # key of that source
    shown: str = ""  # what the link between them shows


@dataclass(frozen=True)
class Sources:
    """The source recording of each recording, and what showed it."""

    keys: Mapping[str, str]  # recording → source
    found: tuple[
        Found, ...
    ]  # by rule, the most recordings first; recordings that are their own source are in none
    doubted: tuple[Link, ...]  # links that do not join, between recordings of different sources
    alone: int = 0  # recordings that are each their own source
    unnamed: tuple[str, ...] = ()  # of those, the ones whose names say nothing of a source
    rules: Mapping[str, str] = field(default_factory=dict)  # recording → what joins it with others of its source

    def rows(self) -> list[dict[str, str]]:
        """Of each recording, its source recording and the rules by which it is of that. Columns: SOURCE_COLUMNS."""
        return [
            {"recording": name, "source_recording": key, "rule": self.rules.get(name, "")}
            for name, key in sorted(self.keys.items())
        ]


class _Union:
    """Disjoint sets of names; the head of a set is its first name in sorting order."""

    def __init__(self) -> None:
        self._above: dict[str, str] = {}

    def head(self, name: str) -> str:
        path = []
        while (above := self._above.get(name, name)) != name:
            path.append(name)
            name = above
        for passed in path:
            self._above[passed] = name
        return name

    def join(self, first: str, second: str) -> bool:
        """Whether the two were apart."""
        low, high = sorted((self.head(first), self.head(second)))
        if low == high:
            return False
        self._above[high] = low
        return True


def join(
    named: Mapping[str, tuple[str, str]], links: Iterable[Link], same: Iterable[tuple[str, str]] = ()
) -> Sources:
    """Sources by names and links.

    Args:
        named: recording → the source key that its name gives, and the rule by which; "" if by none.
        links: between recordings; those of others count for nothing.
        same: keys that are one source.
    """
    keys = _Union()
    doubted = []
    shown_by: dict[str, dict[str, str]] = defaultdict(dict)  # rule → recordings, and what their links show
    for first, second in same:
        keys.join(first, second)
    for link in sorted(links, key=lambda link: (link.rule, link.first, link.second)):
        if link.first not in named or link.second not in named:
            continue
        if not link.joins:
            doubted.append(link)
        elif keys.join(named[link.first][0], named[link.second][0]):
            for name in (link.first, link.second):
                shown_by[link.rule].setdefault(name, link.shown)
    source = {name: keys.head(key) for name, (key, _) in named.items()}
    by_key: dict[str, list[str]] = defaultdict(list)
    for name, (key, _) in named.items():
        by_key[key].append(name)
    for inside in by_key.values():
        if len(inside) > 1:
            # A whole recording among its clips has no rule of its own.
            default = next((rule for name in inside if (rule := named[name][1])), "same name")
            for name in inside:
                shown_by[named[name][1] or default].setdefault(name, "")
    found = [_found(rule, shown, source) for rule, shown in shown_by.items()]
    sizes = Counter(source.values())
    alone = [name for name, key in source.items() if sizes[key] == 1]
    return Sources(
        source,
        tuple(sorted(found, key=lambda one: (-one.recordings, one.rule))),
        tuple(link for link in doubted if source[link.first] != source[link.second]),
        len(alone),
        tuple(name for name in alone if not named[name][1]),
        {name: "; ".join(rule for rule, shown in sorted(shown_by.items()) if name in shown) for name in named},
    )


def _found(rule: str, shown: Mapping[str, str], source: Mapping[str, str]) -> Found:
    example = next(iter(shown))
    first = source[example]
    examples = [name for name in shown if source[name] == first][:2]
    n_sources = len({source[name] for name in shown})
    return Found(rule, len(shown), n_sources, tuple(examples), first, shown[example])


def find_sources(
    recordings: Sequence[Recording], pattern: re.Pattern[str] | None = None, links: Iterable[Link] = ()
) -> Sources:
    """The source recording of each recording.

    Args:
        pattern: --split.group-regex, searched in the path below the class folder: its first group, or else all that
            it matches, is the source. It goes before names and links.
        links: further evidence, of any order; links between other recordings are passed over.
    """
    if pattern is None:
        decided = decide([read(recording) for recording in recordings])
        maybe = (Link(first, second, NUMBERED_RULE, joins=False) for first, second in decided.doubted)
        return join(decided.named, [*links, *maybe], decided.same)
    named = {
        recording.name: (by_pattern(recording, pattern), "--split.group-regex") for recording in recordings
    }
    warning = (Link(link.first, link.second, link.rule, joins=False) for link in links)
    return join(named, warning)


def by_pattern(recording: Recording, pattern: re.Pattern[str]) -> str:
    """The source that --split.group-regex finds in the path below the class folder."""
    below_class = recording.below_class.as_posix()
    match = pattern.search(below_class)
    if match is None:
        return f"{recording.label}/{below_class}"
    return match.group(1) if pattern.groups and match.group(1) is not None else match.group(0)
