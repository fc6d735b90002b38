"""The verdict notices a broken solver, mask, calibration or evaluation.

A small Llama is trained on text whose next letter follows from the two before, and pruned as
notebook 04 does it, by the package as it is and then broken in one place at a time.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from helpers import admm, capture, evaluate, masks, methods, prune, registry, replay, sparsegpt
from helpers import loop as blocks
from helpers.data import corpora
from helpers.errors import HelpersError
from helpers.fast import fused, panels
from helpers.gram import Gram
from helpers.report import judge

LETTERS = "abcdefghijklmnop\n"
LENGTH, SEQUENCES, WINDOWS = 48, 16, 40
CELLS = {
    "dense": {},
    "magnitude": dict(method="magnitude", sparsity=0.5),
    "wanda": dict(method="wanda", sparsity=0.6),
    "wanda-2of4": dict(method="wanda", pattern="2:4"),
    "sparsegpt": dict(method="sparsegpt", sparsity=0.6),
    "admm1": dict(method="admm1", sparsity=0.6),
    "admm-grad": dict(method="admm-grad", sparsity=0.6),
    "admm-grad-2of4": dict(method="admm-grad", pattern="2:4"),
}
Record = dict[str, Any]
Patch = Callable[[pytest.MonkeyPatch], None]


# --- the model, the text and a run ---------------------------------------------------------


class Letters:
    """A tokenizer of letters that begins a text with a start token."""

    eos_token_id = 1

    def __call__(self, text: str | list, add_special_tokens: bool = True, **_: Any) -> dict:
        if isinstance(text, list):
            return {"input_ids": [self(t, add_special_tokens)["input_ids"] for t in text]}
        return {"input_ids": [0] * add_special_tokens + [LETTERS.index(c) + 2 for c in text]}


def sample(seed: int, documents: int, length: int) -> list[str]:
    """Documents in which one of three letters follows each pair of letters."""
    table = np.random.default_rng(0).integers(16, size=(16, 16, 3))
    source, texts = np.random.default_rng(seed), []
    for _ in range(documents):
        text = [0, 1]
        for choice in source.choice(3, size=length, p=(0.7, 0.2, 0.1)):
            text.append(table[text[-2], text[-1], choice])
        texts.append("".join(LETTERS[letter] for letter in text))
    return texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    folder, threads = tmp_path_factory.mktemp("texts"), torch.get_num_threads()
    torch.set_num_threads(1)
    for name, seed in (("calibration", 2), ("evaluation", 3)):
        lines = [json.dumps({"text": text}) for text in sample(seed, 10, 400)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    yield {name: folder / f"{name}.jsonl" for name in ("calibration", "evaluation")}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(texts: dict[str, Path]) -> nn.Module:
    """A trained Llama of two blocks, its layers wider than half a block of SparseGPT's."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(LETTERS) + 2,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    network = LlamaForCausalLM(config)
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
    return network.eval()


def measure(model: nn.Module, texts: dict[str, Path], cell: str) -> Record:
    """The record of one cell, with what the verdict looks at."""
    tokenizer, network, report = Letters(), copy.deepcopy(model), None
    text = corpora.evaluation_tokens(texts["evaluation"], tokenizer)
    data = {"evaluation": corpora.corpus_identity(texts["evaluation"], text)}
    if cell not in ("dense", "magnitude"):
        draw = dict(sequences=SEQUENCES, length=LENGTH, seed=0)
        tokens = corpora.calibration_tokens(texts["calibration"], tokenizer, **draw)
        data["calibration"] = corpora.corpus_identity(texts["calibration"], tokens)
    if cell != "dense":
        tokens = tokens if "calibration" in data else None
        report = prune.prune_model(network, tokens, **CELLS[cell])
    value = evaluate.perplexity(network, text, length=LENGTH, limit=WINDOWS)
    metrics = {"perplexity": value, "sparsity": report.sparsity if report else 0.0}
    if report and report.error is not None:
        metrics["mean_layer_error"] = report.error
    return {
        "notebook": "04_prune_model",
        "name": cell,
        "parameters": {"model": "small", "method": "dense"} | CELLS[cell],
        "metrics": {name: {"value": number, "unit": "1"} for name, number in metrics.items()},
        "data": data,
        "platform": {"processor": "one"},
        "layers": report.to_dict()["layers"] if report else [],
    }


@pytest.fixture(scope="module")
def reference(model: nn.Module, texts: dict[str, Path]) -> dict[str, Record]:
    return {cell: measure(model, texts, cell) for cell in CELLS}


def apart(records: list[Record], reference: dict[str, Record], *, same: bool) -> bool:
    """Whether the verdict on some cells is that one is apart, on the same machine or another."""
    if not same:
        records = [record | {"platform": {"processor": "another"}} for record in records]
    plan = list(reference.values())
    verdict = judge(records, [reference[record["name"]] for record in records], plan)
    assert verdict.compared == len(records)
    return verdict.reproduced < verdict.compared


