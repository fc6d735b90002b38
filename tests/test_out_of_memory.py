"""Memory that runs out while a checkpoint is pruned: the batch is halved, and the work goes on."""

from pathlib import Path

import families as fam
import pytest
import saved
import torch
from workers import TOKENS, WANDA, without_memory

from helpers import load_model, prune_checkpoint, prune_model, replay
from helpers.errors import OutOfMemory

LAYERS = 7
ARGUMENTS = dict(method="admm1", sparsity=0.5, batch=4)
TEXT = fam.random_tokens(8, 8)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of three blocks in shards. Not to be changed."""
    return saved.save(tmp_path_factory.mktemp("llama") / "source", num_hidden_layers=3)


def test_the_batch_halves_where_memory_runs_out(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # test_prune.py lets memory run out in every other place
    expected, _ = load_model(llama)
    prune_model(expected, TEXT, **ARGUMENTS | {"batch": 2})
    monkeypatch.setattr(replay, "layer_grams", without_memory("block 1", 2))
    report = prune_checkpoint(llama, tmp_path / "to", TEXT, **ARGUMENTS)
    assert report.halved == ["block 1: batch lowered from 4 to 2, out of memory"]
    assert report.batch == 2
    found = saved.loaded(tmp_path / "to").state_dict()
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(found[name], tensor, msg=name)


def test_a_rerun_still_says_where_the_batch_was_halved(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, *_: object) -> None:
        if done == LAYERS + 1:
            raise InterruptedError

    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(replay, "layer_grams", without_memory("block 0", 2))
        prune_checkpoint(llama, tmp_path / "to", TEXT, progress=stop, **ARGUMENTS)
    for _ in range(2):  # resumed, then complete
        report = prune_checkpoint(llama, tmp_path / "to", TEXT, **ARGUMENTS)
        assert report.halved == ["block 0: batch lowered from 4 to 2, out of memory"]
        assert report.batch == 4


def test_one_sequence_that_does_not_fit(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line_error
) -> None:
    to, arguments = tmp_path / "to", dict(WANDA, batch=1)
    with (
        monkeypatch.context() as patch,
        one_line_error(OutOfMemory, "block 2: one sequence of 16 tokens"),
    ):
        patch.setattr(replay, "layer_grams", without_memory("block 2", 0))
        prune_checkpoint(llama, to, TOKENS, **arguments)
    assert saved.finished_blocks(to) == {0, 1}
    assert prune_checkpoint(llama, to, TOKENS, **arguments).resumed == 2
