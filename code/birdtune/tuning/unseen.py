"""How well classes that were never learnt from are recognised by their vectors alone.

    settings ─▶ all recordings as embeddings, computed once ─▶ classes held out ─▶ maps learnt on the others
             ─▶ one table, mean and spread over seeds beside chance; unseen.csv, unseen.json and
                unseen.html with a proof

The proof: no class held out has another name among the seen ones, and nothing of its recordings, by content or by
source, was learnt from. The backbone itself may have learnt from any of them: that is said, and cannot be undone here.

Importing this loads TensorFlow.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from birdtune.config import Config
from birdtune.data import dataset as gather
from birdtune.data.partitions import DEFAULT, SETTING, HeldOut, held_out
from birdtune.errors import EXIT_DONE, InputError, shown
from birdtune.evaluation import class_vectors, genera
from birdtune.evaluation.class_vectors import ClassNames
from birdtune.models import registry
from birdtune.models.labels_file import are_named
from birdtune.models.published_names import Names
from birdtune.models.registry import front_end
from birdtune.models.weights import verify_checkpoint
from birdtune.reporting import unseen_page
from birdtune.runtime.files import value_sha256, write_csv, write_json
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.text import count, some
from birdtune.training import devices
from birdtune.training.embeddings import Embedded, embed
from birdtune.tuning.class_embedding import TrainedEmbedding
from birdtune.tuning.class_maps import MAPS, Floats
from birdtune.tuning.class_trials import Draw, Found, Recordings, trial

_COLUMNS = (
    "vectors", "map", "seed", "fold", "classes", "chance", "ceiling", "top1", "seen", "unseen", "harmonic",
    "harmonic_uncalibrated", "learnt", "scored",
)  # fmt: skip
_FIGURES = ("chance", "ceiling", "top1", "seen", "unseen", "harmonic", "harmonic_uncalibrated")
_FEWEST_SOURCES = 2  # of a class: one to learn from or for its prototype, one to score
_FEWEST_CLASSES = 4  # two to learn from, two to tell apart


@dataclass(frozen=True, eq=False)
class _Sound:
    """Recordings of one class each, and what they are called."""

    recordings: Recordings
    contents: tuple[str, ...]
    names: ClassNames
    published: Mapping[str, str]  # class → label in the backbone's own list


@dataclass(frozen=True)
class _Kind:
    """Vectors of all classes, and the maps that go with them; None: prototypes."""

    name: str
    vectors: Floats | None
    maps: tuple[str, ...]


def unseen(config: Config, journal: Journal, interrupts: Interrupts) -> int:
    """Hold classes out, recognise them by vectors; print the table, and write unseen.csv, unseen.json and unseen.html.

    Raises:
        InputError: no data, too few classes, or a file of vectors that does not fit.
        Interrupted, RetryableError: frames and embeddings that were finished are kept.
    """
    verify_checkpoint(config, remember=True)
    journal.say(f"prepare: {shown(config.data_folder)}")
    dataset, store = gather.prepare(config, front_end(config), journal, interrupts)
    for notice in dataset.notices:
        journal.warn(notice)
    journal.say(f"unseen:\n  {devices.prepare_devices()}")
    classes = tuple(name for name in dataset.classes if name not in dataset.background)
    if len(classes) < _FEWEST_CLASSES:
        raise InputError(
            f"{shown(config.data_folder)}: has {count(len(classes), 'class')} ({some(classes)}); `unseen` takes "
            f"{_FEWEST_CLASSES} at least, two to learn from and two to tell apart."
        )
    names, published = _names(config, classes)
    seeds = range(config.train.seed, config.train.seed + config.unseen.seeds)
    plans = {seed: held_out(config.split.hold_out_classes, classes, seed) for seed in seeds}  # raises before the work
    kinds, notes = _kinds(config, names)
    _, embedded = embed(config, dataset, store, dataset.recordings, journal, interrupts, what="unseen classes")
    contents = {recording.name: recording.content for recording in dataset.recordings}
    chosen = chosen_recordings(embedded, classes)
    trained = TrainedEmbedding() if config.unseen.embedding == "trained" else None
    sound = _Sound(
        _of_one_class(embedded, classes, chosen, trained), tuple(contents[embedded.names[n]] for n in chosen), names,
        published,
    )  # fmt: skip
    if others := len(embedded.names) - len(chosen):
        journal.say(
            f"  {count(others, 'recording')} left out: of several classes, of none, of a negative class, or of "
            "a source recording with several classes"
        )
    for note in (*notes, *_said_of(plans, classes, config)):
        journal.say(f"  note: {note}")
    rows, proof = _trials(sound, plans, kinds, config.unseen.shots, journal, interrupts)
    _report(rows, proof, sound, config, journal)
    return EXIT_DONE


def chosen_recordings(embedded: Embedded, classes: Sequence[str]) -> list[int]:
    """The recordings that are of one of these classes, and whose source recording has no other class.

    Raises InputError: of some class there are not two source recordings of that kind.
    """
    columns = [embedded.classes.index(name) for name in classes]
    groups = np.asarray(embedded.groups, object)
    of_source = {group: embedded.positive[groups == group][:, columns].any(axis=0).sum() for group in set(groups)}
    alone = np.array([of_source[group] == 1 for group in groups])
    found = np.flatnonzero(np.isin(embedded.labels, columns) & alone)
    few = [
        name for name, column in zip(classes, columns, strict=True)
        if len(set(groups[found][embedded.labels[found] == column])) < _FEWEST_SOURCES
    ]  # fmt: skip
    if few:
        raise InputError(
            f"unseen classes take {_FEWEST_SOURCES} source recordings of each class that have no other class; fewer "
            f"have {some(few)}. Add recordings of other sources, take the class away, or say what names a source "
            "(--split.group-regex)."
        )
    return [int(number) for number in found]


def _of_one_class(
    embedded: Embedded, classes: Sequence[str], chosen: Sequence[int], trained: TrainedEmbedding | None
) -> Recordings:
    """Those recordings, with columns of `classes`."""
    labels = [classes.index(embedded.classes[label]) for label in embedded.labels[list(chosen)]]
    _, sources = np.unique([embedded.groups[n] for n in chosen], return_inverse=True)
    embeddings = embedded.averages[list(chosen)]
    return Recordings(embeddings, np.array(labels, np.int64), sources.astype(np.int64), trained)


def _said_of(plans: Mapping[int, Sequence[HeldOut]], classes: Sequence[str], config: Config) -> Iterator[str]:
    """Which classes are held out, where that is the same for all seeds; the proof has them in any case."""
    first, *others = plans.values()
    if len(first) == 1 and all(plan == first for plan in others) and config.split.hold_out_classes:
        held = first[0]
        parts = {
            "held out": held.unseen, "learnt from": held.seen(classes), "chosen by": held.validation,
            "left out": held.left_out,
        }  # fmt: skip
        yield "; ".join(f"{what}: {some(own, 50)}" for what, own in parts.items() if own)


# ---- what is known of classes -------------------------------------------------------------------


def _names(config: Config, classes: tuple[str, ...]) -> tuple[ClassNames, dict[str, str]]:
    """Names of classes, and their labels in the backbone's own list. Raises InputError: two are one."""
    labels = _published_labels(config)
    known = Names(labels).only(classes)
    published = {name: labels[column] for name, column in known.items()}
    scientific = genera.scientific_names(classes, published, are_scientific=config.evaluate.genera)
    names = ClassNames(classes, scientific)
    if pairs := names.same():
        first, second, key = pairs[0]
        raise InputError(
            f"{shown(first)} and {shown(second)} are one class by their names ({shown(key)}): one might be learnt from "
            "while the other is held out. Join them, with --labels.taxonomy or in one folder."
        )
    return names, published


