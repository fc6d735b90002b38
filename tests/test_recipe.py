"""The recipe: what `prune_model(method="best")` puts together."""

import copy

import families as fam
import pytest
import torch

from helpers import prune_model
from helpers.beyond import recipe
from helpers.beyond.allocate import guide
from helpers.beyond.distil import distil
from helpers.beyond.recipe import Budget, text_needed
from helpers.errors import BadParameter, HelpersError
from helpers.models import PRUNED, STATE


@pytest.fixture(autouse=True)
def small_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe, "BUDGETS", {"fast": Budget(2, 0), "balanced": Budget(3, 4)})


@pytest.mark.parametrize("target", [{"sparsity": 0.6}, {"pattern": "2:4"}])
@pytest.mark.parametrize("budget", ["fast", "balanced"])
def test_the_recipe_is_its_steps(budget: str, target: dict) -> None:
    dense = fam.build()
    model, by_hand = copy.deepcopy(dense), copy.deepcopy(dense)
    steps = recipe.BUDGETS[budget].repair
    repair = steps + recipe.HELD_OUT if steps else 0
    tokens = fam.random_tokens(sequences=5 + repair)
    asked = dict(method="best", budget=budget, precision="float32")
    report = prune_model(model, tokens, **asked, **target)
    steps_asked = dict(target)
    if "sparsity" in target:
        found = guide(by_hand, tokens[: recipe.BUDGETS[budget].guide], sparsity=0.6)
        steps_asked = {"sparsity": found.sparsity, "importance": found.importance}
    steps_asked |= {"method": "admm-grad", "pattern": report.pattern, "passes": 1}
    prune_model(by_hand, tokens[:5], **steps_asked)
    shown = report.to_dict()["repair"]
    if steps:
        asked = dict(held_out=recipe.HELD_OUT, precision="float32")
        repaired = distil(by_hand, dense, tokens[5:], **asked)
        assert shown["losses"] == repaired.losses and shown["held_out"] == repaired.held_out
        assert shown["steps"] == steps
    for name, parameter in by_hand.named_parameters():
        assert torch.equal(model.get_parameter(name), parameter), name
    assert report.method == "best" and getattr(model, STATE) == PRUNED
    assert (shown["base"], shown["budget"]) == ("admm-grad", budget)
    assert report.seconds["total"] >= sum(
        report.seconds.get(part, 0.0) for part in ("guide", "forward", "solve", "distil")
    )
    assert report.sparsity == pytest.approx(target.get("sparsity", 0.5), abs=1e-3)


def test_what_cannot_be_done_is_refused_before_it_takes_time() -> None:
    needed = 1 + 4 + recipe.HELD_OUT
    assert recipe.windows_of("balanced", 1) == needed and recipe.windows_of("fast") == 32
    model, tokens = fam.build(), fam.random_tokens(sequences=needed)
    before = fam.snapshot(model)
    cases = [
        ({"tokens": tokens[1:]}, f"needs {needed} windows of text or more, better {31 + needed}"),
        ({"tokens": None}, "there are 0"),
        ({"budget": "short"}, "balanced, fast"),
        ({"base": "best"}, "single layers"),
        ({"base": "magnitud"}, "magnitude"),
        ({"allow_pruned": True}, "leave allow_pruned out"),
        ({"importance": {}}, "no importance"),
        ({"sparsity": {"0.mlp.up_proj": 0.5}}, "give one sparsity"),
        ({"sparsity": 1.5}, "1.5"),
        ({"iterationz": 3}, "iterationz.*itself takes base, budget, precision"),
        ({"tokens": tokens.tolist()}, "int64 tensor"),
        ({"base": "wanda", "iterations": 3}, "iterations"),
        ({"pattern": "3:5"}, "divide"),
        ({"precision": "int8"}, "bfloat16"),
        ({"tokens": torch.cat([tokens[:-1], tokens[-1:] + 10**6])}, "vocabulary"),
    ]
    for change, message in cases:
        asked = {"tokens": tokens, "sparsity": None if "pattern" in change else 0.5} | change
        with pytest.raises(HelpersError, match=message):
            prune_model(model, method="best", **asked)
    assert not fam.changed(model, before)
    with pytest.raises(HelpersError, match='dtype="float32"'):
        prune_model(model.half(), tokens, method="best", sparsity=0.5)


def test_the_text_that_a_method_needs(one_line_error) -> None:
    assert text_needed("magnitude", 32, {}) == 0
    assert text_needed("admm-grad", 32, {"iterations": 10}) == 32
    assert text_needed("best", 32, {"budget": "fast", "precision": "float32"}) == 32
    with one_line_error(BadParameter, "precision", "bfloat16"):
        text_needed("best", 32, {"precision": "float16"})
    assert text_needed("best", 32, {}) == 32 + 4 + recipe.HELD_OUT
    with one_line_error(BadParameter, "iteration"):
        text_needed("admm-grad", 32, {"iteration": 10})
    with one_line_error(BadParameter, "budget", "balanced"):
        text_needed("best", 32, {"budget": "balance"})
    with pytest.raises(BadParameter, match="bugdet.*takes base, budget, precision"):
        text_needed("best", 32, {"bugdet": "fast"})
    with one_line_error(BadParameter, "admm-grad"):
        text_needed("admmgrad", 32, {})
