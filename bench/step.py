"""A training step of VGGish with 195 classes, all weights trained: birdtune beside the tf-slim graph and PyTorch.

    batch 32 and 128 ─▶ seconds a window of each; and how much of the machine's own rate of bfloat16 products that is

A step's operations are counted as three times the forward pass's, summed layer by layer: 5.2 GFLOP a window. That
Adam's pass over 72 million weights and their moments takes time as well, the share has to bear.
"""

import statistics
from contextlib import ExitStack
from typing import Any

from bench import networks
from bench.harness import (
    Child,
    Here,
    Line,
    Measure,
    Noting,
    Result,
    Settings,
    candidate,
    interleaved,
    is_installed,
    judged,
)

_TARGETS = {32: (None, None, None), 128: (1.9, 2.0, 0.85)}


def measure(settings: Settings) -> Result:
    """Each batch size by itself, since more networks than that would not fit into memory together."""
    lines: list[Line] = []
    details: dict[str, Any] = {"GFLOP a window": 3e-9 * networks.flops_of_a_patch()}
    for batch_size in (4,) if settings.quick else (32, 128):
        found = _seconds(batch_size, settings)
        details[f"batch {batch_size}"] = found
        lines += _lines(batch_size, found)
    return Result("step", lines, details)


def _seconds(batch_size: int, settings: Settings) -> dict[str, Any]:
    backbone = "vggish-small" if settings.quick else "vggish"
    n_steps = 1 if batch_size > 64 else 2
    rounds = {"rounds": 1, "warmups": 1} if settings.quick else {"rounds": 5, "warmups": 2}
    torch, tried = _best_of_torch(batch_size, n_steps, backbone, settings)
    with ExitStack() as stack:

        def child(maker: str, *arguments: Any) -> Noting | Here:
            return candidate(stack, settings, f"bench.networks:{maker}", *arguments)

        children = {
            "birdtune": child("birdtune_steps", "auto", batch_size, n_steps, backbone),
            "birdtune, float32": child("birdtune_steps", "float32", batch_size, n_steps, backbone),
            "slim graph": child("slim_steps", batch_size, n_steps, backbone),
            "products": products(stack, settings),
        }
        if torch is not None:
            children[f"PyTorch, {torch}"] = child("torch_steps", torch, batch_size, n_steps, backbone)
        seconds = interleaved(children, **rounds)
        rates = children["products"].values[rounds["warmups"] :]
    del seconds["products"]
    each = {name: [value / n_steps / batch_size for value in values] for name, values in seconds.items()}
    return {"s a window": each, "PyTorch's kinds, s a window": tried, "GFLOP/s of products": rates}


def products(stack: ExitStack, settings: Settings) -> Noting | Here:
    """The candidate that tells the machine's rate of matrix products."""
    sizes, flops = ([128], 1e7) if settings.quick else ([1024, 2048, 4096], 2e11)
    return candidate(stack, settings, "bench.networks:matrix_products", "tensorflow", sizes, flops)


def best_rate(rates: list[dict[str, dict[str, float]]], kind: str) -> tuple[float, str]:
    """GFLOP/s at the size at which the median over the rounds is highest, and that size."""
    medians = {size: statistics.median(rate[kind][size] for rate in rates) for size in rates[0][kind]}
    size = max(medians, key=lambda size: medians[size])
    return medians[size], size


def _best_of_torch(
    batch_size: int, n_steps: int, backbone: str, settings: Settings
) -> tuple[str | None, dict[str, list[float]]]:
    """Which kind of PyTorch is fastest here, and what each took."""
    if not is_installed("torch"):
        return None, {}
    kinds = networks.TORCH_KINDS[-1:] if settings.quick else networks.TORCH_KINDS
    tried = {}
    for kind in kinds:
        with Child("bench.networks:torch_steps", kind, batch_size, n_steps, backbone) as child:
            found = interleaved({kind: child}, rounds=1 if settings.quick else 2)
        tried[kind] = [value / n_steps / batch_size for value in found[kind]]
    return min(tried, key=lambda kind: statistics.median(tried[kind])), tried


def _lines(batch_size: int, found: dict[str, Any]) -> list[Line]:
    measures = {name: Measure(name, values, per="window") for name, values in found["s a window"].items()}
    ours = measures["birdtune"]
    torch = next((measure for name, measure in measures.items() if name.startswith("PyTorch")), None)
    over_slim, over_torch, share = _TARGETS.get(batch_size, (None, None, None))
    what = f"batch {batch_size}"
    tried = found["PyTorch's kinds, s a window"]
    kinds = ", ".join(f"{kind} {statistics.median(values) * 1e3:.2f} ms" for kind, values in tried.items())
    lines = [
        judged(
            f"{what}, beside the tf-slim graph with its Adam",
            ours,
            measures["slim graph"],
            at_least=over_slim,
            note=_room(measures["slim graph"], found["GFLOP/s of products"], over_slim),
        ),
        judged(
            f"{what}, beside the best of PyTorch",
            ours,
            torch,
            at_least=over_torch,
            note=f"which is the best was tried before, each by itself: {kinds}" if kinds else "",
        ),
        judged(
            f"{what}, beside the tf-slim graph, both in float32",
            measures["birdtune, float32"],
            measures["slim graph"],
        ),
    ]
    for kind, whose in (("bfloat16", ours), ("float32", measures["birdtune, float32"])):
        lines.append(
            share_line(f"{what}, {kind}: share of the machine's rate of matrix products", whose,
                       3 * networks.flops_of_a_patch(), found["GFLOP/s of products"], kind,
                       share if kind == "bfloat16" else None)
        )  # fmt: skip
    return lines


def _room(slim: Measure, rates: list[dict[str, dict[str, float]]], wanted: float | None) -> str:
    """How much faster than the slim graph this machine's products of matrices let anything be."""
    if wanted is None:
        return ""
    float32, bfloat16 = (best_rate(rates, kind)[0] for kind in ("float32", "bfloat16"))
    rate = 3e-9 * networks.flops_of_a_patch() / slim.median
    return (
        f"the graph reaches {rate / float32:.0%} of the rate of float32 products; those of bfloat16 are "
        f"{bfloat16 / float32:.2f}× as fast, so that {wanted:g}× would be {wanted * rate / bfloat16:.0%} of theirs"
    )


def share_line(
    what: str,
    ours: Measure,
    flops: float,
    rates: list[dict[str, dict[str, float]]],
    kind: str,
    target: float | None,
) -> Line:
    """How much of the machine's rate of matrix products a candidate reaches; `flops` for one of its values."""
    rate, size = best_rate(rates, kind)
    own = 1e-9 * flops / ours.median
    share = own / rate
    return Line(
        what, f"{own:,.0f} GFLOP/s", f"{kind} products: {rate:,.0f} GFLOP/s", share,
        f"≥ {target:g}×" if target else "", share >= target if target else None,
        f"birdtune's rate / that of products; {1e-9 * flops:.2f} GFLOP a window; the best of the sizes tried: {size}²",
    )  # fmt: skip
