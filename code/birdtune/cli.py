"""Commands → settings → job.

Here, and only here, a user's fault and our own part ways: a BirdtuneError is one line and its exit
code; anything else is a defect and shows its traceback.
"""

import argparse
import contextlib
import os
import textwrap
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import birdtune
from birdtune import config as configs
from birdtune.cloud import batch, sagemaker, session
from birdtune.errors import (
    EXIT_DEFECT,
    EXIT_DONE,
    BirdtuneError,
    Interrupted,
    UsageError,
    shown,
)
from birdtune.options import Option
from birdtune.pipeline import collect_arguments, commands, on_ray
from birdtune.pipeline.shards import Shard
from birdtune.runtime import configure
from birdtune.runtime.log import Journal, print_error
from birdtune.runtime.signals import Interrupts
from birdtune.runtime.storage import storage_faults

# From scratch on some hundred windows: small batches for many updates, and what keeps it from overfitting.
DEMO_SETTINGS = {
    "model.checkpoint": "none",
    "train.epochs": 8,
    "train.batch-size": 16,
    "train.jitter-s": 0.48,
    "train.label-smoothing": 0.1,
}


@dataclass(frozen=True)
class Command:
    """One command of the entry point."""

    help: str
    run: commands.Run
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    usage: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    takes_model: bool = False  # an argument of its own says which model to use
    more: str = ""  # sentences that only its own help has
    makes_input: bool = False  # so that an input folder and its job.yaml are none of its concern


def main(arguments: Sequence[str]) -> int:
    """Run a command line. Returns the exit code."""
    journal = Journal()
    interrupts = Interrupts()
    try:
        # The system's refusals that nobody met before, here at the latest, are no defects either.
        with interrupts.watching(), storage_faults(Path(), verb="used"):
            return _run(list(arguments), journal, interrupts)
    except (Exception, Interrupted) as caught:
        return _tell_end(interrupts.unmasked(caught))
    finally:
        journal.close()


def _tell_end(fault: BaseException) -> int:
    """Say what ended it; the exit code."""
    if isinstance(fault, BirdtuneError | Interrupted):
        print_error(str(fault) if isinstance(fault, Interrupted) else f"error: {fault}")
        return fault.exit_code
    with contextlib.suppress(OSError):
        traceback.print_exception(fault)
    print_error(
        f"this is a defect of birdtune {birdtune.__version__}, not of your data. What was finished is "
        "safe. Please report the lines above."
    )
    return EXIT_DEFECT


