"""Which recordings are of one source recording: names and links joined, and by which rules.

    recordings, --split.group-regex, links ─▶ find_sources ─▶ Sources ─▶ source_lines, source_notices

A *link* states that two recordings are of one source recording, and by which rule. It joins their sources, or where the
evidence is weak, it leads to a warning. Recordings whose names give the same key are of one source, too.
--split.group-regex takes precedence over all other evidence: with it, links only warn.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from birdtune.data.scan import Recording
from birdtune.data.source_names import read
from birdtune.data.source_numbers import decide
from birdtune.errors import shown
from birdtune.runtime.text import count

NUMBERED_RULE = "numbered names of equally long files"
# Of sources.csv.
SOURCE_COLUMNS = ("recording", "source_recording", "rule")
# Of fewer recordings, it is not reported what most of them have in common.
_FEW: Final = 20
_MOST: Final = 0.8
# Clips are cut this short at most: 3 s (BirdNET), 5 s (Perch, BirdCLEF), 10 and 15 s.
_SHORT_S: Final = 15.0


@dataclass(frozen=True)
class Link:
    """Evidence that two recordings are of one source recording."""

    first: str  # names of recordings
    second: str
    rule: str  # as it is printed: "time stamps in the files"
    joins: bool  # whether it joins the sources, or only warns
    detail: str = ""  # what both have in common, as it is printed: "SM4 S4A03895, 2023-05-01 05:00:00 UTC"


@dataclass(frozen=True)
class RuleCount:
    """The recordings that one rule joins into sources."""

    rule: str
    recordings: int
    sources: int
    examples: tuple[str, ...]  # names of recordings of one source
    source: str  # key of that source
    detail: str = ""  # of the link between them


@dataclass(frozen=True)
class Sources:
    """The source recording of each recording, and the evidence for it."""

    keys: Mapping[str, str]  # recording → source
    by_rule: tuple[RuleCount, ...]  # the most recordings first; recordings that are their own source are in none
    uncertain: tuple[Link, ...]  # links that do not join, between recordings of different sources
    alone: int = 0  # recordings that are each their own source
    unnamed: tuple[str, ...] = ()  # of those, the ones whose names say nothing of a source
    rules: Mapping[str, str] = field(default_factory=dict)  # recording → what joins it with others of its source

    def rows(self) -> list[dict[str, str]]:
        """The rows of sources.csv."""
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
        """Join two sets; False if they are one already."""
        low, high = sorted((self.head(first), self.head(second)))
        if low == high:
            return False
        self._above[high] = low
        return True


def join(named: Mapping[str, tuple[str, str]], links: Iterable[Link], same: Iterable[tuple[str, str]] = ()) -> Sources:
    """Sources by names and links.

    Args:
        named: recording → the source key that its name gives, and the rule by which; "" if by none.
        links: between recordings; those of others count for nothing.
        same: keys that are one source.
    """
    keys = _Union()
    uncertain = []
    joined_by: dict[str, dict[str, str]] = defaultdict(dict)  # rule → recordings, and the details of their links
    for first, second in same:
        keys.join(first, second)
    for link in sorted(links, key=lambda link: (link.rule, link.first, link.second)):
        if link.first not in named or link.second not in named:
            continue
        if not link.joins:
            uncertain.append(link)
        elif keys.join(named[link.first][0], named[link.second][0]):
            for name in (link.first, link.second):
                joined_by[link.rule].setdefault(name, link.detail)
    source = {name: keys.head(key) for name, (key, _) in named.items()}
    by_key: dict[str, list[str]] = defaultdict(list)
    for name, (key, _) in named.items():
        by_key[key].append(name)
    for inside in by_key.values():
        if len(inside) > 1:
            # A whole recording among its clips has no rule of its own.
            default = next((rule for name in inside if (rule := named[name][1])), "same name")
            for name in inside:
                joined_by[named[name][1] or default].setdefault(name, "")
    by_rule = [_rule_count(rule, details, source) for rule, details in joined_by.items()]
    sizes = Counter(source.values())
    alone = [name for name, key in source.items() if sizes[key] == 1]
    return Sources(
        source,
        tuple(sorted(by_rule, key=lambda one: (-one.recordings, one.rule))),
        tuple(link for link in uncertain if source[link.first] != source[link.second]),
        len(alone),
        tuple(name for name in alone if not named[name][1]),
        {name: "; ".join(rule for rule, details in sorted(joined_by.items()) if name in details) for name in named},
    )


def _rule_count(rule: str, details: Mapping[str, str], source: Mapping[str, str]) -> RuleCount:
    example = next(iter(details))
    examples = [name for name in details if source[name] == source[example]][:2]
    n_sources = len({source[name] for name in details})
    return RuleCount(rule, len(details), n_sources, tuple(examples), source[example], details[example])


def find_sources(
    recordings: Sequence[Recording],
    pattern: re.Pattern[str] | None = None,
    links: Iterable[Link] = (),
    groups: Mapping[str, str] | None = None,
) -> Sources:
    """The source recording of each recording.

    Args:
        pattern: --split.group-regex, searched in the path below the class folder: its first group, or else all that
            it matches, is the source. It goes before names and links.
        links: further evidence, of any order; links between other recordings are passed over.
        groups: recording → source, by --split.group-column, before all else; others are each their own.
    """
    if groups:
        rule = "--split.group-column"
        given = {one.name: (groups.get(one.name, f"{one.label}/{one.name}"), rule) for one in recordings}
        return join(given, (Link(link.first, link.second, link.rule, joins=False) for link in links))
    if pattern is None:
        decided = decide([read(recording) for recording in recordings])
        maybe = (Link(first, second, NUMBERED_RULE, joins=False) for first, second in decided.uncertain)
        return join(decided.named, [*links, *maybe], decided.same)
    named = {recording.name: (by_pattern(recording, pattern), "--split.group-regex") for recording in recordings}
    warning = (Link(link.first, link.second, link.rule, joins=False) for link in links)
    return join(named, warning)


def by_pattern(recording: Recording, pattern: re.Pattern[str]) -> str:
    """The source that --split.group-regex finds in the path below the class folder."""
    below_class = recording.below_class.as_posix()
    match = pattern.search(below_class)
    if match is None:
        return f"{recording.label}/{below_class}"
    return match.group(1) if pattern.groups and match.group(1) is not None else match.group(0)


# ---- reported -------------------------------------------------------------------------------------------------------


def source_lines(sources: Sources) -> Iterator[str]:
    """How many recordings each rule joins, with an example: for `check` and the log."""
    n_sources = len(set(sources.keys.values()))
    yield f"{count(len(sources.keys), 'recording')} of {count(n_sources, 'source recording')}:"
    for rule in sources.by_rule:
        first, *more = rule.examples
        others = f" and {more[0]}" if more else ""
        by = f": {shown(rule.detail)}" if rule.detail else ""
        yield (
            f"  {rule.recordings:,} by {rule.rule}: {count(rule.sources, 'source recording')} "
            f"(e.g. {first}{others} {'are' if more else 'is'} {rule.source}{by})"
        )
    if sources.alone:
        yield f"  {sources.alone:,} {'are each their own' if sources.alone > 1 else 'is its own'} source"


def source_notices(recordings: Sequence[Recording], sources: Sources) -> list[str]:
    """Warnings about sources: links that do not join, and clips that no name or file shows to be of one recording."""
    return [*_uncertain(recordings, sources), *_alone(recordings, sources)]


def _uncertain(recordings: Sequence[Recording], sources: Sources) -> Iterator[str]:
    by_rule: dict[str, list[Link]] = defaultdict(list)
    for link in sources.uncertain:
        by_rule[link.rule].append(link)
    for rule, links in sorted(by_rule.items()):
        named = len({name for link in links for name in (link.first, link.second)})
        yield (
            f"{named:,} recordings may be parts of one with others that count as another source: {rule} (e.g. "
            f"{links[0].first} and {links[0].second}). If they are, results look better than they are: "
            f"{_way_out(links[0].first, recordings)}"
        )


def _alone(recordings: Sequence[Recording], sources: Sources) -> Iterator[str]:
    """A warning where nearly all recordings are equally short, and nothing names what they may be cut from."""
    unnamed = set(sources.unnamed)
    lengths = Counter(round(recording.facts.duration_s, 1) for recording in recordings)
    if len(recordings) < _FEW or len(unnamed) < _MOST * len(recordings):
        return
    usual_s = max(lengths, key=lambda length: (lengths[length], -length))
    if usual_s > _SHORT_S or lengths[usual_s] < _MOST * len(recordings):
        return
    example = next(recording.name for recording in recordings if recording.name in unnamed)
    yield (
        f"{len(unnamed):,} of {len(recordings):,} recordings count as sources of their own, and most are equally short "
        f"({usual_s:g} s), as clips of longer recordings are (e.g. {example}). If they are clips, results look better "
        f"than they are: {_way_out(example, recordings)}"
    )


def _way_out(name: str, recordings: Sequence[Recording]) -> str:
    """How the user can give the sources, by the example of a name; with a pattern only where it would join some."""
    example = next((recording for recording in recordings if recording.name == name), None)
    below = example.below_class if example else PurePosixPath(name)
    numbers = re.findall(r"\d+", below.stem)
    if len(numbers) > 1:
        pattern = r"^(\D*\d+)"
    elif numbers:
        pattern = r"^(.+?)[\W_]*\d+\.\w+$"
    else:
        pattern = r"^([^_ -]+)"
    match = re.search(pattern, below.as_posix())
    n_sources = len({by_pattern(recording, re.compile(pattern)) for recording in recordings})
    n_names = len({recording.below_class for recording in recordings})
    if match and 1 < n_sources < n_names and match.end(1) > len(below.as_posix()) - len(below.name):
        return (
            f"say what names their recording (--split.group-regex '{pattern}' takes {match[1]!r} from that name), put "
            "the clips of each into a folder of its own, or give each its side (--split.file)."
        )
    return (
        "the names do not show their recordings. Give each its side (--split.file), or join those with nearly the same "
        "noise floor (--split.acoustic join)."
    )