# --- how it is broken -------------------------------------------------------------------------


def around(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """Replace a function by change(function, *its arguments)."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        whole = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args, **more: change(whole, *args, **more))

    return patch


def given(owner: Any, name: str, **forced: Any) -> Patch:
    """Call a function with other values of some keyword arguments."""
    return around(owner, name, lambda whole, *args, **more: whole(*args, **more | forced))


def default(method: str, **forced: Any) -> Patch:
    """Change what a method does when an option is left out."""
    options = registry.METHODS[method].__wrapped__.__kwdefaults__
    return lambda monkeypatch: [monkeypatch.setitem(options, *item) for item in forced.items()]


def loop(change: str) -> Patch:
    """The solver's loop as the paper writes it, with one change; "" for none."""

    def solve(W0: Tensor, M: Tensor, *, iterations: int, choose: Any, trace: Any = None) -> Any:
        P = M + 0.5 * torch.eye(len(M))  # ρ (G + ρI)⁻¹
        start = W0.clone()
        W, U, kept = start.clone(), torch.zeros_like(start), torch.ones_like(start)
        for t in range(1, iterations + 1):
            choose(t, W if change == "mask from |W|" else W + U, torch.empty_like(W), kept)
            Z = (W if change == "Z without U" else W + U) * kept
            if change != "U not updated":
                U = U + (0.5 if change == "half of U" else 1.0) * (W - Z)
            from_ = start * kept if change == "fitted to the pruned weights" else start
            W = from_ - from_ @ P + (Z - U) @ P
        return (W + U) * kept, kept.bool()

    return lambda monkeypatch: monkeypatch.setattr(fused, "admm", solve)


def dense_stream(whole: Callable, self: blocks.Loop, index: int, replay: Any, stream: Any) -> None:
    """Later blocks see what the dense model gives."""
    block, before = copy.deepcopy(self.blocks[index]), stream.clone()
    whole(self, index, replay, stream)
    stream.copy_(capture.advance(block, before, replay.calls[index], replay.batch, "block"))


def halved_grams(whole: Callable, *args: Any) -> Any:
    return {name: Gram.of(gram.matrix.half().float()) for name, gram in whole(*args).items()}


def one_stays_dense(whole: Callable, layer: nn.Module, weight: Tensor) -> None:
    if weight.shape != (96, 192):
        whole(layer, weight)


def other_groups(whole: Callable, score: Tensor, sparsity: float, *args: Any, **more: Any) -> Any:
    return whole(score.T.contiguous(), sparsity, *args, **more).T.contiguous()


def without_start(_: Callable, tokenizer: Letters, text: str) -> Tensor:
    return torch.tensor(tokenizer(text, False)["input_ids"])


schedule = functools.partial(around, admm, "cubic_schedule")
ridge = functools.partial(around, admm, "add_ridge")
grams = functools.partial(around, replay, "sum_grams")
sums = functools.partial(around, panels, "add_upper")
windows = functools.partial(around, evaluate, "check_windows")
loss = functools.partial(around, evaluate, "_negative_log_likelihood")

# what is broken, the cells that are run for it, and how; f is the function as it was
MUTANTS: dict[str, tuple[str, Patch]] = {
    "damping 0": ("admm-grad", ridge(lambda f, matrix, damping: matrix)),
    "cubic schedule one step ahead": ("admm-grad", schedule(lambda f, s, t, n: f(s, t + 1, n))),
    "16 iterations": ("admm-grad", given(fused, "admm", iterations=16)),
    "half the calibration": ("wanda", grams(lambda f, b, s, *args: f(b, s[: len(s) // 2], *args))),
    "SparseGPT in blocks of 64": ("sparsegpt", given(sparsegpt, "solve", block_size=64)),
    "magnitude, a budget per output": ("magnitude", default("magnitude", budget="output")),
    "windows shifted by one token": (
        "dense admm-grad",
        windows(lambda f, m, t, *args: f(m, t[1:], *args)),
    ),
    # the solver
    "ρ = 2": ("admm-grad", around(admm, "_factor", lambda f, g, rho, *args: f(g, 2 * rho, *args))),
    "no preconditioning": (
        "admm-grad",
        around(admm, "damped_system", lambda f, g, d, precondition: f(g, d, precondition=False)),
    ),
    "damping 0.05": ("admm-grad", ridge(lambda f, matrix, damping: f(matrix, damping / 2))),
    "19 iterations": ("admm-grad", given(fused, "admm", iterations=19)),
    "40 iterations": ("admm-grad", given(fused, "admm", iterations=40)),
    "U not updated": ("admm-grad", loop("U not updated")),
    "mask from |W|": ("admm-grad", loop("mask from |W|")),
    "Z without U": ("admm-grad", loop("Z without U")),
    "half of U": ("admm-grad", loop("half of U")),
    "fitted to the pruned weights": ("admm-grad", loop("fitted to the pruned weights")),
    "step matrix in half precision": (
        "admm-grad",
        around(fused, "step_matrix", lambda f, *args: f(*args).half().float()),
    ),
    "SparseGPT with damping 0.1": ("sparsegpt", given(sparsegpt, "solve", damping=0.1)),
    "SparseGPT, blocks do not make up for those before": (
        "sparsegpt",
        around(sparsegpt, "_prune_columns", lambda f, *args: 0 * f(*args)),
    ),
    # masks
    "the released schedule": ("admm-grad", default("admm-grad", schedule="released")),
    "a linear schedule": ("admm-grad", schedule(lambda f, s, t, n: s * min(t, n) / n)),
    "10 mask steps": ("admm-grad", default("admm-grad", mask_steps=10)),
    "no growing mask": ("admm-grad-2of4", default("admm-grad", mask_steps=0)),
    "the mask of step 14 is final": ("admm-grad", schedule(lambda f, s, t, n: f(s, min(t, 14), n))),
    "one weight more falls": (
        "wanda",
        around(masks, "keep_largest", lambda f, rows, zeros, *out: f(rows, zeros + 1, *out)),
    ),
    "groups along the output": ("wanda-2of4", around(methods, "select", other_groups)),
    "Wanda, a budget per matrix": ("wanda", default("wanda", budget="matrix")),
    "ADMM1, a budget per output": ("admm1", default("admm1", budget="output")),
    # calibration
    "one token of each sequence missing in the gram": (
        "wanda admm-grad",
        around(Gram, "add", lambda f, self, inputs: f(self, inputs[..., 1:, :])),
    ),
    "grams in half precision": ("admm-grad", grams(halved_grams)),
    "inputs in half precision": ("admm-grad", sums(lambda f, s, rows: f(s, rows.half().float()))),
    "the stream of dense blocks": ("admm-grad", around(blocks.Loop, "one_block", dense_stream)),
    "the stream stays at the first block": (
        "admm-grad",
        around(replay.Replay, "advance", lambda *_: None),
    ),
    "another seed": (
        "wanda",
        around(corpora, "calibration_tokens", lambda f, *a, seed, **m: f(*a, seed=seed + 1, **m)),
    ),
    "documents joined without an end": (
        "wanda",
        around(corpora, "_joined", lambda f, texts, _: f(["".join(texts)], Letters())),
    ),
    # what is pruned and what is measured
    "one layer stays dense": ("admm-grad", around(blocks, "write_weight", one_stays_dense)),
    "the error is not squared": (
        "wanda",
        around(registry, "relative_error", lambda f, *args: f(*args) ** 0.5),
    ),
    "no start token": ("dense", around(corpora, "_tokenise", without_start)),
    "a window left out": ("dense", windows(lambda f, m, t, n, limit: f(m, t, n, limit - 1))),
    "the first prediction left out": (
        "dense",
        loss(lambda f, logits, rows: f(logits[:, 1:], rows[:, 1:])),
    ),
}


@pytest.fixture(scope="module")
def noticed(
    model: nn.Module, texts: dict[str, Path], reference: dict[str, Record]
) -> dict[str, tuple[bool, bool]]:
    """By mutant: whether the verdict notices it on the same kind of machine, and on another.

    A run that ends in an error has no record, and so is not reproduced.
    """
    results = {}
    for name, (cells, patch) in MUTANTS.items():
        with pytest.MonkeyPatch.context() as monkeypatch:
            patch(monkeypatch)
            try:
                records = [measure(model, texts, cell) for cell in cells.split()]
                results[name] = tuple(apart(records, reference, same=s) for s in (True, False))
            except HelpersError:
                results[name] = True, True
    return results


@pytest.mark.parametrize("mutant", MUTANTS)
def test_what_is_broken_is_noticed(mutant: str, noticed: dict[str, tuple[bool, bool]]) -> None:
    assert noticed[mutant][0]


def test_on_another_machine_it_is_noticed_too(noticed: dict[str, tuple[bool, bool]]) -> None:
    """All of them here. Of the embedded model a step matrix or inputs in half precision pass: they
    change the errors of its first block as little as rounding may.
    """
    assert len(noticed) == 41
    assert [name for name, (_, other) in noticed.items() if not other] == []


def test_what_is_not_broken_is_reproduced(
    model: nn.Module,
    texts: dict[str, Path],
    reference: dict[str, Record],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = [measure(model, texts, cell) for cell in CELLS]
    assert not apart(again, reference, same=True)
    # another order of summation, and the loop that the paper writes, differ in rounding alone
    sums(lambda f, s, rows: f(s, rows.flip(0)))(monkeypatch)
    loop("")(monkeypatch)
    rounded = [measure(model, texts, cell) for cell in CELLS]
    assert rounded[-1]["layers"][0]["error"] != again[-1]["layers"][0]["error"]
    assert not apart(rounded, reference, same=False)
