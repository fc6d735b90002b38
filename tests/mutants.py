"""Ways to break the package, in one place at a time: the verdict and the probes notice them."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from helpers import (
    admm,
    alps,
    block_grams,
    blocks,
    evaluate,
    loop,
    masks,
    methods,
    registry,
    scoring,
    sparsegpt,
)
from helpers.beyond import allocation, distil, recipe, training
from helpers.data import corpora
from helpers.fast import fused, panels
from helpers.gram import Gram

Patch = Callable[[pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """What is broken: the cells of test_mutations.py that are run for it, the probe that has to
    move, and how it is broken.
    """

    cells: str
    probe: str
    patch: Patch


def around(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """Replace a function by change(function, *its arguments)."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, **more: change(whole, *args, **more)
        )

    return patch


def given(owner: Any, name: str, **forced: Any) -> Patch:
    """Call a function with other values of some keyword arguments."""
    return around(
        owner, name, lambda whole, *args, **more: whole(*args, **more | forced)
    )


def default(function: Callable, **forced: Any) -> Patch:
    """Change what a function does when an option is left out."""
    options = inspect.unwrap(function).__kwdefaults__
    return lambda monkeypatch: [
        monkeypatch.setitem(options, *item) for item in forced.items()
    ]


def constant(owner: Any, name: str, value: Any) -> Patch:
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def method(name: str) -> Callable:
    return registry.METHODS[name].__wrapped__


# --- the changes that are no lambda ----------------------------------------------------------


def solver_loop(change: str) -> Patch:
    """The solver's loop as the paper writes it, with one change; "" for none."""

    def solve(
        W0: Tensor, M: Tensor, *, iterations: int, choose: Any, trace: Any = None
    ) -> Any:
        P = M + 0.5 * torch.eye(len(M))  # ρ (G + ρI)⁻¹
        start = W0.clone()
        W, U, kept = start.clone(), torch.zeros_like(start), torch.ones_like(start)
        for t in range(1, iterations + 1):
            choose(
                t, W if change == "mask from |W|" else W + U, torch.empty_like(W), kept
            )
            Z = (W if change == "Z without U" else W + U) * kept
            if change != "U not updated":
                U = U + (0.5 if change == "half of U" else 1.0) * (W - Z)
            from_ = start * kept if change == "fitted to the pruned weights" else start
            W = from_ - from_ @ P + (Z - U) @ P
        return (W + U) * kept, kept.bool()

    return constant(fused, "admm", solve)


def dense_stream(
    whole: Callable, self: loop.Loop, index: int, replay: Any, stream: Any
) -> None:
    """Later blocks see what the dense model gives."""
    block, before = copy.deepcopy(self.blocks[index]), stream.clone()
    whole(self, index, replay, stream)
    stream.copy_(
        blocks.advance(block, before, replay.calls[index], replay.batch, "block")
    )


def halved_grams(whole: Callable, *args: Any) -> Any:
    return {
        name: Gram.of(gram.matrix.half().float()) for name, gram in whole(*args).items()
    }


def one_stays_dense(whole: Callable, layer: nn.Module, weight: Tensor) -> None:
    if weight.shape[1] not in (192, 1536):  # inputs of `down`
        whole(layer, weight)


def other_groups(
    whole: Callable, score: Tensor, sparsity: float, *args: Any, **more: Any
) -> Any:
    return whole(score.T.contiguous(), sparsity, *args, **more).T.contiguous()


