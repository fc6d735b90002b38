"""What runs inside the processes that tests start; also a script for torchrun.

Its method fails on purpose, in process 1, as often as a file of orders says.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import families as fam
import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers.pytorch_utils import Conv1D

from helpers import prune_checkpoint, replay
from helpers.errors import CheckpointError, NonFinite
from helpers.gram import Gram
from helpers.large.torchrun import main, team_of
from helpers.methods import METHODS, register
from helpers.models import read_weight, write_weight
from helpers.prune import LayerReport

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["workers", "kills"])
TOKENS = fam.random_tokens(4, 16)
WANDA = dict(method="wanda", sparsity=0.5, batch=2)
calls = 0


def process(target: Callable, *arguments: object) -> multiprocessing.Process:
    """A process that is a fork of one that has imported everything already."""
    with pytest.MonkeyPatch.context() as patch:
        # the server does not learn sys.path in all versions of Python, and would import nothing
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return PROCESSES.Process(target=target, args=arguments)


def with_full_disk(source: Path, to: Path, cases: list[tuple[str, int]], answer: Path) -> None:
    """Prune with each (activations, longest file in bytes); write the error messages."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    messages = []
    for activations, limit in cases:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        messages.append("")
        try:
            prune_checkpoint(source, to, TOKENS, activations=activations, **WANDA)
        except CheckpointError as error:
            messages[-1] = str(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    answer.write_text(json.dumps(messages))


def register_all() -> None:
    """Not at import, so that the tests' own process knows no such method."""

    @register("obedient")  # to the orders, a file with lines such as "killed 5"
    def obedient(weight, gram, *, sparsity, pattern, keep=None, orders=""):
        global calls
        calls += 1
        if dist.is_initialized() and dist.get_rank() == 1:
            obey(Path(orders))
        return METHODS["admm1"](weight, gram, sparsity=sparsity, pattern=pattern, keep=keep)


def obey(orders: Path) -> None:
    """Fail as the first order says if this process has solved so many layers; it is then crossed
    out.
    """
    waiting = orders.read_text().splitlines()
    if not waiting or calls <= int(waiting[0].split()[1]):
        return
    orders.write_text("\n".join(waiting[1:]))
    how = waiting[0].split()[0]
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "interrupted":
        time.sleep(60)  # the test interrupts meanwhile
    raise NonFinite("made up")


def command(rank: int, size: int, port: int, folder: str, arguments: list[str]) -> None:
    """The command line in one process of a group."""
    become(rank, size, port, folder)
    register_all()
    sys.exit(main(arguments))


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The environment that torchrun gives a process."""
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in where.items()}}


def short_of_memory(rank: int, size: int, port: int, folder: str, arguments: list[str]) -> None:
    """The command line, in process 1 with no memory for a batch of two in block 1."""
    measure = replay.layer_grams

    def measured(block, stream, call, batch, name="block"):
        if rank == 1 and name == "block 1" and batch > 1:
            raise MemoryError("made up")
        return measure(block, stream, call, batch, name)

    replay.layer_grams = measured
    command(rank, size, port, folder, arguments)


def become(rank: int, size: int, port: int, folder: str) -> None:
    """What torchrun does for a process, and one file for its output."""
    os.environ.update(environment(rank, size, port))
    torch.set_num_threads(1)
    handle = os.open(Path(folder, f"output-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def team(rank: int, size: int, port: int, folder: str) -> None:
    """Every call of a team, with answers that can be worked out by hand, written to a file."""
    become(rank, size, port, folder)
    with team_of("cpu") as (team, _):
        found = {
            "share": team.share({"rank": team.rank}),
            "gather": team.gather(f"from {team.rank}"),
            "part": team.part(torch.arange(7).view(7, 1)),
            "sum": sums(team),
            "solve": solved(team),
        }
        torch.save(found, Path(folder, f"team-{rank}.pt"))


def sums(team) -> dict:
    """Two layers share a gram, a third has its own; another order in each process."""
    one, two = Gram(4), Gram(2)
    one.add(torch.full((1 + team.rank, 4), 1.0))
    two.add(torch.full((1, 2), 10.0**team.rank))
    grams = {"k": one, "q": one, "down": two}
    if team.rank == 1:
        grams = dict(reversed(grams.items()))
    team.sum(grams)
    return {name: (gram.matrix[0, 0].item(), gram.tokens) for name, gram in grams.items()}


def solved(team) -> dict:
    """Each layer is filled with 1 + the rank of its owner; half dtypes and both layouts."""
    layers = {
        "big": nn.Linear(6, 4, dtype=torch.bfloat16),
        "stored-transposed": Conv1D(4, 5),
        "half": nn.Linear(4, 4, dtype=torch.float16),
        "small": nn.Linear(2, 2),
    }
    done = []

    def solve(name: str) -> LayerReport:
        done.append(name)
        weight = read_weight(layers[name])
        number = torch.arange(weight.numel()).view(weight.shape) + 100 * (team.rank + 1)
        write_weight(layers[name], number.to(weight.dtype))
        return LayerReport(0, name, tuple(weight.shape), 0.5, None, None, team.rank, 0.0)

    lines = list(team.solve(layers, solve))
    weights = {name: read_weight(layer).float() for name, layer in layers.items()}
    rows = [(line.name, line.shape, line.dead_inputs) for line in lines]
    return {"weights": weights, "done": done, "lines": rows}


if __name__ == "__main__":
    register_all()
    sys.exit(main())
