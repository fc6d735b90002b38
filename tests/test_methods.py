"""Every layer method: hand examples, direct OBS, dead inputs, what is refused."""

import math

import numpy as np
import pytest
import torch
from layers import drawn, groups_of, layer, outputs_error, random_keep

from helpers.errors import BadParameter, NonFinite, NotPositiveDefinite
from helpers.paper.admm import exact_least_squares, refit
from helpers.paper.gram import gram_of
from helpers.paper.methods import METHODS

ALL = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
CALIBRATED = ALL[1:]


# ---------------------------------------------------------------- all methods alike


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.half]
)
@pytest.mark.parametrize("target", [0.0, 0.37, 0.95, "2:4", "4:8", "1:4", "5:8"])
@pytest.mark.parametrize("name", ALL)
def test_an_answer_is_exactly_what_was_asked_for(name, target, dtype, tied):
    inputs, weight = layer(9, 24)
    if tied:  # all scores are equal
        inputs = 10 * torch.eye(24)
        weight = torch.ones_like(weight)
    weight = weight.to(dtype)
    gram = gram_of(inputs)
    before = weight.clone(), gram.clone()
    grouped = isinstance(target, str)
    option = "pattern" if grouped else "sparsity"
    result = METHODS[name](weight, gram, **{option: target})
    if grouped:
        n, m = groups_of(target)
        assert (result.keep.unflatten(1, (-1, m)).sum(-1) == n).all()
    else:
        counted = result.keep if name == "wanda" else result.keep.view(1, -1)
        assert ((~counted).sum(1) == round(target * counted.shape[1])).all()
    assert result.weight.dtype == weight.dtype
    assert not result.weight[~result.keep].any()
    if name in ("magnitude", "wanda"):  # which only select
        assert torch.equal(result.weight, weight * result.keep)
    expected = outputs_error(inputs, weight, result.weight)
    assert result.error == pytest.approx(expected, rel=1e-3, abs=1e-9)
    # a mask that is given is obeyed, and no argument was changed
    keep = result.keep.roll(1, dims=0)
    assert torch.equal(METHODS[name](weight, gram, keep=keep).keep, keep)
    assert all(map(torch.equal, (weight, gram), before))


# ---------------------------------------------------------------- magnitude and wanda by hand


@pytest.mark.parametrize(
    "name, options, expected",
    [
        # half of twelve go: 0.5 and, of the six ones, the later five
        ("magnitude", {}, "xxx. .... xxx."),
        ("magnitude", {"budget": "output"}, "xx.. xx.. x.x."),
        # norms of the inputs are 1, 2, 3, 4 (diagonal 1, 4, 9, 16). Scores |W|·norm:
        #   row 0: 5, 2·2 = 4, 1·3 = 3, 0.5·4 = 2  -> keeps the first two
        #   row 1: 1, 2, 3, 4                      -> keeps the last two
        #   row 2: 500, 2.2, 360, 4                -> keeps the first and the third
        ("wanda", {}, "xx.. ..xx x.x."),
        # over the whole matrix three of twelve stay: 500, 360 and 5
        ("wanda", {"sparsity": 0.75, "budget": "matrix"}, "x... .... x.x."),
    ],
)
def test_by_hand(name, options, expected):
    rows = [[5, 2, 1, 0.5], [1, 1, -1, 1], [-500, 1.1, 120, 1]]
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0]))
    gram[0, 1] = gram[1, 0] = 0.7  # off the diagonal nothing matters
    if name == "magnitude":
        gram = None
    result = METHODS[name](torch.tensor(rows), gram, **{"sparsity": 0.5} | options)
    assert drawn(result.keep) == expected
    assert (result.error is None) == (gram is None)
    assert result.damping is None


# ---------------------------------------------------------------- SparseGPT against direct OBS


