"""What each command of the command line does, from its settings and arguments to its exit code.

What takes its time to load is loaded inside the commands: a mistake is reported at once.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path

from birdtune import config as configs
from birdtune.config import Config
from birdtune.errors import EXIT_DONE, InputError, Interrupted, RetryableError, UsageError, shown
from birdtune.options import settings_page
from birdtune.runtime import configure
from birdtune.runtime.files import require_file, require_place
from birdtune.runtime.lock import alone_in
from birdtune.runtime.log import Journal, duration
from birdtune.runtime.mounts import warn_of_anonymous_volume
from birdtune.runtime.parsing import read_bounded
from birdtune.runtime.rank import is_chief
from birdtune.runtime.runs import newest_exported
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults
from birdtune.runtime.tensorflow_import import load_tensorflow

Options = argparse.Namespace
Run = Callable[[Config, Options, Journal, Interrupts], int]

_LONGEST_LIST_BYTES = 256 << 20
# Each takes 60 to 170 kB of the page: noise hardly compresses.
_MOST_REVIEWED = 1000

SAVED_MODEL = "saved-model"  # what `export` always writes


def settled(config: Config, journal: Journal) -> Config:
    """The settings with what follows from the backbone's file itself, which is reported."""
    from birdtune.models import registry

    of_base: list[str] = []
    if config.init_from is not None:
        from birdtune.training import base_model  # takes a second, with all of the data's side

        config, of_base = base_model.settled(config)
    found, said = registry.settled(config)
    for sentence in (*of_base, *said):
        journal.say(f"note: {sentence}")
    return found


def printed(code: int, journal: Journal) -> int:
    """The exit code of a command whose words are all that it makes.

    Raises:
        RetryableError: they could not be written.
    """
    if journal.stdout_error is not None:
        raise RetryableError(
            f"standard output could not be written ({journal.stdout_error}). Give another place for it."
        )
    return code


