"""Every layer method: hand examples, SparseGPT against direct OBS, dead inputs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layers import layer, outputs_error, random_keep

from helpers.admm import admm_grad, refit
from helpers.errors import (
    BadParameter,
    NonFinite,
    NotPositiveDefinite,
)
from helpers.gram import gram_of
from helpers.masks import select, top_k
from helpers.methods import METHODS, check_options, get_method

ALL = ("magnitude", "wanda", "sparsegpt", "admm1", "admm-grad")
CALIBRATED = ALL[1:]
UPDATING = ALL[2:]
property_of = settings(max_examples=60, deadline=None, derandomize=True)


# ---------------------------------------------------------------- all methods alike


@property_of
@given(
    name=st.sampled_from(ALL),
    d_out=st.integers(1, 12),
    groups=st.integers(1, 5),
    target=st.one_of(
        st.tuples(st.floats(0, 0.95), st.just("unstructured")),
        st.tuples(st.none(), st.sampled_from(["2:4", "4:8", "1:4", "5:8"])),
    ),
    tied=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 99),
)
def test_an_answer_is_exactly_what_was_asked_for(
    name, d_out, groups, target, tied, dtype, seed
) -> None:
    sparsity, pattern = target
    inputs, weight = layer(d_out, 8 * groups, 40 * groups, seed)
    if tied:  # all scores are equal
        inputs, weight = 10 * torch.eye(8 * groups), torch.ones_like(weight)
    weight, gram = weight.to(dtype), gram_of(inputs)
    before = weight.clone(), gram.clone()
    result = METHODS[name](weight, gram, sparsity=sparsity, pattern=pattern)
    again = METHODS[name](weight, gram, sparsity=sparsity, pattern=pattern)
    assert all(map(torch.equal, (weight, gram), before))
    assert torch.equal(result.weight, again.weight) and torch.equal(result.keep, again.keep)
    assert result.weight.dtype == dtype and result.keep.dtype == torch.bool
    assert not result.weight[~result.keep].any()
    if sparsity is None:
        n, m = map(int, pattern.split(":"))
        assert (result.keep.unflatten(1, (-1, m)).sum(-1) == n).all()
    elif name == "wanda":
        assert ((~result.keep).sum(1) == round(sparsity * 8 * groups)).all()
    else:
        assert int((~result.keep).sum()) == round(sparsity * weight.numel())
    if name in ("magnitude", "wanda"):  # which only select
        assert torch.equal(result.weight, weight * result.keep)
    expected = outputs_error(inputs, weight, result.weight)
    assert result.error == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert result.dead_inputs == 0


@pytest.mark.parametrize("name", ("wanda", "admm1", "admm-grad"))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_rescaling_an_input_channel_changes_nothing(name: str, pattern: str) -> None:
    # x → c·x, w → w/c leaves the function as it is. Magnitude has no such invariance, and
    # SparseGPT's damping, a multiple of the identity, has not either.
    inputs, weight = layer()
    factors = torch.ones(32)
    factors[5], factors[17] = 32.0, 1 / 16
    gram, target = gram_of(inputs), dict(sparsity=0.5, pattern=pattern)
    plain = METHODS[name](weight, gram, **target)
    scaled = METHODS[name](weight / factors, gram * factors * factors[:, None], **target)
    assert torch.equal(plain.keep, scaled.keep)
    torch.testing.assert_close(scaled.weight * factors, plain.weight, rtol=1e-5, atol=1e-6)
    assert scaled.error == pytest.approx(plain.error, rel=1e-4)
    by_size = [METHODS["magnitude"](w, None, **target).keep for w in (weight, weight / factors)]
    assert not torch.equal(*by_size)  # so the test can fail


def test_updating_helps_and_in_the_order_of_the_paper() -> None:
    inputs, weight = layer(d_out=64, d_in=64, tokens=400)
    gram = gram_of(inputs)
    error = {name: METHODS[name](weight, gram, sparsity=0.6).error for name in ALL}
    assert error["admm-grad"] < error["admm1"] < error["wanda"] < error["magnitude"]
    assert error["sparsegpt"] < error["wanda"]


# ---------------------------------------------------------------- magnitude and wanda by hand


def test_magnitude_by_hand() -> None:
    # |W| sorted: 0.5, 1, 1.5, 2 | 3, 4, 5, 6; half of eight go, over the whole matrix.
    weight = torch.tensor([[-6.0, 0.5, 1.0, -1.5], [5.0, -4.0, 3.0, 2.0]])
    result = METHODS["magnitude"](weight, sparsity=0.5)
    expected = torch.tensor([[-6.0, 0.0, 0.0, 0.0], [5.0, -4.0, 3.0, 0.0]])
    assert torch.equal(result.weight, expected)
    assert result.error is None and result.damping is None
    by_output = METHODS["magnitude"](weight, None, sparsity=0.5, budget="output").weight
    assert torch.equal(by_output, torch.tensor([[-6.0, 0.0, 0.0, -1.5], [5.0, -4.0, 0.0, 0.0]]))


def test_wanda_by_hand() -> None:
    # Norms of the inputs are 1, 2, 3, 4 (diagonal 1, 4, 9, 16). Scores |W|·norm:
    #   row 0: 5, 2·2 = 4, 1·3 = 3, 0.5·4 = 2  -> keeps the first two
    #   row 1: 1, 2, 3, 4                      -> keeps the last two
    #   row 2: 500, 2.2, 360, 4                -> keeps the first and the third
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0, 16.0]))
    gram[0, 1] = gram[1, 0] = 0.7  # off the diagonal nothing matters
    weight = torch.tensor([[5.0, 2.0, 1.0, 0.5], [1.0, 1.0, -1.0, 1.0], [-500.0, 1.1, 120, 1.0]])
    expected = torch.tensor([[5.0, 2.0, 0, 0], [0, 0, -1.0, 1.0], [-500.0, 0, 120, 0]])
    for target in (dict(sparsity=0.5), dict(pattern="2:4")):
        result = METHODS["wanda"](weight, gram, **target)
        assert torch.equal(result.weight, expected) and result.damping is None
    # over the whole matrix three of twelve stay: 500, 360 and 5
    whole = METHODS["wanda"](weight, gram, sparsity=0.75, budget="matrix").weight
    assert torch.equal(whole, torch.tensor([[5.0, 0, 0, 0], [0, 0, 0, 0], [-500.0, 0, 120, 0]]))


# ---------------------------------------------------------------- ADMM as a method


@pytest.mark.parametrize("budget", ["matrix", "output"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
@pytest.mark.parametrize("precondition", [True, False])
def test_admm1_is_a_refit_on_wandas_mask(budget: str, pattern: str, precondition: bool) -> None:
    inputs, weight = layer()
    weight[0] *= 100
    gram, target = gram_of(inputs), dict(sparsity=0.5, pattern=pattern, budget=budget)
    wanda = METHODS["wanda"](weight, gram, **target)
    result = METHODS["admm1"](weight, gram, **target, precondition=precondition)
    assert torch.equal(result.keep, wanda.keep) and result.damping == 0.1
    expected = refit(weight, gram, wanda.keep, precondition=precondition).weight
    assert torch.equal(result.weight, expected)
    given = METHODS["admm-grad"](
        weight, gram, keep=wanda.keep, precondition=precondition, mask_steps=3
    )
    assert torch.equal(given.weight, expected)


@pytest.mark.parametrize(
    "option",
    [{}, {"schedule": "released"}, {"rho": 3.0}, {"iterations": 16}, {"mask_steps": 5},
     {"damping": 0.5}, {"budget": "output"}, {"precondition": False}],
    ids=str,
)  # fmt: skip
def test_options_reach_the_solver(option: dict) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    plain = METHODS["admm-grad"](weight, gram, sparsity=0.7)
    other = METHODS["admm-grad"](weight, gram, sparsity=0.7, **option)
    solved = admm_grad(weight, gram, sparsity=0.7, **option)
    assert torch.equal(other.weight, solved.weight) and other.damping == solved.damping
    assert bool(option) != torch.equal(other.weight, plain.weight)
    if set(option) & {"rho", "iterations", "damping"}:
        other = METHODS["admm1"](weight, gram, keep=plain.keep, **option).weight
        assert torch.equal(other, refit(weight, gram, plain.keep, **option).weight)


# ---------------------------------------------------------------- SparseGPT against direct OBS


def direct_obs(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    *,
    keep: np.ndarray | None = None,
    sparsity: float = 0.5,
    block_size: int = 128,
    groups: tuple[int, int] | None = None,
    damping: float = 0.01,
) -> tuple[np.ndarray, np.ndarray]:
    """Column by column; the mask is given, or chosen at the start of each block or group.

    A deleted weight w_j = −δ_j raises δᵀHδ least over the later δ_r at H_rr δ_r = H_rj w_j: a
    small linear system, no inverse and no factor. Its score is that rise, w_j²/[H_{j:,j:}⁻¹]₀₀.
    """
    x, work = inputs.double().numpy(), weight.double().numpy().copy()
    hessian = x.T @ x
    hessian += damping * np.diag(hessian).mean() * np.eye(len(hessian))
    rows, d_in = work.shape
    adaptive, keep = keep is None, np.ones(work.shape, bool) if keep is None else keep
    chunk = groups[1] if groups else block_size
    for j in range(d_in):
        if adaptive and j % chunk == 0:
            stop = min(j + chunk, d_in)
            rises = [work[:, c] ** 2 / np.linalg.inv(hessian[c:, c:])[0, 0] for c in range(j, stop)]
            score, chosen = np.stack(rises, axis=1), np.ones((rows, stop - j), bool)
            if groups:
                losers = np.argsort(score, axis=1)[:, : groups[1] - groups[0]]
                np.put_along_axis(chosen, losers, False, axis=1)
            else:
                zeros = round(sparsity * rows * stop) - round(sparsity * rows * j)
                chosen.reshape(-1)[np.argsort(score, axis=None)[:zeros]] = False
            keep[:, j:stop] = chosen
        later = slice(j + 1, None)
        for row in range(rows) if j + 1 < d_in else ():
            if not keep[row, j]:
                answer = np.linalg.solve(hessian[later, later], hessian[later, j])
                work[row, later] += answer * work[row, j]
        work[~keep[:, j], j] = 0.0
    return work, keep


@property_of
@given(
    rows=st.integers(1, 7),
    size=st.integers(1, 4),
    kind=st.sampled_from(["given", "unstructured", "2:4", "4:8", "1:4"]),
    block_size=st.sampled_from([8, 16, 128]),
    odd_block=st.sampled_from([None, 1, 3, 5]),
    damping=st.sampled_from([0.01, 0.3]),
    sparsity=st.floats(0, 0.9),
    seed=st.integers(0, 99),
)
def test_sparsegpt_is_direct_obs(
    rows, size, kind, block_size, odd_block, damping, sparsity, seed
) -> None:
    grouped = ":" in kind
    d_in = 8 * size if grouped else 5 * size + 1
    inputs, weight = layer(rows, d_in, 6 * d_in, seed)
    options = dict(block_size=block_size if grouped else odd_block or block_size, damping=damping)
    target: dict[str, object] = dict(sparsity=sparsity)
    if grouped:
        target = dict(pattern=kind)
        expected, keep = direct_obs(
            inputs, weight, groups=tuple(map(int, kind.split(":"))), **options
        )
    elif kind == "given":
        target = dict(keep=random_keep(weight.shape, sparsity, seed))
        expected, keep = direct_obs(inputs, weight, keep=target["keep"].numpy(), **options)
    else:
        expected, keep = direct_obs(inputs, weight, sparsity=sparsity, **options)
    result = METHODS["sparsegpt"](weight, gram_of(inputs), **target, **options)
    assert np.array_equal(result.keep.numpy(), keep) and result.damping == damping
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_sparsegpt_has_the_papers_defaults() -> None:
    # More than one block of 128 inputs, so that another size is seen; damping 0.01.
    inputs, weight = layer(d_out=3, d_in=200, tokens=600)
    expected, keep = direct_obs(inputs, weight, sparsity=0.5, block_size=128)
    result = METHODS["sparsegpt"](weight, gram_of(inputs), sparsity=0.5)
    assert np.array_equal(result.keep.numpy(), keep) and result.damping == 0.01
    np.testing.assert_allclose(result.weight.numpy(), expected, rtol=1e-3, atol=1e-3)
    assert not np.array_equal(direct_obs(inputs, weight, block_size=64)[1], keep)


def test_bad_options_of_sparsegpt(one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    for wrong in (0, -4, 2.5, "128", 6):
        with one_line_error(BadParameter, "block_size"):
            METHODS["sparsegpt"](weight, gram, pattern="2:4", block_size=wrong)
    for wrong in (-0.1, math.nan, math.inf, "0.01"):
        with one_line_error(BadParameter, "damping"):
            METHODS["sparsegpt"](weight, gram, sparsity=0.5, damping=wrong)


def test_sparsegpt_climbs_the_ladder_and_never_leaves_by_another_door() -> None:
    # Diagonal 1 and smallest eigenvalue −0.05: SparseGPT's 0.01 is not enough, 0.1 is.
    _, weight = layer()
    gram = torch.eye(32)
    gram[0, 1] = gram[1, 0] = 1.05
    assert METHODS["sparsegpt"](weight, gram, sparsity=0.5).damping == pytest.approx(0.1)
    # rank one plus rounding: undamped, either the gram or its inverse cannot be factored
    for _ in range(60):
        gram = gram_of(torch.randn(1, 24).repeat(8, 1) * torch.logspace(-3, 3, 24))
        result = METHODS["sparsegpt"](torch.randn(6, 24), gram, sparsity=0.5, damping=0.0)
        assert torch.isfinite(result.weight).all() and result.damping > 0


# ---------------------------------------------------------------- masks given by the caller


@pytest.mark.parametrize("name", ALL)
def test_a_given_mask_is_obeyed(name: str, one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    for pattern in ("unstructured", "2:4"):
        keep = select(torch.rand(weight.shape), 0.5, pattern)
        before = keep.clone()
        result = METHODS[name](weight, gram, keep=keep, pattern=pattern)
        assert torch.equal(result.keep, keep) and torch.equal(keep, before)
        assert not result.weight[~keep].any()
        agreed = METHODS[name](weight, gram, keep=keep, sparsity=0.5)
        assert torch.equal(agreed.weight, result.weight)
    for case in (dict(sparsity=0.6), dict(pattern="1:4")):
        with one_line_error(BadParameter):
            METHODS[name](weight, gram, keep=keep, **case)


# ---------------------------------------------------------------- dead inputs


def deaden(inputs: torch.Tensor, weight: torch.Tensor, dead: list[int]) -> list[int]:
    """Zero inputs on every token, with weights so large that only their gram can prune them.

    Returns the others.
    """
    inputs[:, dead] = 0
    weight[:, dead] = 1e4 * torch.sign(weight[:, dead])
    return [i for i in range(weight.shape[1]) if i not in dead]


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_dead_inputs_lose_their_weights_first(name: str, pattern: str) -> None:
    inputs, weight = layer()
    alive = deaden(inputs, weight, [3, 8, 30])  # not two in one group of four
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.5, pattern=pattern)
    assert result.dead_inputs == 3
    assert not result.weight[:, [3, 8, 30]].any()
    assert int((~result.keep).sum()) == weight.numel() // 2
    assert torch.isfinite(result.weight).all() and 0 <= result.error < 1
    # 3 of 32 inputs are 9.4 %: at 6.25 % only they may lose weights
    result = METHODS[name](weight, gram_of(inputs), sparsity=0.0625)
    assert result.keep[:, alive].all() and result.error < 1e-4
    torch.testing.assert_close(result.weight[:, alive], weight[:, alive], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CALIBRATED)
def test_dead_inputs_do_not_disturb_the_live_ones(name: str) -> None:
    # On a given mask the answer for live inputs is that of the layer without the dead ones,
    # up to the damping, whose mean over the diagonal counts dead inputs as well.
    inputs, weight = layer()
    alive = deaden(inputs, weight, [3, 8])
    keep = random_keep(weight.shape)
    keep[:, [3, 8]] = False
    options = {} if name == "wanda" else {"damping": 1e-4}
    full = METHODS[name](weight, gram_of(inputs), keep=keep, **options)
    alone = METHODS[name](
        weight[:, alive], gram_of(inputs[:, alive]), keep=keep[:, alive], **options
    )
    torch.testing.assert_close(full.weight[:, alive], alone.weight, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", CALIBRATED)
def test_inputs_as_real_models_have_them(name: str) -> None:
    inputs, weight = layer()
    for pattern in ("unstructured", "2:4"):
        for option in ({}, {"precondition": False} if "admm" in name else {}):
            zeros = METHODS[name](
                weight, torch.zeros(32, 32), sparsity=0.5, pattern=pattern, **option
            )
            assert zeros.dead_inputs == 32 and zeros.error == 0
            assert int((~zeros.keep).sum()) == weight.numel() // 2
            assert torch.isfinite(zeros.weight).all()
    seldom, massive = inputs.clone(), inputs.clone()
    seldom[1:, 4], seldom[::2, 5] = 0, 0
    massive[:, 7] *= 3000
    for case, limit in (
        (seldom, 1),
        (massive, 0.1),
        (inputs[:5], 1),
    ):  # or fewer tokens than inputs
        result = METHODS[name](weight, gram_of(case), sparsity=0.5)
        assert result.dead_inputs == 0 and torch.isfinite(result.weight).all()
        assert result.error < limit


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("name", ALL)
def test_what_no_method_accepts(name: str, one_line_error) -> None:
    inputs, weight = layer()
    gram, method = gram_of(inputs), METHODS[name]
    for value in (math.nan, math.inf, -math.inf):
        broken = weight.clone()
        broken[3, 5] = value
        with one_line_error(NonFinite, "weight"):
            method(broken, gram, sparsity=0.5)
    for wrong in (
        *(torch.randn(32), torch.randn(4, 8, 32), torch.randn(0, 32), weight.to("meta")),
        *(weight.to_sparse(), weight.tolist(), None),
        *(weight.to(kind) for kind in (torch.int8, torch.complex64, torch.float8_e4m3fn)),
    ):
        with one_line_error(BadParameter, "weight"):
            method(wrong, gram, sparsity=0.5)
    for error, words, target in (
        (BadParameter, ["unstructured"], dict(sparsity=0.5, pattern="2-4")),
        (BadParameter, ["32"], dict(pattern="2:5")),
        (BadParameter, ["60 %"], dict(sparsity=60)),
        (BadParameter, ["missing"], {}),
        (BadParameter, ["2:4"], dict(sparsity=0.6, pattern="2:4")),
        (BadParameter, [name, "itrations"], dict(sparsity=0.5, itrations=3)),
    ):
        with one_line_error(error, *words):
            method(weight, gram, **target)
    if name != "sparsegpt":
        with one_line_error(BadParameter, "budget"):
            method(weight, gram, pattern="2:4", budget="rowz")


@pytest.mark.parametrize("name", CALIBRATED)
def test_grams_that_are_none(name: str, one_line_error) -> None:
    inputs, weight = layer()
    gram = gram_of(inputs)
    lopsided, broken = gram.clone(), gram.clone()
    lopsided[0, 1] += gram.abs().max()
    broken[2, 9] = broken[9, 2] = math.nan
    for bad in (lopsided, gram[:-1, :-1], gram[:, :-1], torch.zeros(32)):
        with one_line_error(BadParameter, "gram"):
            METHODS[name](weight, bad, sparsity=0.5)
    with one_line_error(NonFinite, "gram"):
        METHODS[name](weight, broken, sparsity=0.5)
    with one_line_error(BadParameter, name, "calibration"):
        METHODS[name](weight, None, sparsity=0.5)
    if name in UPDATING:  # diagonal 1, smallest eigenvalue 6 − 160
        with one_line_error(NotPositiveDefinite, "damping"):
            METHODS[name](weight, 6 * torch.eye(32) - 5, sparsity=0.5)


def test_unknown_methods_and_options(one_line_error) -> None:
    for name in ("admm_grad", "wnada", "", None, 3):
        with one_line_error(BadParameter, "admm-grad", "magnitude"):
            get_method(name)
    for name, option in (("admm1", "schedule"), ("wanda", "damping"), ("sparsegpt", "iterations"),
                         ("magnitude", "rho"), ("admm-grad", "trace")):  # fmt: skip
        with one_line_error(BadParameter, name, option):
            check_options(name, {option: 1})
    with one_line_error(BadParameter, "iterations", "mask_steps", "rho", "damping", "schedule"):
        check_options("admm-grad", {"itrations": 30})
    inputs, weight = layer()
    for option in ({"schedule": "papr"}, {"mask_steps": -3}):  # also where a mask is given
        with one_line_error(BadParameter, next(iter(option))):
            METHODS["admm-grad"](weight, gram_of(inputs), keep=top_k(weight, 0.5), **option)
