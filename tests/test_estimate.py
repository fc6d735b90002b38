"""Memory, disk and hours of a run before it is started, against what was measured."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from helpers.assets import embedded_model_folder
from helpers.errors import AssetError, BadParameter, RecordError, UnknownModel, UnsupportedModel
from helpers.machine import estimate as estimates
from helpers.machine.estimate import (
    Machine,
    estimate,
    fit_machine,
    machine_named,
    machine_names,
    measured_seconds,
    plan_lines,
    requirements,
    shape_of,
    this_machine,
)
from helpers.models import find_blocks, find_layers, read_weight
from helpers.paths import reference_dir, root
from helpers.records import read_records
from helpers.replay import best_batch, largest_divisor
from helpers.results.published import read_published
from helpers.runner.plan import Run, read_plan

CALIBRATED = ("wanda", "sparsegpt", "admm1", "admm-grad")


def parameters(**changes: Any) -> dict[str, Any]:
    """All parameters of a run of notebook 04 by the paper's protocol."""
    return {
        "model": "meta-llama/Llama-2-7b-hf",
        "method": "admm-grad",
        "sparsity": 0.5,
        "pattern": "unstructured",
        "options": {},
        "calibration": "c4",
        "sequences": 128,
        "length": 2048,
        "evaluation": "wikitext2",
        "window": 2048,
        "second_window": 0,
        "windows": 0,
        "device": "auto",
        "dtype": "float16",
    } | changes


def run_of(**changes: Any) -> Run:
    return Run("paper", "04_prune_model", "name", parameters(**changes), {})


@pytest.fixture(scope="module")
def measured() -> list[dict]:
    """The committed records of notebook 04."""
    records = read_records(reference_dir("full") / "records")
    return [record for record in records if record["notebook"] == "04_prune_model"]


# --- shapes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "published"),
    [
        ("huggyllama/llama-7b", 6_738_415_616),
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("meta-llama/Llama-2-70b-hf", 68_976_648_192),
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1_100_048_384),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
    ],
)
def test_parameters_are_the_published_counts(model: str, published: int) -> None:
    assert shape_of(model).parameters == published


def test_the_embedded_model_is_as_its_folder_says() -> None:
    try:
        folder = embedded_model_folder()
    except AssetError as error:
        pytest.skip(str(error))
    assert shape_of(folder) == shape_of("embedded")
    assert shape_of("embedded").parameters == 134_515_008


def test_a_folder_has_the_shape_of_its_model(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path)
    shape = shape_of(tmp_path)
    blocks = find_blocks(model)
    found = [(n, *read_weight(layer).shape) for n, layer in find_layers(blocks[0]).items()]
    assert shape.layers == found and shape.blocks == len(blocks)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.positions == config.max_position_embeddings


