"""One run that prunes and repairs a model: its text, its steps on blocks, its metrics."""

from __future__ import annotations

import families as fam
import pytest
import torch

from helpers import calibration_tokens, load_model, prune_model
from helpers.beyond.allocate import allocate, guide
from helpers.beyond.distil import distil
from helpers.beyond.recipe import HELD_OUT
from helpers.beyond.ways import (
    BlockSteps,
    check_way,
    draw_windows,
    layer_errors,
    shared_out,
    way_metrics,
)
from helpers.errors import HelpersError
from helpers.models import find_blocks, layer_key, model_layers

ASKED = {
    "method": "admm-grad",
    "sparsity": 0.6,
    "pattern": "unstructured",
    "allocation": "owl",
    "block_steps": "compensate + refine",
    "repair": "norms",
    "repair_windows": 4,
    "pool": 8,
    "sequences": 6,
    "guide_sequences": 2,
    "passes": 2,
    "precision": "auto",
    "dtype": "float32",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, ""),
        ({"block_steps": "", "repair": ""}, ""),
        ({"method": "wnada"}, "did you mean 'wanda'"),
        ({"sparsity": None}, "sparsity"),
        ({"allocation": "own"}, "'owl'"),
        ({"block_steps": "refine + compensate"}, "choose one of compensate,"),
        ({"repair": "none"}, "repair 'none' is unknown"),
        ({"repair_windows": 5}, "give 1 to 4"),
        ({"repair_windows": 0}, "give 1 to 4"),
        ({"allocation": "guide"}, ""),
        ({"allocation": "guide", "guide_sequences": 7}, "more than the 6 sequences"),
        ({"allocation": "guide", "guide_sequences": 0}, "guide_sequences"),
        ({"guide_sequences": 7}, ""),  # which nothing reads
        ({"passes": 3}, "give 1 or 2"),
        ({"passes": 1}, "passes=2"),  # it cannot refine
        ({"passes": 1, "block_steps": "compensate"}, ""),
        ({"repair": "", "repair_windows": 99}, ""),
        ({"precision": "int8"}, "bfloat16"),
        ({"dtype": "float16"}, "cannot be trained"),
        ({"dtype": "float16", "block_steps": "", "repair": ""}, ""),
        ({"dtype": "float16", "precision": "bfloat16"}, "is for a model in float32"),
        ({"dtype": "float8", "precision": "float32"}, "dtype 'float8'"),
        ({"pattern": "2:4", "sparsity": None}, 'set allocation to "uniform"'),
        ({"pattern": "2:4", "sparsity": None, "allocation": "uniform"}, ""),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(changes: dict, message: str) -> None:
    if not message:
        check_way(ASKED | changes)
        return
    with pytest.raises(HelpersError, match=message):
        check_way(ASKED | changes)


def test_where_weights_go_is_the_rules_answer() -> None:
    model, tokens = fam.build(), fam.random_tokens(sequences=4)
    target = dict(sparsity=0.5, pattern="unstructured", progress=lambda *_: None)
    asked = dict(guided_by=2, **target)
    assert shared_out(model, tokens, "uniform", **asked) == {"sparsity": 0.5}
    rule = allocate(model, tokens, rule="icp", **target)
    assert shared_out(model, tokens, "icp", **asked) == {"sparsity": rule}
    found = guide(model, tokens[:2], sparsity=0.5)
    both = shared_out(model, tokens, "guide", **asked)
    assert both["sparsity"] == found.sparsity
    assert all(torch.equal(both["importance"][key], found.importance[key]) for key in rule)


def test_a_longer_repair_sees_what_a_shorter_one_has_seen() -> None:
    tokenizer = load_model("tiny", device="cpu")[1]
    counts = dict(web=2, layers=3, pool=9, length=16, seed=1)
    short, long = (draw_windows("embedded", tokenizer, repair=n, **counts) for n in (2, 5))
    every = calibration_tokens("embedded", tokenizer, sequences=14, length=16, seed=1)
    assert torch.equal(short.every, every) and torch.equal(torch.cat(long[1:]), every)
    assert torch.equal(short.web, long.web) and torch.equal(short.layers, long.layers)
    assert len(short.repair) == 2 + HELD_OUT
    assert torch.equal(short.repair, long.repair[: len(short.repair)])
    with pytest.raises(HelpersError, match="give 1 to 5, or a larger pool"):
        draw_windows("embedded", tokenizer, repair=6, **counts)


