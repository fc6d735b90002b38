"""One model pruned by several processes, which torchrun starts on one machine or on several:

    torchrun --standalone --nproc-per-node 2 -m helpers prune embedded --sparsity 0.6 \\
        --streamed --save results/pruned

Each process takes its part of the calibration sequences through the blocks. The Gram matrices of a
block are summed over all; its layers are dealt out, and each solved layer is sent to every process.
So all hold the same pruned block when the hidden states move on. Process 0 writes: see
`helpers.large.file_to_file`. All must see the same folders; on GPUs each process uses its own. On a
CPU torchrun gives each process one thread, unless OMP_NUM_THREADS is set.

The same number of processes gives the same bits. With another number the grams are added up in
another order, and agree to float32 rounding; so do the weights, as long as the masks are the same.
A mask may differ where two scores are almost equal, and a gradual mask (admm-grad) amplifies that
from block to block, with the same mean error.

If one process fails, all end within seconds; run the same again to go on. Each error is one line.
torchrun listens on a port of every interface, and some of its own messages are pickles, which can
run code: use it only in a network where you trust every machine. What the processes send here is
tensors and JSON.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.device import pick_device
from helpers.errors import BadParameter, RunError, first_line
from helpers.large.file_to_file import layer_report
from helpers.model.block_loop import LayerReport, Team
from helpers.model.models import read_weight, write_weight
from helpers.paper.gram import Gram

WAIT = timedelta(hours=2)  # for the slowest layer of a large model


class Processes(Team):
    """The processes of one `torch.distributed` group, which is set up already.

    All of them make the same calls, in the same order. Raises RunError if another process has
    ended meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.size = dist.get_world_size()
        self.device = device

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process.

        They travel as JSON and not as pickles, which could run code here.
        """
        text = json.dumps(value).encode()
        longest = torch.tensor(len(text), device=self.device)
        with communicating():
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            # one length for all: what is decoded as JSON may end in spaces
            padded = bytearray(text.ljust(int(longest)))
            own = torch.frombuffer(padded, dtype=torch.uint8).to(self.device)
            texts = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(texts, own)
            # in this block: on a GPU the work is only queued, and a failure shows when it is read
            return [json.loads(bytes(each.tolist())) for each in texts]

    def part(self, tokens: Tensor) -> Tensor:
        """Every `size`-th sequence. Raises BadParameter if some process would have none."""
        if len(tokens) < self.size:
            raise BadParameter(
                f"{len(tokens)} sequences are fewer than {self.size} processes: give more of them"
            )
        return tokens[self.rank :: self.size]

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes; one that layers share is summed once.

        That is, where they share it in all processes: the text of one may have missed an expert,
        whose layers then have empty grams of their own there.
        """
        first = {id(gram): name for name, gram in sorted(grams.items(), reverse=True)}
        local = {name: [first[id(gram)], gram.tokens] for name, gram in grams.items()}
        everywhere = self.gather(local)
        groups = {}
        for name in sorted(grams):
            sharing = tuple(each[name][0] for each in everywhere)
            groups.setdefault(sharing, []).append(name)
        taken = set()
        for names in groups.values():
            gram = grams[names[0]]
            if id(gram) in taken:  # shared here and not elsewhere
                gram = Gram.of(gram.matrix.clone())
            taken.add(id(gram))
            gram.tokens = sum(each[names[0]][1] for each in everywhere)
            grams |= dict.fromkeys(names, gram)
        for names in groups.values():
            with communicating():
                dist.all_reduce(grams[names[0]].matrix)

    def solve(
        self, layers: dict[str, nn.Module], prune: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Each process prunes every `size`-th layer, then all have every layer, in order."""
        own = [*layers][self.rank :: self.size]
        rows = self.gather([asdict(prune(name)) for name in own])
        for number, layer in enumerate(layers.values()):
            owner = number % self.size
            # a copy where the layer stores it transposed
            weight = read_weight(layer).contiguous()
            with communicating():
                # as bytes, because not every backend and version knows every dtype
                dist.broadcast(weight.view(torch.uint8), src=owner)
            write_weight(layer, weight)
            yield layer_report(rows[owner][number // self.size])


@contextlib.contextmanager
def communicating() -> Iterator[None]:
    """Raise RunError if another process has ended while this one waits for it."""
    try:
        yield
    except RuntimeError as error:  # all that gloo and nccl raise
        raise RunError(
            f"another process has ended or cannot be reached ({first_line(error)}): look at its "
            "error, then run this again"
        ) from error


@contextlib.contextmanager
def torchrun_team(device: str) -> Iterator[tuple[Team, str]]:
    """The processes that torchrun has started, or this one alone, and the device of this one.

    device: as for `load_model`. Each process of a machine gets a GPU of its own, so a number in
    "cuda:1" does not matter.
    Raises BadParameter if there are fewer GPUs than processes.
    """
    if "RANK" not in os.environ:
        yield Team(), device
        return
    where = pick_device(device)
    backend = "gloo"
    if where.type == "cuda":
        where = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(where)
        backend = "nccl"
    with communicating():
        dist.init_process_group(backend, timeout=WAIT)
    yield Processes(where), str(where)
    # not after an error: it could wait for the others, which torchrun is about to stop
    dist.destroy_process_group()
