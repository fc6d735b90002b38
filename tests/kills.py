"""Kill a pruning run with SIGKILL and run it again, many times: a process of test_checkpoint.py.

Everything is imported and the model is built once; each attempt is a fork, which ends when it is
killed. The parity gate is left out: it reads, and decides nothing. The answer for each way of
killing says how many kills there were, and in `wrong` what was not as it must be.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
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

METHOD = dict(method="wanda", sparsity=0.5, batch=2, activations="disk")
OLDER = dict(METHOD, method="magnitude", sparsity=0.25)
TOKENS = fam.random_tokens(2, 8)
BLOCKS, KILLS = 2, 12
# what changes the disk
OPERATIONS = ("replace", "rename", "fsync", "mkdir", "rmdir", "unlink", "chmod", "posix_fallocate")


class Trial:
    """One folder to prune into again and again, and what the result has to be."""

    def __init__(self, source: Path, folder: Path, name: str, **how: Any) -> None:
        self.source, self.folder, self.how = source, folder / name, METHOD | how
        self.folder.mkdir()
        self.log, self.destination = self.folder / "log", self.folder / "pruned"
        self.wrong: list[str] = []
        self.kills: list[int] = []  # blocks finished when each hit
        assert self.wait(self.fork()) == "done"
        self.expected = saved.contents(self.destination)
        self.clear()

    def clear(self) -> None:
        """Empty the folder."""
        for path in (self.destination, saved.workspace(self.destination)):
            shutil.rmtree(path, ignore_errors=True)

    def fork(self, last: int = 0, **changes: Any) -> int:
        """Prune in a child, which kills itself before its durable operation number `last`."""
        self.log.unlink(missing_ok=True)
        child = os.fork()
        if child:
            return child
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
            sys.stderr.flush()
            os._exit(code)

    def wait(self, child: int) -> str:
        """How a child has ended."""
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            self.kills.append(len(saved.finished_blocks(self.destination)))
            return "killed"
        return "done" if status == 0 else "failed"

    def attempt(self, during: Callable[[int], None] = lambda _: None, **changes: Any) -> str:
        """Go on, with something done to the child while it runs; checks what it has solved."""
        before = saved.finished_blocks(self.destination)
        child = self.fork(**changes)
        during(child)
        ended = self.wait(child)
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        if changes.get("resume", True):
            again = {int(line.split()[1]) for line in lines} & before
            self.expect(not again, f"blocks {again} were solved again")
            if ended == "killed" and not self.destination.exists():
                lost = before - saved.finished_blocks(self.destination)
                self.expect(not lost, f"finished blocks {lost} are lost")
        self.expect(ended != "failed", "an attempt failed")
        return ended

    def expect(self, good: bool, otherwise: str) -> None:
        """Note what is wrong."""
        if not good:
            self.wrong.append(otherwise)

    def check(self, when: str) -> None:
        """The destination is bit for bit what it has to be, and nothing lies beside it."""
        found = saved.contents(self.destination)
        for name in found.keys() | self.expected.keys():
            same = found.get(name) == self.expected.get(name)
            self.expect(same, f"{when}: {name} differs")
        left = saved.workspace(self.destination).exists()
        self.expect(not left, f"{when}: the workspace is still there")

    def answer(self, **more: Any) -> dict[str, Any]:
        """What has happened."""
        return {"kills": len(self.kills), "finished": self.kills, "wrong": self.wrong[:5], **more}


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


def at_random_moments(trial: Trial) -> dict[str, Any]:
    """Kill and run again until KILLS have hit."""
    dice, rounds = random.Random(0), 0
    started = time.perf_counter()
    trial.attempt()
    usual = time.perf_counter() - started
    while len(trial.kills) < KILLS and not trial.wrong:
        trial.clear()
        rounds += 1

        def kill(child: int) -> None:
            time.sleep(dice.uniform(0, 1.1 * usual))
            os.kill(child, signal.SIGKILL)  # a child that has ended is not yet waited for

        while trial.attempt(kill) == "killed":
            pass
        if not trial.wrong:
            trial.check(f"round {rounds}")
    return trial.answer(rounds=rounds)


def before_each_operation(trial: Trial, older: Path | None = None) -> dict[str, Any]:
    """Kill before operation 1, 2, 3 … until a run gets through; after each, run again and check.

    older: a model that lies at the destination already, which the run replaces; until then it has
    to be there. With it only every eighth is tried before the last block is finished.
    """
    absent, last = 0, 1
    while not trial.wrong:
        trial.clear()
        if older:
            shutil.copytree(older, trial.destination)
        if trial.wait(trial.fork(last, resume=older is None)) == "done":
            trial.check(f"without a kill at {last}")
            break
        is_new = False
        if older:
            is_new, is_there = old_or_new(trial, saved.contents(older), last)
            absent += not is_there
        # killed before its first entry in a manifest it has left nothing to go on with
        begun = any(saved.workspace(trial.destination).glob(f"run-*/{MANIFEST}"))
        if trial.attempt(resume=older is None or begun or is_new) == "done":
            trial.check(f"killed at {last}")
        last += 8 if older and trial.kills[-1] < BLOCKS and not is_new else 1
    return trial.answer(operations=last - 1, absent=absent)


def old_or_new(trial: Trial, older: dict[str, object], last: int) -> tuple[bool, bool]:
    """Whether the new model lies at the destination, and whether any does: one of the two, whole.

    Between two renames there is none: then both lie whole in the workspace.
    """
    if trial.destination.is_dir():
        found = saved.contents(trial.destination)
        known = found in (older, trial.expected)
        trial.expect(known, f"killed at {last}: a broken model lies at the destination")
        return found == trial.expected, True
    workspace = saved.workspace(trial.destination)
    both = [saved.contents(path) for path in (workspace / "replaced", *workspace.glob("run-*"))]
    trial.expect(both == [older, trial.expected], f"killed at {last}: a model is lost")
    return False, False


def kill(source: Path, folder: Path, answer: Path) -> None:
    """All ways of killing, the answers in a file."""
    torch.set_num_threads(1)
    Replay.parity = lambda _self: 0.0
    load = checkpoint.load_streamed
    load(source)  # what torch and transformers load at first use is loaded here, not in each fork
    checkpoint.prune_checkpoint(source, folder / "older", TOKENS, **OLDER)
    checkpoint.prune_checkpoint(source, folder / "newer", TOKENS, **METHOD)
    built = load(source)
    gc.freeze()  # a fork that collects garbage copies every page
    checkpoint.load_streamed = lambda *_args, **_kwargs: built  # each fork has a copy of its own
    found = [
        at_random_moments(Trial(source, folder, "random")),
        before_each_operation(Trial(source, folder, "each")),
        before_each_operation(
            Trial(source, folder, "replace", method="magnitude"), folder / "older"
        ),
    ]
    answer.write_text(json.dumps(found))