@pytest.mark.parametrize("names", ["", "compensate", "refine", "compensate + refine"])
def test_steps_and_metrics(names: str) -> None:
    dense, model, tokens = fam.build(), fam.build(), fam.random_tokens(sequences=12)
    steps = BlockSteps(model, tokens, names, "float32")
    report = prune_model(model, tokens, method="wanda", sparsity=0.5, **steps.hooks)
    done = steps.to_dict()
    assert sorted(done) == sorted(names.split(" + ") if names else [])
    blocks = len({layer.block for layer in report.layers})
    for name, step in done.items():
        assert len(step["blocks"]) == blocks - (name == "compensate")
    seconds = steps.seconds(report, report.seconds["total"] + 1.0)
    parts = sum(report.seconds[part] for part in ("forward", "gram", "solve", "selection"))
    if names:
        assert seconds["prune"] == pytest.approx(parts)
        assert seconds["prune"] + seconds["block"] == pytest.approx(report.seconds["total"] + 1.0)
    else:
        assert (seconds["prune"], seconds["block"]) == (report.seconds["total"], 0.0)
    repaired = distil(model, dense, tokens, precision="float32")
    spent = seconds | {"allocate": 2.0, "repair": 3.0, "evaluate": 7.0}
    unseen = {"0.q": 0.1, "0.k": 0.3}
    metrics = way_metrics({"perplexity": 9.0}, spent, report, repaired, unseen)
    assert metrics["perplexity"] == (9.0, "1") and metrics["evaluate_seconds"] == (7.0, "s")
    total = seconds["prune"] + seconds["block"] + 5.0
    assert metrics["total_seconds"] == (pytest.approx(total), "s")
    assert metrics["mean_layer_error"] == (report.error, "1")
    assert metrics["mean_layer_error_web"] == (pytest.approx(0.2), "1")
    assert metrics["divergence_before"] == (repaired.held_out[0][1], "nats")
    assert metrics["divergence_after"][0] == min(value for _, value in repaired.held_out)
    metrics = way_metrics({}, spent, report, None, {})
    assert "divergence_after" not in metrics and "forward_seconds" in metrics


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_errors_of_layers_on_any_text(family: str) -> None:
    dense, model, tokens = fam.build(family), fam.build(family), fam.random_tokens(sequences=6)
    report = prune_model(model, tokens, method="wanda", sparsity=0.5, passes=1)
    seen: list[int] = []
    errors = layer_errors(model, dense, tokens, progress=lambda done, *_: seen.append(done))
    # another way to the same numbers: the report has them from grams, as each block was pruned
    reported = {layer_key(layer.block, layer.name): layer.error for layer in report.layers}
    assert errors == pytest.approx(reported, rel=1e-4) and seen[-1] == len(seen)
    assert set(layer_errors(dense, dense, tokens).values()) == {0.0}
    for layer in model_layers(model).values():
        layer.weight.data.zero_()
    assert set(layer_errors(model, dense, tokens).values()) <= {1.0}
    with pytest.raises(HelpersError, match="tokens"):
        layer_errors(model, dense, tokens.float())


def test_a_layer_that_no_token_reaches_has_no_error() -> None:
    dense, model = fam.build(), fam.build()
    for one in (dense, model):
        find_blocks(one)[1].expert = torch.nn.Linear(4, 4)
    errors = layer_errors(model, dense, fam.random_tokens())
    assert model_layers(model).keys() - errors.keys() == {"1.expert"}


def test_compensate_and_refine_share_the_dense_stream() -> None:
    model, tokens = fam.build(), fam.random_tokens(sequences=12)
    steps = BlockSteps(model, tokens, "compensate + refine", "float32")
    assert steps.steps["refine"].dense is steps.steps["compensate"].dense
    assert steps.hooks["before_block"] == steps.steps["compensate"].before
    assert steps.hooks["after_block"] == steps.steps["refine"].after
