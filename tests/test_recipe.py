"""The recipe: what `prune_and_repair` puts together, and the text that its steps read."""

import copy

import families as fam
import pytest
import torch

from helpers import (
    calibration_tokens,
    load_model,
    prune_and_repair,
    prune_model,
    windows_of,
)
from helpers.beyond import recipe
from helpers.beyond.allocation import guide
from helpers.beyond.distil import distil
from helpers.beyond.recipe import HELD_OUT, Effort, text_needed
from helpers.errors import BadParameter, HelpersError
from helpers.model.models import state_of
from reproduction.studies import draw_windows


@pytest.fixture(autouse=True)
def small_efforts(monkeypatch):
    monkeypatch.setattr(
        recipe, "EFFORTS", {"fast": Effort(2, 0), "balanced": Effort(3, 4)}
    )


@pytest.mark.parametrize(
    "target",
    [{"sparsity": 0.6}, {"pattern": "2:4"}, {"sparsity": 0.6, "ignore": ["*.k_proj"]}],
)
@pytest.mark.parametrize("effort", ["fast", "balanced"])
def test_the_recipe_is_its_steps(effort, target):
    dense = fam.build()
    model, by_hand = copy.deepcopy(dense), copy.deepcopy(dense)
    tokens = fam.random_tokens(sequences=windows_of(effort, 5))
    report = prune_and_repair(model, tokens, effort=effort, **target)
    settings = {"method": "admm-grad", "pattern": report.pattern, "passes": 1} | target
    if "sparsity" in target:
        text = tokens[: recipe.EFFORTS[effort].guide]
        settings |= vars(guide(by_hand, text, **target))
    expected = prune_model(by_hand, tokens[:5], **settings)
    shown = report.to_dict()["repair"]
    if effort == "balanced":
        repaired = distil(by_hand, dense, tokens[5:], held_out=HELD_OUT)
        assert shown["losses"] == repaired.losses
        assert shown["warning"] == repaired.warning
    assert not fam.changed(model, fam.snapshot(by_hand))
    assert state_of(model).report is report
    assert shown["effort"] == effort
    total = report.seconds.pop("total")
    assert total >= sum(report.seconds.values())
    assert report.ignored == expected.ignored
    assert len(report.layers) == 14
    assert report.sparsity == pytest.approx(expected.sparsity)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"tokens": fam.random_tokens(8)}, "9 windows"),
        ({"tokens": fam.random_tokens(0)}, "empty"),
        ({"effort": "short"}, "effort 'short'"),
        ({"importance": {}}, "'importance'"),
        ({"sparsity": 1.5}, "sparsity 1.5"),
        ({"iterations": 0}, "iterations 0"),
        ({"passes": 3}, "passes 3"),
        ({"method": "dense"}, "'dense'"),
        ({"method": "wnada"}, "'wnada'"),
        ({"model": fam.build().half()}, 'dtype="float32"'),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_runs(
    change, words, one_line_error
):
    given = dict(model=fam.build(), tokens=fam.random_tokens(9), sparsity=0.5) | change
    model = given["model"]
    model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran"))
    before = fam.snapshot(model)
    with one_line_error(BadParameter, words):
        prune_and_repair(**given)
    assert not fam.changed(model, before)


def test_the_text_that_a_run_needs(one_line_error):
    assert windows_of("fast") == 32
    assert windows_of("balanced", 8) == 8 + 4 + HELD_OUT
    assert text_needed("magnitude", "", 8) == text_needed("dense", "", 8) == 0
    assert text_needed("admm-grad", "", 8) == 8
    assert text_needed("magnitude", "balanced", 8) == 8 + 4 + HELD_OUT
    # before the model is loaded, with an effort too
    for method, effort in (("dense", "fast"), ("admmgrad", "fast"), ("admmgrad", "")):
        with one_line_error(BadParameter, method):
            text_needed(method, effort, 8)


def test_a_longer_repair_sees_what_a_shorter_one_has_seen(one_line_error):
    tokenizer = load_model("tiny", device="cpu")[1]
    given = dict(web_windows=2, sequences=3, guide_sequences=2, pool=9, length=16)
    given |= dict(calibration="embedded", calibration_seed=1, start_token="auto")

    def draw(**changes):
        return draw_windows(given | {"repair_windows": 2} | changes, tokenizer)

    short, long = draw(), draw(repair_windows=5)
    every = calibration_tokens("embedded", tokenizer, sequences=14, length=16, seed=1)
    assert torch.equal(short.every, every)
    assert torch.equal(torch.cat([long.web, long.layers, long.repair]), every)
    assert torch.equal(short.web, long.web)
    assert torch.equal(short.guide, long.layers[:2])
    assert torch.equal(short.repair, long.repair[: 2 + HELD_OUT])
    for name, value in (("repair_windows", 6), ("guide_sequences", 4)):
        with one_line_error(HelpersError, f"{name} {value}"):
            draw(**{name: value})