def job(until: str) -> Run:
    """The job, up to and with a stage."""

    def run(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
        kind = getattr(options, "format", SAVED_MODEL)
        if not config.output.is_relative_to(config.cloud.folder):  # else S3 keeps it
            warn_of_anonymous_volume(config.output, journal)
        if config.split.hold_out_classes is not None:
            journal.warn("--split.hold-out-classes plays no part here: it is for `unseen`, and all classes are learnt.")
        with alone_in(config.output, journal):
            # Loaded here, what takes its time does not keep a second job from being told at once.
            from birdtune.pipeline.run import run as run_job

            _require_format(config, kind)  # before the job, not after
            code = run_job(config, journal, interrupts, until=until, keep=options.keep)
            if not is_chief():
                return code
            if kind == "slim":
                load_tensorflow()
                from birdtune.pipeline.slim import export_slim_model

                export_slim_model(config, journal)
            elif kind != SAVED_MODEL:
                from birdtune.pipeline.convert import convert_model

                with storage_faults(config.output, verb="used"):
                    convert_model(config, kind, journal, interrupts)
        return code

    return run


def prepare(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """The features of all recordings and the split; or of one part of the recordings, the features alone."""
    if options.shard is None:
        return job("prepare")(config, options, journal, interrupts)
    with alone_in(config.output, journal), storage_faults(config.output, verb="used"):
        from birdtune.models import registry
        from birdtune.pipeline.prepare_parts import prepare_part

        return prepare_part(config, registry.front_end(config), options.shard, journal, interrupts)


def _require_format(config: Config, kind: str) -> None:
    """Refuse a format that cannot be made. Raises InputError."""
    from birdtune.models import head_kinds
    from birdtune.models.registry import backbone_of, require_tensorflow_1
    from birdtune.serving.convert import FORMATS, require_packages

    if kind == "slim":
        head_kinds.require_tensorflow_1(config.model.head)
        require_tensorflow_1(backbone_of(config))
    elif kind in FORMATS:
        require_packages(kind)


def check(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """What is in the input, what is wrong with it, and what the job will cost."""
    from birdtune.pipeline import check as checks

    return printed(checks.check(config, journal, interrupts), journal)


def prune(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Give back what the cache need not hold any more."""
    with alone_in(config.output, journal):
        from birdtune.pipeline.prune import prune as give_back

        return give_back(config, journal, interrupts)


def settings(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """The page of all settings."""
    journal.say(settings_page(configs.options()).rstrip())
    return printed(EXIT_DONE, journal)


def _report_unused_settings(config: Config, journal: Journal) -> None:
    if config.init_from is not None:
        journal.warn("--init-from plays no part here: all heads begin from fresh weights, on the backbone's own.")
    if config.train.label_refinement:
        journal.warn(
            "--train.label-refinement plays no part here: whole labels are learnt from. `run` refines them."
        )


def compare(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Compare heads by cross-validation; train a model with the best where that is asked for."""
    if options.smote:
        _require_smote()
    if options.then and (config.train.processes or 1) > 1:
        raise UsageError(
            f"--then train: trains in this process alone, and --train.processes is {config.train.processes}. Leave one "
            "of the two out: without --then, `compare` says which command trains the best head."
        )
    with alone_in(config.output, journal), storage_faults(config.output, verb="used"):
        _report_unused_settings(config, journal)
        load_tensorflow()
        from birdtune.tuning import compare as comparison

        chosen = comparison.compare(config, journal, interrupts, smote=options.smote)
        if not options.then:
            return EXIT_DONE
        from birdtune.pipeline.run import run as run_job

        # TensorFlow has computed by now, which it must not have where other processes are started.
        return run_job(chosen.with_train_default(processes=1), journal, interrupts, keep=options.keep)


def _require_smote() -> None:
    """Refuse SMOTE where imbalanced-learn is not installed. Raises InputError with the command that installs it."""
    if util.find_spec("imblearn") is None:
        raise InputError(
            "--smote: needs imbalanced-learn, which is not installed. Give ./entrypoint.sh extras smote (in an image: "
            "build it with --build-arg EXTRAS=smote), or leave --smote out."
        )


def unseen(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Recognise classes that are held out by their vectors."""
    with alone_in(config.output, journal):
        _report_unused_settings(config, journal)
        load_tensorflow()
        from birdtune.tuning import unseen as unseen_classes

        return unseen_classes.unseen(config, journal, interrupts)


def tune(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Search settings."""
    with alone_in(config.output, journal), storage_faults(config.output, verb="used"):
        _report_unused_settings(config, journal)
        load_tensorflow()
        from birdtune.tuning import tune as tuning

        return tuning.tune(config, journal, interrupts)


def predict(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Score files."""
    if options.published_threshold is not None and not 0 < options.published_threshold < 1:
        raise UsageError(f"--published-threshold {options.published_threshold:g}: expected a score between 0 and 1.")
    if options.format is not None:
        return _detect(config, options, journal, interrupts)
    if options.shard is not None or options.merge:
        raise UsageError("--shard and --merge are for detections: give --format, e.g. --format csv.")
    if options.species_list is not None:
        raise UsageError("--species-list restricts detections: give --format, e.g. --format csv.")
    options.out = options.out or Path("predictions.csv")
    for place, flag in ((options.out, "--out"), (options.patches, "--patches")):
        if place is not None:
            require_place(place, flag, (".csv",), "a table with commas")
    if options.patches is not None and os.path.realpath(options.patches) == os.path.realpath(options.out):
        raise UsageError(f"--out and --patches are one file ({shown(options.out)}). Give each a name of its own.")
    files = _files(options)
    if options.model is None:
        newest_exported(config)  # refuses an output without a model, before seconds pass with loading TensorFlow
    with _whole_or_nothing(options.out, interrupts):
        load_tensorflow()
        from birdtune.pipeline import predict as prediction

        return prediction.predict(
            config, options.model, files, options.out, options.patches, journal, interrupts, options.window,
            options.classes, options.published_threshold,
        )  # fmt: skip


def _detect(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Score files, and write tables of detections."""
    others = {"--window": options.window, "--patches": options.patches}
    if given := [flag for flag, value in others.items() if value is not None]:
        raise UsageError(
            f"{given[0]} does not go with --format {options.format}, which writes detections. Leave one of both out; "
            "--detect.hop-s sets how closely windows follow one another."
        )
    if options.shard is not None and options.merge:
        raise UsageError("--shard and --merge: parts are merged when all of them are done. Leave one of both out.")
    out = options.out or Path("detections")
    if options.format == "parquet":
        from birdtune.data.embedding_files import require_pyarrow

        require_pyarrow("--format parquet")
    files = _files(options)
    with alone_in(out, journal), storage_faults(out, verb="used"):
        from birdtune.pipeline import detect as detection
        from birdtune.pipeline.detection_model import Asked

        asked = Asked(
            files, out, options.format, options.model, options.species_list, options.classes,
            options.published_threshold, options.shard, options.merge,
        )  # fmt: skip
        return detection.detect(config, asked, journal, interrupts)


def score(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Detections beside annotations."""
    if not options.files:
        raise UsageError("no detections are named: give tables that `predict --format` wrote, or their folder.")
    if options.overlap is not None and not 0 < options.overlap <= 1:
        raise UsageError(f"--overlap {options.overlap:g}: expected a share, above 0 and at most 1.")
    if options.segment is not None and not 0.01 <= options.segment <= 3600:
        raise UsageError(f"--segment {options.segment:g}: expected seconds, from 0.01 to 3600.")
    rates = _rates(options.false_alarms_per_hour)
    if not options.truth.is_dir():
        require_file(options.truth, "--truth", "annotations, or a folder of them")
    if options.out is not None:
        require_place(options.out, "--out", (".json",), "figures as JSON")
    from birdtune.evaluation.event_metrics import LEAST_OVERLAP, SEGMENT_S
    from birdtune.evaluation.event_ranking import RATES_PER_HOUR
    from birdtune.pipeline import score as scoring

    asked = scoring.Asked(
        options.files, options.truth, options.out, options.overlap or LEAST_OVERLAP, options.segment or SEGMENT_S,
        rates or RATES_PER_HOUR,
    )
    return printed(scoring.score(config, asked, journal), journal)


def _rates(text: str | None) -> list[float]:
    """`1,10` → false alarms an hour, ascending. Raises UsageError."""
    try:
        found = sorted({float(part) for part in (text or "").split(",") if part.strip()})
    except ValueError:
        found = [0.0]
    if found and not 0 < found[0] <= found[-1] <= 1e6:
        raise UsageError(f"--false-alarms-per-hour {shown(text)}: expected numbers above 0, e.g. 1,10.")
    return found


def review(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """A page to decide on detections."""
    if not 0 < options.n <= _MOST_REVIEWED:
        raise UsageError(f"--n {options.n}: expected 1 to {_MOST_REVIEWED:,} detections on one page.")
    if options.out is not None:
        require_place(options.out, "--out", (".html",), "a page")
    from birdtune.pipeline import review as reviewing

    return reviewing.review(
        config, reviewing.Asked(options.folder, options.out, options.n, options.model), journal, interrupts
    )


def embed(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Embed files; where none are named, the data that a run trains on."""
    from birdtune.data.embedding_files import ENDINGS, require_pyarrow

    by_ending = {ending: kind for kind, ending in reversed(ENDINGS.items())}
    ending = options.out.suffix.lower() if options.out is not None else ""
    kind = options.format or by_ending.get(ending, "npz")
    out = options.out or Path(f"embeddings{ENDINGS[kind]}")
    require_place(out, "--out", (ENDINGS[kind],), "embeddings")
    if kind == "parquet":
        require_pyarrow(shown(out))
    if options.files or options.list is not None:
        if kind == "find-tune-npz":
            raise UsageError(f"--format {kind}: has labels, which files alone have not. Give --data in their place.")
        if options.by_split:
            raise UsageError("--by-split: files alone have no split. Give --data in their place.")
        files = _files(options)
        with _whole_or_nothing(out, interrupts):
            load_tensorflow()
            from birdtune.pipeline import embed as embedding

            return embedding.embed(
                config, options.model, files, out, journal, interrupts, kind, options.postprocess
            )
    if not os.path.lexists(config.data_folder):
        raise UsageError(
            "no files are named, and there is no data folder: give files, --list FILE with a name on each line, or the "
            f"data of a run with --data ({shown(config.data_folder)} is not there)."
        )
    with alone_in(config.output, journal), storage_faults(config.output, verb="used"):
        load_tensorflow()
        from birdtune.pipeline import embed as embedding

        return embedding.embed_data(
            config, options.model, out, kind, journal, interrupts, by_split=options.by_split,
            pca=options.postprocess,
        )


def _files(options: Options) -> list[Path]:
    """The files that the command line names, and those of `--list`."""
    files: list[Path] = list(options.files)
    if options.list is not None:
        from birdtune.serving.sounds import read_list

        if options.list == "-":
            files += read_list(sys.stdin.buffer.read(_LONGEST_LIST_BYTES))
        else:
            path = Path(options.list)
            require_file(path, "--list", "a text with the name of a file on each line")
            with storage_faults(path, verb="read"):
                files += read_list(read_bounded(path, _LONGEST_LIST_BYTES, "a list of files"))
    if not files:
        raise UsageError("no files are named: give files or folders, or --list FILE with a name on each line.")
    return files


@contextlib.contextmanager
def _whole_or_nothing(out: Path, interrupts: Interrupts) -> Iterator[None]:
    """What is stopped in here has kept nothing to continue with, and says so."""
    try:
        yield
    except (Exception, Interrupted) as caught:
        fault = interrupts.unmasked(caught)
        if isinstance(fault, Interrupted):
            raise Interrupted(fault.signum, f"{shown(out)} was not written, and nothing is kept") from caught
        raise


def collect(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Fetch recordings into a folder."""
    from birdtune.pipeline import collect as collecting

    return collecting.collect(config, options, journal, interrupts)


def augment(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Draw augmented training windows."""
    require_place(options.out, "--out", (".png",), "a picture")
    with alone_in(config.output, journal):
        from birdtune.reporting.augmentation_sheet import draw_sheet

        journal.say(f"augment: {shown(config.data_folder)}")
        draw_sheet(config, options.out, journal, interrupts)
    return EXIT_DONE


def demo(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    """Make the sounds of invented birds, and run the whole job on them."""
    with alone_in(config.output, journal):
        return _demo(config, options, journal, interrupts)


def _demo(config: Config, options: Options, journal: Journal, interrupts: Interrupts) -> int:
    from birdtune.pipeline.demo import make_data
    from birdtune.pipeline.run import run as run_job

    folder = config.output / "demo-input"
    journal.say("demo: making the sounds of invented birds")
    data = make_data(folder, interrupts=interrupts)
    interrupts.check()
    journal.say(
        f"  {shown(folder)}: {data.clips:,} clips ({duration(data.seconds)}) of {len(data.classes)} classes from "
        f"{data.sources:,} sources; {len(data.broken)} files are broken on purpose"
    )
    config = config.model_copy(update={"input": folder, "data": None})
    # So that `run --input` this folder is this very job, and the settings can be seen where users put theirs.
    configure.write_job_yaml(folder / "job.yaml", config)
    code = run_job(config, journal, interrupts, keep=options.keep)
    journal.say(f"again   ./entrypoint.sh run --input {shown(folder)} --output {shown(config.output)}")
    return code
