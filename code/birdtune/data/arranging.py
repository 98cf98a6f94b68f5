"""Which recordings there are, and which classes folders, tables, annotations and reviews give them.

    Config ─▶ arrange ─▶ Arranged: files with labels, the split and sources that come with them, notices
"""

from dataclasses import replace

from birdtune.config import Config
from birdtune.data import class_names, label_table, labelling, layout, scan
from birdtune.data.annotations import collect, review
from birdtune.data.labelling import LabelTable
from birdtune.data.labels import background_class
from birdtune.data.layout import Arranged
from birdtune.data.scan import Listing
from birdtune.errors import InputError, SettingsError, shown


def arrange(config: Config) -> Arranged:
    """The recordings that are there, each channel by itself if asked for, with the classes that folders or tables give.

    Raises:
        SettingsError, InputError: settings or tables contradict each other, or there is nothing.
    """
    title = shown(config.data_folder)
    listing, table, notices = _label_source(config)
    if table is not None:
        table = review.with_sites(table, listing, config)
        one_class, listed = config.model.output == "softmax", listing.folders
        marked = table.is_annotations and config.labels.unlabelled == "negative"
        nothing = background_class(listed, config.labels.negative_classes) if marked else ""
        arranged = labelling.apply(
            listing, table, title, config.data_folder, one_class=one_class, background=nothing
        )
    else:
        if config.split.group_column is not None:
            raise SettingsError(
                "--split.group-column names a column of a table of labels or of annotations, and there is none: give "
                "--labels.table or --labels.annotations, or name the sources by --split.group-regex."
            )
        arranged = layout.arrange(
            listing, level=config.labels.level, background=config.labels.negative_classes, title=title
        )
    if config.labels.review is not None:
        arranged = review.add(arranged, scan.scan(config.data_folder, flat=True), config)
    arranged = layout.spelt_alike(arranged)
    listing, negatives = layout.with_negatives(arranged.listing, config.labels.negative_classes)
    if (folder := config.background_folder) is not None:
        label = background_class(listing.folders, config.labels.negative_classes)
        listing = scan.with_background(listing, folder, label)
    if config.model.output != "softmax":
        listing = class_names.with_several(listing)
    if config.split.file and arranged.given is not None:
        negatives.append(f"--split.file goes before the split that {arranged.given.source} gives.")
    given = arranged.given
    if config.audio.channels == "each":
        listing, given = layout.each_channel(listing, given)
    return replace(arranged, listing=listing, given=given, notices=[*notices, *arranged.notices, *negatives])


def _label_source(config: Config) -> tuple[Listing, LabelTable | None, list[str]]:
    """The files that are there, flat where a table or annotations name their classes; that table, and what is said."""
    folder = config.data_folder
    if config.labels.annotations not in (None, collect.NONE):
        listing = scan.scan(folder, flat=True)
        return listing, collect.named(config, listing), []
    table, notices = label_table.find(config)
    try:
        listing = scan.scan(folder, flat=True)
        if table is None:
            table = collect.beside(config, listing)
        if table is None and config.labels.columns:
            raise SettingsError(
                "--labels.columns names columns of a table of labels or of annotations; name that: --labels.table CSV "
                "or --labels.annotations FOLDER."
            )
        return (listing if table is not None else scan.in_class_folders(listing, folder)), table, notices
    except InputError as fault:
        if not notices:
            raise
        raise type(fault)(" ".join([str(fault), *notices])) from fault
