"""Kill a pruning run with SIGKILL and run it again, many times: a script for test_checkpoint.py.

    python kills.py random SOURCE FOLDER KILLS       at random moments, until KILLS hit a run
    python kills.py each SOURCE FOLDER               before each durable operation in turn
    python kills.py replace SOURCE FOLDER            the same with resume=False over an older model

Everything is imported once; each attempt is a fork, which ends when it is killed. One line of JSON
at the end says how many kills there were, and in `wrong` what was not as it must be.
"""

from __future__ import annotations

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

# before torch is there: a process with threads cannot be forked safely
os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import families as fam
import saved
import torch

import helpers.large.shards
from helpers.large.jobs import MANIFEST
from helpers.large.checkpoint import prune_checkpoint

METHOD = dict(method="sparsegpt", sparsity=0.5, batch=2, activations="disk")
OLDER = dict(METHOD, method="magnitude", sparsity=0.25)
BLOCKS = 2


def prune(source: Path, destination: Path, log: Path, **changes: Any) -> None:
    """One attempt; what it solves and how it ends goes to a log."""
    tokens = fam.random_tokens(4, 16)
    with log.open("w") as lines:

        def note(_done: int, _total: int, name: str) -> None:
            lines.write(f"{name}\n")
            lines.flush()

        report = prune_checkpoint(
            source, destination, tokens, progress=note, **{**METHOD, **changes}
        )
        lines.write(json.dumps({"resumed": report.resumed, "redone": report.redone}))


def fork(work: Callable[[], None]) -> int:
    """Do the work in a child; its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        torch.set_num_threads(1)
        work()
        code = 0
    finally:
        sys.stderr.flush()
        os._exit(code)


def wait(child: int) -> str:
    """How a child has ended."""
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed" if os.WTERMSIG(status) == signal.SIGKILL else "signal"
    return "done" if os.WEXITSTATUS(status) == 0 else "failed"


def solved(log: Path) -> set[int]:
    """The blocks of which an attempt has solved a layer."""
    lines = log.read_text().splitlines() if log.exists() else []
    return {int(line.split()[1]) for line in lines if line.startswith("block")}


class DurableOperations:
    """Count what changes the disk; at number `last` the process kills itself before it is done.

    Number 0 and below never. A shard's file is half written before it is killed.
    """

    NAMES = ("replace", "rename", "fsync", "mkdir", "rmdir", "unlink", "chmod", "posix_fallocate")

    def __init__(self, last: int) -> None:
        self.last, self.count, self.begun = last, 0, os.getpid()
        for name in self.NAMES:
            setattr(os, name, self.counted(getattr(os, name)))
        helpers.large.shards.save_file = self.counted(helpers.large.shards.save_file, half=True)

    def counted(self, operation: Callable[..., Any], half: bool = False) -> Callable[..., Any]:
        """The operation, or the end of the process."""

        def counting(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.last:
                if half:
                    Path(arguments[1]).write_bytes(b"half a shard")
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return counting


class Trial:
    """One folder to prune into again and again, and what the result has to be."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.folder, self.log = source, folder, folder / "log"
        self.destination = folder / "pruned"
        self.wrong: list[str] = []
        self.kills: list[int] = []  # blocks finished when each hit
        self.expected = self.reference("expected")

    def reference(self, name: str, **changes: Any) -> dict[str, object]:
        """The files of a run without interruption."""
        to = self.folder / name
        ended = wait(fork(lambda: prune(self.source, to, self.log, **changes)))
        assert ended == "done", ended
        return saved.contents(to)

    def attempt(self, during: Callable[[int], None], **changes: Any) -> str:
        """One attempt, with something done to it while it runs; checks what it has solved."""
        before = saved.finished_blocks(self.destination)
        self.log.unlink(missing_ok=True)
        child = fork(lambda: prune(self.source, self.destination, self.log, **changes))
        during(child)
        ended = wait(child)
        again = solved(self.log) & before if changes.get("resume", True) else set()
        if again:
            self.wrong.append(f"blocks {again} were solved again")
        if ended == "killed":
            complete = any(path.name == "pruned" for path in self.folder.iterdir())
            now = saved.finished_blocks(self.destination)
            if changes.get("resume", True) and not complete and not before <= now:
                self.wrong.append(f"finished blocks {before - now} are lost")
            self.kills.append(len(now))
        elif ended != "done":
            self.wrong.append(f"an attempt {ended}")
        return ended

    def check(self, when: str) -> None:
        """The destination is bit for bit what it has to be, and nothing lies beside it."""
        found = saved.contents(self.destination)
        for name in found.keys() | self.expected.keys():
            if found.get(name) != self.expected.get(name):
                self.wrong.append(f"{when}: {name} differs")
        if saved.place(self.destination).exists():
            self.wrong.append(f"{when}: the place of work is still there")

    def clear(self) -> None:
        """Start anew."""
        for path in (self.destination, saved.place(self.destination)):
            shutil.rmtree(path, ignore_errors=True)

    def say(self, **more: Any) -> None:
        """The one line of output."""
        said = {"kills": len(self.kills), "finished": self.kills, "wrong": self.wrong[:5], **more}
        print(json.dumps(said))


