"""Ways to break the package, in one place at a time: the verdict and the probes notice them.

Of mutants that differ in degree, such as 19, 16 or 40 iterations, only the smallest is here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch

from helpers.beyond import allocation, distil, recipe, training
from helpers.data import corpora
from helpers.model import block_grams, block_loop, blocks, perplexity, token_trees
from helpers.paper import admm, alps, masks, methods, sparsegpt
from helpers.paper.fast import fused, panels
from helpers.paper.gram import Gram

Patch = Callable[[pytest.MonkeyPatch], None]


class Mutant(NamedTuple):
    """What is broken: the cells of test_mutations.py that are run for it, the probe that has to
    move, and how it is broken.
    """

    cells: str
    probe: str
    patch: Patch


def around(owner, name, change):
    """Replace a function by change(function, *its arguments)."""

    def patch(monkeypatch):
        whole = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *args, **more: change(whole, *args, **more)
        )

    return patch


def given(owner, name, **forced):
    """Call a function with other values of some keyword arguments."""
    return around(
        owner, name, lambda whole, *args, **more: whole(*args, **more | forced)
    )


def default(function, **forced):
    """Change what a function does when an option is left out."""
    options = inspect.unwrap(function).__kwdefaults__
    return lambda monkeypatch: [
        monkeypatch.setitem(options, *item) for item in forced.items()
    ]


def constant(owner, name, value):
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)


def method(name):
    return methods.METHODS[name].__wrapped__


# --- the changes that are no lambda ----------------------------------------------------------


def solver_loop(change):
    """The solver's loop as the paper writes it, with one change; "" for none."""

    def solve(W0, M, *, iterations, choose, trace=None):
        P = M + 0.5 * torch.eye(len(M))  # ρ (G + ρI)⁻¹
        start = W0.clone()
        W = start.clone()
        U = torch.zeros_like(start)
        kept = torch.ones_like(start)
        for t in range(1, iterations + 1):
            choose(
                t, W if change == "mask from |W|" else W + U, torch.empty_like(W), kept
            )
            Z = (W if change == "Z without U" else W + U) * kept
            if change != "U not updated":
                U = U + (0.5 if change == "half of U" else 1.0) * (W - Z)
            from_ = start * kept if change == "fitted to the pruned weights" else start
            W = from_ - from_ @ P + (Z - U) @ P
            if trace:
                trace(t, (W + U) * kept, kept.bool())
        return (W + U) * kept, kept.bool()

    return constant(fused, "admm", solve)


def dense_stream(whole, self, index, replay, stream):
    """Later blocks see what the dense model gives."""
    block = copy.deepcopy(self.blocks[index])
    before = stream.clone()
    whole(self, index, replay, stream)
    stream.copy_(
        blocks.advance(block, before, replay.calls[index], replay.batch, "block")
    )


def halved_grams(whole, *args):
    return {
        name: Gram.of(gram.matrix.half().float()) for name, gram in whole(*args).items()
    }


def one_stays_dense(whole, layer, weight):
    if weight.shape[1] not in (192, 1536):  # inputs of `down`
        whole(layer, weight)


def other_groups(whole, score, sparsity, *args, **more):
    return whole(score.T.contiguous(), sparsity, *args, **more).T.contiguous()


def without_start(_, tokenizer, text):
    return torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])


def dense_in_one_pass(_, block, stream, call, batch, name, *_p):
    """All layers of a block are measured before the first is pruned."""
    yield block_grams.layer_grams(block, stream, call, batch, name)
    blocks.advance(block, stream, call, batch, name)


def one_block_for_all(whole, block, stream, *rest):
    """The text that waits in a block leaves it as it came."""
    before = stream.clone()
    yield from whole(block, stream, *rest)
    stream.copy_(before)


schedule = functools.partial(around, admm, "cubic_schedule")
grams = functools.partial(around, block_grams, "sum_grams")
sums = functools.partial(around, panels, "add_upper")
windows = functools.partial(around, perplexity, "check_windows")
GRAD = "admm-grad"
FEW = "admm/few"

ANSWERS = {
    "likelihoods of the tokens before": around(
        token_trees.TreeLM,
        "_score",
        lambda f, lm, requests: f(
            lm, [(*names, context[:-1], end) for *names, context, end in requests]
        ),
    ),
    "answers of a pass in another order": around(
        token_trees.TreeLM, "_score", lambda f, *args: f(*args)[::-1]
    ),
}

