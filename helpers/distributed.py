"""One model pruned by several processes: `torchrun -m helpers.distributed`.

    torchrun --nproc-per-node=2 -m helpers.distributed \\
        --source embedded --destination pruned --method admm-grad --sparsity 0.6

Each process takes its share of the calibration sequences through the blocks. The grams of a block
are summed over all; its layers are shared out by their cost, and what each has solved goes to
every other. So all hold the same pruned block when the stream moves on. Process 0 writes: see
`helpers.checkpoint`. All must see the same folders; on GPUs each process uses its own.

Without torchrun this is `prune_checkpoint` in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.checkpoint import prune_checkpoint
from helpers.corpora import calibration_tokens
from helpers.device import pick_device
from helpers.errors import BadParameter, CalibrationTooShort, HelpersError
from helpers.gram import Gram
from helpers.models import read_weight, write_weight
from helpers.prune import LayerReport, Team
from helpers.streaming import source_tokenizer

WAIT = timedelta(hours=2)  # for the slowest layer of a large model


class Processes(Team):
    """The processes of one `torch.distributed` group, which is set up already."""

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lead = self.rank == 0
        self.device = device

    def share(self, value: Any) -> Any:
        """The value of the lead, in every process."""
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def part(self, tokens: Tensor) -> Tensor:
        """Every `size`-th sequence. Raises CalibrationTooShort if some process would have none."""
        if len(tokens) < self.size:
            raise CalibrationTooShort(
                f"{len(tokens)} calibration sequences are fewer than {self.size} processes: "
                "give more sequences, or start fewer processes"
            )
        return tokens[self.rank :: self.size]

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes."""
        for gram in {id(gram): gram for gram in grams.values()}.values():
            tokens = torch.tensor(gram.tokens, device=self.device)
            dist.all_reduce(gram.matrix)
            dist.all_reduce(tokens)
            gram.tokens = int(tokens)

    def solve(
        self, layers: dict[str, nn.Module], work: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Each process solves its share, then all have every layer, in the block's order."""
        owners = share_out(costs(layers), self.size)
        mine = {name: work(name) for name, owner in owners.items() if owner == self.rank}
        for name, layer in layers.items():
            weight = read_weight(layer).contiguous()
            dist.broadcast(weight, src=owners[name])
            if name not in mine:
                write_weight(layer, weight)
            box = [dataclasses.asdict(mine[name]) if name in mine else None]
            dist.broadcast_object_list(box, src=owners[name], device=self.device)
            yield LayerReport(**box[0])


def costs(layers: dict[str, nn.Module]) -> dict[str, float]:
    """What each layer costs a solver: d_out · d_in² multiplications in a product."""
    shapes = {name: read_weight(layer).shape for name, layer in layers.items()}
    return {name: float(d_out) * d_in**2 for name, (d_out, d_in) in shapes.items()}


def share_out(costs: dict[str, float], size: int) -> dict[str, int]:
    """Which of `size` processes does what: the dearest first, each to the least burdened."""
    burden = [0.0] * size
    owners = {}
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = burden.index(min(burden))
        burden[owners[name]] += costs[name]
    return owners


@contextlib.contextmanager
def team_of(device: str) -> Iterator[tuple[Team, torch.device]]:
    """The processes that torchrun has started, and this one's device; alone without torchrun."""
    if "RANK" not in os.environ:
        yield Team(), pick_device(device)
        return
    where = pick_device(device)
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=WAIT)
    try:
        yield Processes(where), where
    finally:
        # not after an error: it would wait for the others, which torchrun is about to stop
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.distributed", description="Prune a checkpoint, file to file."
    )
    parser.add_argument("--source", required=True, help='a folder of safetensors, or "embedded"')
    parser.add_argument("--destination", required=True, help="folder of the pruned model")
    parser.add_argument("--method", default="admm-grad")
    parser.add_argument("--sparsity", type=float, help="fraction of zeros; not with an N:M pattern")
    parser.add_argument("--pattern", default="unstructured")
    parser.add_argument("--options", default="{}", help='JSON, such as {"iterations": 40}')
    parser.add_argument("--calibration", default="embedded", help="embedded, c4, or a text file")
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype")
    parser.add_argument("--activations", default="memory", help="memory or disk")
    parser.add_argument("--anew", action="store_true", help="do not go on with an earlier run")
    return parser.parse_args(arguments)


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    """Do what the command line says."""
    try:
        more = json.loads(options.options)
    except ValueError as error:
        raise BadParameter(f"--options {options.options!r} is not JSON ({error})") from error
    with team_of(options.device) as (team, device):
        tokens = calibration_tokens(
            options.calibration,
            source_tokenizer(options.source),
            sequences=options.sequences,
            length=options.length,
            seed=options.seed,
        )
        report = prune_checkpoint(
            options.source,
            options.destination,
            tokens,
            method=options.method,
            sparsity=options.sparsity,
            pattern=options.pattern,
            batch=options.batch,
            device=str(device),
            dtype=options.dtype,
            activations=options.activations,
            resume=not options.anew,
            team=team,
            progress=_tell if team.lead else None,
            **more,
        )
        return {"lead": team.lead, "report": report}


def _tell(done: int, total: int, name: str) -> None:
    """One line for the person who waits."""
    sys.stdout.write(f"[{done}/{total}] {name}\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line each."""
    options = _options(arguments)
    try:
        done = _prune(options)
    except HelpersError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    if done["lead"]:
        report = done["report"]
        error = "" if report.error is None else f", mean layer error {report.error:.4f}"
        sys.stdout.write(
            f"{report.folder}: sparsity {report.sparsity:.3f}{error}, "
            f"{report.resumed} blocks of an earlier run\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