def test_a_shape_that_is_not_known(tmp_path: Path, one_line_error: Callable) -> None:
    with one_line_error(UnknownModel, "someone/else", "config.json", "embedded"):
        shape_of("someone/else")
    for config in ({"model_type": "gpt2", "n_embd": 8}, {"model_type": "llama", "head_dim": 3}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with one_line_error(UnsupportedModel, repr(config["model_type"])):
            shape_of(tmp_path)


# --- against what was measured -------------------------------------------------------------


def ratios(records: list[dict], machine: Machine, method: str) -> list[float]:
    """Estimated over median measured seconds of pruning, for each pattern of a method."""
    runs: dict[str, list[dict]] = {}
    for record in records:
        given = record["parameters"]
        if given["method"] == method and not given["options"]:
            runs.setdefault(given["pattern"], []).append(record)
    return [
        estimate(group[0]["parameters"], machine).prune_seconds
        / statistics.median(record["metrics"]["prune_seconds"]["value"] for record in group)
        for group in runs.values()
    ]


@pytest.mark.parametrize("method", [*CALIBRATED, "magnitude"])
def test_seconds_of_methods_that_were_not_fitted(measured: list[dict], method: str) -> None:
    """Rates from ADMM-Grad and Wanda; the others' seconds are predicted."""
    fitted = [r for r in measured if r["parameters"]["method"] in ("admm-grad", "wanda")]
    found = ratios(measured, fit_machine(fitted), method)
    limit = 0.35 if method in CALIBRATED else 0.6  # magnitude takes two seconds
    assert len(found) == 3 and all(1 - limit < ratio < 1 + limit for ratio in found), found


def test_the_parts_are_right_too(measured: list[dict]) -> None:
    machine = machine_named("laptop")
    for name in ("forward", "gram", "solve", "evaluate"):
        found = []
        for record in measured:
            seconds = measured_seconds(record)[name]
            if seconds and record["parameters"]["method"] != "magnitude":
                found.append(estimate(record["parameters"], machine).seconds[name] / seconds)
        assert 0.65 < statistics.median(found) < 1.35, name


def test_the_parts_of_another_plan_are_right() -> None:
    """Rates fitted to the plan `full` foretell the plan `laptop`, a quarter of its tokens."""
    machine = machine_named("laptop")
    records = read_records(reference_dir("laptop") / "records")
    pruned = [r for r in records if r["name"].startswith("admm") and "gram_seconds" in r["metrics"]]
    for name in ("forward", "gram", "solve", "evaluate"):
        found = [
            estimate(record["parameters"], machine).seconds[name] / measured_seconds(record)[name]
            for record in pruned
        ]
        assert len(found) == 8 and 0.65 < statistics.median(found) < 1.35, (name, found)


def test_memory(measured: list[dict]) -> None:
    for record in measured:
        guess = estimate(record["parameters"], machine_named("laptop")).memory_bytes
        assert 0.8 < guess / record["peak_memory_bytes"] < 1.2, record["name"]


def test_selection_with_a_clock_of_its_own_counts_as_solve() -> None:
    metrics = {"solve_seconds": {"value": 3.0}, "selection_seconds": {"value": 2.0}}
    assert measured_seconds({"metrics": metrics})["solve"] == 5.0


def test_published_seconds_on_a_v100() -> None:
    """Wanda is mostly passes; our grams, which it does not need, are counted apart."""
    published = {
        figure.method: figure.value
        for figure in read_published()
        if figure.metric == "prune_seconds_v100"
    }
    needs = estimate(parameters(method="wanda"), machine_named("v100"))
    assert 0.5 < needs.prune_seconds / published["wanda"] < 2
    assert 0.5 < (needs.prune_seconds - needs.seconds["gram"]) / published["wanda"] < 2
    slower = estimate(parameters(method="sparsegpt"), machine_named("v100"))
    assert needs.prune_seconds < slower.prune_seconds < published["sparsegpt"]


def test_operations_worked_by_hand(tmp_path: Path) -> None:
    """One block of width 4, ff 8, one head, 3 x 5 tokens, vocabulary 16."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "hidden_size": 4, "vocab_size": 16}
    config |= {"intermediate_size": 8, "num_attention_heads": 1, "max_position_embeddings": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    given = parameters(model=str(tmp_path), method="admm1", sequences=3, length=5, window=10)
    work = estimates.work_of(given | {"windows": 2, "second_window": 20}, batch=3)
    token = 2 * (4 * 4 * 4 + 3 * 4 * 8) + 4 * 5 * 4  # layers, attention over 5 tokens
    head = 2 * 4 * 16
    # the gate: all three sequences at once
    assert work.forward == 3 * 5 * token + 3 * 5 * (3 * token + 2 * head)
    assert work.gram == 2 * 5 / 8 * (3 * 16 + 64) * 15
    products = 4 * 4 * 16 + 2 * 8 * 16 + 4 * 64
    assert work.solve == (2 * 21 + 4) * products + 3 * 4**3 + 8**3
    assert work.selected == 4 * 16 + 3 * 32
    assert work.evaluate == 20 * (token + 4 * 5 * 4 + head) + 40 * (token + 4 * 15 * 4 + head)


def test_a_pass_is_as_large_as_the_pruning_makes_it() -> None:
    for length, sequences in ((5, 3), (512, 32), (2048, 128), (2048, 6), (100_000, 4)):
        given = {"length": length, "sequences": sequences}
        for device in ("cpu", "cuda"):
            batch = largest_divisor(sequences, best_batch(device, length))
            assert estimates.batch_of(given, gpu=device == "cuda") == batch


def test_a_length_that_is_none_is_refused_before_it_divides(one_line_error: Callable) -> None:
    for length in (0, -1, 0.5):
        with one_line_error(BadParameter, "length", "whole number, 1 or more"):
            estimate(parameters(length=length), machine_named("t4"))


def test_more_iterations_and_mask_steps_cost_more() -> None:
    base = estimates.work_of(parameters())
    longer = estimates.work_of(parameters(options={"iterations": 40}))
    fewer = estimates.work_of(parameters(options={"mask_steps": 5}))
    assert longer.solve > 1.5 * base.solve and longer.selected == base.selected
    assert fewer.selected == base.selected / 3 and fewer.solve == base.solve


def test_zero_shot_grows_with_items_and_not_past_the_split() -> None:
    given = parameters(tasks=["rte"], limit=0, source="hub", batch=4)
    full = estimates.work_of(given).evaluate
    assert estimates.work_of(given | {"limit": 100}).evaluate == pytest.approx(full * 100 / 277)
    assert estimates.work_of(given | {"tasks": ["rte", "openbookqa"]}).evaluate > full


def test_dense_and_magnitude_need_no_calibration() -> None:
    v100 = machine_named("v100")
    dense = estimate(parameters(method="dense"), v100)
    assert dense.prune_seconds == 0 and dense.seconds["evaluate"] > 0
    assert estimate(parameters(method="magnitude"), v100).seconds["forward"] == 0
    assert dense.disk_bytes < estimate(parameters(), v100).disk_bytes - 1e9


def test_fitting_needs_both_methods(measured: list[dict], one_line_error: Callable) -> None:
    with one_line_error(RecordError, "0 calibrated records"):
        fit_machine([])
    wanda = [r for r in measured if r["name"] == "wanda-60"]
    with one_line_error(RecordError, "admm-grad"):
        fit_machine(wanda * 2)


def test_what_cannot_be_estimated(one_line_error: Callable) -> None:
    laptop = machine_named("laptop")
    for name in ("dtype", "window", "method"):
        with one_line_error(BadParameter, "04 and 05"):
            estimate({k: v for k, v in parameters().items() if k != name}, laptop)
    with one_line_error(BadParameter, "method 'mine'"):
        estimate(parameters(method="mine"), laptop)
    with one_line_error(BadParameter, "machine 'a100'", "a100-80g"):
        machine_named("a100")


# --- machines ------------------------------------------------------------------------------


def test_machines_are_named_and_marked() -> None:
    assert machine_names() == ["laptop", "t4", "v100", "l4", "a100-80g", "h100"]
    for name in machine_names()[1:]:
        machine = machine_named(name)
        assert machine.gpu and "not measured" in machine.note and not machine.here


def test_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machine = this_machine()
    assert machine.here and not machine.gpu and machine.memory > 1e9
    assert 1e9 < machine.product < 1e14


@pytest.mark.parametrize(("device", "like"), [("Tesla T4", "t4"), ("NVIDIA RTX A1000", None)])
def test_a_gpu_is_known_by_its_name(
    monkeypatch: pytest.MonkeyPatch, device: str, like: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: device)
    memory = type("Properties", (), {"total_memory": 7})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: memory)
    monkeypatch.setattr(estimates, "_product_rate", lambda place: 1e12)
    machine = this_machine()
    assert machine.name == device and machine.memory == 7 and machine.here
    assert machine.product == (machine_named(like).product if like else 1e12)


# --- what is missing -----------------------------------------------------------------------


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    return lambda value: monkeypatch.setattr(huggingface_hub, "get_token", lambda: value)


def test_what_a_run_lacks(token: Callable) -> None:
    token("hf_something")
    a100, t4, laptop = map(machine_named, ("a100-80g", "t4", "laptop"))
    assert requirements(run_of(), a100) == []
    lacking = requirements(run_of(), t4)
    assert len(lacking) == 2 and "GPU memory, t4 has 15" in lacking[0] and "RAM" in lacking[1]
    assert "no GPU" in requirements(run_of(), laptop)[0]
    assert "RAM" in requirements(run_of(dtype="float32"), laptop)[0]
    (window,) = requirements(run_of(model="huggyllama/llama-7b", second_window=4096), a100)
    assert "takes 2048 tokens, not 4096" in window
    token(None)
    (gated,) = requirements(run_of(), a100)
    assert "gated" in gated and "hf auth login" in gated
    assert requirements(run_of(model="huggyllama/llama-7b"), a100) == []


def test_disk_is_looked_at_here_only(
    token: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token("hf_something")
    a100 = machine_named("a100-80g")
    here = dataclasses.replace(a100, here=True)
    monkeypatch.setattr(estimates, "_hub_folder", lambda: tmp_path / "not" / "yet")
    usage = type("Usage", (), {"free": 14e9})
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage)
    assert requirements(run_of(), a100) == []
    (disk,) = requirements(run_of(), here)
    assert "15 GB of disk, 14 are free" in disk
    blobs = tmp_path / "not" / "yet" / "models--meta-llama--Llama-2-7b-hf" / "blobs"
    blobs.mkdir(parents=True)
    with (blobs / "weights").open("wb") as stream:
        stream.truncate(int(2e9))  # a sparse file: part of the model is here
    assert requirements(run_of(), here) == []


def test_the_lines_of_a_plan(token: Callable) -> None:
    token(None)
    runs = [
        run_of(),
        run_of(sequences=64),  # needs less, and lacks the same
        run_of(model="huggyllama/llama-7b"),
        Run("paper", "06_tables_and_plots", "tables", {"plan": "paper"}, {}),
    ]
    lines = plan_lines(runs, machine_named("t4"))
    table = lines[2:7]
    assert table[0].split() == ["run", "model", "memory", "disk", "hours"]
    assert len({len(line) for line in table}) == 1, "columns are aligned"
    total = next(line for line in lines if line.startswith("total"))
    one = estimate(parameters(), machine_named("t4"))
    other = estimate(parameters(sequences=64), machine_named("t4"))
    need = f"{one.memory_bytes / 1e9:.0f} GB of GPU memory"
    hours = (2 * one.total_seconds + other.total_seconds) / 3600
    assert f"3 runs, {hours:.2f} hours" in total
    assert "28 GB of disk" in total, "two models of 13.5 GB and one shard of text"
    assert "not estimated: 1 run" in lines
    missing = lines[lines.index("missing:") + 1 :]
    assert len(missing) == 5 and len(set(missing)) == 5
    assert f"  2 runs: meta-llama/Llama-2-7b-hf: {need}, t4 has 15: take more" in missing
    assert sum("  2 runs: meta-llama" in line for line in missing) == 3
    assert plan_lines(runs[:1], machine_named("a100-80g"))[-1].startswith("  1 run: meta-llama")
    token("hf_something")
    assert plan_lines(runs, machine_named("a100-80g"))[-1] == "missing: nothing"


# --- the committed plans -------------------------------------------------------------------


def estimated(plan: str, machine: Machine) -> Iterator[tuple[Run, estimates.Estimate]]:
    for run in read_plan(plan):
        if estimates.can_estimate(run.effective):
            yield run, estimate(run.effective, machine)


def test_plan_t4_fits_a_t4(token: Callable) -> None:
    token(None)
    t4 = machine_named("t4")
    assert (t4.memory, t4.host) == (15e9, 12e9)
    for run, needs in estimated("t4", t4):
        assert needs.memory_bytes < 15e9 and needs.host_bytes < 12e9, run.id
        assert requirements(run, t4) == [], run.id


def test_llama_7b_does_not_fit_a_t4() -> None:
    """Which is why plan t4 leaves it out."""
    t4 = machine_named("t4")
    needs = estimate(parameters(model="huggyllama/llama-7b", sequences=16), t4)
    assert needs.memory_bytes > t4.memory and needs.host_bytes > t4.host


def test_everything_of_the_paper_but_70b_fits_one_big_gpu(token: Callable) -> None:
    token("hf_something")
    for run, _ in estimated("paper", machine_named("a100-80g")):
        lacking = requirements(run, machine_named("a100-80g"))
        assert bool(lacking) == ("70b" in run.name), run.id


def test_estimating_loads_neither_torch_nor_pandas() -> None:
    code = "import sys, helpers.machine.estimate; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=root(), check=False)
    assert answer.returncode == 0


@pytest.mark.parametrize(
    ("notebook", "plan", "name", "machine"),
    [
        ("04_prune_model", "t4", "tinyllama-1.1b-admm-grad-60", "t4"),
        ("04_prune_model", "paper", "llama-2-7b-admm-grad-50", "a100-80g"),
        ("05_zero_shot", "t4", "tinyllama-1.1b-admm-grad-50", "t4"),
        ("05_zero_shot", "paper", "llama-2-7b-admm-grad-50", "a100-80g"),
    ],
)
def test_notebooks_give_the_estimates_of_the_code(
    notebook: str, plan: str, name: str, machine: str
) -> None:
    (run,) = read_plan(plan, f"{notebook}/{name}")
    needs = estimate(run.effective, machine_named(machine))
    minutes, memory = round(needs.total_seconds / 60), math.ceil(needs.memory_bytes / 1e9)
    text = (root() / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")
    kind = "Colab T4" if machine == "t4" else "A100"
    (row,) = re.findall(rf"\| ({kind}[^|]*\(estimate\) \|[^|]*\|[^|]*) \|", text)
    assert row.split(" | ")[1:] == [f"{minutes} min", f"{memory} GB"]


def test_the_hours_of_plan_t4_are_those_that_its_page_gives() -> None:
    hours = sum(needs.total_seconds for _, needs in estimated("t4", machine_named("t4"))) / 3600
    page = (root() / "docs" / "colab.md").read_text(encoding="utf-8")
    assert f"about {hours:.1f} hours on a T4" in page
