"""Whether weights on disk are whole and fit, verified once and remembered.

    Config ─▶ verify_checkpoint ─▶ path of the backbone's weights;  verify_once: any other check of weights
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from birdtune.config import Config
from birdtune.errors import naming, shown
from birdtune.models import registry
from birdtune.models.tf_checkpoint import check_variables
from birdtune.runtime.files import make_folder, read_json, write_json
from birdtune.runtime.fingerprints import checkpoint_files


def verify_once(memo: Path, of: Mapping[str, object], files: Iterable[Path], verify: Callable[[], object]) -> None:
    """Call `verify`, unless `memo` says that it passed for these very files (by path, size and time of change).

    Reading weights loads TensorFlow, which takes seconds. Nothing is remembered of an empty list of files.

    Raises: what `verify` raises.
    """
    stats = [(path, path.stat()) for path in files]
    stamp = {**of, "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats]}
    if stats and read_json(memo) == stamp:
        return
    verify()
    make_folder(memo.parent)
    write_json(memo, stamp)


def verify_checkpoint(config: Config, *, remember: bool) -> Path | None:
    """Read the backbone's weights once, and see whether they fit.

    Args:
        remember: write into the cache that they do, so that the next start need not read them.

    Returns:
        the checkpoint's path, or None where training from scratch was asked for.

    Raises:
        CheckpointError: there is none, it is damaged, or it is of another network.
    """
    path = registry.checkpoint_path(config)
    if path is None:
        return None
    backbone = registry.backbone_of(config)

    def verify() -> None:
        with naming("--model.checkpoint" if config.model.checkpoint is not None else None):
            check_variables(registry.read_weights(backbone, path), backbone.variables(), source=shown(path))
            backbone.verify()

    if not remember:
        verify()
        return path
    of = {"backbone": config.model.backbone, "front_end": backbone.front_end.digest}
    verify_once(config.output / "cache" / "checkpoint.json", of, checkpoint_files(path), verify)
    return path
