"""One model pruned by several processes: `torchrun -m helpers.large.torchrun`.

    torchrun --nproc-per-node=2 -m helpers.large.torchrun \\
        --source embedded --destination results/pruned --method admm-grad --sparsity 0.6

Each process takes its share of the calibration sequences through the blocks. The grams of a block
are summed over all; its layers are shared out by their cost, and what each has solved goes to
every other. So all hold the same pruned block when the stream moves on. Process 0 writes: see
`helpers.large.checkpoint`. All must see the same folders; on GPUs each process uses its own.

The same number of processes gives the same bits. With another number the grams are added up in
another order, and agree to float32 rounding; so do the weights, as long as the masks are the same.
A mask may differ where two scores are almost equal, and a growing mask (admm-grad) amplifies that
from block to block, as it does in one process with another batch: on the embedded model with
little text 5 % of the masks' entries, with the same mean error. On a CPU torchrun gives each
process one thread; set OMP_NUM_THREADS for more.

If one process fails, all end within seconds; run the same again to go on. Each error is one line;
the stack trace and summary after it are torchrun's own. Without torchrun this is
`prune_checkpoint` in one process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.corpora import calibration_tokens
from helpers.device import pick_device
from helpers.errors import (
    BadParameter,
    CalibrationTooShort,
    HelpersError,
    ProcessLost,
    UnsupportedModel,
    first_line,
)
from helpers.gram import Gram
from helpers.large.checkpoint import CheckpointReport, prune_checkpoint
from helpers.large.streaming import source_tokenizer
from helpers.methods import get_method
from helpers.models import read_weight, write_weight
from helpers.prune import LayerReport, Team
from helpers.replay import out_of_memory

WAIT = timedelta(hours=2)  # for the slowest layer of a large model


class Processes(Team):
    """The processes of one `torch.distributed` group, which is set up already.

    Whatever is called here is called by all of them, in the same order. Raises ProcessLost if
    another process has ended meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lead = self.rank == 0
        self.device = device

    def share(self, value: Any) -> Any:
        """The value of the lead, in every process."""
        box = [value]
        with _talking():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process."""
        box = [None] * self.size
        with _talking():
            dist.all_gather_object(box, value)
        return box

    def part(self, tokens: Tensor) -> Tensor:
        """Every `size`-th sequence. Raises CalibrationTooShort if some process would have none."""
        if len(tokens) < self.size:
            raise CalibrationTooShort(
                f"{len(tokens)} calibration sequences are fewer than {self.size} processes: "
                "give more sequences, or start fewer processes"
            )
        return tokens[self.rank :: self.size]

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes; one that layers share is summed once.

        Raises UnsupportedModel unless the same layers share a gram in every process.
        """
        owner: dict[int, str] = {}
        # by name: experts may be called in another order elsewhere
        shared = {name: owner.setdefault(id(grams[name]), name) for name in sorted(grams)}
        said = self.gather((shared, {name: grams[name].tokens for name in owner.values()}))
        if any(theirs != shared for theirs, _ in said):
            raise UnsupportedModel(
                "layers share their inputs in one process and not in another: "
                "prune this family in one process"
            )
        for name in owner.values():
            with _talking():
                dist.all_reduce(grams[name].matrix)
            grams[name].tokens = sum(tokens[name] for _, tokens in said)

    def solve(
        self, layers: dict[str, nn.Module], work: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Each process solves its share, then all have every layer, in the block's order."""
        owners = share_out(costs(layers), self.size)
        # in the block's order, in which layers of one input follow one another
        mine = {name: work(name) for name in layers if owners[name] == self.rank}
        lines = {name: line for theirs in self.gather(mine) for name, line in theirs.items()}
        for name, layer in layers.items():
            self._spread(layer, owners[name])
            yield lines[name]

    def _spread(self, layer: nn.Module, owner: int) -> None:
        """Give every process the owner's weight."""
        weight = read_weight(layer).contiguous()  # a copy where the layer stores it transposed
        with _talking():
            # as bytes, because not every backend and version knows every dtype
            dist.broadcast(weight.view(torch.uint8), src=owner)
        if owner != self.rank:
            write_weight(layer, weight)


@contextlib.contextmanager
def _talking() -> Iterator[None]:
    """Inside, processes wait for one another; one that has ended is raised as ProcessLost."""
    try:
        yield
    except RuntimeError as error:  # all that gloo and nccl raise
        if out_of_memory(error):
            raise
        # without the backend's own source line, and its advice
        reason = re.sub(r"^\[\S*\] ", "", first_line(error)).partition(". ")[0]
        raise ProcessLost(
            f"another process has ended, or cannot be reached ({reason}): see its error, then run "
            "again to go on; finished blocks are kept"
        ) from error


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
    """The processes that torchrun has started, and this one's device; alone without torchrun.

    Raises BadParameter (a device that is not here), ProcessLost.
    """
    where = pick_device(device)
    if "RANK" not in os.environ:
        yield Team(), where
        return
    if where.type == "cuda":
        where = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(where)
    with _talking():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=WAIT)
    yield Processes(where), where
    # not after an error: it could wait for the others, which torchrun is about to stop
    dist.destroy_process_group()


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m helpers.large.torchrun", description="Prune a checkpoint, file to file."
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
    parser.add_argument(
        "--anew", action="store_true", help="resume=False: do not go on with an earlier run"
    )
    return parser.parse_args(arguments)


