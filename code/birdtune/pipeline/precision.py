"""Whether `predict` computes in bfloat16.

Only where that was asked for: else scores are the same, to float32's rounding, on every machine and by every server.
"""

from birdtune.config import Config
from birdtune.runtime import bfloat16
from birdtune.runtime.log import Journal
from birdtune.serving.rows import Scorer
from birdtune.serving.verify import ALIKE, ExportedModel, InBfloat16
from birdtune.training import devices


def settle(config: Config, model: Scorer, journal: Journal) -> bool:
    """Switch bfloat16 on if it is asked for and will do, and say so; whether it is on.

    To be called before the model computes anything.
    """
    measured = model.in_bfloat16 if isinstance(model, ExportedModel) else None
    is_asked = config.predict.precision == "bfloat16"
    reason = _against(measured) if is_asked else ""
    if reason:
        journal.say(f"  precision: float32, not bfloat16: {reason}")
    if not is_asked or reason or measured is None:
        bfloat16.use(False)
        return False
    bfloat16.use()
    journal.say(
        f"  precision: bfloat16 ({bfloat16.instructions()}); on {measured.windows:,} windows of validation "
        f"scores differ by at most {measured.largest_difference:.4f}, and no decision does"
    )
    return True


def _against(measured: InBfloat16 | None) -> str:
    """Why not to compute in bfloat16; "": it will do."""
    if devices.has_gpu():
        return "it is for CPUs, and this machine has a GPU"
    if bfloat16.instructions() is None:
        return "this CPU has no instructions for it"
    if measured is None:
        return (
            "the model's export did not compare both, as its backbone is no faster so, or the CPU that exported it had "
            "no such instructions, or there were no validation recordings"
        )
    if measured.agrees:
        return ""
    return (
        f"on {measured.windows:,} windows of validation scores differ by up to {measured.largest_difference:.4f} "
        f"(allowed: {ALIKE:g}) and {measured.other_decisions:,} decisions change"
    )
