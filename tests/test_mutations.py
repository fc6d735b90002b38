"""The verdict notices a broken solver, mask, calibration, allocation, repair or evaluation.

A small Llama is trained on text whose next letter follows from the two before. It is pruned as
notebooks 04 and 08 do it, by the package as it is and then broken in one place at a time. On
another machine the records have rounding in them too, as much as two kinds of processor have shown.
"""

from __future__ import annotations

import copy
import json
import random
import statistics
from typing import Any

import numpy as np
import processors
import pytest
import torch
from mutants import MUTANTS, solver_loop, sums
from transformers import LlamaConfig, LlamaForCausalLM

import helpers
from helpers import load_model
from helpers.beyond import allocation as allocate
from helpers.beyond import distil, recipe
from helpers.data import corpora
from helpers.errors import HelpersError
from helpers.model import prune
from helpers.model.block_grams import Replay
from reproduction.compare import judge

LETTERS = "abcdefghijklmnop\n"
LENGTH = 48
WINDOWS = 20
# for the layers, and for the repair
SEQUENCES = 16
REPAIR = 20
DRAWS = 8  # of the rounding of another machine
CELLS = {
    "zero-shot": {},
    "zero-shot-pruned": dict(method="admm-grad", sparsity=0.5),
    "dense": {},
    "magnitude": dict(method="magnitude", sparsity=0.5),
    "wanda": dict(method="wanda", sparsity=0.6),
    "wanda-2of4": dict(method="wanda", pattern="2:4"),
    "sparsegpt": dict(method="sparsegpt", sparsity=0.6),
    "admm1": dict(method="admm1", sparsity=0.6),
    "admm-grad": dict(method="admm-grad", sparsity=0.6),
    "admm-grad-2of4": dict(method="admm-grad", pattern="2:4"),
    "alps": dict(method="alps", sparsity=0.6),
    "one-pass": dict(method="admm-grad", sparsity=0.6, passes=1),
    "owl": dict(method="wanda", sparsity=0.6, allocation="owl"),
    "guide": dict(method="admm-grad", sparsity=0.6, allocation="guide"),
    "recipe": dict(method="wanda", sparsity=0.6, allocation="guide", repair="all"),
    # at such a rate nothing is better than the weights at the start, which are kept
    "spoilt": dict(method="wanda", sparsity=0.6, repair="all", rate=1.0),
}
Record = dict[str, Any]


# --- the model, the text and a run ---------------------------------------------------------


class Letters:
    """A tokenizer of letters that begins a text with a start token."""

    eos_token_id = 1

    def __call__(self, text, add_special_tokens=True, **_):
        if isinstance(text, list):
            return {
                "input_ids": [self(t, add_special_tokens)["input_ids"] for t in text]
            }
        return {
            "input_ids": [0] * add_special_tokens + [LETTERS.index(c) + 2 for c in text]
        }


