"""How cost grows: exponents fitted to measured seconds, beside those of theory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.problems import (
    Snapshot,
    random_gram,
    random_inputs,
    random_llama,
    random_tokens,
    random_weight,
)
from benchmarks.solver import SPARSITY, admm_grad
from benchmarks.timing import exponent, interleaved, summary
from helpers.gram import gram_of
from helpers.loop import PruneReport
from helpers.prune import prune_model


def measure(quick: bool = False) -> dict[str, Any]:
    """A curve for each cost: sizes, median seconds, fitted and theoretical exponent."""
    widths = (32, 64, 128) if quick else (512, 768, 1024, 1536, 2048, 3072, 4096)
    curves = [
        solver_by_width(widths, 2),
        gram_by_width(widths, 3, tokens=64 if quick else 4096),
        gram_by_tokens((256, 512, 1024) if quick else (1024, 2048, 4096, 8192, 16384), 5),
    ]
    by_blocks = prune_by(quick, {n: (n, 4) for n in ((1, 2, 4) if quick else (2, 4, 8, 16))})
    curves.append(curve("prune_model", "blocks", 1, by_blocks("total")))
    counts = (2, 4, 8) if quick else (16, 32, 64, 128)
    by_sequences = prune_by(quick, {n: (2, n) for n in counts})
    grows, stays = by_sequences("forward"), by_sequences("solve")
    curves.append(curve("prune_model, forward and gram", "sequences", 1, grows))
    curves.append(curve("prune_model, solver", "sequences", 0, stays))
    return {"curves": curves}


def curve(
    name: str, variable: str, theory: float, seconds: dict[int, list[float]]
) -> dict[str, Any]:
    """A curve from the seconds measured at each size.

    Each size stands for its fastest run: other work on the machine only ever adds. `top` is the
    exponent between the two largest sizes, where fixed costs count least.
    """
    sizes = sorted(seconds)
    best = [min(seconds[size]) for size in sizes]
    return {
        "name": name,
        "variable": variable,
        "theory": theory,
        "sizes": sizes,
        "seconds": [summary(seconds[size]) for size in sizes],
        "fitted": exponent(sizes, best),
        "top": exponent(sizes[-2:], best[-2:]),
    }


def solver_by_width(widths: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """admm-grad on square layers of each width, warmed up on the smaller half of them."""
    layers = {width: (random_weight(width, width), random_gram(width)) for width in widths}
    for width in widths[: len(widths) // 2]:
        admm_grad(*layers[width])
    runs = {width: lambda layer=layer: admm_grad(*layer) for width, layer in layers.items()}
    return curve("solver", "width", 3, interleaved(runs, repeats, warm=False))


def gram_by_width(widths: tuple[int, ...], repeats: int, tokens: int) -> dict[str, Any]:
    """XᵀX of the same number of tokens at each width."""
    inputs = random_inputs(tokens, max(widths))
    parts = {width: inputs[:, :width].contiguous() for width in widths}
    runs = {width: lambda x=x: gram_of(x) for width, x in parts.items()}
    return curve("gram", "width", 2, interleaved(runs, repeats))


def gram_by_tokens(counts: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """XᵀX of 1024 inputs for each number of tokens."""
    inputs = random_inputs(max(counts), 1024)
    runs = {count: lambda x=inputs[:count]: gram_of(x) for count in counts}
    return curve("gram", "tokens", 1, interleaved(runs, repeats))


def prune_by(
    quick: bool, problems: dict[int, tuple[int, int]]
) -> Callable[..., dict[int, list[float]]]:
    """Prune random Llamas; problems: size to (blocks, sequences).

    Returns a function of some parts of the time, which gives their seconds together by size.
    """
    repeats = 1 if quick else 3
    width, ff, length = (32, 64, 16) if quick else (256, 704, 256)
    reports: dict[int, list[PruneReport]] = {size: [] for size in problems}
    models = {blocks: random_llama(blocks, width, ff, 4) for blocks, _ in problems.values()}
    saved = {blocks: Snapshot(model) for blocks, model in models.items()}

    def run(size: int, blocks: int, sequences: int) -> None:
        tokens = random_tokens(models[blocks], sequences, length)
        saved[blocks].restore()
        how = dict(method="admm-grad", sparsity=SPARSITY, allow_pruned=True)  # it is dense again
        report = prune_model(models[blocks], tokens, **how)
        reports[size].append(report)

    runs = {size: lambda s=size, p=problem: run(s, *p) for size, problem in problems.items()}
    interleaved(runs, repeats)
    return lambda *parts: {
        size: [sum(report.seconds[part] for part in parts) for report in made[-repeats:]]
        for size, made in reports.items()  # from the end, so without the warm-up
    }
