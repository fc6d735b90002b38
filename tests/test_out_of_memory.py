"""Memory that runs out while a checkpoint is pruned: the batch is halved, and the work goes on."""

from pathlib import Path

import families as fam
import pytest
import saved
from workers import without_memory

from helpers import prune_checkpoint, replay


def test_a_rerun_still_says_where_the_batch_was_halved(tmp_path: Path, monkeypatch) -> None:
    def stop(done: int, *_: object) -> None:
        if done == 8:  # in block 1
            raise InterruptedError

    source, text = saved.save(tmp_path / "source"), fam.random_tokens(8, 8)
    request = dict(method="admm1", sparsity=0.5, batch=4)
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):
        patch.setattr(replay, "layer_grams", without_memory("block 0", 2))
        prune_checkpoint(source, tmp_path / "to", text, progress=stop, **request)
    for _ in range(2):  # resumed, then complete
        (where,) = prune_checkpoint(source, tmp_path / "to", text, **request).halved
        assert "block 0" in where and "from 4 to 2" in where
