"""The local search, against a plain one that tries every swap by exact least squares."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from layers import layer, objective, random_keep

from helpers import swap as module
from helpers.admm import exact_least_squares
from helpers.errors import BadParameter
from helpers.gram import gram_of
from helpers.masks import top_nm
from helpers.methods import METHODS
from helpers.swap import swap


def least(D: np.ndarray, w: np.ndarray, support: list[int]) -> float:
    """f(S): the objective after exact least squares on a support, by numpy."""
    new = np.zeros_like(w)
    new[support] = np.linalg.solve(D[np.ix_(support, support)], (D @ w)[support])
    return float((new - w) @ D @ (new - w))


def damped(gram: torch.Tensor, damping: float) -> np.ndarray:
    """D in the weights' own units, without dead inputs: the ridge weighs input i by gram_ii."""
    gram = gram.double()
    return (gram + damping * torch.diag(gram.diagonal())).numpy()


def search(
    D: np.ndarray, w: np.ndarray, kept: set[int], rounds: int, m: int | None
) -> tuple[set[int], float]:
    """The best of all swaps, tried one by one, `rounds` times."""
    now = least(D, w, sorted(kept))
    for _ in range(rounds):
        found = [
            (least(D, w, sorted(kept - {out} | {into})), out, into)
            for out, into in itertools.product(sorted(kept), sorted(set(range(len(w))) - kept))
            if m is None or out // m == into // m
        ]
        if not found or min(found)[0] > now * (1 - module.LEAST_GAIN):
            break
        now, out, into = min(found)
        kept = kept - {out} | {into}
    return kept, now


@pytest.mark.parametrize("rounds", [1, 2, 30])
@pytest.mark.parametrize(("pattern", "m"), [("unstructured", None), ("2:4", 4)])
@pytest.mark.parametrize(("damping", "least_gain"), [(0.01, 1e-6), (0.1, 1e-6), (0.1, 0.1)])
def test_it_makes_the_best_of_all_swaps(
    rounds: int,
    pattern: str,
    m: int | None,
    damping: float,
    least_gain: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LEAST_GAIN", least_gain)
    inputs, weight = layer(6, 12, 60)
    gram = gram_of(inputs)
    scores = torch.rand(weight.shape, generator=torch.Generator().manual_seed(2))
    keep = top_nm(scores, 2, 4) if m else scores > 0.5
    before = weight.clone(), gram.clone(), keep.clone()
    found = swap(weight, gram, keep, rounds=rounds, pattern=pattern, damping=damping)
    assert all(map(torch.equal, (weight, gram, keep), before))
    D, moved = damped(gram, damping), 0
    for row in range(len(weight)):
        start = set(keep[row].nonzero().flatten().tolist())
        w = weight[row].double().numpy()
        support, value = search(D, w, start, rounds, m)
        assert set(found.keep[row].nonzero().flatten().tolist()) == support
        reached = objective(weight[[row]], found.weight[[row]], gram, damping).item()
        assert reached == pytest.approx(value, rel=1e-5)
        moved += support != start
    assert moved >= 4, "a layer on which nothing moves would test nothing"
    expected = exact_least_squares(weight, gram, found.keep, damping=damping)
    torch.testing.assert_close(found.weight, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.keep.sum(1), keep.sum(1)) and found.damping == damping
    if m:
        assert (found.keep.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_it_ends_near_the_best_of_all_masks() -> None:
    # 10 inputs of which 5 stay: 252 masks an output, all of which can be tried
    inputs, weight = layer(8, 10, 60)
    gram, keep = gram_of(inputs), torch.arange(10).expand(8, 10) < 5
    found = swap(weight, gram, keep, rounds=50)
    D, best = damped(gram, 0.1), 0
    for row in range(8):
        w = weight[row].double().numpy()
        every = min(least(D, w, list(support)) for support in itertools.combinations(range(10), 5))
        reached = objective(weight[[row]], found.weight[[row]], gram, 0.1).item()
        assert every * (1 - 1e-5) <= reached <= 1.25 * every
        best += reached <= every * (1 + 1e-5)
    assert best >= 6  # of 8 outputs end at the very best


def test_a_swap_by_hand() -> None:
    # Independent inputs of norms 1, 2, 3: f is 1.1 times what is pruned, w_j² n_j². Of 9, 4·1 and
    # 9·4 the largest stays, whichever was kept, and its weight as it was.
    gram = torch.diag(torch.tensor([1.0, 4.0, 9.0]))
    weight = torch.tensor([[3.0, 1.0, -2.0], [3.0, 1.0, -2.0], [3.0, 1.0, -2.0]])
    found = swap(weight, gram, torch.eye(3, dtype=torch.bool), rounds=1)
    assert torch.allclose(found.weight, torch.tensor([0.0, 0.0, -2.0]).expand(3, 3))


def test_empty_and_full_outputs() -> None:
    inputs, weight = layer(9, 16, 80)
    gram, keep = gram_of(inputs), random_keep(weight.shape)
    keep[0], keep[1] = False, True
    found = swap(weight, gram, keep, rounds=20)
    assert torch.equal(found.keep[:2], keep[:2]) and not torch.equal(found.keep, keep)
    assert not found.weight[0].any() and torch.allclose(found.weight[1], weight[1], atol=1e-5)


def test_dead_and_dependent_inputs() -> None:
    inputs, weight = layer(6, 16, 80)
    inputs[:, 3], inputs[:, 5] = 0, inputs[:, 4]
    weight[:, 3] = 1000.0  # never put in, however large
    gram, keep = gram_of(inputs), random_keep(weight.shape)
    keep[:, 3], keep[0, 3] = False, True
    found = swap(weight, gram, keep, rounds=40)
    assert not found.keep[1:, 3].any()
    assert found.weight[0, 3] in (0.0, 1000.0)  # swapped for a live one, or left alone
    # a gram that cannot be factored is damped, and the answer says so
    assert swap(weight, gram, keep, damping=0.0).damping > 0


def test_a_given_mask_is_where_it_begins() -> None:
    inputs, weight = layer(12, 32, 150)
    gram, keep = gram_of(inputs), random_keep((12, 32))
    result = METHODS["admm1"](weight, gram, keep=keep, swap=3)
    found = swap(weight, gram, keep, rounds=3)
    assert torch.equal(result.keep, found.keep) and not torch.equal(result.keep, keep)
    assert torch.allclose(result.weight, found.weight) and result.gap < 1e-4


def test_bad_arguments(one_line_error) -> None:
    inputs, weight = layer(4, 12, 60)
    gram, keep = gram_of(inputs), random_keep((4, 12))
    for options in (dict(rounds=0), dict(damping=-0.1), dict(damping=math.nan)):
        with one_line_error(BadParameter, next(iter(options))):
            swap(weight, gram, keep, **options)
    with one_line_error(BadParameter, "4:2"):
        swap(weight, gram, keep, pattern="4:2")
    with one_line_error(BadParameter, "2:4"):
        swap(weight, gram, keep | True, pattern="2:4")
    with one_line_error(BadParameter, "gram"):
        swap(weight, gram[:-1, :-1], keep)
