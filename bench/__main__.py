"""`./entrypoint.sh bench [PART ...]`: measure parts, keep their results, write RESULTS.md."""

import argparse
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

from bench import results
from bench.harness import ON_REAL_SOUND, PARTS, ROOT, Settings, run_part


def main(arguments: list[str]) -> int:
    """Measure what is asked for.

    Returns:
        the exit code: 0 also if targets are missed, 1 if a part failed, 2 for arguments, 130 if it was stopped.
    """
    # A stop is told to what is being measured, too, and leaves nothing behind.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all but learn_…")
    parser.add_argument(
        "--quick", action="store_true", help="the tiniest form of each: only whether it works"
    )
    parser.add_argument("--into", type=Path, help="folder for results/ and RESULTS.md (default: bench)")
    parser.add_argument("--render", action="store_true", help="measure nothing, write RESULTS.md anew")
    parser.add_argument("--seed", type=_seed, default=0, help="of what is drawn: 0 or more")
    options = parser.parse_args(arguments)
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"there is no part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    with (
        tempfile.TemporaryDirectory(prefix="birdtune-bench-") as scratch,
        # What libraries leave in the folder for temporary files goes with the rest.
        mock.patch.dict(os.environ, TMPDIR=scratch),
    ):
        # Figures of the tiniest form mean nothing, so they do not take the place of real ones.
        into = options.into or (Path(scratch) / "quick" if options.quick else ROOT / "bench")
        try:
            results.refresh(into)  # before anything is measured that could not be kept
        except OSError as fault:
            parser.error(f"--into {into}: cannot be written ({fault.strerror})")
        if options.render:
            return 0
        wanted = dict.fromkeys(options.parts or [part for part in PARTS if part not in ON_REAL_SOUND])
        try:
            failed = [part for part in wanted if not _measure(part, Path(scratch) / part, into, options)]
        except KeyboardInterrupt:
            print("bench: stopped; the parts that were finished are kept", file=sys.stderr)
            return 130
    if failed:
        print(f"bench: failed, see above: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 on")
    return int(text)


def _measure(part: str, folder: Path, into: Path, options: argparse.Namespace) -> bool:
    """Measure and keep one part. Returns whether it went well; if not, the others are measured all the same."""
    print(f"-- {part}", file=sys.stderr, flush=True)
    folder.mkdir()
    try:
        kept = run_part(part, Settings(options.quick, options.seed, folder))
        flags = [*(["--quick"] if options.quick else []), *([f"--seed {options.seed}"] if options.seed else [])]
        kept |= {"command": " ".join(["./entrypoint.sh bench", part, *flags])}
        results.keep(into, kept)
    except Exception:
        traceback.print_exc()
        return False
    print("\n".join(results.table(kept["lines"])), flush=True)
    if options.quick:
        print("(--quick: whether it works; its figures mean nothing)", flush=True)
    return True


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(main(sys.argv[1:]))
