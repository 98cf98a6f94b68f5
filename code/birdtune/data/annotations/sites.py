"""Folders that are sites and no classes: most recordings in them are annotated, with classes of other names.

    data/site_A/night1.wav, night1.txt: Strix aluco, Asio otus ─▶ find ─▶ {"site_A"}

Species folders may hold annotated recordings, too: with their own name, with that and a kind of call, or with kinds of
calls alone. Such folders are classes.
"""

from collections.abc import Mapping, Set

from birdtune.config import Config
from birdtune.data.class_names import SCIENTIFIC, quoted
from birdtune.data.labels import IGNORED, background_of, folded
from birdtune.data.layout import is_no_name, is_place
from birdtune.data.scan import Listing
from birdtune.data.tables import sides_of
from birdtune.settings import LabelSettings


def find(listing: Listing, marked: Mapping[str, Set[str]], settings: LabelSettings) -> frozenset[str]:
    """The folders directly in the data folder that are sites; none, if folders are classes.

    Args:
        listing: of `scan.scan`, flat.
        marked: recording → the classes that are annotated in it.
    """
    annotated = [file for file in listing.files if file.label and file.name in marked]
    classes = set().union(*(marked[file.name] for file in annotated)) - {IGNORED}
    # Folders of whole recordings of a class may lie beside the sites.
    whole = {folder for folder in listing.folders if is_species(folder) or folded(folder) in map(folded, classes)}
    whole = {*whole, *background_of(listing.folders, settings.negative_classes)} - {file.label for file in annotated}
    inside = [file for file in listing.files if file.label and file.label not in whole]
    if 2 * len(annotated) <= len(inside) or all(map(is_no_name, classes)):
        return frozenset()
    folders = {folder for file in inside for folder in file.name.split("/")[:-1]}
    if any(f"{folded(name)} ".startswith(f"{folded(folder)} ") for folder in folders for name in classes):
        return frozenset()
    if all(map(is_species, folders)) and not any(map(is_species, classes)):
        return frozenset()
    return frozenset(file.label for file in inside)


def is_species(name: str) -> bool:
    """Whether a folder is called like a species, by its scientific name."""
    return SCIENTIFIC.fullmatch(name) is not None and not is_place(name)


def notices(sites: frozenset[str], config: Config) -> list[str]:
    """What is said of folders that are sites; of sides of a split that is said elsewhere."""
    named = sorted(sites - sides_of(sites).keys())
    if not named:
        return []
    said = (
        f"Folders {quoted(named)} are taken for sites, not for classes: most recordings in them have annotations "
        "beside them, with classes of other names. If the folders are the classes: --labels.annotations none."
    )
    if config.split.group_regex is None and config.split.group_column is None:
        said += (
            " To keep the recordings of a site on one side of the split, where there are more than a few: "
            "--split.group-regex '^([^/]+)/'."
        )
    return [said]
