"""What is said of how source recordings were found.

    Sources ─▶ source_lines (for `check` and the log), source_notices (what should be looked into)
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Final

from birdtune.data.scan import Recording
from birdtune.data.sources import Link, Sources, by_pattern
from birdtune.errors import shown
from birdtune.runtime.text import count

# Below so many recordings nothing is said of what most of them are like.
_FEW: Final = 20
_MOST: Final = 0.8
# Clips are cut this short at most: 3 s (BirdNET), 5 s (Perch, BirdCLEF), 10 and 15 s.
_SHORT_S: Final = 15.0


def source_lines(sources: Sources) -> Iterator[str]:
    """How sources were found: by which rule, with an example each."""
    n_sources = len(set(sources.keys.values()))
    yield f"{count(len(sources.keys), 'recording')} of {count(n_sources, 'source recording')}:"
    for found in sources.found:
        first, *more = found.examples
        others = f" and {more[0]}" if more else ""
        by = f": {shown(found.shown)}" if found.shown else ""
        yield (
            f"  {found.recordings:,} by {found.rule}: {count(found.sources, 'source recording')} "
            f"(e.g. {first}{others} {'are' if more else 'is'} {found.source}{by})"
        )
    if sources.alone:
        yield f"  {sources.alone:,} {'are each their own' if sources.alone > 1 else 'is its own'} source"


def source_notices(recordings: Sequence[Recording], sources: Sources) -> list[str]:
    """Doubts about sources: links that only warn, and clips that no name or file shows to be of one recording."""
    return [*_doubted(recordings, sources), *_alone(recordings, sources)]


def _doubted(recordings: Sequence[Recording], sources: Sources) -> Iterator[str]:
    by_rule: dict[str, list[Link]] = defaultdict(list)
    for link in sources.doubted:
        by_rule[link.rule].append(link)
    for rule, links in sorted(by_rule.items()):
        named = len({name for link in links for name in (link.first, link.second)})
        yield (
            f"{named:,} recordings may be parts of one with others that count as another source: {rule} (e.g. "
            f"{links[0].first} and {links[0].second}). If they are, results look better than they are: "
            f"{_way_out(links[0].first, recordings)}"
        )


def _alone(recordings: Sequence[Recording], sources: Sources) -> Iterator[str]:
    """A word where nearly all recordings are equally short, and nothing names what they may be cut from."""
    unnamed = set(sources.unnamed)
    lengths = [round(recording.facts.duration_s, 1) for recording in recordings]
    if len(recordings) < _FEW or len(unnamed) < _MOST * len(recordings):
        return
    usual_s = max(set(lengths), key=lambda length: (lengths.count(length), -length))
    if usual_s > _SHORT_S or lengths.count(usual_s) < _MOST * len(lengths):
        return
    example = next(recording.name for recording in recordings if recording.name in unnamed)
    yield (
        f"{len(unnamed):,} of {len(recordings):,} recordings count as sources of their own, and most are equally short "
        f"({usual_s:g} s), as clips of longer recordings are (e.g. {example}). If they are clips, results look better "
        f"than they are: {_way_out(example, recordings)}"
    )


def _way_out(name: str, recordings: Sequence[Recording]) -> str:
    """How to say what the sources are, by the example of a name; with a pattern only where it would join some."""
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
