"""Kill a pruning run with SIGKILL and run it again, many times: a process of test_file_to_file.py.

Everything is imported and the model is built once; each attempt is a fork, which ends when it is
killed. The parity gate is left out: it reads, and decides nothing.
"""

import gc
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families as fam
import saved
import torch

from helpers.large import file_to_file
from helpers.model.block_grams import Replay

WANDA = dict(method="wanda", sparsity=0.5, batch=2)
TOKENS = fam.random_tokens(2, 8)
# what changes the disk
OPERATIONS = ("replace", "rename", "fsync", "mkdir", "unlink", "chmod")


def attempt(source: Path, to: Path, last: int = 0) -> bool:
    """Prune in a child, which may kill itself before its durable operation number `last`.

    No finished block may be lost or solved again. Returns whether the child was killed.
    """
    before = saved.finished_blocks(to)
    log = to.with_name("log")
    log.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        prune(source, to, log, last)
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or status == 0, "an attempt failed"
    solved = {int(line.split()[1]) for line in log.read_text().splitlines()}
    assert not solved & before and before <= saved.finished_blocks(to), (solved, before)
    return killed


def prune(source: Path, to: Path, log: Path, last: int) -> None:
    """The child's work; it never returns."""
    code = 1
    try:
        gc.disable()
        with log.open("w", buffering=1) as lines:
            if last:
                count_operations(last)
            show = lambda _done, _total, name: print(name, file=lines)  # noqa: E731
            file_to_file.prune_checkpoint(source, to, TOKENS, progress=show, **WANDA)
        code = 0
    finally:
        os._exit(code)


def count_operations(last: int) -> None:
    """Let this process kill itself before it changes the disk for the `last` time."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **named)

        return counting

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))


def before_each_operation(source: Path, folder: Path) -> list[int]:
    """Kill before operation 1, 2, 3 … until a run gets through; after each, run again and check.

    A folder with an index holds all of the model. Returns the blocks finished at each kill.
    """
    torch.set_num_threads(1)
    Replay.parity = lambda _self: 0.0
    to = folder / "pruned"
    finished = []
    # what torch and transformers load at first use is loaded here, not in each fork
    file_to_file.prune_checkpoint(source, to, TOKENS, **WANDA)
    expected = saved.contents(to)
    built = file_to_file.load_streamed(source)
    gc.freeze()  # a fork that collects garbage copies every page
    # each fork has a copy of its own
    file_to_file.load_streamed = lambda *_args, **_kwargs: built
    while True:
        shutil.rmtree(to)
        if not attempt(source, to, len(finished) + 1):
            return finished
        finished.append(len(saved.finished_blocks(to)))
        if (to / "model.safetensors.index.json").is_file():
            assert saved.contents(to) == expected
        attempt(source, to)
        assert saved.contents(to) == expected, f"killed at {len(finished)}"