def _prune(options: argparse.Namespace) -> tuple[Team, CheckpointReport]:
    """Do what the command line says."""
    arguments = {
        "method": options.method,
        "sparsity": options.sparsity,
        "pattern": options.pattern,
        "batch": options.batch,
        "dtype": options.dtype,
        "activations": options.activations,
        "resume": not options.anew,
    }
    more = _method_options(options.options, {*arguments, "tokens", "device", "progress", "team"})
    needed = get_method(options.method).needs_calibration
    with team_of(options.device) as (team, device):
        tokens = _calibration(options) if needed else None
        if needed:
            team.part(tokens)  # refuses too few before anything is written
        report = prune_checkpoint(
            options.source,
            options.destination,
            tokens,
            device=str(device),
            team=team,
            progress=_tell if team.lead else None,
            **arguments,
            **more,
        )
    return team, report


def _method_options(text: str, taken: set[str]) -> dict[str, Any]:
    """The method's options from JSON. Raises BadParameter."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise BadParameter(
            f'--options {text!r} is not JSON ({error}): write it like {{"iterations": 40}}'
        ) from error
    if not isinstance(options, dict):
        raise BadParameter(f'--options {text!r} has no names: write it like {{"iterations": 40}}')
    if taken & options.keys():
        names = ", ".join(sorted(taken & options.keys()))
        raise BadParameter(f"--options {text!r} holds {names}: it takes options of the method only")
    return options


def _calibration(options: argparse.Namespace) -> Tensor:
    """The calibration tokens, all of them in each process."""
    return calibration_tokens(
        options.calibration,
        source_tokenizer(options.source),
        sequences=options.sequences,
        length=options.length,
        seed=options.seed,
    )


def _tell(done: int, total: int, name: str) -> None:
    """One line for the person who waits."""
    sys.stdout.write(f"[{done}/{total}] {name}\n")
    sys.stdout.flush()


def _complain(message: str) -> None:
    """One line on stderr, which says of which process it is if there are several."""
    several = int(os.environ.get("WORLD_SIZE", 1)) > 1
    who = f"process {os.environ['RANK']}: " if several and "RANK" in os.environ else ""
    sys.stderr.write(f"{who}{message}\n")  # in one go, so that lines do not mix


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line each."""
    options = _options(arguments)
    try:
        team, report = _prune(options)
    except HelpersError as error:
        _complain(f"{type(error).__name__}: {error}")
        return 1
    except KeyboardInterrupt:
        _complain("stopped: run it again to go on; finished blocks are kept")
        return 130
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        _complain(f"OutOfMemory: {first_line(error)}; finished blocks are kept")
        return 1
    if team.lead:
        error = "" if report.error is None else f", mean layer error {report.error:.4f}"
        sys.stdout.write(
            f"{report.folder}: sparsity {report.sparsity:.3f}{error}, "
            f"{report.resumed} blocks of an earlier run\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