# cells of test_mutations.py and the probe → mutants; f is the function as it was
GROUPS = {
    (GRAD, FEW): {
        "cubic schedule one step ahead": schedule(lambda f, s, t, n: f(s, t + 1, n)),
        "ρ = 2": around(admm, "_factor", lambda f, g, rho, *args: f(g, 2 * rho, *args)),
        "no preconditioning": around(
            admm,
            "damped_system",
            lambda f, g, d, precondition: f(g, d, precondition=False),
        ),
        "damping 0.05": around(
            admm, "add_ridge", lambda f, matrix, damping: f(matrix, damping / 2)
        ),
        "damping 0": around(admm, "add_ridge", lambda f, matrix, damping: matrix),
        "16 iterations": given(fused, "admm", iterations=16),
        "19 iterations": given(fused, "admm", iterations=19),
        "40 iterations": given(fused, "admm", iterations=40),
        "U not updated": solver_loop("U not updated"),
        "mask from |W|": solver_loop("mask from |W|"),
        "Z without U": solver_loop("Z without U"),
        "half of U": solver_loop("half of U"),
        "fitted to the pruned weights": solver_loop("fitted to the pruned weights"),
        "step matrix in half precision": around(
            fused, "step_matrix", lambda f, *args: f(*args).half().float()
        ),
        "the released schedule": default(method(GRAD), schedule="released"),
        "a linear schedule": schedule(lambda f, s, t, n: s * min(t, n) / n),
        "10 mask steps": default(method(GRAD), mask_steps=10),
        "the mask of step 14 is final": schedule(
            lambda f, s, t, n: f(s, min(t, 14), n)
        ),
        "grams in half precision": grams(halved_grams),
        "inputs in half precision": sums(lambda f, s, rows: f(s, rows.half().float())),
    },
    ("wanda", "methods/wanda-budget"): {
        "half the calibration": grams(
            lambda f, b, s, *args: f(b, s[: len(s) // 2], *args)
        ),
    },
    ("sparsegpt", "methods/sparsegpt-few"): {
        "SparseGPT in blocks of 64": given(sparsegpt, "solve", block_size=64),
        "SparseGPT with damping 0.1": given(sparsegpt, "solve", damping=0.1),
        "SparseGPT, blocks do not make up for those before": around(
            sparsegpt, "_prune_columns", lambda f, *args: 0 * f(*args)
        ),
    },
    ("magnitude", "methods/magnitude-60"): {
        "magnitude, a budget per output": default(method("magnitude"), budget="output"),
    },
    ("dense admm-grad", "evaluate/perplexity"): {
        "windows shifted by one token": windows(
            lambda f, m, t, *args: f(m, t[1:], *args)
        ),
    },
    ("alps", "methods/alps-2of4"): {
        "ALPS begins with another ρ": default(method("alps"), rho=0.5),
        "ALPS without conjugate gradients": constant(alps, "CG_STEPS", 1),
    },
    ("admm-grad-2of4", FEW): {
        "no growing mask": default(method(GRAD), mask_steps=0),
    },
    ("wanda", "methods/wanda-60"): {
        "one weight more is pruned": around(
            masks, "keep_largest", lambda f, rows, zeros, *out: f(rows, zeros + 1, *out)
        ),
        "Wanda, a budget per matrix": default(method("wanda"), budget="matrix"),
        "the error is not squared": around(
            methods, "relative_error", lambda f, *args: f(*args) ** 0.5
        ),
    },
    ("wanda-2of4", "methods/wanda-2of4"): {
        "groups along the output": around(methods, "select", other_groups),
    },
    ("admm1", "admm/admm1-60"): {
        "ADMM1, a budget per output": default(method("admm1"), budget="output"),
    },
    ("wanda admm-grad", FEW): {
        "one token of each sequence missing in the gram": around(
            Gram, "add", lambda f, g, inputs: f(g, inputs[..., 1:, :])
        ),
    },
    (GRAD, "methods/wanda-60"): {
        "the stream of dense blocks": around(
            block_loop.Loop, "prune_block", dense_stream
        ),
        "the stream stays at the first block": around(
            block_grams.Replay, "advance", lambda *_: None
        ),
        "one layer stays dense": around(block_loop, "write_weight", one_stays_dense),
    },
    ("one-pass", "passes/one"): {
        "one pass measures a block before it is pruned": around(
            block_grams, "one_pass", dense_in_one_pass
        ),
        "one pass leaves the stream behind": around(
            block_grams, "one_pass", one_block_for_all
        ),
    },
    ("wanda", "text/calibration"): {
        "another seed": around(
            corpora,
            "calibration_tokens",
            lambda f, *a, seed, **m: f(*a, seed=seed + 1, **m),
        ),
        "documents joined without an end": around(
            corpora,
            "_joined",
            lambda f, texts, tokenizer: f(["".join(texts)], tokenizer),
        ),
    },
    ("dense", "text/files"): {
        "no start token": around(corpora, "_tokenise", without_start),
    },
    ("dense", "evaluate/perplexity"): {
        "windows do not begin with the start token": around(
            perplexity, "with_start", lambda f, rows, *_: rows
        ),
        "a window left out": windows(
            lambda f, m, t, n, most: f(m, t, n, most and most - 1)
        ),
        "the first prediction left out": around(
            perplexity,
            "_negative_log_likelihood",
            lambda f, logits, rows: f(logits[:, 1:], rows[:, 1:]),
        ),
    },
    ("guide", "allocation/guide"): {
        "the guide's range is a third": default(allocation.guide, spread=0.1),
        "the guide reads one sequence": around(
            allocation,
            "surveyed",
            lambda f, model, tokens, *rest: f(model, tokens[:1], *rest),
        ),
        "importance without its root": constant(allocation, "POWER", 1.0),
    },
    ("owl", "allocation/owl of three blocks"): {
        "OWL spreads half as far": default(allocation.owl, spread=0.04),
    },
    ("recipe", "distil/all"): {
        "the repair at twice its rate": default(distil.distil, rate=1.72e-3),
        "the repair trains pruned weights too": around(
            training, "KeptZeros", lambda *_: contextlib.nullcontext()
        ),
    },
    ("spoilt", "distil/nothing"): {
        "the repair keeps its last weights": around(distil, "restore", lambda *_: None),
    },
    ("recipe", "recipe/balanced"): {
        "the repair reads the text of the layers": around(
            recipe,
            "distil",
            lambda f, model, dense, text, **m: f(model, dense, text.flip(0), **m),
        ),
    },
    ("zero-shot", "zero-shot/openbookqa"): ANSWERS,
    # where rounding turns answers, and the verdict lets it
    ("zero-shot-pruned", "zero-shot/openbookqa"): {
        f"{name}, of a pruned model": patch for name, patch in ANSWERS.items()
    },
}
MUTANTS = {
    name: Mutant(*place, patch)
    for place, patches in GROUPS.items()
    for name, patch in patches.items()
}