def _run(arguments: list[str], journal: Journal, interrupts: Interrupts) -> int:
    name = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
    if name == "train" and not arguments and sagemaker.is_here():
        return sagemaker.train(lambda line: _run(line, journal, interrupts))
    if name in ("help", "version"):
        about = arguments.pop(0) if arguments and not arguments[0].startswith("-") else "run"
        arguments, name = [f"--{name}", *arguments], about
    if name not in COMMANDS:
        hint = configure.nearest(name, COMMANDS)
        if os.path.lexists(name):
            hint = f"; a folder is given with --input {shown(name)} or --data {shown(name)}"
        raise UsageError(f"there is no command {name!r}{hint}. Commands: {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    if "--help" in arguments or "-h" in arguments:
        journal.say(_help(name, command))
        return commands.printed(EXIT_DONE, journal)
    if "--version" in arguments:
        journal.say(f"birdtune {birdtune.__version__}")
        return commands.printed(EXIT_DONE, journal)
    if (wanted := on_ray.asked(name, arguments)) is not None:
        parse(name, wanted.rest)  # raises for what is not understood
        left = on_ray.share(wanted, journal, interrupts)
        return EXIT_DONE if left is None else _run([name, *left], journal, interrupts)
    records = name in _RECORDED and not any(each.startswith("--shard") for each in arguments)
    empty = contextlib.nullcontext(list[configs.Config]())
    with session.failure_recorded(arguments, os.environ, journal, interrupts) if records else empty as known:
        return _work(name, arguments, known, journal, interrupts)


def _work(
    name: str, arguments: Sequence[str], known: list[configs.Config], journal: Journal, interrupts: Interrupts
) -> int:
    """Settings, what they name in S3, and the command; `known` gets the settings as soon as they are."""
    command = COMMANDS[name]
    options, flags = parse(name, arguments)
    if name in _TRAINING and batch.is_here(os.environ):
        os.environ.update(batch.meet(os.environ, journal, interrupts))
    job_yaml = not command.makes_input and (session.settings_folder(flags, os.environ, journal, interrupts) or True)
    config = configure.load(flags, os.environ, command.defaults, job_yaml=job_yaml)
    if name in _CONTINUING and (found := session.earlier_settings(config, journal, interrupts)) is not None:
        version, before = found
        if before:
            config = configure.load(flags, os.environ, before, job_yaml=False)
            journal.say(f"note: no settings are given, so they are those of version {version}")
    known.append(config)
    if name == "prepare" and options.shard is not None:
        config = config.model_copy(update={"output": options.shard.folder(config.output)})
    with session.staged(config, options, journal, interrupts, only_reads=name in _READERS) as (config, options):
        return command.run(commands.settled(config, journal), options, journal, interrupts)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}. `./entrypoint.sh {self.prog} --help` shows what is understood.")


