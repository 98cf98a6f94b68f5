"""A multi-node job of AWS Batch: its nodes meet, and each gets the TF_CONFIG that says which of them it is.

    AWS_BATCH_JOB_* ─▶ meet ─▶ TF_CONFIG

TensorFlow wants the addresses of all nodes, and Batch tells the others that of the main node alone. So they call there:
the main node sees where each call comes from, and answers with all addresses once all have called.
"""

from collections.abc import Mapping

from birdtune.errors import SettingsError, shown
from birdtune.runtime import meeting
from birdtune.runtime.log import Journal
from birdtune.runtime.rank import Cluster
from birdtune.runtime.signals import Interrupts

_PREFIX = "AWS_BATCH_JOB_"
# Of the meeting, and of TensorFlow (further processes of a node take the ports behind it).
MEETING_PORT, PORT = 2221, 2222
# Nodes may start long after one another.
_PATIENCE_S = 1800.0


def is_here(environment: Mapping[str, str]) -> bool:
    """Whether this is one of several nodes of a job, and nobody has said yet which."""
    return environment.get(f"{_PREFIX}NUM_NODES", "1") != "1" and not environment.get("TF_CONFIG")


def meet(
    environment: Mapping[str, str], journal: Journal, interrupts: Interrupts, port: int = MEETING_PORT,
    patience_s: float = _PATIENCE_S,
) -> dict[str, str]:
    """Wait for all nodes. Returns TF_CONFIG, in which the main node comes first.

    Raises:
        SettingsError: Batch's variables are not what its documentation says.
        ProcessLostError: not all nodes came in time.
        Interrupted: on a signal.
    """  # fmt: skip
    try:
        names = ("NUM_NODES", "NODE_INDEX", "MAIN_NODE_INDEX")
        n, node, main = (int(environment[f"{_PREFIX}{name}"]) for name in names)
        host = "" if node == main else environment[f"{_PREFIX}MAIN_NODE_PRIVATE_IPV4_ADDRESS"]
    except (KeyError, ValueError) as fault:
        raise SettingsError(
            f"{_PREFIX}NUM_NODES says that this job has several nodes, and another variable of Batch is missing or no "
            f"number ({shown(fault)}). In a job of one node, unset it."
        ) from fault
    # Of an attempt after another, the nodes are the same.
    job = environment.get(f"{_PREFIX}ID", "").partition("#")[0]
    journal.say(f"node {node} of {n}: waiting for the others")
    if node == main:
        hosts = meeting.called(n, main, job, port, patience_s, interrupts.check, _hint("this one"))
    else:
        hosts = meeting.call(host, node, job, port, patience_s, interrupts.check, _hint(host))
    order = [main, *(number for number in range(n) if number != main)]
    found = Cluster(tuple(f"{hosts[number]}:{PORT}" for number in order), order.index(node))
    return found.environment()


def _hint(main: str) -> str:
    return (
        f"The main node is {main}. The nodes' security group must let them reach each other on ports {MEETING_PORT} "
        f"and {PORT}."
    )
