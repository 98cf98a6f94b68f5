"""The processes that train together, one a device.

    World.sum        tensors ─▶ their sums over all processes
    World.broadcast  the chief's value ─▶ every process

Each process has all weights, computes the gradients of its part of each batch, and updates its weights by the sum over
all parts: so all have the same weights all along, and tf.distribute.MultiWorkerMirroredStrategy is used for its
collectives alone (NCCL among GPUs, rings over gRPC among CPUs). A world of one process loads no TensorFlow.

A collective waits for all processes, in C++, where no signal reaches Python: so a thread waits there, and the main
thread for that.
"""

import contextlib
import pickle
import re
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from birdtune.data.batches import Part
from birdtune.errors import ProcessLostError
from birdtune.runtime import meeting
from birdtune.runtime.rank import Cluster

Value = TypeVar("Value")

# Machines of one job may start long after one another.
_CONNECT_S = 1800.0
# Messages are sent in blocks of one size, for which one function is compiled. [int32]
_BLOCK = 1 << 16
_TASK = re.compile(r"/job:worker/(?:replica:0/)?task:(\d+)")


class World:
    """All processes of a training.

    Args:
        cluster: who they are.
        gpus: those of this machine that the job may use, as CUDA names them.

    Attributes:
        fills_cache: whether this process writes features and outputs of frozen layers in the folder where it keeps
            them; others find them there.
        is_told: whether the chief has told the others what to do.
    """

    def __init__(self, cluster: Cluster | None = None, gpus: Sequence[str] = ()) -> None:
        self.cluster, self.gpus = cluster or Cluster(), tuple(gpus)
        self.fills_cache = self.is_chief
        self.is_told = False
        self._thread: ThreadPoolExecutor | None = None
        self._strategy: Any = None
        self._sums: dict[tuple[Any, ...], Callable[[list[Any]], list[Any]]] = {}

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.cluster.size

    @property
    def is_chief(self) -> bool:
        """Whether this is the process that validates and writes."""
        return self.cluster.rank == 0

    @property
    def is_connected(self) -> bool:
        """Whether all processes have met."""
        return self._strategy is not None

    @property
    def part(self) -> Part:
        """The part of each batch that this process computes."""
        return Part(self.cluster.rank, self.size)

    def connect(self, check: Callable[[], None] = lambda: None) -> None:
        """Wait for all processes. To be called before TensorFlow computes anything.

        Args:
            check: called again and again; raises where there is nothing to wait for any more.

        Raises:
            ProcessLostError: not all are there in time.
            Interrupted: on a signal.
        """
        if self.size == 1 or self._strategy is not None:
            return
        import tensorflow as tf

        self._meet(check)
        resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": list(self.cluster.addresses)}), task_type="worker",
            task_id=self.cluster.rank, rpc_layer="grpc",
        )  # fmt: skip
        self._thread = ThreadPoolExecutor(1, "collectives")
        self._strategy = self._wait(lambda: tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver))
        # TensorFlow has put a handler of its own in the place of ours, past Python, which still knows ours.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))

    def sum(self, tensors: Sequence[Any]) -> list[Any]:
        """Each tensor's sum over all processes, which all give the same shapes, of one type, in the same order.

        Raises:
            ProcessLostError: a process has ended, or cannot be reached any more.
        """
        if self.size == 1:
            return list(tensors)
        key = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in tensors)
        if key not in self._sums:
            self._sums[key] = self._compiled()
        return self._wait(lambda: self._sums[key](list(tensors)))

    def _compiled(self) -> Callable[[list[Any]], list[Any]]:
        import tensorflow as tf

        def reduce(tensors: list[Any]) -> Any:
            # Identity: a reduction looks at the device of what it is given, and arguments have none.
            given = [tf.identity(tensor) for tensor in tensors]
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, given)

        return tf.function(lambda tensors: self._strategy.run(reduce, args=(tensors,)), autograph=False)  # type: ignore[no-any-return]

    def broadcast(self, value: Value) -> Value:
        """The chief's value, in every process; what others give counts for nothing.

        Raises: as `sum`.
        """
        if self.size == 1:
            return value
        import tensorflow as tf

        # Only processes of this very job are connected, and what they send each other they also compute with.
        data = pickle.dumps(value) if self.is_chief else b""
        n_bytes = int(self.sum([tf.constant(len(data), tf.int64)])[0])
        blocks = np.zeros((-(-n_bytes // (4 * _BLOCK)), _BLOCK), np.int32)
        blocks.reshape(-1).view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
        found = [self.sum([tf.constant(block)])[0].numpy() for block in blocks]
        return pickle.loads(np.concatenate(found).tobytes()[:n_bytes])  # type: ignore[no-any-return]

    def share(self, variables: Sequence[Any]) -> None:
        """Give variables the values that the chief's have. Raises as `sum`."""
        if self.size == 1:
            return
        import tensorflow as tf

        for dtype in sorted({str(variable.dtype) for variable in variables}):  # a sum is of one
            alike = [variable for variable in variables if str(variable.dtype) == dtype]
            values = [tf.convert_to_tensor(variable.value) for variable in alike]
            given = values if self.is_chief else [tf.zeros_like(value) for value in values]
            for variable, value in zip(alike, self.sum(given), strict=True):
                variable.assign(value)

    def barrier(self) -> None:
        """Wait until all processes are here. Raises as `sum`."""
        self.broadcast(None)

    def in_turn(self, make: Callable[[], Value]) -> Value:
        """What a function makes in the cache, or finds there: first those processes that fill it, then the others.

        Raises: as `sum`, and what the function raises.
        """
        if self.fills_cache:
            found = make()
            self.barrier()
            return found
        self.barrier()
        return make()

    def end(self) -> None:
        """Leave together. All is done by now, so that it does not matter if others have left before."""
        with contextlib.suppress(ProcessLostError):
            self.barrier()

    def _meet(self, check: Callable[[], None]) -> None:
        """Wait for all processes in Python: the strategy would, and let no other thread work meanwhile."""
        host, _, port = self.cluster.addresses[0].rpartition(":")
        job = ",".join(self.cluster.addresses)
        hint = f"Start the same command for each of {job}; their ports must be open between the machines."
        if self.is_chief:
            meeting.called(self.size, 0, job, int(port), _CONNECT_S, check, hint)
        else:
            meeting.call(host, self.cluster.rank, job, int(port), _CONNECT_S, check, hint)

    def _wait(self, work: Callable[[], Value]) -> Value:
        """What a function returns that waits for other processes."""
        import tensorflow as tf

        assert self._thread is not None, "not connected"
        try:
            return self._thread.submit(work).result()
        except (
            tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.DeadlineExceededError,
            tf.errors.CancelledError, tf.errors.FailedPreconditionError, tf.errors.InternalError,
        ) as fault:  # fmt: skip
            raise ProcessLostError(f"{self._who(str(fault))}. Run again to continue.") from fault

    def _who(self, said: str) -> str:
        """Which process is gone, as far as TensorFlow says it."""
        found = [int(number) for number in _TASK.findall(said) if int(number) not in (self.cluster.rank,)]
        if not found or found[0] >= self.size:
            return f"one of the {self.size} processes of this job ended, or cannot be reached"
        return f"process {found[0]} of {self.size} ({self.cluster.addresses[found[0]]}) ended, or cannot be reached"