def _published_labels(config: Config) -> tuple[str, ...]:
    published, path = registry.backbone_of(config).published, registry.sound_checkpoint(config)
    labels = () if published is None or path is None else published.read_classes(path)
    return tuple(labels) if labels and are_named(labels) else ()


def _kinds(config: Config, names: ClassNames) -> tuple[list[_Kind], list[str]]:
    """Every kind of vectors that can be had, and why others cannot."""
    settings, found, notes = config.unseen, list[_Kind](), list[str]()
    learnt = tuple(name for name in MAPS if name != "prototype")

    def rows(path: str | None, setting: str) -> dict[str, dict[str, str]]:
        return class_vectors.rows_of(Path(path), setting, names) if path is not None else {}

    taxa = class_vectors.taxonomy(names, rows(config.evaluate.taxonomy, "--evaluate.taxonomy"))
    if taxa is not None:
        found.append(_Kind("taxonomy", taxa, learnt))
    else:
        notes.append("no taxonomy: classes have no scientific names, or are all of one genus (--evaluate.taxonomy)")
    if settings.traits is not None:
        vectors, used = class_vectors.traits(names, rows(settings.traits, "--unseen.traits"))
        if vectors is None:
            raise InputError(f"--unseen.traits {shown(settings.traits)}: no column tells all classes apart in part.")
        notes.append(f"traits: {some(used, 12)}")
        found.append(_Kind("traits", vectors, learnt))
    if settings.words is not None:
        own = (
            {name: class_vectors.words_of(names.scientific.get(name, name)) for name in names.classes}
            if settings.synonyms is None
            else class_vectors.synonyms(Path(settings.synonyms), "--unseen.synonyms", names.classes)
        )
        vectors, missing = class_vectors.words(Path(settings.words), "--unseen.words", own)
        if missing:
            notes.append(f"words without a vector: {some(missing, 12)}")
        found.append(_Kind("words", vectors, learnt))
    if settings.shots:
        found.append(_Kind(count(settings.shots, "recording"), None, ("prototype",)))
    if not found:
        raise InputError("there are no vectors of classes: " + "; ".join(notes) + ". Or give --unseen.shots 3.")
    return found, notes


