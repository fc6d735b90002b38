"""The drawings: committed as their program writes them; one is computed by ADMM's formulas."""

import pytest
import torch

from book import drawings
from helpers import exact_least_squares, refit
from helpers.paths import root


def test_committed():
    for drawing in drawings.DRAWINGS:
        path = root() / f"docs/drawings/{drawing.__name__}.svg"
        assert path.read_text("utf-8") == drawing()


def test_without_u_the_kept_weight_misses_its_optimum():
    layer = torch.tensor([[1, 0.8]]), torch.tensor([[1, 0.6], [0.6, 1]])
    keep = torch.tensor([[True, False]])
    optimum = exact_least_squares(*layer, keep, damping=0.1)[0, 0].item()
    assert f",{drawings.height(optimum):g} " in drawings.two_inputs()
    steps = drawings.admm_steps(with_u=True)
    for iterations in range(1, 6):
        solved = refit(*layer, keep, iterations=iterations).weight[0, 0]
        assert steps[iterations][0] == pytest.approx(solved.item())
    assert steps[5][:2] == pytest.approx((optimum, 0), abs=0.02)
    kept, pruned, u = drawings.admm_steps(with_u=False)[5]
    assert kept < 0.9 * optimum and pruned > 0.3 and u == 0
