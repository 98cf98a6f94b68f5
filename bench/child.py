"""A candidate in a process of its own: see harness.Child.

python -m bench.child MODULE:FUNCTION ARGUMENTS CORES    a line in: a turn; a line out: {"seconds", "value"}
"""

import gc
import importlib
import json
import os
import sys
import time


def main() -> None:
    """Prepare, say that it is ready, then take a turn for each line that comes."""
    maker, arguments, cores = sys.argv[1:]
    if int(cores):
        # Before the libraries are loaded, since they count the cores then.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    # What libraries print belongs to people, not to the parent that listens here.
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    module, function = maker.split(":")
    made = getattr(importlib.import_module(module), function)(*json.loads(arguments))
    before, turn = made if isinstance(made, tuple) else (None, made)
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for _ in sys.stdin:
        if before is not None:
            before()
        gc.collect()
        began = time.perf_counter()
        value = turn()
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "value": value}), file=replies, flush=True)


if __name__ == "__main__":
    main()
