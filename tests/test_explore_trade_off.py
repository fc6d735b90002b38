"""The explorer of what ways to prune and repair cost and bring."""

import pytest
from handmade import pruned, repaired

from helpers.errors import BadParameter, FileError
from helpers.explore import trade_off_explorer

RUNS = [
    repaired("admm-grad", "60 %", 80.0, 40.0, passes=2),
    repaired("admm-grad", "60 %", 80.0, 24.0, seed=1, passes=2),
    repaired("admm-grad", "60 %", 60.0, 29.0, seed=1, allocation="guide", passes=2),
    repaired("admm-grad", "60 %", 60.0, 31.0, allocation="guide", passes=2),
    repaired("admm-grad", "70 %", 160.0, 50.0, passes=2),
]


def test_it_shows_what_a_target_costs_and_brings() -> None:
    explorer = trade_off_explorer(RUNS)
    # a mean over seeds, of which one alone would have been lower
    caption = "60 %: lowest perplexity on Wikipedia 30.0, ADMM-Grad, guide + distil (64)"
    assert explorer.view.caption == caption
    ax = explorer.figure.axes[0]
    assert ax.get_ylabel() == "perplexity at 60 %" and ax.get_xlabel().startswith("seconds / ADMM")
    # closed at 60 %: the mean of ln(80 / 31) and ln(80 / 29) over ln(80 / 20)
    assert "70.79" in explorer.view.markup and "70 %" not in explorer.view.markup
    explorer.controls["target"].value = "70 %"
    explorer.controls["number"].value = "web"
    explorer.controls["against"].value = "memory"
    assert "lowest perplexity on web text 100.0" in explorer.view.caption
    ax = explorer.figure.axes[0]
    assert ax.get_ylabel() == "perplexity on web text at 70 %"
    assert ax.get_xlabel().startswith("peak memory (GB)")


def test_without_runs_and_at_a_target_of_none() -> None:
    with pytest.raises(FileError, match="notebook 08"):
        trade_off_explorer([pruned("wanda", "50 %", 30.0)])
    with pytest.raises(BadParameter, match="90 %"):
        trade_off_explorer(RUNS, target="90 %")
