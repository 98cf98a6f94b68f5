"""Whether weights on disk are whole and fit, verified once and remembered.

    Config ─▶ verify_checkpoint ─▶ path of the backbone's weights;  verify_once: any other check of weights
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from birdtune.config import Config
from birdtune.errors import CheckpointError, naming, shown
from birdtune.models import embedded, registry
from birdtune.models.backbone import Arrays, Backbone
from birdtune.models.embedded import EmbeddingsBackbone
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

    files = checkpoint_files(path)
    with naming("--model.checkpoint" if config.model.checkpoint is not None else None):
        beside = sound_checkpoint(config)
    files += [] if beside is None else checkpoint_files(beside)

    def verify() -> None:
        if isinstance(backbone, EmbeddingsBackbone):
            sound_of(config)
            return
        with naming("--model.checkpoint" if config.model.checkpoint is not None else None):
            check_variables(registry.read_weights(backbone, path), backbone.variables(), source=shown(path))
            backbone.verify()

    if not remember:
        verify()
        return path
    of = {"backbone": config.model.backbone, "front_end": backbone.front_end.digest}
    verify_once(config.output / "cache" / "checkpoint.json", of, files, verify)
    return path


def sound_checkpoint(config: Config) -> Path | None:
    """Where the weights are of the backbone that is named beside embeddings; None: none is named.

    Raises:
        CheckpointError: there is nothing where it is said or expected to be.
    """
    backbone = registry.backbone_of(config)
    is_named = {"model.checkpoint", "model.backbone"} & config.given() and config.model.checkpoint != "none"
    return registry.sound_checkpoint(config) if isinstance(backbone, EmbeddingsBackbone) and is_named else None


def sound_of(config: Config) -> tuple[Backbone, Arrays] | None:
    """The backbone that is named beside embeddings, and its weights: those that made the embeddings.

    Raises:
        CheckpointError: it cannot be read, or others made them.
    """
    path = sound_checkpoint(config)
    if path is None:
        return None
    backbone, made = registry.sound_backbone(config), registry.backbone_of(config)
    with naming("--model.checkpoint" if config.model.checkpoint is not None else None):
        variables = registry.read_weights(backbone, path)
        check_variables(variables, backbone.variables(), source=shown(path))
        found = embedded.digest(backbone, variables, config.model.embedding_activation)
        if found != made.graph_sha256:
            theirs = f"{made.graph_sha256[:12]}…" if made.graph_sha256 else "not known"
            raise CheckpointError(
                f"{shown(path)}: did not make the embeddings in {shown(config.data_folder)}: its digest is "
                f"{found[:12]}…, and that of {made.title} is {theirs}. Give the backbone that made them, with its "
                "settings, or none: then what is exported takes embeddings."
            )
    return backbone, variables
