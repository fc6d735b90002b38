"""The recipe: what `prune_model(method="best")` puts together."""

import copy

import families as fam
import pytest
import torch

from helpers import prune_model
from helpers.beyond import recipe
from helpers.beyond.distil import distil
from helpers.errors import HelpersError
from helpers.models import PRUNED, STATE


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "BUDGETS", {"fast": 3, "balanced": 6})


@pytest.mark.parametrize("target", [{"sparsity": 0.6}, {"pattern": "2:4"}])
def test_the_recipe_is_its_two_steps(target: dict) -> None:
    dense = fam.build()
    model, by_hand = copy.deepcopy(dense), copy.deepcopy(dense)
    tokens = fam.random_tokens(sequences=5 + 3 + recipe.HELD_OUT)
    report = prune_model(model, tokens, method="best", budget="fast", base="wanda", **target)
    prune_model(by_hand, tokens[:5], method="wanda", **target)
    repaired = distil(by_hand, dense, tokens[5:], held_out=recipe.HELD_OUT)
    for name, parameter in by_hand.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert report.method == "best" and getattr(model, STATE) == PRUNED
    shown = report.to_dict()["repair"]
    assert (shown["base"], shown["budget"], shown["steps"]) == ("wanda", "fast", 3)
    assert shown["losses"] == repaired.losses and shown["held_out"] == repaired.held_out
    assert report.seconds["total"] >= report.seconds["distil"] + report.seconds["forward"] > 0
    # what was pruned is still zero
    assert report.sparsity == pytest.approx(target.get("sparsity", 0.5), abs=0.01)


def test_a_budget_says_how_much_text_it_needs() -> None:
    assert recipe.windows_of("fast") == 32 + 3 + recipe.HELD_OUT
    model, tokens = fam.build(), fam.random_tokens(sequences=3 + recipe.HELD_OUT)
    before = fam.snapshot(model)
    cases = [
        ({"tokens": tokens, "budget": "fast"}, "needs 8 windows of text or more, better 39"),
        ({"tokens": None, "budget": "fast"}, "there are 0"),
        ({"tokens": tokens, "budget": "short"}, "'balanced'"),
        ({"tokens": tokens, "base": "best"}, "single layers"),
        ({"tokens": tokens, "allow_pruned": True}, "leave allow_pruned out"),
    ]
    for arguments, message in cases:
        with pytest.raises(HelpersError, match=message):
            prune_model(model, arguments.pop("tokens"), method="best", sparsity=0.5, **arguments)
    assert not fam.changed(model, before)
