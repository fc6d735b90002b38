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
from helpers.replay import Replay

METHOD = dict(method="magnitude", sparsity=0.5)
WANDA = dict(method="wanda", sparsity=0.5, batch=2)
TOKENS = fam.random_tokens(2, 8)
# what changes the disk
OPERATIONS = ("replace", "rename", "fsync", "mkdir", "unlink", "chmod")


class Trial:
    """One folder to prune into again and again, and what the result has to be."""

    def __init__(self, source: Path, folder: Path, **how: Any) -> None:
        self.source, self.how = source, how
        self.destination, self.log = folder / "pruned", folder / "log"
        self.kills: list[int] = []  # blocks finished when each hit
        folder.mkdir()
        self.attempt()
        self.expected = saved.contents(self.destination)

    def clear(self) -> None:
        """Empty the folder."""
        shutil.rmtree(self.destination, ignore_errors=True)

    def attempt(self, last: int = 0, during: Callable[[int], None] = lambda _: None) -> bool:
        """Prune in a child, which may kill itself before its durable operation number `last`.

        No finished block may be lost or solved again. Returns whether the child was killed.
        """
        before = saved.finished_blocks(self.destination)
        self.log.unlink(missing_ok=True)
        child = os.fork()
        if not child:
            self.prune(last)
        during(child)
        _, status = os.waitpid(child, 0)
        after = saved.finished_blocks(self.destination)
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        assert killed or status == 0, "an attempt failed"
        if killed:
            self.kills.append(len(after))
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        again = {int(line.split()[1]) for line in lines} & before
        assert not again, f"blocks {again} were solved again"
        assert before <= after, f"of {before} are left {after}"
        return killed

    def prune(self, last: int) -> None:
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
                    **self.how,
                )
            code = 0
        finally:
            os._exit(code)

    def check(self, when: str) -> None:
        """The destination holds bit for bit what it has to, and nothing else."""
        assert saved.contents(self.destination) == self.expected, when


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
    trial.clear()
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


def before_each_operation(trial: Trial) -> list[int]:
    """Kill before operation 1, 2, 3 … until a run gets through; after each, run again and check.

    A folder whose index is written holds all that the index names. Returns the blocks that were
    finished at each kill.
    """
    last = 1
    while True:
        trial.clear()
        if not trial.attempt(last):
            trial.check(f"without a kill at {last}")
            return trial.kills
        if (trial.destination / "model.safetensors.index.json").is_file():
            assert trial.expected.keys() <= saved.contents(trial.destination).keys()
        trial.attempt()
        trial.check(f"killed at {last}")
        last += 1


def kill(source: Path, folder: Path) -> tuple[int, list[int]]:
    """Both ways of killing, and what they return."""
    torch.set_num_threads(1)
    Replay.parity = lambda _self: 0.0
    load = checkpoint.load_streamed
    # what torch and transformers load at first use is loaded here, not in each fork
    checkpoint.prune_checkpoint(source, folder / "first", TOKENS, **WANDA)
    built = load(source)
    gc.freeze()  # a fork that collects garbage copies every page
    # each fork has a copy of its own
    checkpoint.load_streamed = lambda *_args, **_kwargs: built
    kills = at_random_moments(Trial(source, folder / "random", **WANDA))
    return kills, before_each_operation(Trial(source, folder / "each", **METHOD))