def parse(name: str, arguments: Sequence[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Split what follows a command's name into the command's own arguments and settings (name → text).

    Raises:
        UsageError: an argument is not understood, or has no value.
    """
    command = COMMANDS[name]
    parser = _Parser(prog=name, add_help=False, allow_abbrev=False)
    for option in configs.options():
        # Underscores are forgiven: the environment and YAML spell names so.
        flags = sorted({option.flag, option.flag.replace("-", "_").replace("__", "--", 1)}, reverse=True)
        if not (command.takes_model and option.name == "model.checkpoint"):
            parser.add_argument(*flags, dest=option.name, default=argparse.SUPPRESS)
    if command.arguments is not None:
        command.arguments(parser)
    options, unknown = parser.parse_known_args(arguments)
    if name == "predict" and options.shard is not None:
        options.out = options.shard.folder(options.out or Path("detections"))
    if unknown:
        raise UsageError(
            f"{_not_understood(name, unknown[0], options)} `./entrypoint.sh {name} --help` shows what is."
        )
    settings = {option.name for option in configs.options()}
    given = {key: value for key, value in vars(options).items() if key in settings}
    if command.makes_input and (superfluous := {"input", "data"} & given.keys()):
        raise UsageError(
            f"`{name}` makes its own input: leave out --{min(superfluous)}. --output says where."
        )
    return options, given


def _not_understood(name: str, unknown: str, options: argparse.Namespace) -> str:
    if unknown in COMMANDS:
        return f"{unknown!r} is a command, and the command comes first: `./entrypoint.sh {unknown} ...`."
    if not unknown.startswith("-"):
        hint = f"; a folder is given with --input {shown(unknown)} or --data {shown(unknown)}"
        return f"{unknown!r} is not understood{hint if os.path.lexists(unknown) else ''}."
    if new := configure.renamed(unknown.split("=")[0]):
        return f"{unknown!r} is called {new} now."
    own = (f"--{key}" for key in vars(options))
    known = [*own, *(option.flag for option in configs.options())]
    return f"{unknown!r} is not understood{configure.nearest(unknown.split('=')[0], known)}."


# ---- the commands -------------------------------------------------------------------------------


# Those behind the first are written beside it.
_FORMATS = (commands.SAVED_MODEL, "tflite", "onnx", "keras", "h5", "slim")


# Tables of detections, as serving/detection_tables.py writes them.
_TABLES = ("raven", "audacity", "csv", "json", "parquet", "birdnet")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=_FORMATS, default=commands.SAVED_MODEL)


_LIST_HELP = "--list has a name on each line. Names, there too, begin at the working folder."


def _file_name(text: str) -> Path:
    # Path("") would be the working folder: what an unset variable of a shell must not mean.
    if not text.strip():
        raise argparse.ArgumentTypeError("the name of a file is empty; the working folder is called `.`")
    return Path(text)


def _file_arguments(out: str | None, *, patches: bool) -> Callable[[argparse.ArgumentParser], None]:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("files", nargs="*", type=_file_name, metavar="FILES")
        parser.add_argument("--list", default=None, metavar="FILE")
        parser.add_argument("--out", type=Path, default=None if out is None else Path(out))
        # What job.yaml names as the backbone to start from is not what a user means here; the flag is.
        parser.add_argument("--model", "--model.checkpoint", dest="model", type=Path, default=None)
        if patches:
            parser.add_argument("--patches", type=Path, default=None)
            parser.add_argument("--window", type=float, default=None)
            parser.add_argument("--classes", choices=("own", "published", "both"), default="own")
            parser.add_argument("--published-threshold", type=float)
            parser.add_argument("--format", choices=_TABLES, default=None)
            parser.add_argument("--species-list", type=_file_name, default=None)
            _shard_argument(parser)
            parser.add_argument("--merge", action="store_true")
        else:
            parser.add_argument("--format", choices=("npz", "parquet", "tfrecord", "find-tune-npz"), default=None)
            parser.add_argument("--by-split", action="store_true")
            parser.add_argument("--postprocess", type=_file_name, default=None)

    return add


def _shard_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shard", type=lambda text: Shard.of(text, os.environ), default=None)


def _compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--then", choices=("train",), default=None)
    parser.add_argument("--smote", action="store_true")


def _tune_arguments(parser: argparse.ArgumentParser) -> None:
    # The two that are wanted most, without their section.
    for name in ("trials", "minutes"):
        parser.add_argument(f"--{name}", dest=f"tune.{name}", default=argparse.SUPPRESS)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", type=_file_name, metavar="DETECTIONS")
    parser.add_argument("--truth", type=_file_name, required=True)
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--overlap", type=float, default=None)
    parser.add_argument("--segment", type=float, default=None)
    parser.add_argument("--false-alarms-per-hour", type=str, default=None)


def _review_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=_file_name, default=Path("detections"), metavar="DETECTIONS")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--model", "--model.checkpoint", dest="model", type=Path, default=None)


def _augment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("augmentation.png"))


COMMANDS: dict[str, Command] = {
    "run": Command("the whole job; what is done and current is skipped (default)", commands.job("report")),
    "check": Command("what is in the input, what is wrong with it, what it will cost; trains nothing", commands.check),
    "prepare": Command(
        "decode the recordings and split them; with --shard, decode one part of them", commands.prepare,
        _shard_argument, "[--shard PART/PARTS | --engine ray --shard /PARTS]",
    ),
    "train": Command("up to the trained weights", commands.job("train"), usage="[--engine ray [--nodes N]]"),
    "evaluate": Command("up to the metrics", commands.job("evaluate")),
    "export": Command(
        "up to the served model; with --format, a file for TensorFlow Lite, ONNX, Keras or TensorFlow 1 too",
        commands.job("export"), _export_arguments, f"[--format {'|'.join(_FORMATS)}]",
    ),
    "report": Command("up to the report", commands.job("report")),
    "compare": Command(
        "which head suits the data, by cross-validation; with --then train, the job with the best of them",
        commands.compare, _compare_arguments, "[--smote] [--then train]",
        more="The best candidate's mistakes are in mistakes.csv; compare.html draws recordings before and after it. "
        "--smote adds a candidate that learns from made recordings of rare classes too (./entrypoint.sh extras smote). "
        "--then train goes on as `run` does, with the best head and your settings; of the backbone nothing is trained "
        "unless --model.freeze says so.",
    ),
    "tune": Command(
        "search settings on embeddings, or by whole training (--tune.on); goes on where it was stopped",
        commands.tune, _tune_arguments, "[--trials N] [--minutes M]",
    ),
    "unseen": Command(
        "hold classes out, and recognise them by words, taxonomy, traits or a few recordings",
        commands.unseen,
    ),
    "predict": Command(
        "score files with the newest promoted model: --out CSV, one row a recording or --window",
        commands.predict,
        _file_arguments(None, patches=True),
        "FILES... [--list FILE|-] [--window SECONDS] [--out predictions.csv] [--patches patches.csv] [--model FOLDER] "
        f"[--classes own|published|both] [--published-threshold SCORE] | FILES... --format {'|'.join(_TABLES)} "
        "[--out detections] [--species-list FILE] [--shard PART/PARTS | --merge | --engine ray --shard /PARTS] "
        "[--list FILE|-] [--model FOLDER]",
        more="Long recordings need --window: each window of so many seconds is scored as if it were a recording of "
        f"its own. {_LIST_HELP} --patches CSV has one row a window of the backbone, with decisions by thresholds "
        "alone: none is rejected as unknown. Of a model with published classes (--model.keep-classes), --classes both "
        "decides for the best of them from --published-threshold (chosen on validation) on where no own class passes. "
        "With --format, the detections in the recordings are written, with begin and end, as tables in the folder "
        "--out: the same command goes on where it was stopped. --detect settings say what a detection is. "
        "Several machines share the recordings by --shard 1/10 to 10/10; the same command with --merge then writes the "
        "tables of all.",
        takes_model=True,
    ),
    "score": Command(
        "detections beside annotations: F1 by events and by segments, average precision", commands.score,
        _score_arguments,
        "DETECTIONS... --truth FILE|FOLDER [--overlap 0.3] [--segment 1] [--false-alarms-per-hour 1,10] "
        "[--out score.json]",
        more="DETECTIONS are tables that `predict --format` wrote, of any format, or their folder; --truth names "
        "annotations as --labels.annotations reads them, a file or a folder. An event is right if it overlaps one of "
        "its class by at least that share of their union. Intervals are over recordings, or over what "
        "--split.group-regex finds in their names.",
    ),
    "review": Command(
        "a page to decide on the detections that the model is least sure of; it saves review.csv", commands.review,
        _review_arguments, "[DETECTIONS] [--n 100] [--out DETECTIONS/review.html] [--model FOLDER]",
        more="DETECTIONS is the folder that `predict --format` wrote to. Those nearest to their class's threshold come "
        "first; --n says how many. `run --labels.review review.csv` trains on the table that the page saves.",
        takes_model=True,
    ),
    "embed": Command(
        "embeddings of each window (VGGish 128, YAMNet 1024 numbers), of files or of the labelled data",
        commands.embed, _file_arguments(None, patches=False),
        "[FILES...] [--list FILE|-] [--format FORMAT] [--out embeddings.npz] [--by-split] [--model FOLDER|CHECKPOINT] "
        "[--postprocess FILE]",
        more="Files are embedded by the newest model or --model. Without files, the recordings of --data are, by the "
        "weights that `run` begins from or --model. --format is npz, parquet, tfrecord or find-tune-npz; without it, "
        "the ending of --out decides. --by-split writes embeddings.train.npz, embeddings.val.npz and "
        "embeddings.test.npz, with the labels of each window. --postprocess names AudioSet's vggish_pca_params.npz: "
        f"VGGish's embeddings become bytes, as AudioSet's are. {_LIST_HELP}",
        takes_model=True,
    ),
    "augment": Command(
        "draw some augmented training windows; `--out` names the picture", commands.augment,
        _augment_arguments, "[--out augmentation.png]",
    ),
    "collect": Command(
        collect_arguments.HELP, commands.collect, collect_arguments.add, collect_arguments.USAGE,
        more=collect_arguments.MORE,
    ),
    "prune": Command(
        "free disk: delete features of recordings that are gone, and for other settings, from output/cache",
        commands.prune,
    ),
    "demo": Command(
        "make sounds of invented birds and run the whole job on them", commands.demo,
        defaults=DEMO_SETTINGS, makes_input=True,
    ),
    "settings": Command("print every setting as a page of Markdown", commands.settings),
    "test": Command("run the tests (entrypoint.sh only)", lambda *_: _not_here("test")),
    "extras": Command(
        "add packages: birdnet, collect, media, mlflow, onnx, parquet, ray, smote (entrypoint.sh only)",
        lambda *_: _not_here("extras media"),
    ),
}  # fmt: skip


# They make nothing in the output folder that is to be kept.
_READERS = frozenset({"check", "predict", "score", "review", "embed", "augment", "settings"})


# They train, by several processes where there are any.
_TRAINING = frozenset({"run", "train", "evaluate", "export", "report"})


# They leave run.json.
_RECORDED = _TRAINING | {"prepare", "demo"}


# They go on from what a run has left, and without settings with its settings.
_CONTINUING = frozenset({"evaluate", "export", "report"})


def _not_here(command: str) -> int:
    raise UsageError(f"this is a command of entrypoint.sh: run ./entrypoint.sh {command} in the project's folder.")


# ---- help ---------------------------------------------------------------------------------------

_WIDTH = 110
_INTRO = """\
birdtune {version}: from a folder of bird recordings to a served classifier and an honest report.

usage: entrypoint.sh [COMMAND] [--section.setting VALUE ...]
"""


def _help(name: str, command: Command) -> str:
    lines = [_INTRO.format(version=birdtune.__version__)]
    if name == "run":
        lines.append("Commands:")
        lines += [f"  {title:<10}{entry.help}" for title, entry in COMMANDS.items()]
    else:
        lines += textwrap.wrap(
            f"{name} {command.usage}", _WIDTH, initial_indent="  ", subsequent_indent="      ", break_on_hyphens=False
        )
        lines += [f"  {line}" for text in (command.help, command.more) for line in textwrap.wrap(text, _WIDTH - 2)]
    lines.append("")
    lines.append(
        "Settings, as a flag (--train.epochs 5), as an environment variable (BIRDTUNE_TRAIN__EPOCHS=5) or in\n"
        "INPUT/job.yaml (train: {epochs: 5}; paths in it begin at INPUT). The first of these that names one wins.\n"
        "Each line: flag, type, unit, (default), meaning."
    )
    section = None
    for option in configs.options():
        if option.section != section:
            section = option.section
            lines += ["", f"{section}:"]
        lines += _option_lines(option)
    lines += [
        "",
        "Exit codes: 0 done; 2 usage; 42 input or settings wrong, a retry will not help; 75 passing fault, retry;",
        "143/130 stopped by SIGTERM/SIGINT after saving; 1 a defect of birdtune.",
    ]
    return "\n".join(lines)


def _option_lines(option: Option) -> list[str]:
    # Of text that is a path or a pattern, that says more than "text".
    kind = option.unit if option.type == "text" and option.unit else f"{option.type} {option.unit}".rstrip()
    left = f"  {option.flag} {option.type if option.unit == option.type else kind} ({option.default_text})"
    indent = 46
    wrapped = textwrap.wrap(option.help, _WIDTH - indent, break_on_hyphens=False)
    if len(left) >= indent:
        lefts = textwrap.wrap(left.strip(), _WIDTH, initial_indent="  ", subsequent_indent=" " * 4)
        return [*lefts, *(" " * indent + line for line in wrapped)]
    return [left.ljust(indent) + wrapped[0], *(" " * indent + line for line in wrapped[1:])]