def at_random_moments(trial: Trial, kills: int) -> None:
    """Kill and run again until so many kills have hit."""
    dice = random.Random(0)
    trial.clear()
    started = time.perf_counter()
    trial.attempt(lambda _: None)
    usual, rounds = time.perf_counter() - started, 0
    while len(trial.kills) < kills and not trial.wrong:
        trial.clear()
        rounds += 1

        def kill(child: int) -> None:
            time.sleep(dice.uniform(0, 1.1 * usual))
            os.kill(child, signal.SIGKILL)  # a child that has ended is not yet waited for

        while trial.attempt(kill) == "killed":
            pass
        if not trial.wrong:
            trial.check(f"round {rounds}")
    trial.say(rounds=rounds)


def before_each_operation(trial: Trial, older: dict[str, object] | None) -> None:
    """Kill before operation 1, 2, 3 … until a run gets through; after each, run again and check.

    older: the model that already lies at the destination, which the run replaces; until then it
    has to be there. With it only every fifth is tried before the last block is finished.
    """
    absent, last, step = 0, 1, 5 if older else 1
    while True:
        trial.clear()
        if older is not None:
            shutil.copytree(trial.folder / "older", trial.destination)
        child = fork(lambda last=last: killing_itself(trial, last, older is not None))
        ended = wait(child)
        if ended == "done":
            trial.check(f"without a kill at {last}")
            return trial.say(operations=last - 1, absent=absent)
        trial.kills.append(len(saved.finished_blocks(trial.destination)))
        step = 1 if trial.kills[-1] == BLOCKS else step
        if older is not None:
            absent += not old_or_new(trial, older, last)
        # killed before its first entry in a manifest it has left nothing to go on with
        begun = older is None or any(saved.place(trial.destination).glob(f"run-*/{MANIFEST}"))
        begun |= older is not None and trial.destination.is_dir() and is_new(trial)
        if trial.attempt(lambda _: None, resume=begun) != "done":
            return trial.say(operations=last, absent=absent)
        trial.check(f"killed at {last}")
        last += step


def is_new(trial: Trial) -> bool:
    """Whether the new model lies at the destination."""
    return saved.contents(trial.destination) == trial.expected


def killing_itself(trial: Trial, last: int, replace: bool) -> None:
    """A run that ends before a durable operation."""
    DurableOperations(last)
    prune(trial.source, trial.destination, trial.log, resume=not replace)


def old_or_new(trial: Trial, older: dict[str, object], last: int) -> bool:
    """Whether a model lies at the destination; it has to be one of the two, whole.

    Between two renames there is none: then both lie whole in the place of work.
    """
    if trial.destination.is_dir():
        if saved.contents(trial.destination) not in (older, trial.expected):
            trial.wrong.append(f"killed at {last}: a broken model lies at the destination")
        return True
    place = saved.place(trial.destination)
    runs = [path for path in place.iterdir() if path.name.startswith("run-")]
    both = [saved.contents(path) for path in (place / "replaced", *runs)]
    if both != [older, trial.expected]:
        trial.wrong.append(f"killed at {last}: a model is lost")
    return False


def main(mode: str, source: str, folder: str, *rest: str) -> None:
    """Do what the command line says."""
    torch.set_num_threads(1)
    # what torch and transformers load at first use is loaded here, not in each fork
    prune(Path(source), Path(folder) / "first", Path(folder) / "log")
    trial = Trial(Path(source), Path(folder))
    if mode == "random":
        at_random_moments(trial, int(rest[0]))
    else:
        older = trial.reference("older", **OLDER) if mode == "replace" else None
        before_each_operation(trial, older)


if __name__ == "__main__":
    main(*sys.argv[1:])
