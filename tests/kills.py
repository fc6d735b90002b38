"""Kill a pruning run with SIGKILL and run it again, many times: a process of test_checkpoint.py.

Everything is imported and the model is built once; each attempt is a fork, which ends when it is
killed. The parity gate is left out: it reads, and decides nothing.
"""

import gc
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families as fam
import saved
import torch

import helpers.large.shards
from helpers.large import checkpoint
from helpers.large.jobs import MANIFEST
from helpers.replay import Replay

METHOD = dict(method="magnitude", sparsity=0.5)
WANDA = dict(method="wanda", sparsity=0.5, batch=2, activations="disk")
TOKENS = fam.random_tokens(2, 8)
# what changes the disk
OPERATIONS = ("replace", "rename", "fsync", "mkdir", "rmdir", "unlink", "chmod", "posix_fallocate")


class Trial:
    """One folder to prune into again and again, and what the result has to be."""

    def __init__(self, source: Path, folder: Path, **how: Any) -> None:
        self.source, self.how = source, how
        self.destination, self.log = folder / "pruned", folder / "log"
        self.work = saved.workspace(self.destination)
        self.kills: list[int] = []  # blocks finished when each hit
        folder.mkdir()
        self.attempt()
        self.expected = saved.contents(self.destination)
        self.clear()

    def clear(self) -> None:
        """Empty the folder."""
        for path in (self.destination, self.work):
            shutil.rmtree(path, ignore_errors=True)

    def attempt(
        self, last: int = 0, during: Callable[[int], None] = lambda _: None, **changes: Any
    ) -> bool:
        """Prune in a child, which may kill itself before its durable operation number `last`.

        No finished block may be lost or solved again. Returns whether the child was killed.
        """
        before = saved.finished_blocks(self.destination)
        self.log.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            self.prune(last, changes)
        during(child)
        _, status = os.waitpid(child, 0)
        after = saved.finished_blocks(self.destination)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0, "an attempt failed"
        if killed:
            self.kills.append(len(after))
        if changes.get("resume", True) and before:
            lines = self.log.read_text().splitlines() if self.log.exists() else []
            again = {int(line.split()[1]) for line in lines} & before
            assert not again, f"blocks {again} were solved again"
            assert before <= after or self.destination.exists(), f"of {before} are left {after}"
        return killed

    def prune(self, last: int, changes: dict[str, Any]) -> None:
        """The child's work; it never returns."""
        code = 1
        try:
            gc.disable()
            if last:
                count_operations(last)
            with self.log.open("w", buffering=1) as lines:
                checkpoint.prune_checkpoint(
                    self.source,
                    self.destination,
                    TOKENS,
                    progress=lambda _done, _total, name: print(name, file=lines),
                    **self.how | changes,
                )
            code = 0
        finally:
            os._exit(code)

    def check(self, when: str) -> None:
        """The destination is bit for bit what it has to be, and nothing lies beside it."""
        found = saved.contents(self.destination)
        names = found.keys() | self.expected.keys()
        differ = [name for name in names if found.get(name) != self.expected.get(name)]
        assert not differ and not self.work.exists(), f"{when}: {differ} differ"


def count_operations(last: int) -> None:
    """Let this process kill itself before it changes the disk for the `last` time.

    A shard's file is half written before.
    """
    count = 0

    def counted(operation: Callable[..., Any], half: bool = False) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == last:
                if half:
                    Path(arguments[1]).write_bytes(b"half a shard")
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return counting

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    helpers.large.shards.save_file = counted(helpers.large.shards.save_file, half=True)


def at_random_moments(trial: Trial) -> int:
    """Kill and run again until a run gets through, several times. Returns the number of kills."""
    dice = random.Random(0)
    started = time.perf_counter()
    trial.attempt()
    usual = time.perf_counter() - started

    def kill(child: int) -> None:
        time.sleep(dice.uniform(0, 1.1 * usual))
        os.kill(child, signal.SIGKILL)  # a child that has ended is not yet waited for

    while len(trial.kills) < 6:
        trial.clear()
        while trial.attempt(during=kill):
            pass
        trial.check("killed at random")
    return len(trial.kills)


def before_each_operation(trial: Trial, older: Path) -> tuple[list[int], int]:
    """Kill before operation 1, 2, 3 … of a run that replaces a model, until one gets through.

    After each kill run again and check. Until then the old model or the new one has to be there,
    but between two renames: then both lie whole in the workspace.
    Returns the blocks that were finished at each kill, and how often no model was there.
    """
    old, absent, last = saved.contents(older), 0, 1
    while True:
        trial.clear()
        shutil.copytree(older, trial.destination)
        if not trial.attempt(last, resume=False):
            trial.check(f"without a kill at {last}")
            return trial.kills, absent
        is_there = trial.destination.is_dir()
        run, replaced = trial.work / "run-1", trial.work / "replaced"
        places = [trial.destination] if is_there else [replaced, run]
        found = [saved.contents(place) for place in places]
        whole = found[0] in (old, trial.expected) if is_there else found == [old, trial.expected]
        assert whole, f"killed at {last}: a model is lost or broken"
        absent += not is_there
        # killed before its first entry in a manifest it has left nothing to go on with
        trial.attempt(resume=(run / MANIFEST).is_file() or found[0] == trial.expected)
        trial.check(f"killed at {last}")
        last += 1


def kill(source: Path, folder: Path) -> tuple[int, list[int], int]:
    """Both ways of killing, and what they return."""
    torch.set_num_threads(1)
    Replay.parity = lambda _self: 0.0
    load = checkpoint.load_streamed
    checkpoint.prune_checkpoint(source, folder / "older", method="magnitude", sparsity=0.25)
    # what torch and transformers load at first use is loaded here, not in each fork
    checkpoint.prune_checkpoint(source, folder / "newer", TOKENS, **WANDA)
    built = load(source)
    gc.freeze()  # a fork that collects garbage copies every page
    checkpoint.load_streamed = lambda *_args, **_kwargs: built  # each fork has a copy of its own
    kills = at_random_moments(Trial(source, folder / "random", **WANDA))
    each = before_each_operation(Trial(source, folder / "each", **METHOD), folder / "older")
    return kills, *each
