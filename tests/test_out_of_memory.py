"""Memory that runs out while a model is pruned: the batch is halved, and the work goes on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import families as fam
import pytest
import saved
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from workers import TOKENS, WANDA

from helpers import load_model, prune_checkpoint, prune_model
from helpers.errors import OutOfMemory
from helpers.large.jobs import MANIFEST

LAYERS = 7


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama") / "source", num_hidden_layers=3)


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """A destination that is not there yet."""
    return tmp_path / "pruned"


@pytest.fixture
def in_forward(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable], None]:
    """Call a function(block's index, stream) before a Llama block runs."""
    forward = LlamaDecoderLayer.forward

    def patch(function: Callable[[int, Tensor], object]) -> None:
        def patched(self: nn.Module, hidden_states: Tensor, *more: object, **named: object):
            function(self.self_attn.layer_idx, hidden_states)
            return forward(self, hidden_states, *more, **named)

        monkeypatch.setattr(LlamaDecoderLayer, "forward", patched)

    return patch


ERRORS = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": lambda: RuntimeError(
        "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
    ),
    "python": lambda: MemoryError(),
}


def too_many(limit: int, where: int, kind: str, first: int = 0) -> Callable[[int, Tensor], None]:
    """Memory runs out in block `where` for more than `limit` sequences, from call `first` on."""
    count = iter(range(10**6))

    def check(index: int, stream: Tensor) -> None:
        if index == where and next(count) >= first and len(stream) > limit:
            raise ERRORS[kind]()

    return check


# calls of block 1 with 8 sequences in batches of 4: 0 arguments, 1 gate, 2 gate's replay,
# 3 and 4 grams, 5 and 6 the second pass
WHERE = {
    0: "recording arguments: batch 4 to 2",
    2: "the parity gate: batch 4 to 2",
    6: "block 1: batch 4 to 2",
}
TEXT = fam.random_tokens(8, 8)


@pytest.fixture(scope="module")
def in_small_batches(llama: Path) -> nn.Module:
    """The Llama pruned by prune_model with batches of 2."""
    model, _ = load_model(llama)
    prune_model(model, TEXT, method="admm1", sparsity=0.5, batch=2)
    return model


@pytest.mark.parametrize(("first", "kind"), [(0, "gpu"), (2, "python"), (6, "cpu")])
def test_the_batch_halves_where_memory_runs_out(
    llama: Path, to: Path, in_small_batches: nn.Module, in_forward: Callable, first: int, kind: str
) -> None:
    arguments = dict(method="admm1", sparsity=0.5, batch=4)
    in_forward(too_many(2, 1, kind, first))
    report = prune_checkpoint(llama, to, TEXT, **arguments)
    assert [text.split(",")[0] for text in report.halved] == [WHERE[first]]
    assert json.loads((to / MANIFEST).read_text())["halved"] == report.halved and report.batch == 2
    for name, tensor in in_small_batches.state_dict().items():
        torch.testing.assert_close(saved.loaded(to).state_dict()[name], tensor, msg=name)
    if kind == "cpu":
        whole, _ = load_model(llama)
        in_forward(too_many(2, 1, kind, first))
        usual = prune_model(whole, TEXT, **arguments)
        assert usual.halved == report.halved and fam.hook_count(whole) == 0
        assert fam.changed(whole, saved.loaded(to).state_dict()) == set()


def test_a_rerun_still_says_where_the_batch_was_halved(
    llama: Path, to: Path, in_forward: Callable
) -> None:
    arguments = dict(method="admm1", sparsity=0.5, batch=4)
    in_forward(too_many(2, 0, "cpu", first=3))
    with pytest.raises(ZeroDivisionError):
        prune_checkpoint(
            llama, to, TEXT, progress=lambda done, *_: 1 // (LAYERS + 1 - done), **arguments
        )
    in_forward(lambda *_: None)
    report = prune_checkpoint(llama, to, TEXT, **arguments)
    assert report.halved == ["block 0: batch 4 to 2, memory ran out"] and report.batch == 4
    assert prune_checkpoint(llama, to, TEXT, **arguments).halved == report.halved


def test_one_sequence_that_does_not_fit(
    llama: Path, to: Path, in_forward: Callable, one_line_error
) -> None:
    arguments = dict(WANDA, batch=1)
    in_forward(too_many(0, 2, "cpu", first=3))
    with one_line_error(OutOfMemory, "block 2: one sequence of 16 tokens", "2 finished blocks"):
        prune_checkpoint(llama, to, TOKENS, **arguments)
    in_forward(lambda *_: None)  # memory is there again
    assert saved.finished_blocks(to) == {0, 1}
    assert prune_checkpoint(llama, to, TOKENS, **arguments).resumed == 2