def direct_obs(
    inputs,
    weight,
    *,
    keep=None,
    sparsity=0.5,
    pattern="unstructured",
    block_size=128,
    damping=0.01,
):
    """Column by column; the mask is given, or chosen at the start of each block or group.

    A deleted weight w_j = −δ_j raises δᵀHδ least over the later δ_r at H_rr δ_r = H_rj w_j: a
    small linear system, no inverse and no factor. Its score is that rise, w_j²/[H_{j:,j:}⁻¹]₀₀.
    """
    x = inputs.double().numpy()
    work = weight.double().numpy().copy()
    hessian = x.T @ x
    hessian += damping * np.diag(hessian).mean() * np.eye(len(hessian))
    rows, d_in = work.shape
    groups = groups_of(pattern)
    chunk = groups[1] if groups else block_size
    mask = np.ones(work.shape, bool) if keep is None else keep.numpy()
    for j in range(d_in):
        if keep is None and j % chunk == 0:
            stop = min(j + chunk, d_in)
            inverses = [np.linalg.inv(hessian[c:, c:])[0, 0] for c in range(j, stop)]
            score = work[:, j:stop] ** 2 / inverses
            chosen = mask[:, j:stop]
            if groups:
                losers = np.argsort(score, axis=1)[:, : groups[1] - groups[0]]
                np.put_along_axis(chosen, losers, False, axis=1)
            else:
                zeros = round(sparsity * rows * stop) - round(sparsity * rows * j)
                losers = np.argsort(score, axis=None)[:zeros]
                chosen[np.unravel_index(losers, score.shape)] = False
        later = slice(j + 1, None)
        for row in range(rows):
            if not mask[row, j]:
                answer = np.linalg.solve(hessian[later, later], hessian[later, j])
                work[row, later] += answer * work[row, j]
        work[~mask[:, j], j] = 0.0
    return work, mask


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 5},
        {"keep": "given"},
        {"keep": "given", "block_size": 5},
        {"pattern": "2:4", "block_size": 8},
        {"pattern": "4:8"},
        {"pattern": "1:4"},
    ],
    ids=str,
)
def test_sparsegpt_is_direct_obs(options, seed):
    inputs, weight = layer(1 + seed, 8 * (1 + seed // 2), 150, seed)
    options = options | {"damping": 0.3 if seed % 2 else 0.01}
    if "keep" in options:
        options["keep"] = random_keep(weight.shape, seed=seed)
    elif "pattern" not in options:
        options["sparsity"] = 0.15 * seed
    result = METHODS["sparsegpt"](weight, gram_of(inputs), **options)
    expected, mask = direct_obs(inputs, weight, **options)
    assert np.array_equal(result.keep.numpy(), mask)
    assert result.damping == options["damping"]
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_sparsegpt_climbs_the_ladder_of_damping():
    # rank one plus rounding: undamped, either the gram or its inverse cannot be factored
    for _ in range(60):
        gram = gram_of(torch.randn(1, 24).repeat(8, 1) * torch.logspace(-3, 3, 24))
        result = METHODS["sparsegpt"](
            torch.randn(6, 24), gram, sparsity=0.5, damping=0.0
        )
        assert torch.isfinite(result.weight).all()
        assert result.damping > 0


# ---------------------------------------------------------------- dead inputs


@pytest.mark.parametrize("name", [*CALIBRATED, "alps"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_dead_inputs_lose_their_weights_first(name, pattern):
    inputs, weight = layer()
    dead = [3, 8, 30]  # not two in one group of four
    inputs[:, dead] = 0
    weight[:, dead] *= 1e4  # so large that only their gram can prune them
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5, pattern=pattern)
    assert result.dead_inputs == 3
    assert not result.weight[:, dead].any()
    assert torch.isfinite(result.weight).all()
    assert 0 <= result.error < 1
    # 3 of 32 inputs are 9.4 %: at 6.25 % only they may lose weights
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.0625)
    alive = [i for i in range(32) if i not in dead]
    assert result.keep[:, alive].all()
    assert result.error < 1e-4
    torch.testing.assert_close(
        result.weight[:, alive], weight[:, alive], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_as_real_models_have_them(name):
    inputs, weight = layer()
    seldom = inputs.clone()
    massive = inputs.clone()
    seldom[1:, 4] = 0
    seldom[::2, 5] = 0
    massive[:, 7] *= 3000
    # all dead; inputs that are seldom there; one far larger than the rest; fewer tokens than inputs
    for case, dead in ((0 * inputs, 32), (seldom, 0), (massive, 0), (inputs[:5], 0)):
        for option in ({}, {"precondition": False} if "admm" in name else {}):
            result = METHODS[name](weight, gram_of(case), sparsity=0.5, **option)
            assert int((~result.keep).sum()) == weight.numel() // 2
            assert result.dead_inputs == dead
            assert torch.isfinite(result.weight).all()
            assert result.error < (0.1 if case is massive else 1)


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("entry", ["wanda", "admm-grad", refit, exact_least_squares])
@pytest.mark.parametrize(
    "parameter, wrong, error, words",
    [
        ("weight", lambda w: w.masked_fill(w == w.max(), math.nan), NonFinite, ""),
        ("weight", lambda w: w[0], BadParameter, "(32,)"),
        ("weight", lambda w: w[:0], BadParameter, "(0, 32)"),
        ("weight", lambda w: w.to(torch.int8), BadParameter, "int8"),
        ("weight", lambda w: w.to_sparse(), BadParameter, "sparse"),
        ("weight", lambda w: w.tolist(), BadParameter, "list"),
        ("gram", lambda g: g[:-1, :-1], BadParameter, "(31, 31)"),
        ("gram", lambda g: g.tolist(), BadParameter, "list"),
        ("keep", lambda k: k.float(), BadParameter, "float32"),
        ("keep", lambda k: k[0], BadParameter, "(32,)"),
    ],
)  # fmt: skip
def test_what_is_no_layer(entry, parameter, wrong, error, words, one_line_error):
    inputs, weight = layer()
    given = dict(weight=weight, gram=gram_of(inputs), keep=random_keep(weight.shape))
    given[parameter] = wrong(given[parameter])
    with one_line_error(error, parameter, words):
        METHODS.get(entry, entry)(**given)


HALF = {"sparsity": 0.5}
KEEP = {"keep": torch.arange(12 * 32).view(12, 32) % 2 == 0}
REFUSED = [
    ("wanda", {}, "sparsity missing"),
    ("wanda", HALF | {"gram": None}, "wanda calibration"),
    ("admm1", HALF | {"itrations": 3}, "itrations admm1"),
    ("magnitude", HALF | {"budget": "rowz"}, "budget rowz"),
    ("sparsegpt", HALF | {"budget": "output"}, "budget sparsegpt"),
    ("sparsegpt", {"sparsity": 0.6, "pattern": "2:4"}, "sparsity 0.6 2:4"),
    ("sparsegpt", {"pattern": "2:4", "block_size": 6}, "block_size 6 2:4"),
    ("sparsegpt", {"sparsity": 0.6} | KEEP, "keep 0.6"),
    ("sparsegpt", {"pattern": "1:4"} | KEEP, "keep 1:4"),
]
for name, parameter, values in (
    ("wanda", "sparsity", [1.0, -0.1, "half", math.nan, True, [0.5], 60]),
    (
        "wanda",
        "pattern",
        ["2:5", "4:4", "0:4", "2-4", "-2:4", ":4", "²:4", "2:4\n", None],
    ),
    ("admm-grad", "rho", [0, -1.0, math.nan, "1"]),
    ("admm1", "iterations", [0, 20.5, "20", True]),
    ("admm-grad", "damping", [-0.1, math.inf, None]),
    ("admm-grad", "mask_steps", [-1, 21]),
    ("admm-grad", "schedule", ["papr", None]),
    ("admm1", "precondition", [1]),
    ("sparsegpt", "block_size", [0]),
    ("sparsegpt", "damping", [-0.1]),
):
    first = HALF if parameter == "mask_steps" else {}  # after the sparsity
    REFUSED += [(name, first | {parameter: v}, f"{parameter} {v!r}") for v in values]


@pytest.mark.parametrize("name, given, words", REFUSED)
def test_what_no_method_accepts(name, given, words, one_line_error):
    inputs, weight = layer()
    with one_line_error(BadParameter, *words.split(" ")):
        METHODS[name](weight, **{"gram": gram_of(inputs)} | given)


@pytest.mark.parametrize("name", ["sparsegpt", "admm1"])
def test_what_has_no_factor(name, one_line_error):
    with one_line_error(NotPositiveDefinite, "damping"):
        # diagonal 1, smallest eigenvalue 6 − 160
        METHODS[name](layer()[1], 6 * torch.eye(32) - 5, sparsity=0.5)
