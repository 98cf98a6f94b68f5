"""All of the data side in one call: folders → a Dataset that can be trained on.

    Config ─▶ survey (scan, identify) ─▶ decode ─▶ select ─▶ split ─▶ Dataset

`prepare` keeps the frames; `inspect` only listens, for `check`. Both leave problems.csv.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from birdtune.audio.front_end import FrontEnd
from birdtune.config import Config
from birdtune.data import (
    acoustic,
    arranging,
    class_names,
    embedding_data,
    frames,
    quality,
    sampling,
    scan,
    selection,
    split,
)
from birdtune.data.annotations import collect
from birdtune.data.file_index import FileIndex, examine_all, identify
from birdtune.data.frames import FrameStore
from birdtune.data.label_map import ExternalId, find_label_map, read_label_map
from birdtune.data.labels import IGNORED, Label, background_of, refuse_no_answer
from birdtune.data.recorded import recorded_links
from birdtune.data.row_books import RowBooks
from birdtune.data.scan import PROBLEM_COLUMNS, Listing, Problem, Recording, SoundFile
from birdtune.data.sources import SOURCE_COLUMNS, Sources, source_notices
from birdtune.data.split import Given, Place
from birdtune.data.targets import Targets, WindowRule, annotated_classes, targets_of
from birdtune.errors import InputError, shown
from birdtune.runtime.files import make_folder, require_file, value_sha256, write_csv
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count

# In a folder with features: what is known of the files that they were made of.
FILE_INDEX = "ledger.json"
_NAMES_IN_A_NOTICE = 8


@dataclass(frozen=True)
class Dataset:
    """Everything that is known of the input, once it was heard."""

    spec: FrontEnd
    classes: tuple[str, ...]  # position = logit column
    recordings: list[Recording]  # used, sorted by name
    places: dict[str, Place]
    problems: list[Problem]
    notices: list[str]
    class_ids: dict[str, ExternalId]
    background: tuple[str, ...] = ()  # classes that are no answer
    output: str = "softmax"  # or "sigmoid": as --model.output says, or as the labels are
    weights: dict[str, float] = field(default_factory=dict)  # how much recordings count in training, if not 1

    sources: Sources = field(default_factory=lambda: Sources({}, (), ()))  # and how they were found
    rule: WindowRule = field(default_factory=WindowRule)  # which windows are of the classes of a label with times
    rows: dict[str, Any] = field(default_factory=dict)  # of labels: found, used, left out by reason; {} if folders

    def part(self, name: str) -> list[Recording]:
        """The recordings of one side of the split."""
        return [recording for recording in self.recordings if self.places[recording.name].split == name]

    def targets(self, part: Sequence[Recording]) -> Targets:
        """The labels of some recordings as arrays."""
        annotated = annotated_classes(recording.labels for recording in self.recordings)
        return targets_of(
            [recording.labels for recording in part], self.classes, annotated, rule=self.rule, negative=self.background
        )

    def settled(self, config: Config) -> Config:
        """The settings with what follows from the labels: where they have times, windows are evaluated as detected.

        A head on a frozen backbone learns from such windows, too: thresholds of detections are chosen on them.
        """
        config, spec = config.with_output(self.output), self.spec
        have_times = any(label.has_times for recording in self.recordings for label in recording.labels)
        # A head over time sees windows as far apart wherever it is used.
        if have_times and not config.model.context and spec.detection_hop != spec.hop_rows:
            hop_s = spec.detection_hop / spec.rows_per_s
            if config.evaluate.hop_s is None:
                config = config.with_evaluate(hop_s=hop_s)
            if "train.hop-s" not in config.given() and config.model.freeze_point == "all-but-head":
                config = config.with_train_default(hop_s=hop_s)
        return config

    def counts(self, part: Sequence[Recording]) -> list[int]:
        """Recordings of each class. [C]"""
        found = Counter(name for recording in part for name in recording.classes)
        return [found[name] for name in self.classes]

    def books(self) -> dict[str, Any]:
        """Found, used, left out by reason."""
        return selection.books(self.recordings, self.problems)

    def digest(self, *, sources: bool = False) -> str:
        """SHA-256 that changes with anything that training would see.

        Args:
            sources: and with which recordings are of one source, for what is fitted or evaluated by source.
        """
        rows = [
            [r.name, _label_text(r), r.content, place.split, *([place.group] if sources else [])]
            for r in self.recordings for place in [self.places[r.name]]
        ]  # fmt: skip
        facts: dict[str, Any] = {"front end": self.spec.digest, "classes": self.classes, "recordings": rows}
        if self.weights:
            facts["weights"] = self.weights
        if self.rule != WindowRule():
            facts["rule"] = repr(self.rule)
        return value_sha256(facts)


def _label_text(recording: Recording) -> Any:
    """Its labels for a digest: the class where there is one throughout."""
    whole = [Label(name) for name in recording.classes]
    return recording.label if list(recording.labels) == whole else repr(recording.labels)


@dataclass(frozen=True)
class _Survey:
    listing: Listing
    given: Given | None  # the split that the data bring themselves
    notices: list[str]
    file_index: FileIndex
    unusable: dict[str, Problem]  # files that say nothing of their content, by name; grows while they are read
    groups: Mapping[str, str] = field(default_factory=dict)  # recording → source, by --split.group-column
    rows: RowBooks | None = None


@dataclass(frozen=True)
class _Division:
    """What is used, on which side of the split, and what is not."""

    usable: list[Recording]
    places: dict[str, Place]
    problems: list[Problem]
    rare: tuple[str, ...]  # classes below the floor of examples
    notices: list[str]
    sources: Sources


def prepare(
    config: Config, spec: FrontEnd, journal: Journal, interrupts: Interrupts
) -> tuple[Dataset, FrameStore]:
    """Make all frames and the split; write split.csv and problems.csv to the output folder.

    Args:
        spec: what the network wants frames to be.

    Raises:
        InputError: no data, too few classes, a label map or split file that cannot be used.
        Interrupted, RetryableError: what was finished is kept.
    """
    cache = make_folder(config.output / "cache")
    survey = _survey(config, spec, cache / FILE_INDEX, journal, interrupts)
    store = FrameStore(cache, spec, config.audio)
    present = [c for file in survey.listing.files if (c := survey.file_index.content(file)) is not None]
    # Cheap, as this is looked at by every start; `recheck` reads all of it before it is computed with.
    tell_damaged(store.verify(store.contents(), thorough=False), journal)

    def decode() -> None:
        if not spec.has_sound:
            if not all(content in store for content in present):
                embedding_data.fill(store, config.data_folder, survey.file_index, interrupts)
            return
        made = frames.fill(
            store,
            survey.listing.files,
            survey.file_index,
            survey.unusable,
            longest_s=config.audio.max_hours * 3600,
            workers=config.prepare.workers,
            journal=journal,
            interrupts=interrupts,
        )
        if made:
            journal.say(
                f"  {count(made, 'recording')} decoded, {len(set(present)) - made:,} were in the cache or unusable"
            )
        store.drop_leftovers()
        store.note_whole()

    dataset = _gather(config, spec, survey, decode)
    split.remember_settings(config.output / "split.csv", config.split)
    split.write(config.output / "split.csv", dataset.recordings, dataset.places, config.output / "split.csv")
    return dataset, store


@dataclass(frozen=True)
class PreparedPart:
    """What came of some of the recordings: how many there are, how many were decoded now, and problems and remarks."""

    n_files: int
    n_made: int
    problems: list[Problem]


def prepare_part(
    config: Config,
    store: FrameStore,
    file_index_path: Path,
    part: Callable[[Sequence[SoundFile]], list[SoundFile]],
    journal: Journal,
    interrupts: Interrupts,
) -> PreparedPart:
    """Make the frames of some recordings, which another command puts together with those of the others.

    Args:
        part: of all files, in their order, those of this part.

    Raises: as `prepare`.
    """
    files = part(arranging.arrange(config).listing.files)
    file_index = FileIndex(file_index_path, config.audio)
    unusable = identify(files, file_index, journal=journal, interrupts=interrupts)
    n_made = frames.fill(
        store, files, file_index, unusable, longest_s=config.audio.max_hours * 3600,
        workers=config.prepare.workers, journal=journal, interrupts=interrupts,
    )  # fmt: skip
    store.drop_leftovers()
    _, problems = selection.select(
        Listing(files, [], []), file_index, unusable, spec=store.spec, short=config.audio.short_clips,
        longest_s=config.audio.max_hours * 3600,
    )  # fmt: skip
    return PreparedPart(len(files), n_made, problems)


def recheck(
    config: Config, dataset: Dataset, store: FrameStore, journal: Journal, interrupts: Interrupts
) -> tuple[Dataset, FrameStore]:
    """Read all frames of the dataset, compare them with their checksums, and make those that are damaged again.

    Disks rot without touching a file's times. It costs about a second for some gigabytes, which computing would
    have to read anyway.

    Raises: as `prepare`.
    """
    damaged = store.verify([recording.content for recording in dataset.recordings])
    tell_damaged(damaged, journal)
    return prepare(config, store.spec, journal, interrupts) if damaged else (dataset, store)


def tell_damaged(damaged: list[str], journal: Journal) -> None:
    """Say that some frames are not believed."""
    if damaged:
        journal.warn(f"{count(len(damaged), 'recording')} had damaged frames in the cache, which are made again")


def inspect(
    config: Config,
    spec: FrontEnd,
    journal: Journal,
    interrupts: Interrupts,
    *,
    writable: bool,
    faults: list[str],
) -> Dataset:
    """Hear all recordings without keeping frames. Only with `writable`, what was learnt and problems.csv are kept.

    Args:
        faults: extended by what is wrong and does not keep the recordings from being heard.

    Raises: as `prepare`.
    """
    cache = config.output / "cache"
    if writable:
        make_folder(cache)
    survey = _survey(config, spec, cache / FILE_INDEX, journal, interrupts, keep=writable)

    def listen() -> None:
        examine_all(
            survey.listing.files,
            survey.file_index,
            survey.unusable,
            longest_s=config.audio.max_hours * 3600,
            workers=config.prepare.workers,
            journal=journal,
            interrupts=interrupts,
        )

    return _gather(config, spec, survey, listen, keep_problems=writable, faults=faults)


def _survey(
    config: Config,
    spec: FrontEnd,
    file_index_path: Path,
    journal: Journal,
    interrupts: Interrupts,
    *,
    keep: bool = True,
) -> _Survey:
    if not spec.has_sound:
        one_class = config.model.output == "softmax"
        there = embedding_data.survey(
            config.data_folder, spec, config.audio, one_class=one_class, interrupts=interrupts
        )
        return _Survey(there.listing, there.given, there.notices, there.file_index, {})
    arranged = arranging.arrange(config)
    listing, given = arranged.listing, arranged.given
    file_index = FileIndex(file_index_path, config.audio, keep=keep)
    unusable = identify(listing.files, file_index, journal=journal, interrupts=interrupts)
    scan.refuse_remnant(listing, unusable, config.data_folder)
    groups = {
        file.name: arranged.groups[whole] for file in listing.files
        if (whole := file.name.removesuffix(f"#{(file.channel or 0) + 1}")) in arranged.groups
    }  # fmt: skip
    return _Survey(listing, given, arranged.notices, file_index, unusable, groups, arranged.rows)


@contextlib.contextmanager
def _noted(faults: list[str] | None) -> Iterator[None]:
    """Note what is wrong and go on, where there is a list of faults; else raise it."""
    try:
        yield
    except InputError as fault:
        if faults is None:
            raise
        faults.append(str(fault))


def _gather(
    config: Config,
    spec: FrontEnd,
    survey: _Survey,
    decode: Callable[[], None],
    *,
    keep_problems: bool = True,
    faults: list[str] | None = None,
) -> Dataset:
    ids: dict[str, ExternalId] = {}
    # Complain before the long work, not after.
    with _noted(faults):
        labels = {name for file in survey.listing.files for name in file.classes}
        refuse_no_answer(labels, config.labels.negative_classes, shown(config.data_folder), "Rename its folder")
    with _noted(faults):
        if config.model.output == "softmax":
            class_names.refuse_several(labels, shown(config.data_folder))
    with _noted(faults):
        split.compile_group_regex(config.split.group_regex)
        ids = _label_map(config)
    _require_tables(config)
    decode()
    scan.refuse_remnant(survey.listing, survey.unusable, config.data_folder)
    division = _divide(config, spec, survey, keep_problems=keep_problems)
    classes = selection.class_names(division.usable)
    weights: dict[str, float] = {}
    weight_notices: list[str] = []
    with _noted(faults):
        weights, weight_notices = sampling.recording_weights(config, division.usable)
    notices = [
        *class_notices(ids, classes),
        *survey.notices,
        *class_names.folder_notices(survey.listing, tuple(sorted({*classes, *division.rare}))),
        *class_names.misspelt_notices(
            Counter(label.class_name for one in division.usable for label in one.labels
                    if label.class_name != IGNORED and label.weight), by_rows=survey.rows is not None,
        ),
        *_kinds_notices(config, division, background_of(classes, config.labels.negative_classes)),
        *division.notices,
        *weight_notices,
    ]
    background = background_of(classes, config.labels.negative_classes)
    rule = WindowRule.of(config.labels)
    output, output_notices = _output(config, division.usable)
    notices += [*_times_notices(division.usable, rule, background), *output_notices]
    notices += quality.padding_notices(division.usable, spec)
    notices += quality.band_notices(quality.class_shares(division.usable, spec, background), spec)
    if len(background) == len(classes):
        raise InputError(
            f"{shown(config.data_folder)}: all classes with usable recordings are background "
            f"({_names(list(classes))}). Add recordings of a class to recognise, or change --labels.negative-classes."
        )
    return Dataset(
        spec, classes, division.usable, division.places, division.problems, notices, ids, background, output, weights,
        division.sources, rule,
        survey.rows.balanced(division.usable, division.problems) if survey.rows is not None else {},
    )


def _times_notices(recordings: Sequence[Recording], rule: WindowRule, background: Sequence[str]) -> list[str]:
    """What is taken of recordings beside their labels with times."""
    timed = [one for one in recordings if any(label.is_annotation for label in one.labels)]
    if not timed:
        return []
    n = sum(label.is_annotation and label.class_name != IGNORED for one in timed for label in one.labels)
    said = f"{count(n, 'label')} with times in {count(len(timed), 'recording')}: elsewhere in these recordings, "
    if rule.negative:
        return [said + "the annotated classes are absent. If some are annotated in part: --labels.unlabelled unknown."]
    said += "nobody knows what can be heard (--labels.unlabelled unknown)."
    if len(timed) == len(recordings) and not background:
        said += " So no window is a negative of all classes: add recordings without any of them to background/."
    return [said]


def _output(config: Config, recordings: Sequence[Recording]) -> tuple[str, list[str]]:
    """The kind of scores, and what is said of it where the labels chose it."""
    several = sum(len(recording.classes) > 1 for recording in recordings)
    timed = sum(any(label.is_annotation for label in recording.labels) for recording in recordings)
    if config.model.output == "softmax" and timed:
        return "softmax", [
            "With softmax the classes share out every window, so windows without a label are not trained on as "
            "negatives. --model.output sigmoid trains on them; so does softmax with labels of a negative class there."
        ]
    if config.model.head == "sed-attention":
        return "sigmoid", ["--model.head sed-attention scores each class on its own (--model.output sigmoid)."]
    if config.model.output != "auto":
        return config.model.output, []
    if not several and not timed:
        absent = len({label.origin for one in recordings for label in one.labels if label.is_absent})
        said = (
            "Each recording has one class, so classes compete (--model.output softmax), and "
            f"{count(absent, 'decision')} of the review that a class is absent teach nothing of other classes. To "
            "learn from them: --model.output sigmoid."
        )
        return "softmax", [said] if absent else []
    why = " and ".join(
        [f"{count(several, 'recording')} with several classes"] * bool(several)
        + [f"{count(timed, 'recording')} with times"] * bool(timed)
    )
    return "sigmoid", [f"Each class is scored on its own (--model.output sigmoid), as the labels have {why}."]


def _divide(config: Config, spec: FrontEnd, survey: _Survey, *, keep_problems: bool) -> _Division:
    files = survey.listing.files
    has_several = any(len(file.classes) > 1 for file in files)
    usable, problems = selection.select(
        survey.listing,
        survey.file_index,
        survey.unusable,
        spec=spec,
        short=config.audio.short_clips,
        longest_s=config.audio.max_hours * 3600,
        output="sigmoid" if config.model.output == "auto" and has_several else config.model.output,
        background=background_of({name for file in files for name in file.classes}, config.labels.negative_classes),
    )
    scan.refuse_crashes(survey.listing, problems, config.data_folder)
    negatives = config.labels.unlabelled == "negative" and config.model.output != "softmax"
    try:
        selection.check_enough(usable, config.data_folder, problems, negatives=negatives)
        kept = config.output / "cache" / "acoustic.json" if keep_problems else None
        by_sound = acoustic.kept_links(usable, config.split.acoustic, kept)
        links = [*recorded_links(usable), *by_sound]
        result = split.assign(usable, config.split, config.output / "split.csv", survey.given, links, survey.groups)
        if keep_problems:
            write_csv(config.output / "sources.csv", SOURCE_COLUMNS, result.sources.rows())
        problems = sorted([*problems, *result.problems], key=lambda problem: problem.recording)
        usable = [recording for recording in usable if recording.name in result.places]
        trained = [recording for recording in usable if result.places[recording.name].split == "train"]
        rare, rare_notices = sampling.rare_classes(usable, trained, spec, config.train)
        if config.train.min_samples_action == "leave-out":
            usable, out = sampling.without(usable, rare, config.train)
            problems = sorted([*problems, *out], key=lambda problem: problem.recording)
        selection.check_enough(usable, config.data_folder, problems, negatives=negatives)
    except selection.TooFewClassesError as fault:
        fault.rows = survey.rows.balanced(usable, problems) if survey.rows is not None else {}
        raise
    finally:
        if keep_problems:
            rows = [problem.row() for problem in problems]
            write_csv(config.output / "problems.csv", PROBLEM_COLUMNS, rows)
    notices = [*source_notices(usable, result.sources), *result.notices, *rare_notices]
    return _Division(usable, result.places, problems, tuple(rare), notices, result.sources)


def _require_tables(config: Config) -> None:
    """Refuse tables that are named and are none, before the long work."""
    if config.split.file:
        require_file(Path(config.split.file), "--split.file", "a CSV `recording,split` or `recording,fold`")
    if config.train.sample_weights:
        require_file(Path(config.train.sample_weights), "--train.sample-weights", "a CSV `recording,weight`")


def _label_map(config: Config) -> dict[str, ExternalId]:
    if config.labels.map:
        require_file(Path(config.labels.map), "--labels.map", "a label map (.pickle .json .csv .yaml)")
    path = Path(config.labels.map) if config.labels.map else find_label_map(config.input)
    return read_label_map(path) if path is not None else {}


def class_notices(ids: dict[str, ExternalId], classes: tuple[str, ...]) -> list[str]:
    """What should be known of the classes and their ids."""
    few = "Readers made for jibjib's model show the best three classes, and need at least as many."
    return [*([few] if len(classes) < 3 else []), *_id_notices(ids, classes)]


def _kinds_notices(config: Config, division: _Division, background: Sequence[str]) -> list[str]:
    """What should be known of annotations that lie there, and of classes that are no answer."""
    problems, timed = division.problems, any(label.has_times for one in division.usable for label in one.labels)
    notices = []
    unread = [problem.recording for problem in problems if problem.problem == "annotation"]
    if unread and config.labels.annotations not in (None, collect.NONE):
        notices.append(collect.unread_notice(config, unread))
    elif n := len(unread):
        whole = "" if timed else ": each recording is trained whole under its class"
        notices.append(
            f"{count(n, 'file')} of annotations among the recordings {'is' if n == 1 else 'are'} not used{whole}. To "
            "train on what they say, name their folder: --labels.annotations."
        )
    if background:
        notices.append(f"Negative classes, never an answer (--labels.negative-classes): {_names(background)}.")
    return notices


def _id_notices(ids: dict[str, ExternalId], classes: tuple[str, ...]) -> list[str]:
    if not ids:
        return ["No label map: classes have no external ids."]
    notices = []
    if unmapped := [name for name in classes if name not in ids]:
        notices.append(f"Not in the label map, so without an external id: {_names(unmapped)}.")
    if unheard := sorted(set(ids) - set(classes)):
        notices.append(f"In the label map, but without recordings: {_names(unheard)}.")
    return notices


def _names(names: Sequence[str]) -> str:
    more = len(names) - _NAMES_IN_A_NOTICE
    # Those of a label map are outside text.
    return ", ".join(map(shown, names[:_NAMES_IN_A_NOTICE])) + (f" and {more:,} more" if more > 0 else "")
