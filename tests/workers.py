"""What runs inside the processes that tests start; also a script for torchrun.

Its method fails on purpose, in process 1, as often as a file of orders says.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import families as fam
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from helpers import METHODS, register
from helpers.cli import main
from helpers.errors import NonFinite
from helpers.model import block_grams

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["workers", "kills", "helpers.pruning"])
TOKENS = fam.random_tokens(4, 16)
WANDA = dict(method="wanda", sparsity=0.5, batch=2)
calls = -1  # the method is tried once before the first layer


def serve() -> None:
    """Start the server that processes are forks of, which has imported everything already."""
    with pytest.MonkeyPatch.context() as patch:
        # it does not learn sys.path in all versions of Python, and would import nothing
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


def register_all() -> None:
    """Not at import, so that the tests' own process knows no such method."""

    # it fails as the first line of the file `orders` says, such as "killed 5": in process 1, once
    # that has solved five layers
    @register("obedient")
    def obedient(weight, gram, *, sparsity, pattern, keep=None, orders=""):
        global calls
        calls += 1
        if dist.is_initialized() and dist.get_rank() == 1:
            waiting = Path(orders).read_text().splitlines()
            if waiting and calls > int(waiting[0].split()[1]):
                Path(orders).write_text("\n".join(waiting[1:]))  # crossed out
                if waiting[0].startswith("killed"):
                    os.kill(os.getpid(), signal.SIGKILL)
                raise NonFinite("made up")
        return METHODS["admm1"](
            weight, gram, sparsity=sparsity, pattern=pattern, keep=keep
        )


def command(rank: int, size: int, port: int, folder: str, arguments: list[str]) -> None:
    """The command line in one process of a group, with a file for its output.

    Process 1 has no memory for a batch of two in block 1.
    """
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update(
        {name: str(value) for name, value in where.items()}, MASTER_ADDR="127.0.0.1"
    )
    if rank == 1:
        block_grams.sum_grams = without_memory("block 1", 1)
    distributed_c10d._pickler = distributed_c10d._unpickler = (
        None  # nothing travels as a pickle
    )
    torch.set_num_threads(1)
    handle = os.open(
        Path(folder, f"output-{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    register_all()
    sys.exit(main(arguments))


def without_memory(place: str, limit: int) -> Callable:
    """A `block_grams.sum_grams` that lacks memory for more than `limit` sequences in one block."""
    measure = block_grams.sum_grams

    def measured(block, stream, call, batch, name):
        if name == place and batch > limit:
            raise MemoryError("made up")
        return measure(block, stream, call, batch, name)

    return measured


if __name__ == "__main__":
    register_all()
    sys.exit(main())
