"""One model pruned by several processes, which torchrun starts on one machine or on several:

    torchrun --standalone --nproc-per-node 2 -m helpers.large.torchrun \\
        --source embedded --destination results/pruned --method admm-grad --sparsity 0.6

Each process takes its part of the calibration sequences through the blocks. The grams of a block
are summed over all; its layers are dealt out, and each solved layer is sent to every process. So
all hold the same pruned block when the stream moves on. Process 0 writes: see
`helpers.large.checkpoint`. All must see the same folders; on GPUs each process uses its own. On a
CPU torchrun gives each process one thread, unless OMP_NUM_THREADS is set.

The same number of processes gives the same bits. With another number the grams are added up in
another order, and agree to float32 rounding; so do the weights, as long as the masks are the same.
A mask may differ where two scores are almost equal, and a growing mask (admm-grad) amplifies that
from block to block, with the same mean error.

If one process fails, all end within seconds; run the same again to go on. Each error is one line.
torchrun listens on a port of every interface, and some of its own messages are pickles, which can
run code: use it only in a network where you trust every machine. What the processes send here is
tensors and JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.data.corpora import calibration_tokens
from helpers.errors import BadParameter, HelpersError, RunError, first_line
from helpers.gram import Gram
from helpers.large.checkpoint import layer_report, prune_checkpoint
from helpers.large.streaming import checkpoint_folder, load_tokenizer
from helpers.loop import LayerReport, Team
from helpers.models import read_weight, write_weight

WAIT = timedelta(hours=2)  # for the slowest layer of a large model


class Processes(Team):
    """The processes of one `torch.distributed` group, which is set up already.

    Whatever is called here is called by all of them, in the same order. Raises RunError if
    another process has ended meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process.

        They travel as JSON and not as pickles, which could run code here.
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        longest = torch.tensor(len(text), device=self.device)
        with communicating():
            dist.all_reduce(longest, dist.ReduceOp.MAX)
            # one length for all: what is decoded as JSON may end in spaces
            text = nn.functional.pad(text, (0, int(longest) - len(text)), value=ord(" "))
            texts = [torch.empty_like(text, device=self.device) for _ in range(self.size)]
            dist.all_gather(texts, text.to(self.device))
            # inside: on a GPU the work is only queued, and a failure shows in what waits for it
            return [json.loads(each.cpu().numpy().tobytes()) for each in texts]

    def part(self, tokens: Tensor) -> Tensor:
        """Every `size`-th sequence. Raises BadParameter if some process would have none."""
        if len(tokens) < self.size:
            raise BadParameter(
                f"{len(tokens)} sequences are fewer than {self.size} processes: give more of them"
            )
        return tokens[self.rank :: self.size]

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes; one that layers share is summed once."""
        for gram in {id(gram): gram for _, gram in sorted(grams.items())}.values():
            with communicating():
                dist.all_reduce(gram.matrix)

    def solve(
        self, layers: dict[str, nn.Module], prune: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Each process prunes every `size`-th layer, then all have every layer, in order."""
        owners = {name: number % self.size for number, name in enumerate(layers)}
        mine = {name: asdict(prune(name)) for name in layers if owners[name] == self.rank}
        rows = {name: row for theirs in self.gather(mine) for name, row in theirs.items()}
        for name, layer in layers.items():
            weight = read_weight(layer).contiguous()  # a copy where the layer stores it transposed
            with communicating():
                # as bytes, because not every backend and version knows every dtype
                dist.broadcast(weight.view(torch.uint8), src=owners[name])
            write_weight(layer, weight)
            yield layer_report(rows[name])


@contextlib.contextmanager
def communicating() -> Iterator[None]:
    """Inside, processes wait for one another. Raises RunError if one of them has ended."""
    try:
        yield
    except RuntimeError as error:  # all that gloo and nccl raise
        raise RunError(
            f"another process has ended or cannot be reached ({first_line(error)}): look at its "
            "error, then run this again"
        ) from error


def prune(parameters: dict[str, Any]) -> None:
    """Do what the command line says, and say what came of it."""
    if "RANK" not in os.environ:
        raise RunError("RANK is not set: start this with torchrun, as its module says")
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    with communicating():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=WAIT)
    team = Processes(device)

    def show(line: str) -> None:
        if team.rank == 0:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

    tokenizer = load_tokenizer(checkpoint_folder(parameters["source"], parameters["revision"]))
    draw = {name: parameters.pop(name) for name in ("sequences", "length", "seed")}
    text, options = parameters.pop("calibration"), parameters.pop("options")
    report = prune_checkpoint(
        tokens=calibration_tokens(text, tokenizer, **draw),
        device=str(device),
        team=team,
        progress=lambda done, total, name: show(f"[{done}/{total}] {name}"),
        **parameters,
        **options,
    )
    show(f"{report.folder}: sparsity {report.sparsity:.3f}, mean layer error {report.error}")
    # not after an error: it could wait for the others, which torchrun is about to stop
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line each."""
    parser = argparse.ArgumentParser(description="Prune a checkpoint, file to file.")
    add = parser.add_argument
    add("--source", required=True, help='"embedded", a folder of safetensors, or a hub id')
    add("--revision", help="of a hub model: a commit hash")
    add("--destination", required=True, help="folder of the pruned model")
    add("--method", default="admm-grad")
    add("--sparsity", type=float, help="fraction of zeros; not with an N:M pattern")
    add("--pattern", default="unstructured")
    add("--calibration", default="embedded", help="embedded, c4, or a text file")
    add("--sequences", type=int, default=32)
    add("--length", type=int, default=512)
    add("--seed", type=int, default=0)
    add(
        "--options",
        type=json.loads,
        default={},
        help="further arguments, as JSON: see prune_checkpoint",
    )
    try:
        prune(vars(parser.parse_args(arguments)))
    except (HelpersError, KeyboardInterrupt) as error:
        # in one go, so that lines of several processes do not mix
        rank = os.environ.get("RANK", 0)
        sys.stderr.write(f"process {rank}: {type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
