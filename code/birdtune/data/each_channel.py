"""Files of several channels → a recording for each channel, all of one source recording.

    Listing ─▶ expanded ─▶ Listing: `wood.wav` with two channels is `wood.wav#1` and `wood.wav#2`

For --audio.channels each. A file of one channel keeps its name, and so does one that cannot be opened.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

from birdtune.audio.channels import count
from birdtune.data.scan import Listing, Recording, SoundFile
from birdtune.data.sources import Link
from birdtune.data.split import Given

RULE = "channels of one file"
Side = TypeVar("Side")


def expanded(listing: Listing, given: Given | None) -> tuple[Listing, Given | None]:
    """The listing with each channel as a file of its own, and the split that the data bring for these."""
    channels = {file.name: _channels(file) for file in listing.files}
    files = [one for file in listing.files for one in channels[file.name]]
    if given is not None:
        given = replace(given, sides=_for_all(given.sides, channels), folds=_for_all(given.folds, channels))
    return replace(listing, files=files), given


def _channels(file: SoundFile) -> list[SoundFile]:
    n_channels = count(file.path)
    if n_channels == 1:
        return [file]
    # What tells the source recording is the name of the file.
    below = file.name.partition("/")[2] if file.below is None else file.below
    return [
        replace(file, name=f"{file.name}#{channel + 1}", channel=channel, below=below) for channel in range(n_channels)
    ]


def _for_all(sides: Mapping[str, Side], channels: Mapping[str, Sequence[SoundFile]]) -> dict[str, Side]:
    return {one.name: side for name, side in sides.items() for one in channels.get(name, ())}


def links(recordings: Sequence[Recording]) -> Iterator[Link]:
    """Links between the channels of each file. `recordings`: sorted by name."""
    for first, second in pairwise(recording for recording in recordings if recording.channel is not None):
        if first.path == second.path:
            yield Link(first.name, second.name, RULE, joins=True)
