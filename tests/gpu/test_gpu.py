"""What only an NVIDIA GPU can show: the same answers as on the CPU, and what is there alone.

`make test-gpu`; a few minutes. Without a GPU every test is skipped and says so.
"""

import copy
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # for the models that all tests share

import families as fam
import saved

from helpers import (
    METHODS,
    calibration_tokens,
    evaluation_tokens,
    load_model,
    perplexity,
    prune_checkpoint,
    prune_model,
)
from helpers.beyond.distil import distil
from helpers.gram import Gram

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(),
    reason="needs CUDA: no NVIDIA GPU is found on this machine",
)
CUDA = torch.device(
    "cuda" if torch.cuda.is_available() else "cpu"
)  # only looked at, without one


def problem(d_out, d_in, tokens):
    """A random weight and the gram of correlated inputs, on the GPU."""
    source = torch.Generator(CUDA).manual_seed(0)
    inputs = torch.randn(tokens, d_in, generator=source, device=CUDA)
    inputs += inputs[:, :1]
    gram = Gram(d_in, CUDA)
    gram.add(inputs)
    return torch.randn(d_out, d_in, generator=source, device=CUDA), gram


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "admm1", "admm-grad"])
@pytest.mark.parametrize(
    "target", [{"sparsity": 0.6}, {"sparsity": None, "pattern": "2:4"}]
)
def test_a_layer_is_solved_as_on_the_cpu(method, target):
    weight, gram = problem(192, 128, 2000)
    here = METHODS[method](weight, gram.matrix, **target)
    there = METHODS[method](weight.cpu(), gram.matrix.cpu(), **target)
    assert (here.keep.cpu() == there.keep).float().mean() > 0.995
    assert here.error == pytest.approx(there.error, rel=0.01)


@pytest.mark.parametrize("passes", [1, 2])
def test_a_model_is_pruned_as_on_the_cpu(passes):
    model = fam.build("llama")
    tokens = fam.random_tokens(8)
    there = copy.deepcopy(model).to(CUDA)
    for one in (model, there):
        prune_model(one, tokens, method="admm-grad", sparsity=0.6, passes=passes)
    same = fam.kept(there, "llama").cpu() == fam.kept(model, "llama")
    assert same.float().mean() > 0.99


def test_file_to_file_is_as_in_memory(tmp_path):
    source = saved.save(tmp_path / "source")
    tokens = fam.random_tokens(8)
    request = dict(method="admm1", sparsity=0.6, batch=2)
    prune_checkpoint(source, tmp_path / "to", tokens, device="cuda", **request)
    whole, _ = load_model(source, device="cuda")
    prune_model(whole, tokens, **request)
    pruned = saved.loaded(tmp_path / "to").to(CUDA)
    assert not fam.changed(pruned, fam.snapshot(whole))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_embedded_model_end_to_end(dtype):
    model, tokenizer = load_model("embedded", device="cuda", dtype=dtype)
    text = evaluation_tokens("embedded", tokenizer)
    dense = perplexity(model, text, length=1024, limit=4)
    tokens = calibration_tokens("embedded", tokenizer, sequences=8, length=512)
    prune_model(model, tokens, method="admm-grad", sparsity=0.5, passes=1)
    assert 15 < dense < 22
    assert dense < perplexity(model, text, length=1024, limit=4) < 60


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_repair_in_either_precision(precision):
    dense = fam.build("llama").to(CUDA)
    model = copy.deepcopy(dense)
    text = fam.random_tokens(20).to(CUDA)
    prune_model(model, text[:4], method="wanda", sparsity=0.6, precision=precision)
    report = distil(model, dense, text[4:], rate=1e-3, held_out=4, precision=precision)
    assert report.held_out[-1][1] <= report.held_out[0][1]
