"""Memory that runs out while a model is pruned: the batch is halved, and the work goes on."""

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
ARGUMENTS = dict(method="admm1", sparsity=0.5, batch=4)
TEXT = fam.random_tokens(8, 8)
ON_CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"
)
# calls of block 1 with 8 sequences in batches of 4: 0 arguments, 1 gate, 2 gate's replay,
# 3 and 4 grams, 5 and 6 the second pass
CASES = {
    0: ("recording arguments", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2")),
    2: ("the parity gate", MemoryError()),
    6: ("block 1", ON_CPU),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama") / "source", num_hidden_layers=3)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let a Llama's block fail with an error for more than `limit` sequences, from its call `first`
    on; without a limit there is memory again.
    """
    forward = LlamaDecoderLayer.forward

    def set_limit(
        limit: int = 10**6, block: int = 0, error: BaseException = ON_CPU, first: int = 0
    ) -> None:
        calls = iter(range(10**6))

        def limited(self: nn.Module, hidden_states: Tensor, *more: object, **named: object):
            counts = self.self_attn.layer_idx == block and next(calls) >= first
            if counts and len(hidden_states) > limit:
                raise error
            return forward(self, hidden_states, *more, **named)

        monkeypatch.setattr(LlamaDecoderLayer, "forward", limited)

    return set_limit


def test_the_batch_halves_where_memory_runs_out(
    llama: Path, tmp_path: Path, memory: Callable
) -> None:
    expected, _ = load_model(llama)
    prune_model(expected, TEXT, **ARGUMENTS | {"batch": 2})
    for first, (where, error) in CASES.items():
        memory(2, block=1, error=error, first=first)
        to = tmp_path / str(first)
        report = prune_checkpoint(llama, to, TEXT, **ARGUMENTS)
        assert report.halved == [f"{where}: batch lowered from 4 to 2, out of memory"]
        assert report.batch == 2
        assert json.loads((to / MANIFEST).read_text())["halved"] == report.halved
        found = saved.loaded(to).state_dict()
        for name, tensor in expected.state_dict().items():
            torch.testing.assert_close(found[name], tensor, msg=name)


def test_a_rerun_still_says_where_the_batch_was_halved(
    llama: Path, tmp_path: Path, memory: Callable
) -> None:
    def stop(done: int, *_: object) -> None:
        if done == LAYERS + 1:
            raise InterruptedError

    memory(2, block=0, first=3)
    with pytest.raises(InterruptedError):
        prune_checkpoint(llama, tmp_path / "to", TEXT, progress=stop, **ARGUMENTS)
    memory()
    for _ in range(2):  # resumed, then complete
        report = prune_checkpoint(llama, tmp_path / "to", TEXT, **ARGUMENTS)
        assert report.halved == ["block 0: batch lowered from 4 to 2, out of memory"]
        assert report.batch == 4


def test_one_sequence_that_does_not_fit(
    llama: Path, tmp_path: Path, memory: Callable, one_line_error
) -> None:
    to, arguments = tmp_path / "to", dict(WANDA, batch=1)
    memory(0, block=2, first=3)
    with one_line_error(OutOfMemory, "block 2: one sequence of 16 tokens", "2 finished blocks"):
        prune_checkpoint(llama, to, TOKENS, **arguments)
    memory()
    assert saved.finished_blocks(to) == {0, 1}
    assert prune_checkpoint(llama, to, TOKENS, **arguments).resumed == 2
