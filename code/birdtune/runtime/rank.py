"""Which process of a distributed job this is. Ranks above 0 take no lock and write no results.

    TF_CONFIG ─▶ Cluster: addresses of all processes, the chief's first, and the rank of this one
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from birdtune.errors import SettingsError, shown

_TF_CONFIG = "TF_CONFIG"


@dataclass(frozen=True)
class Cluster:
    """The processes of a job.

    Attributes:
        addresses: HOST:PORT of each, by rank; empty: this process is the only one.
        rank: of this one; 0 is the chief.
    """

    addresses: tuple[str, ...] = ()
    rank: int = 0

    @property
    def size(self) -> int:
        """How many processes there are."""
        return max(1, len(self.addresses))

    @property
    def first_here(self) -> int:
        """The lowest rank on this machine."""
        hosts = [_host(address) for address in self.addresses]
        return hosts.index(hosts[self.rank]) if hosts else 0

    @property
    def local_rank(self) -> int:
        """The number of this process among those of its machine."""
        hosts = [_host(address) for address in self.addresses]
        return hosts[: self.rank].count(hosts[self.rank]) if hosts else 0

    @property
    def n_machines(self) -> int:
        """On how many machines, or in how many containers, they are."""
        return max(1, len({_host(address) for address in self.addresses}))

    @property
    def is_one_a_machine(self) -> bool:
        """Whether each process has a machine of its own."""
        return self.n_machines == self.size

    def spread(self, n: int) -> "Cluster":
        """The same machines with `n` processes each, on ports one after another; for the first one on this machine."""
        ports = [(_host(address), int(address.rpartition(":")[2])) for address in self.addresses]
        return Cluster(tuple(f"{host}:{port + k}" for host, port in ports for k in range(n)), self.rank * n)

    def at(self, rank: int) -> "Cluster":
        """The same for another process."""
        return replace(self, rank=rank)

    def environment(self) -> dict[str, str]:
        """What tells a process that it is this one."""
        config = {"cluster": {"worker": list(self.addresses)}, "task": {"type": "worker", "index": self.rank}}
        return {_TF_CONFIG: json.dumps(config)}


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def cluster(environment: Mapping[str, str] | None = None) -> Cluster:
    """The processes of this job, as TF_CONFIG names them; without it, this is the only one.

    Raises:
        SettingsError: TF_CONFIG is not what tf.distribute defines.
    """
    text = (os.environ if environment is None else environment).get(_TF_CONFIG) or "{}"
    try:
        config = json.loads(text)
        task, jobs = config.get("task", {}), config.get("cluster", {})
        chiefs, workers = list(jobs.get("chief", [])), list(jobs.get("worker", []))
        kind, index = task.get("type", "worker"), int(task.get("index", 0))
        addresses = (*chiefs, *workers)
        rank = index if kind == "chief" else len(chiefs) + index
        if kind not in ("chief", "worker") or (addresses and not 0 <= rank < len(addresses)) or len(chiefs) > 1:
            raise ValueError(f"no such task: {kind} {index}")
        if any(not _host(address) or not 0 < int(address.rpartition(":")[2]) < 65536 for address in addresses):
            raise ValueError("addresses are HOST:PORT")
    except (ValueError, AttributeError, TypeError) as fault:
        raise SettingsError(
            f'TF_CONFIG={shown(text[:200])}: expected {{"cluster": {{"worker": ["HOST:PORT", ...]}}, "task": '
            f'{{"type": "worker", "index": N}}}}, and at most one address more as "chief" ({shown(str(fault)[:80])}).'
        ) from fault
    return Cluster(addresses if len(addresses) > 1 else (), rank if len(addresses) != 1 else 0)


def rank() -> int:
    """The number of this process in its job; 0: the chief, or the only process. Raises as `cluster`."""
    return cluster().rank


def is_chief() -> bool:
    """Whether this process is the one of its job that locks, and writes results."""
    return rank() == 0
