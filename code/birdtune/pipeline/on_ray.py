"""`--engine ray`: a command whose work the nodes of a Ray cluster share.

    prepare, predict: --shard /20 ─▶ 20 parts as tasks ─▶ the same command here, which puts them together
    run, train ─▶ the same command on --nodes nodes at once
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from birdtune.errors import UsageError, shown
from birdtune.pipeline.shards import Shard
from birdtune.runtime.log import Journal
from birdtune.runtime.signals import Interrupts

_IN_PARTS, _TOGETHER = ("prepare", "predict"), ("run", "train")


@dataclass(frozen=True)
class Asked:
    """What the nodes are to share.

    Attributes:
        rest: the arguments without those that are read here.
        parts: in how many parts; 0: all do it together.
        nodes: on how many; None: on all that fit.
    """

    name: str
    rest: list[str]
    parts: int = 0
    nodes: int | None = None


def asked(name: str, arguments: Sequence[str]) -> Asked | None:
    """What a command line asks of Ray, if it does.

    Raises:
        UsageError: it cannot be shared out, or does not say in how many parts.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in ("--engine", "--shard", "--nodes"):
        parser.add_argument(flag)
    try:
        found, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as fault:
        if "--engine" not in arguments:
            return None  # the command's own parser says it better
        raise UsageError(f"{fault}.") from fault
    if found.engine is None:
        return None
    if found.engine != "ray" or name not in (*_IN_PARTS, *_TOGETHER):
        raise UsageError(
            f"--engine {shown(found.engine)}: expected `ray`, of {', '.join((*_IN_PARTS, *_TOGETHER))}; not of {name}."
        )
    if name in _TOGETHER:
        if found.nodes is not None and not (found.nodes.isdecimal() and int(found.nodes)):
            raise UsageError(f"--nodes {shown(found.nodes)}: expected how many nodes of the cluster, e.g. 2.")
        return Asked(name, rest, nodes=int(found.nodes) if found.nodes else None)
    if found.nodes is not None or not str(found.shard).startswith("/"):
        raise UsageError(f"`{name} --engine ray` needs the number of parts, and it alone: --shard /20, e.g.")
    return Asked(name, rest, parts=Shard.of(f"1{found.shard}", {}).total)


def share(wanted: Asked, journal: Journal, interrupts: Interrupts) -> list[str] | None:
    """Let the cluster work; the arguments of what is then left to do here, if anything is.

    Raises: as `ray_cluster.RayCluster.parts`.
    """
    from birdtune.cloud import ray_cluster

    with ray_cluster.connected(journal, interrupts) as cluster:
        if not wanted.parts:
            cluster.together([wanted.name, *wanted.rest], wanted.nodes)
            return None
        lines = [[wanted.name, *wanted.rest, "--shard", f"{k}/{wanted.parts}"] for k in range(1, wanted.parts + 1)]
        cluster.parts(wanted.name, lines, on_gpu=wanted.name == "predict")
    return [*wanted.rest, "--merge"] if wanted.name == "predict" else wanted.rest