def without_start(_: Callable, tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def dense_in_one_pass(
    _: Callable, block: Any, stream: Any, call: Any, batch: int, name: str, *_p
):
    """All layers of a block are measured before the first is pruned."""
    yield block_grams.layer_grams(block, stream, call, batch, name)
    blocks.advance(block, stream, call, batch, name)


def one_block_for_all(whole: Callable, block: Any, stream: Tensor, *rest: Any) -> Any:
    """The text that waits in a block leaves it as it came."""
    before = stream.clone()
    yield from whole(block, stream, *rest)
    stream.copy_(before)


schedule = functools.partial(around, admm, "cubic_schedule")
ridge = functools.partial(around, admm, "add_ridge")
grams = functools.partial(around, block_grams, "sum_grams")
sums = functools.partial(around, panels, "add_upper")
windows = functools.partial(around, evaluate, "check_windows")
loss = functools.partial(around, evaluate, "_negative_log_likelihood")
GRAD, FEW = "admm-grad", "admm/few"

# f is the function as it was
MUTANTS: dict[str, Mutant] = {
    "damping 0": Mutant(GRAD, FEW, ridge(lambda f, matrix, damping: matrix)),
    "cubic schedule one step ahead": Mutant(
        GRAD, FEW, schedule(lambda f, s, t, n: f(s, t + 1, n))
    ),
    "16 iterations": Mutant(GRAD, FEW, given(fused, "admm", iterations=16)),
    "half the calibration": Mutant(
        "wanda",
        "methods/wanda-budget",
        grams(lambda f, b, s, *args: f(b, s[: len(s) // 2], *args)),
    ),
    "SparseGPT in blocks of 64": Mutant(
        "sparsegpt", "methods/sparsegpt-few", given(sparsegpt, "solve", block_size=64)
    ),
    "magnitude, a budget per output": Mutant(
        "magnitude",
        "methods/magnitude-60",
        default(method("magnitude"), budget="output"),
    ),
    "windows shifted by one token": Mutant(
        "dense admm-grad",
        "evaluate/perplexity",
        windows(lambda f, m, t, *args: f(m, t[1:], *args)),
    ),
    # the solver
    "ρ = 2": Mutant(
        GRAD,
        FEW,
        around(admm, "_factor", lambda f, g, rho, *args: f(g, 2 * rho, *args)),
    ),
    "no preconditioning": Mutant(
        GRAD,
        FEW,
        around(
            admm,
            "damped_system",
            lambda f, g, d, precondition: f(g, d, precondition=False),
        ),
    ),
    "damping 0.05": Mutant(
        GRAD, FEW, ridge(lambda f, matrix, damping: f(matrix, damping / 2))
    ),
    "19 iterations": Mutant(GRAD, FEW, given(fused, "admm", iterations=19)),
    "40 iterations": Mutant(GRAD, FEW, given(fused, "admm", iterations=40)),
    "U not updated": Mutant(GRAD, FEW, solver_loop("U not updated")),
    "mask from |W|": Mutant(GRAD, FEW, solver_loop("mask from |W|")),
    "Z without U": Mutant(GRAD, FEW, solver_loop("Z without U")),
    "half of U": Mutant(GRAD, FEW, solver_loop("half of U")),
    "fitted to the pruned weights": Mutant(
        GRAD, FEW, solver_loop("fitted to the pruned weights")
    ),
    "step matrix in half precision": Mutant(
        GRAD,
        FEW,
        around(fused, "step_matrix", lambda f, *args: f(*args).half().float()),
    ),
    "SparseGPT with damping 0.1": Mutant(
        "sparsegpt", "methods/sparsegpt-few", given(sparsegpt, "solve", damping=0.1)
    ),
    "SparseGPT, blocks do not make up for those before": Mutant(
        "sparsegpt",
        "methods/sparsegpt-few",
        around(sparsegpt, "_prune_columns", lambda f, *args: 0 * f(*args)),
    ),
    "ALPS begins with another ρ": Mutant(
        "alps", "methods/alps-2of4", default(method("alps"), rho=0.5)
    ),
    "ALPS without conjugate gradients": Mutant(
        "alps", "methods/alps-2of4", constant(alps, "CG_STEPS", 1)
    ),
    # masks
    "the released schedule": Mutant(
        GRAD, FEW, default(method(GRAD), schedule="released")
    ),
    "a linear schedule": Mutant(
        GRAD, FEW, schedule(lambda f, s, t, n: s * min(t, n) / n)
    ),
    "10 mask steps": Mutant(GRAD, FEW, default(method(GRAD), mask_steps=10)),
    "no growing mask": Mutant(
        "admm-grad-2of4", FEW, default(method(GRAD), mask_steps=0)
    ),
    "the mask of step 14 is final": Mutant(
        GRAD, FEW, schedule(lambda f, s, t, n: f(s, min(t, 14), n))
    ),
    "one weight more is pruned": Mutant(
        "wanda",
        "methods/wanda-60",
        around(
            masks, "keep_largest", lambda f, rows, zeros, *out: f(rows, zeros + 1, *out)
        ),
    ),
    "groups along the output": Mutant(
        "wanda-2of4", "methods/wanda-2of4", around(methods, "select", other_groups)
    ),
    "Wanda, a budget per matrix": Mutant(
        "wanda", "methods/wanda-60", default(method("wanda"), budget="matrix")
    ),
    "ADMM1, a budget per output": Mutant(
        "admm1", "admm/admm1-60", default(method("admm1"), budget="output")
    ),
    # calibration
    "one token of each sequence missing in the gram": Mutant(
        "wanda admm-grad",
        FEW,
        around(Gram, "add", lambda f, g, inputs: f(g, inputs[..., 1:, :])),
    ),
    "grams in half precision": Mutant(GRAD, FEW, grams(halved_grams)),
    "inputs in half precision": Mutant(
        GRAD, FEW, sums(lambda f, s, rows: f(s, rows.half().float()))
    ),
    "the stream of dense blocks": Mutant(
        GRAD, "methods/wanda-60", around(loop.Loop, "prune_block", dense_stream)
    ),
    "the stream stays at the first block": Mutant(
        GRAD, "methods/wanda-60", around(block_grams.Replay, "advance", lambda *_: None)
    ),
    "one pass measures a block before it is pruned": Mutant(
        "one-pass", "passes/one", around(block_grams, "one_pass", dense_in_one_pass)
    ),
    "one pass leaves the stream behind": Mutant(
        "one-pass", "passes/one", around(block_grams, "one_pass", one_block_for_all)
    ),
    "another seed": Mutant(
        "wanda",
        "text/calibration",
        around(
            corpora,
            "calibration_tokens",
            lambda f, *a, seed, **m: f(*a, seed=seed + 1, **m),
        ),
    ),
    "documents joined without an end": Mutant(
        "wanda",
        "text/calibration",
        around(
            corpora,
            "_joined",
            lambda f, texts, tokenizer: f(["".join(texts)], tokenizer),
        ),
    ),
    # what is pruned and what is measured
    "one layer stays dense": Mutant(
        GRAD, "methods/wanda-60", around(loop, "write_weight", one_stays_dense)
    ),
    "the error is not squared": Mutant(
        "wanda",
        "methods/wanda-60",
        around(registry, "relative_error", lambda f, *args: f(*args) ** 0.5),
    ),
    "no start token": Mutant(
        "dense", "text/files", around(corpora, "_tokenise", without_start)
    ),
    "windows do not begin with the start token": Mutant(
        "dense",
        "evaluate/perplexity",
        around(evaluate, "with_start", lambda f, rows, *_: rows),
    ),
    "a window left out": Mutant(
        "dense",
        "evaluate/perplexity",
        windows(lambda f, m, t, n, most: f(m, t, n, most and most - 1)),
    ),
    "the first prediction left out": Mutant(
        "dense",
        "evaluate/perplexity",
        loss(lambda f, logits, rows: f(logits[:, 1:], rows[:, 1:])),
    ),
    # beyond the layers
    "the guide's range is a third": Mutant(
        "guide", "allocation/guide", default(allocation.guide, spread=0.1)
    ),
    "the guide reads one sequence": Mutant(
        "guide",
        "allocation/guide",
        around(
            allocation,
            "surveyed",
            lambda f, model, tokens, *rest: f(model, tokens[:1], *rest),
        ),
    ),
    "importance without its root": Mutant(
        "guide", "allocation/guide", constant(allocation, "POWER", 1.0)
    ),
    "OWL spreads half as far": Mutant(
        "owl", "allocation/owl", default(allocation.owl, spread=0.04)
    ),
    "the repair at twice its rate": Mutant(
        "recipe", "distil/all", default(distil.distil, rate=1.72e-3)
    ),
    "the repair trains pruned weights too": Mutant(
        "recipe",
        "distil/all",
        around(training, "KeptZeros", lambda *_: contextlib.nullcontext()),
    ),
    "the repair keeps its last weights": Mutant(
        "spoilt", "distil/nothing", around(distil, "restore", lambda *_: None)
    ),
    "the repair reads the text of the layers": Mutant(
        "recipe",
        "recipe/balanced",
        around(
            recipe,
            "distil",
            lambda f, model, dense, text, **m: f(model, dense, text.flip(0), **m),
        ),
    ),
    # zero-shot
    "likelihoods of the tokens before": Mutant(
        "zero-shot",
        "zero-shot/openbookqa",
        around(
            scoring.ContextOnce, "_model_call", lambda f, *a, **m: f(*a, **m).roll(1, 1)
        ),
    ),
    "all choices follow the first context": Mutant(
        "zero-shot",
        "zero-shot/openbookqa",
        around(
            Cache,
            "reorder_cache",
            lambda f, cache, rows: f(cache, torch.zeros_like(rows)),
        ),
    ),
}
