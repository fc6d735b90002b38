"""The same answers on a GPU as on the CPU, and a GPU under the notebooks.

On a real GPU where there is one, in `make test-gpu` and `make test`; else on a pretended one
(pretend.py), which shows that no tensor is left on the wrong device. What a GPU's kernels compute,
in float16 above all, is seen on a real one only.
"""

import copy
import json
import shutil

import families as fam
import pytest
import saved
import torch

from helpers import (
    METHODS,
    calibration_tokens,
    evaluation_tokens,
    gram_of,
    guide,
    load_model,
    perplexity,
    prune_checkpoint,
    prune_model,
)
from helpers.beyond.distil import distil
from helpers.paths import notebooks_dir, root
from reproduction.parameters import code_cells
from reproduction.plan import read_plan

SMALL = dict(model="tiny", revision="", sequences=4, length=32)
SMALL |= dict(window=32, windows=2, limit=2, batch=2, tasks=["rte", "openbookqa"])
# of the plan t4 the last run of each notebook, in float32 and in float16
RUNS = {
    run.notebook: run.effective
    for run in [*read_plan("t4", "0[45]*admm-grad*"), *read_plan("smoke", "08*")]
}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm1", "admm-grad"])
@pytest.mark.parametrize(
    "target", [{"sparsity": 0.6}, {"sparsity": None, "pattern": "2:4"}]
)
def test_a_layer_is_solved_as_on_the_cpu(method, target):
    inputs = torch.randn(2000, 128)
    inputs += inputs[:, :1]
    weight = torch.randn(192, 128)
    here = METHODS[method](weight, gram_of(inputs), **target)
    there = METHODS[method](weight.to("cuda"), gram_of(inputs.to("cuda")), **target)
    assert there.keep.is_cuda
    assert (here.keep == there.keep.cpu()).float().mean() > 0.995
    assert here.error == pytest.approx(there.error, rel=0.01)


@pytest.mark.parametrize("passes", [1, 2])
def test_a_model_is_pruned_as_on_the_cpu(passes):
    model = fam.build("llama")
    tokens = fam.random_tokens(8)
    there = copy.deepcopy(model).to("cuda")
    for one in (model, there):
        prune_model(one, tokens, method="admm-grad", sparsity=0.6, passes=passes)
    same = fam.kept(there, "llama").cpu() == fam.kept(model, "llama")
    assert same.float().mean() > 0.99


def test_the_guide_is_as_on_the_cpu_and_equal_twice():
    model = fam.build("llama")
    there = copy.deepcopy(model).to("cuda")
    text = fam.random_tokens(2, 16)
    here, one, two = (guide(each, text, sparsity=0.6) for each in (model, there, there))
    assert one.sparsity == pytest.approx(here.sparsity, abs=0.02)
    assert one.sparsity == two.sparsity


def test_file_to_file_is_as_in_memory(tmp_path):
    source = saved.save(tmp_path / "source")
    tokens = fam.random_tokens(8)
    request = dict(method="admm1", sparsity=0.6, batch=2)
    prune_checkpoint(source, tmp_path / "to", tokens, device="cuda", **request)
    whole, _ = load_model(source, device="cuda")
    prune_model(whole, tokens, **request)
    pruned = saved.loaded(tmp_path / "to").to("cuda")
    assert not fam.changed(pruned, fam.snapshot(whole))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_embedded_model_end_to_end(dtype, card):
    if card:
        pytest.skip("its numbers are the CPU's, and take a minute; small models follow")
    model, tokenizer = load_model("embedded", device="cuda", dtype=dtype)
    text = evaluation_tokens("embedded", tokenizer)
    dense = perplexity(model, text, length=512, limit=8)
    tokens = calibration_tokens("embedded", tokenizer, sequences=16, length=128)
    prune_model(model, tokens, method="admm-grad", sparsity=0.5, passes=1)
    assert 15 < dense < 40
    assert dense < perplexity(model, text, length=512, limit=8) < 100


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_repair_in_either_precision(precision):
    dense = fam.build("llama").to("cuda")
    model = copy.deepcopy(dense)
    text = fam.random_tokens(20).to("cuda")
    prune_model(model, text[:4], method="wanda", sparsity=0.6, precision=precision)
    report = distil(model, dense, text[4:], rate=1e-3, held_out=4, precision=precision)
    assert report.held_out[-1][1] <= report.held_out[0][1]


@pytest.mark.parametrize("notebook, run", RUNS.items())
def test_a_notebook_runs_on_it(notebook, run, tmp_path):
    """With a small model and little text in place of theirs."""
    text = str(shutil.copy(root() / "CHANGES.md", tmp_path / "text.txt"))
    small = SMALL | dict(calibration=text, evaluation=text)
    changed = {name: value for name, value in small.items() if name in run}
    path = tmp_path / f"{notebook}--small.json"
    names = {}
    for source, tags in code_cells(notebooks_dir() / f"{notebook}.ipynb"):
        if "colab-setup" not in tags:
            exec(source, names)
        if "parameters" in tags:
            names |= run | changed | {"record_path": str(path)}
    assert next(names["network"].parameters()).is_cuda
    record = json.loads(path.read_text())
    assert record["device"] == torch.cuda.get_device_name()
    assert record["metrics"]["peak_memory"]["value"] > names["network"].num_parameters()
