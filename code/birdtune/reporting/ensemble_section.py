"""What the members of an ensemble reach alone, what their mean reaches, and what it cost.

    `ensemble` of metrics.json ─▶ sentence ─▶ the log, the report
"""

from collections.abc import Mapping
from typing import Any

from birdtune.runtime.log import duration
from birdtune.runtime.text import number

FIGURES = {"accuracy": "accuracy", "macro_ap": "macro average precision"}


def sentence(found: Mapping[str, Any]) -> str:
    """One of test, where there is one, and one of time."""
    members = found["members"]
    said = [
        f"{title} {number(together)}, of each of {len(members)} members alone {number(min(alone))} to "
        f"{number(max(alone))} (mean {number(sum(alone) / len(alone))})"
        for name, title in FIGURES.items()
        if (together := found["together"][f"test_{name}"]) is not None
        for alone in [[member[f"test_{name}"] for member in members]]
    ]
    seconds = [member["seconds"] for member in members]
    times = f", {sum(seconds) / seconds[0]:.1f} times as long as the first alone" if seconds[0] else ""
    cost = f"The epochs of all took {duration(sum(seconds))}{times}."
    return f"The mean of the members, on test: {'; '.join(said)}. {cost}" if said else cost