# ---- trials -------------------------------------------------------------------------------------


def _trials(
    sound: _Sound, plans: Mapping[int, Sequence[HeldOut]], kinds: Sequence[_Kind], shots: int, journal: Journal,
    interrupts: Interrupts,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:  # fmt: skip
    """A row for each kind, map, seed and fold; and the proof."""
    classes, rows, draws = sound.names.classes, list[dict[str, Any]](), list[dict[str, Any]]()
    ways = [(kind, name) for kind in kinds for name in kind.maps]
    with journal.progress("unseen classes", sum(map(len, plans.values())) * len(ways), "trials") as progress:
        for seed, plan in plans.items():
            for fold, held in enumerate(plan):
                parts = (held.seen(classes), held.unseen, held.validation)
                seen, unseen, validation = (tuple(map(classes.index, part)) for part in parts)
                draw = Draw(seen, unseen, validation, seed)
                for kind, name in ways:
                    interrupts.check()
                    found = trial(sound.recordings, draw, name, kind.vectors, shots)
                    rows.append(_row(found, held, kind.name, name, seed, fold))
                    progress.advance(1)
                draws.append(_proof(sound, held, found, seed, fold))
    return rows, {
        "same_taxon": [], "draws": draws,
        "shared_contents": sum(one["shared_contents"] for one in draws),
        "shared_sources": sum(one["shared_sources"] for one in draws),
        "known_to_the_backbone": dict(sound.published),
    }


def _row(found: Found, held: HeldOut, kind: str, name: str, seed: int, fold: int) -> dict[str, Any]:
    return {
        "vectors": kind, "map": name, "seed": seed, "fold": fold, "classes": "; ".join(held.unseen),
        "chance": 1 / len(held.unseen), "ceiling": found.ceiling, "top1": found.unseen, "seen": found.both.seen,
        "unseen": found.both.unseen, "harmonic": found.both.harmonic, "harmonic_uncalibrated": found.plain.harmonic,
        "learnt": len(found.learnt), "scored": found.n_scored,
    }  # fmt: skip


def _proof(sound: _Sound, held: HeldOut, found: Found, seed: int, fold: int) -> dict[str, Any]:
    """What was learnt from in a draw, beside what was held out: by class, content and source."""
    classes, own = sound.names.classes, sound.recordings
    apart = [classes.index(name) for name in (*held.unseen, *held.validation, *held.left_out)]
    hidden = np.flatnonzero(np.isin(own.labels, apart))
    learnt = found.learnt.tolist()
    return {
        "seed": seed, "fold": fold, **asdict(held), "learnt": len(learnt),
        "learnt_classes": sorted({classes[own.labels[n]] for n in learnt}),
        "learnt_contents_sha256": value_sha256(sorted(sound.contents[n] for n in learnt)),
        "shared_contents": len({sound.contents[n] for n in learnt} & {sound.contents[n] for n in hidden}),
        "shared_sources": len(set(own.sources[learnt].tolist()) & set(own.sources[hidden].tolist())),
    }  # fmt: skip


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean over folds, then mean and standard deviation over seeds, of each kind of vectors and map."""
    found = []
    for kind, name in dict.fromkeys((row["vectors"], row["map"]) for row in rows):
        own = [row for row in rows if (row["vectors"], row["map"]) == (kind, name)]
        of_seed = [
            [np.mean([row[figure] for row in own if row["seed"] == seed]) for figure in _FIGURES]
            for seed in dict.fromkeys(row["seed"] for row in own)
        ]
        table = np.array(of_seed)  # [seeds, figures]
        deviations = table.std(axis=0, ddof=1) if len(table) > 1 else np.zeros(len(_FIGURES))
        found.append(
            {"vectors": kind, "map": name}
            | dict(zip(_FIGURES, table.mean(axis=0).tolist(), strict=True))
            | dict(zip((f"{figure}_sd" for figure in _FIGURES), deviations.tolist(), strict=True))
        )
    return found


# ---- for people ---------------------------------------------------------------------------------


def table(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table as people read it: mean ± standard deviation."""
    lines = [f"{'vectors':<13}{'map':<20}{'chance':>7}{'ceiling':>9}{'unseen':>16}{'seen + unseen: H':>20}"]
    for row in found:
        top, both = (f"{row[name]:.3f} ± {row[f'{name}_sd']:.3f}" for name in ("top1", "harmonic"))
        lines.append(
            f"{row['vectors']:<13}{row['map']:<20}{row['chance']:>7.3f}{row['ceiling']:>9.3f}{top:>16}{both:>20}"
        )
    return lines


def _report(
    rows: Sequence[dict[str, Any]], proof: Mapping[str, Any], sound: _Sound, config: Config, journal: Journal
) -> None:
    found, classes = summary(rows), sound.names.classes
    for line in table(found):
        journal.say(f"  {line}")
    how = config.split.hold_out_classes or DEFAULT
    journal.say(
        f"{SETTING} {how}: {count(config.unseen.seeds, 'seed')}, {len(sound.contents):,} recordings of {len(classes)} "
        "classes; shares of recordings, averaged over classes, mean ± standard deviation over seeds. Unseen: "
        "recognised among the unseen classes; ceiling: as far as vectors tell these apart; H: harmonic mean of seen "
        "and unseen recognised among all classes, calibrated"
    )
    journal.say(
        f"proof: no two classes have a name in common; of {len(proof['draws'])} draws, recordings learnt from share "
        f"{proof['shared_contents']} contents and {proof['shared_sources']} sources with held-out classes"
    )
    if known := proof["known_to_the_backbone"]:
        journal.say(
            f"note: {len(known)} of {len(classes)} classes are in the list that the backbone was published with, so it "
            "has learnt from them (and perhaps from others, under other names): unseen they are to the map alone"
        )
    write_csv(config.output / "unseen.csv", _COLUMNS, rows)
    page = {
        "hold_out_classes": how, "seeds": config.unseen.seeds, "classes": list(classes),
        "recordings": len(sound.contents), "rows": found, "proof": dict(proof),
    }  # fmt: skip
    write_json(config.output / "unseen.json", page)
    unseen_page.write_page(config.output / "unseen.html", page)
    journal.say(f"table   {shown(config.output / 'unseen.csv')}")
    journal.say(f"report  {shown(config.output / 'unseen.html')}")