def sample(seed, documents, length):
    """Documents in which one of three letters follows each pair of letters."""
    table = np.random.default_rng(0).integers(16, size=(16, 16, 3))
    source = np.random.default_rng(seed)
    texts = []
    for _ in range(documents):
        text = [0, 1]
        for choice in source.choice(3, size=length, p=(0.7, 0.2, 0.1)):
            text.append(table[text[-2], text[-1], choice])
        texts.append("".join(LETTERS[letter] for letter in text))
    return texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, seed in (("calibration", 2), ("evaluation", 3)):
        lines = [json.dumps({"text": text}) for text in sample(seed, 12, 400)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    yield {name: folder / f"{name}.jsonl" for name in ("calibration", "evaluation")}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(texts):
    """A trained Llama of four blocks, its layers wider than half a block of SparseGPT's.

    It is trained in float64, so that each kind of processor has the same model but for a last bit.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
    )
    network = LlamaForCausalLM(config).double()
    ids = torch.tensor(Letters()(sample(1, 1, 30_000)[0])["input_ids"])
    steps = 120
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.stack(
            [ids[at : at + LENGTH] for at in torch.randint(len(ids) - LENGTH, (16,))]
        )
        network(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.float().eval()


def record_of(cell, **fields):
    made = {
        "notebook": "04_prune_model",
        "name": cell,
        "parameters": {"model": "small", "method": "dense"} | CELLS[cell],
        "metrics": {},
        "data": {},
        "platform": {"processor": "one"},
        "layers": [],
    }
    return made | fields


def measure(model, texts, cell):
    """The record of one cell, with what the verdict looks at."""
    if cell.startswith("zero-shot"):
        return zero_shot(cell)
    tokenizer = Letters()
    network = copy.deepcopy(model)
    text = corpora.evaluation_tokens(texts["evaluation"], tokenizer)
    data = {"evaluation": corpora.corpus_identity(texts["evaluation"], text)}
    report = None
    metrics = {}
    if cell == "magnitude":
        report = prune.prune_model(network, None, progress=False, **CELLS[cell])
    elif cell != "dense":
        windows = SEQUENCES
        if "repair" in CELLS[cell]:
            windows += REPAIR
        draw = dict(sequences=windows, length=LENGTH, seed=0)
        tokens = corpora.calibration_tokens(texts["calibration"], tokenizer, **draw)
        data["calibration"] = corpora.corpus_identity(texts["calibration"], tokens)
        report = pruned(network, model, tokens, **CELLS[cell])
    if report:
        metrics["sparsity"] = report.sparsity
        if report.error is not None:
            metrics["mean_layer_error"] = report.error
        if cell == "recipe":
            looks = dict(report.repair["held_out"])
            metrics["divergence_before"] = looks[0]
            metrics["divergence_after"] = looks[report.repair["kept"]]
    measured = helpers.perplexity(network, text, length=LENGTH, limit=WINDOWS)
    metrics["perplexity"] = measured
    values = {name: {"value": number, "unit": "1"} for name, number in metrics.items()}
    layers = report.to_dict()["layers"] if report else []
    return record_of(cell, metrics=values, data=data, layers=layers)


def pruned(network, dense, tokens, allocation="", repair="", rate=None, **settings):
    """Prune as notebook 08 does it, with fewer windows; what is reported."""
    settings["progress"] = False
    text = tokens[:SEQUENCES]  # for the layers
    if allocation and repair:
        return recipe.prune_and_repair(network, tokens, effort="balanced", **settings)
    if allocation == "owl":
        # random layers have few scores of five times the mean
        shares = allocate.owl(network, text, sparsity=0.6, outliers=2.5)
        settings["sparsity"] = shares
    elif allocation == "guide":
        settings |= vars(allocate.guide(network, text[:4], sparsity=0.6))
    report = prune.prune_model(network, text, **settings)
    if repair:
        distil.distil(network, dense, tokens[SEQUENCES:], rate=rate)
    return report


def zero_shot(cell):
    """The model "tiny", dense or pruned, on real questions."""
    model, tokenizer = load_model("tiny")
    data = {"tasks": {}}
    limit = 40
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight *= 10.0  # what stands before a token then decides what it predicts
    if CELLS[cell]:
        draw = dict(sequences=8, length=64, seed=0)
        tokens = helpers.calibration_tokens("embedded", tokenizer, **draw)
        pruned(model, None, tokens, **CELLS[cell])
        data["calibration"] = {"tokens": "embedded"}
        # of 40 the verdict lets 14 turn, and likelihoods of other tokens turn 13
        limit = 120
    scores = helpers.zero_shot(model, tokenizer, tasks=["openbookqa"], limit=limit)
    series = {"zero_shot": {task: score.to_dict() for task, score in scores.items()}}
    series["answers"] = {task: score.answers for task, score in scores.items()}
    return record_of(cell, notebook="05_zero_shot", data=data, series=series)


@pytest.fixture(scope="module", autouse=True)
def few_steps():
    """Of the repair: sixteen instead of 64. The parity gate is left out: it decides nothing."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(recipe.EFFORTS, "balanced", recipe.Effort(4, 16))
        monkeypatch.setattr(Replay, "parity", lambda _: 0.0)
        yield


@pytest.fixture(scope="module")
def reference(model, texts):
    return {cell: measure(model, texts, cell) for cell in CELLS}


def apart(records, reference):
    """Whether the verdict on some cells is that one is apart."""
    plan = list(reference.values())
    verdict = judge(records, [reference[record["name"]] for record in records], plan)
    assert verdict.compared == len(records)
    return verdict.reproduced < verdict.compared


def elsewhere(records, reference):
    """The same on other machines: a verdict for each of DRAWS of their rounding."""
    dense = reference["dense"]["metrics"]["perplexity"]["value"]
    verdicts = []
    for seed in range(DRAWS):
        draw = random.Random(seed)
        verdicts.append(
            apart([processors.rounded(r, dense, draw) for r in records], reference)
        )
    return verdicts


@pytest.fixture(scope="module")
def noticed(model, texts, reference):
    """By mutant: whether the verdict notices it on the same kind of machine, and on which share of
    other machines.

    A run that ends in an error has no record, and so is not reproduced.
    """
    results = {}
    for name, (cells, _, patch) in MUTANTS.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            patch(monkeypatch)
            try:
                records = [measure(model, texts, cell) for cell in cells.split()]
            except HelpersError:
                results[name] = True, 1.0
                continue
        others = elsewhere(records, reference)
        results[name] = apart(records, reference), statistics.fmean(others)
    return results


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_broken_is_noticed(mutant, noticed):
    assert noticed[mutant][0]


def test_on_another_machine_nine_of_ten_are_noticed(noticed):
    """On each of those machines. Of three the small model says too little: the repair reads as good
    a text, and with torch 2.15 one draw of rounding in eight hides each of the others.
    """
    missed = {name for name, (_, share) in noticed.items() if share < 1}
    assert missed <= {
        "the repair reads the text of the layers",
        "the stream of dense blocks",
        "Z without U",
    }


def test_what_is_not_broken_is_reproduced(model, texts, reference, monkeypatch):
    again = [measure(model, texts, cell) for cell in CELLS]
    assert not apart(again, reference)
    for record in again:
        assert not any(elsewhere([record], reference)), record["name"]
    # another order of summation, and the loop that the paper writes, differ in rounding alone
    sums(lambda f, s, rows: f(s, rows.flip(0)))(monkeypatch)
    solver_loop("")(monkeypatch)
    # (ALPS stops when its mask rests, which in layers as small as these moves an error by 0.3 %;
    # in one pass the first blocks are those of ADMM-Grad, and would count twice)
    unmoved = ("zero-shot", "zero-shot-pruned", "alps", "one-pass")
    moved = [cell for cell in CELLS if cell not in unmoved]
    rounded = {cell: measure(model, texts, cell) for cell in moved}
    for cell in ("admm-grad", "recipe"):
        assert rounded[cell]["layers"] != reference[cell]["layers"]
    others = [
        record | {"platform": {"processor": "another"}} for record in rounded.values()
    ]
    # a weight that enters a mask moves the error of a layer as small as these by up to 1 %
    assert sum(apart([one], reference) for one in others) <= 1
