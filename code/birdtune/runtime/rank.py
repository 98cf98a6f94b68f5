"""Which process of a distributed job this is. Ranks above 0 take no lock and write no results."""

import json
import os

from birdtune.errors import SettingsError, shown


def rank() -> int:
    """The number of this process in its job, as TF_CONFIG gives it; 0: the chief, or the only process.

    Raises:
        SettingsError: TF_CONFIG is not what tf.distribute defines.
    """
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        config = json.loads(text)
        task, chiefs = config.get("task", {}), config.get("cluster", {}).get("chief", [])
        return 0 if task.get("type") == "chief" else len(chiefs) + int(task.get("index", 0))
    except (ValueError, AttributeError, TypeError) as fault:
        raise SettingsError(
            f'TF_CONFIG={shown(text[:200])}: expected {{"cluster": {{...}}, "task": {{"type": ..., "index": N}}}}.'
        ) from fault


def is_chief() -> bool:
    """Whether this process is the one of its job that locks, and writes results."""
    return rank() == 0
