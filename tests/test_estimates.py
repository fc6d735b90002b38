"""Memory, disk and time of a run before it is started, against what was measured."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.errors import BadParameter, UnsupportedModel
from helpers.machine import checkpoint_memory, estimate, machine_named, missing, this_machine
from helpers.machine.estimates import flop, in_steps, memory_needed, shape_of
from helpers.models import find_blocks, find_layers, read_weight
from helpers.paths import reference_dir, replace_file, root
from helpers.report.records import read_records
from helpers.runner.plan import read_plan

SEVEN = "meta-llama/Llama-2-7b-hf"


def parameters(**changes: Any) -> dict[str, Any]:
    """All parameters of a run of notebook 04 by the paper's protocol."""
    model = dict(model=SEVEN, method="admm-grad", sparsity=0.5, pattern="unstructured", options={})
    text = dict(calibration="c4", sequences=128, length=2048, evaluation="wikitext2", window=2048)
    return model | text | dict(second_window=0, windows=0, device="auto", dtype="float16") | changes


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("embedded", 134_515_008),
        ("huggyllama/llama-7b", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
    ],
)
def test_parameters_are_the_published_counts(model: str, published: int) -> None:
    assert shape_of(model).parameters == published


def test_a_folder_has_the_shape_of_its_model(tmp_path: Path, one_line_error: Callable) -> None:
    sizes = dict(vocab_size=96, hidden_size=32, intermediate_size=80, num_hidden_layers=3)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    model.save_pretrained(tmp_path)
    shape, blocks = shape_of(tmp_path), find_blocks(model)
    found = [tuple(read_weight(layer).shape) for layer in find_layers(blocks[0]).values()]
    assert shape.layers == found and shape.blocks == len(blocks)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.positions == model.config.max_position_embeddings
    with one_line_error(BadParameter, "someone/else", "config.json", "embedded"):
        shape_of("someone/else")
    for text in ("[" * 100_000, "[1]"):
        (tmp_path / "config.json").write_text(text)
        with one_line_error(BadParameter, str(tmp_path), "config.json"):
            shape_of(tmp_path)
    for config in ({"model_type": "gpt2", "n_embd": 8}, {"model_type": "llama", "head_dim": 3}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with one_line_error(UnsupportedModel, repr(config["model_type"])):
            shape_of(tmp_path)


@pytest.mark.parametrize("plan", ["laptop", "full"])
def test_time_and_memory_are_those_of_the_committed_records(plan: str) -> None:
    """The rate is one number, chosen for the total of `laptop`; the rest is counted."""
    laptop, estimated, measured = machine_named("laptop"), 0.0, 0.0
    for record in read_records(reference_dir(plan) / "records"):
        if record["notebook"] not in ("04_prune_model", "05_zero_shot"):
            continue
        needs = estimate(record["parameters"], laptop)
        estimated, measured = estimated + needs.seconds, measured + record["seconds"]
        assert 1 / 2.5 < needs.seconds / record["seconds"] < 2.5, record["name"]
        if record["notebook"] == "04_prune_model":
            ratio = needs.memory_bytes / record["peak_memory_bytes"]
            assert 0.8 < ratio < 1.2, record["name"]
    assert 1 / 1.5 < estimated / measured < 1.5


def test_operations_worked_by_hand(tmp_path: Path) -> None:
    """One block of width 4, ff 8, one head, 3 x 5 tokens, vocabulary 16."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4, "vocab_size": 16}
    config |= {"intermediate_size": 8, "num_attention_heads": 1, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = parameters(model=str(tmp_path), method="admm1", sequences=3, length=5, window=10)
    passes, products = flop(given | {"windows": 2, "second_window": 20})
    layers = 2 * (4 * 4 * 4 + 3 * 4 * 8)  # of a token; then attention over 5, 10, 20, and the head
    evaluation = 20 * (layers + 4 * 10 * 4 + 128) + 40 * (layers + 4 * 20 * 4 + 128)
    assert passes == 2 * 15 * (layers + 4 * 5 * 4) + evaluation
    product = 2 * (4 * 4 * 16 + 2 * 8 * 16 + 4 * 64)
    grams = 2 * 5 / 8 * (3 * 16 + 64) * 15
    assert products == grams + (21 + 2) * product + 3 * 4**3 + 8**3


def test_a_repair_takes_three_models_and_its_steps() -> None:
    """The steps are four passes each; looks at four held-out windows are three, of two models."""
    small = dict(model="embedded", dtype="float32", length=512, sequences=8, web_windows=16)
    asked = parameters(**small, window=512, windows=16, repair="all", repair_windows=64,
                       allocation="uniform")  # fmt: skip
    plain = {k: v for k, v in asked.items() if not k.startswith(("repair", "web"))}
    none = asked | {"repair": ""}
    passes = [flop(of)[0] for of in (plain, none, asked)]
    evaluated = passes[0] - flop(plain | {"windows": 1})[0]  # of 15 windows
    assert passes[1] - passes[0] == pytest.approx(evaluated * (2 * 16 + 3 * 16) / 15)
    assert passes[2] - passes[1] == pytest.approx(evaluated * (4 * 64 + 24) / 15)
    guided = flop(asked | {"allocation": "guide", "guide_sequences": 8})[0]
    assert guided - passes[2] == pytest.approx(evaluated * 3 * 8 / 15)
    weights, memory = 134_515_008, [memory_needed(of, gpu=False)[0] for of in (plain, none, asked)]
    assert memory[1] - memory[0] == 8 * weights
    layers = 30 * (2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536)
    once = flop(asked | {"passes": 1})[0]  # without a pass over the text of the layers
    assert passes[2] - once == 8 * 512 * (2 * layers + 30 * 4 * 512 * 576)
    assert memory[2] - memory[1] == 17 * layers + 12 * 512 * 49152


def test_a_recipe_takes_what_its_steps_take() -> None:
    machine = machine_named("v100")
    small = dict(model="embedded", dtype="float32", sequences=32, length=512, windows=16)
    spelled = parameters(**small, passes=1, precision="auto", allocation="guide",
                         guide_sequences=4, repair="all", repair_windows=64)  # fmt: skip
    best = parameters(**small, method="best")
    assert estimate(best, machine) == estimate(spelled, machine)
    exact = parameters(**small, method="best", options={"precision": "float32"})
    assert estimate(exact, machine) == estimate(spelled | {"precision": "float32"}, machine)
    assert memory_needed(best, gpu=True) == memory_needed(spelled, gpu=True)
    plain = parameters(**small)  # what is trained lies on the GPU, and RAM only loads the model
    assert memory_needed(best, gpu=True)[1] == memory_needed(plain, gpu=True)[1]
    assert memory_needed(best, gpu=True)[0] > 2 * memory_needed(plain, gpu=True)[0]
    fast = parameters(**small, method="best", options={"budget": "fast", "base": "wanda"})
    steps = {"method": "wanda", "repair": "", "repair_windows": 0, "guide_sequences": 2}
    assert estimate(fast, machine) == estimate(spelled | steps, machine)
    assert "allocation" not in in_steps(parameters()), "not a recipe"
    grouped = in_steps(parameters(method="best", pattern="2:4", sparsity=None))
    assert grouped["allocation"] == "uniform"


def test_what_costs_more() -> None:
    """On a V100, as the paper quotes them, Wanda takes 214 seconds and SparseGPT 1263."""
    v100 = machine_named("v100")
    methods = ("dense", "wanda", "sparsegpt", "admm-grad", "mine")
    dense, wanda, sparsegpt, admm, mine = (estimate(parameters(method=m), v100) for m in methods)
    assert 1 / 2 < (wanda.seconds - dense.seconds) / 214 < 2
    assert wanda.seconds < sparsegpt.seconds < dense.seconds + 1263
    assert mine == admm  # a reader's own method counts as the most expensive one
    base, longer = flop(parameters()), flop(parameters(options={"iterations": 40}))
    assert longer[0] == base[0] and 1.2 < longer[1] / base[1] < 2
    tasks = parameters(tasks=["rte"], limit=0, source="hub", batch=4, method="dense", window=0)
    assert flop(tasks | {"limit": 100})[0] == pytest.approx(flop(tasks)[0] * 100 / 277)
    assert flop(parameters(method="dense"))[1] == 0 == flop(parameters(method="magnitude"))[1]


def test_what_cannot_be_estimated(one_line_error: Callable) -> None:
    laptop = machine_named("laptop")
    with one_line_error(BadParameter, "prunes and evaluates"):
        estimate({"plan": "full"}, laptop)
    for change in ({"length": 0}, {"dtype": "int8"}, {"tasks": ["rtf"], "limit": 0, "batch": 1}):
        with one_line_error(BadParameter, next(iter(change)).removesuffix("s")):
            estimate(parameters(**change), laptop)
    with one_line_error(BadParameter, "machine 'a100'", "a100-80g"):
        machine_named("a100")
    for change in ({"method": "mine"}, {"activations": "disc"}, {"batch": 0}, {"sequences": 0}):
        with one_line_error(BadParameter, next(iter(change))):
            checkpoint_memory(**{"source": SEVEN, "sequences": 8, "length": 512} | change)


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = this_machine()
    assert machine.here and not machine.gpu and machine.memory > 1e9
    assert 1e9 < machine.flops["float32"] < 1e14


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    return lambda value: monkeypatch.setattr(huggingface_hub, "get_token", lambda: value)


def test_what_a_run_lacks(token: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    token("hf_something")
    a100, t4, laptop = map(machine_named, ("a100-80g", "t4", "laptop"))
    assert missing(parameters(), a100) == []
    memory, ram = missing(parameters(), t4)
    assert "GPU memory, t4 has 15" in memory and "of RAM" in ram
    assert "needs a GPU" in missing(parameters(), laptop)[0]
    assert "RAM" in missing(parameters(dtype="float32"), laptop)[0]
    here = dataclasses.replace(a100, here=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=14e9))
    (disk,) = missing(parameters(), here)
    assert "15 GB of disk, 14 GB are free" in disk
    with (replace_file(tmp_path / "models--meta-llama--Llama-2-7b-hf/a", "")).open("wb") as stream:
        stream.truncate(int(2e9))  # a sparse file: part of the model is here
    assert missing(parameters(), here) == []
    token(None)
    (gated,) = missing(parameters(), a100)
    assert "gated" in gated and "hf auth login" in gated
    assert missing(parameters(model="huggyllama/llama-7b"), a100) == []


def test_the_hubs_folder_is_known_in_a_new_process() -> None:
    """The hub's package loads its modules on demand, and here nothing else has loaded them."""
    code = "from helpers.machine.estimates import huggingface_hub as h; h.constants.HF_HUB_CACHE"
    assert subprocess.run([sys.executable, "-c", code], cwd=root(), check=False).returncode == 0


@pytest.mark.parametrize(("plan", "machine"), [("t4", "t4"), ("paper", "a100-80g")])
def test_committed_plans_fit_their_machines(token: Callable, plan: str, machine: str) -> None:
    token("hf_something")
    runs = [run for run in read_plan(plan) if "model" in run.effective]
    assert len(runs) > 5
    for run in runs:
        lacking = missing(run.effective, machine_named(machine))
        assert bool(lacking) == ("70b" in run.name), run.id


@pytest.mark.parametrize("notebook", ["04_prune_model", "05_zero_shot"])
@pytest.mark.parametrize(
    ("kind", "plan", "name", "machine"),
    [
        ("Colab T4", "t4", "tinyllama-1.1b-admm-grad-50", "t4"),
        ("A100", "paper", "llama-2-7b-admm-grad-50", "a100-80g"),
    ],
)
def test_notebooks_give_the_estimates_of_the_code(
    notebook: str, kind: str, plan: str, name: str, machine: str
) -> None:
    (run,) = read_plan(plan, f"{notebook}/{name}")
    needs = estimate(run.effective, machine_named(machine))
    text = (root() / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")
    row = rf"\| {kind}[^|]*\(estimate\) \| (\d+) min \| (\d+) GB \|"
    ((minutes, memory),) = re.findall(row, text)
    assert 1 / 2 < int(minutes) / max(1, needs.seconds / 60) < 2
    assert abs(int(memory) - needs.memory_bytes / 1e9) < 1


def test_the_page_on_colab_gives_the_estimates_of_the_code() -> None:
    text = (root() / "docs" / "colab.md").read_text(encoding="utf-8")
    t4 = machine_named("t4")
    hours = sum(estimate(r.effective, t4).seconds for r in read_plan("t4", "0[45]*")) / 3600
    assert f"about {hours:.1f} hours on a T4" in text
    names = ["embedded", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "HuggingFaceTB/SmolLM2-1.7B"]
    models = {name.split("/")[-1]: name for name in [*names, "huggyllama/llama-7b"]}
    asked = dict(sequences=64, windows=40, evaluation="embedded", calibration="embedded")
    rows = re.findall(r"^\| (\S+) \| (float\d+) \| (.+) \|$", text, flags=re.MULTILINE)
    assert [row[0] for row in rows] == list(models)
    for name, dtype, figures in rows:
        needs = estimate(parameters(model=models[name], dtype=dtype, **asked), t4)
        sizes = (needs.memory_bytes, needs.host_bytes, needs.disk_bytes)
        minutes = f"{max(1, round(needs.seconds / 60))} min"
        assert figures.split(" | ") == [*(f"{n / 1e9:.1f} GB" for n in sizes), minutes], name


def test_the_memory_of_a_checkpoint_by_hand() -> None:
    d, ff, asked = 4096, 11_008, dict(sequences=128, length=2048)
    whole = checkpoint_memory(SEVEN, **asked)
    assert whole.block == 4 * (4 * d * d + 3 * d * ff + 2 * d)
    # q, k, v read one input, the output projection another, gate and up a third, down the last
    assert whole.grams == 4 * (3 * d * d + ff * ff)
    assert whole.stream == 4 * 128 * 2048 * d
    # down_proj is factored: its gram, the scaled one, the factor, the inverse and LAPACK's copy
    assert whole.peak == whole.stream + whole.block + 4 * 5 * ff * ff
    half = checkpoint_memory(SEVEN, **asked, dtype="float16")
    assert (half.block, half.stream) == (whole.block // 2, whole.stream // 2)
    assert half.grams == whole.grams  # always float32
    disk = checkpoint_memory(SEVEN, **asked, activations="disk")
    assert disk.stream == 0 and disk.peak == whole.peak - whole.stream
    # one pass holds one gram, and all text where it waits for down_proj
    once = checkpoint_memory(SEVEN, **asked, passes=1)
    assert once.grams == 4 * ff * ff
    assert once.peak == whole.peak + 4 * 128 * 2048 * (ff + 2 * d)
    # without a factor: two and a half copies of gate's weight, beside its gram and that of down
    wanda = checkpoint_memory(SEVEN, sequences=512, length=512, method="wanda")
    assert wanda.peak == wanda.stream + wanda.block + 4 * (d * d + ff * ff) + 10 * d * ff
