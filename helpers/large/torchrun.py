"""One model pruned by several processes: `python -m helpers.large.torchrun --processes 2`.

    python -m helpers.large.torchrun --processes 2 \\
        --source embedded --destination results/pruned --method admm-grad --sparsity 0.6

Each process takes its share of the calibration sequences through the blocks. The grams of a block
are summed over all; its layers are shared out by their cost, and each solved layer is sent to
every process. So all hold the same pruned block when the stream moves on. Process 0 writes: see
`helpers.large.checkpoint`. All must see the same folders; on GPUs each process uses its own.

The same number of processes gives the same bits. With another number the grams are added up in
another order, and agree to float32 rounding; so do the weights, as long as the masks are the same.
A mask may differ where two scores are almost equal, and a growing mask (admm-grad) amplifies that
from block to block, with the same mean error. On a CPU the processes divide the cores among them,
unless OMP_NUM_THREADS says how many threads each has.

If one process fails, all end within seconds; run the same again to go on. Each error is one line.
A source that is pruned already is refused without `--allow-pruned`.

Processes that `--processes` starts meet in a file that only this user can read, and talk over the
machine's loopback interface. Several machines need torchrun:

    torchrun --nnodes=2 --nproc-per-node=1 ... -m helpers.large.torchrun --source ...

It listens on a port of every interface, also with one machine, and some of its own messages are
pickles, which can run code: use it only in a network where you trust every machine. What the
processes send here is tensors and JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from helpers.data.corpora import calibration_tokens
from helpers.device import pick_device
from helpers.errors import (
    BadParameter,
    HelpersError,
    RunError,
    check_whole,
    first_line,
)
from helpers.gram import Gram
from helpers.large.checkpoint import prune_checkpoint
from helpers.large.jobs import layer_report
from helpers.large.shards import DAMAGED
from helpers.large.streaming import load_tokenizer, source_folder
from helpers.loop import LayerReport, Team
from helpers.machine import cpus
from helpers.methods import get_method
from helpers.models import read_weight, write_weight
from helpers.replay import out_of_memory

WAIT = timedelta(hours=2)  # for the slowest layer of a large model
MEETING = "PRUNING_MEETING"  # the file in which processes meet that `--processes` has started
STARTED_BY = "start the processes with --processes or with torchrun, which set these variables"
GRACE_SECONDS = 5  # in which the other processes may say why they end


class Processes(Team):
    """The processes of one `torch.distributed` group, which is set up already.

    Whatever is called here is called by all of them, in the same order. Raises RunError if
    another process has ended meanwhile.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.lead, self.device = self.rank == 0, device

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in every process.

        They travel as JSON and not as pickles, which could run code here.
        """
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [length.item() for length in self._gather(torch.tensor([len(text)]))]
        padded = nn.functional.pad(text, (0, max(sizes) - len(text)))
        texts = [box.numpy().tobytes() for box in self._gather(padded)]
        return [json.loads(text[:size]) for text, size in zip(texts, sizes, strict=True)]

    def _gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all processes, which have one shape, on the CPU."""
        tensor = tensor.to(self.device)
        boxes = [torch.empty_like(tensor) for _ in range(self.size)]
        with _communicating():
            dist.all_gather(boxes, tensor)
            # inside: on a GPU all_gather only queues the work, and a failure shows in what waits
            return [box.cpu() for box in boxes]

    def share(self, value: Any) -> Any:
        """The value of the lead, in every process."""
        return self.gather(value)[0]

    def part(self, tokens: Tensor) -> Tensor:
        """Every `size`-th sequence. Raises BadParameter if some process would have none."""
        if len(tokens) < self.size:
            raise BadParameter(
                f"{len(tokens)} calibration sequences are fewer than {self.size} processes: "
                "give more sequences, or start fewer processes"
            )
        return tokens[self.rank :: self.size]

    def sum(self, grams: dict[str, Gram]) -> None:
        """Replace each gram by its sum over all processes; one that layers share is summed once."""
        for gram in {id(gram): gram for _, gram in sorted(grams.items())}.values():
            with _communicating():
                dist.all_reduce(gram.matrix)
            gram.tokens = sum(self.gather(gram.tokens))

    def solve(
        self, layers: dict[str, nn.Module], solve: Callable[[str], LayerReport]
    ) -> Iterator[LayerReport]:
        """Each process solves its share, then all have every layer, in the block's order.

        The dearest layer first, each to the process with the least to do. A layer costs
        d_out · d_in², the multiplications of one product with its gram.
        """
        shapes = {name: read_weight(layer).shape for name, layer in layers.items()}
        costs = {name: d_out * d_in**2 for name, (d_out, d_in) in shapes.items()}
        burden, owners = [0] * self.size, {}
        for name in sorted(costs, key=lambda name: (-costs[name], name)):
            owners[name] = burden.index(min(burden))
            burden[owners[name]] += costs[name]
        # in the block's order, in which layers of one input follow one another
        mine = {name: asdict(solve(name)) for name in layers if owners[name] == self.rank}
        rows = {name: row for theirs in self.gather(mine) for name, row in theirs.items()}
        for name, layer in layers.items():
            weight = read_weight(layer).contiguous()  # a copy where the layer stores it transposed
            with _communicating():
                # as bytes, because not every backend and version knows every dtype
                dist.broadcast(weight.view(torch.uint8), src=owners[name])
            write_weight(layer, weight)
            yield layer_report(rows[name])


@contextlib.contextmanager
def _communicating() -> Iterator[None]:
    """Inside, processes wait for one another. Raises RunError if one of them has ended."""
    try:
        yield
    except RuntimeError as error:  # all that gloo and nccl raise
        if out_of_memory(error):
            raise
        # without the backend's own source line, and its advice
        reason = re.sub(r"^\[\S*\] ", "", first_line(error)).partition(". ")[0]
        raise RunError(
            f"another process has ended or cannot be reached ({reason}): look at its error, then "
            "run again to continue; finished blocks are kept"
        ) from error


@contextlib.contextmanager
def team_of(device: str) -> Iterator[tuple[Team, torch.device]]:
    """The processes that were started together, and this one's device; alone without any.

    Raises BadParameter (a device that is not here, an environment without what torchrun sets),
    RunError.
    """
    where = pick_device(device)
    if "RANK" not in os.environ:
        yield Team(), where
        return
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if rank >= size:
        raise BadParameter(f"RANK is {rank} and WORLD_SIZE {size}: {STARTED_BY}")
    meeting = os.environ.get(MEETING)
    if not meeting:
        _number("MASTER_PORT")
        if not os.environ.get("MASTER_ADDR"):
            raise BadParameter(f"RANK is set and MASTER_ADDR is not: {STARTED_BY}")
    if meeting or os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        # all on this machine: nobody outside it can reach what they open
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, "lo0" if sys.platform == "darwin" else "lo")
    if where.type == "cuda":
        where = pick_device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}")
        torch.cuda.set_device(where)
    with _communicating():
        dist.init_process_group(
            "nccl" if where.type == "cuda" else "gloo",
            init_method=f"file://{meeting}" if meeting else "env://",
            rank=rank,
            world_size=size,
            timeout=WAIT,
        )
    yield Processes(where), where
    # not after an error: it could wait for the others, which torchrun is about to stop
    dist.destroy_process_group()


def _number(variable: str) -> int:
    """A whole number of the environment. Raises BadParameter."""
    text = os.environ.get(variable, "")
    if not (text.isascii() and text.isdecimal()):
        found = f"{variable} is {text!r}" if text else f"RANK is set and {variable} is not"
        raise BadParameter(f"{found}: {STARTED_BY}")
    return int(text)


def start(processes: int) -> int:
    """Start processes on this machine that repeat this command line; 0 if all have succeeded.

    Where one fails, the others are stopped. Raises BadParameter inside torchrun.
    """
    if "RANK" in os.environ:
        raise BadParameter(
            f"--processes {processes} is given and RANK is set: use --processes or torchrun"
        )
    group: list[subprocess.Popen] = []

    def interrupt(*_: Any) -> None:
        """As Ctrl-C, which the terminal sends to all of them."""
        for process in group:
            process.send_signal(signal.SIGINT)
        raise KeyboardInterrupt

    handler = signal.signal(signal.SIGTERM, interrupt)
    with tempfile.TemporaryDirectory(prefix="pruning-") as folder:  # nobody else may enter it
        common = {"OMP_NUM_THREADS": str(max(1, len(cpus()) // processes))} | os.environ
        common |= {"WORLD_SIZE": str(processes), MEETING: str(Path(folder, "meeting"))}
        try:
            for rank in map(str, range(processes)):
                environment = common | {"RANK": rank, "LOCAL_RANK": rank}
                command = [sys.executable, *sys.orig_argv[1:]]
                group.append(subprocess.Popen(command, env=environment))
            codes = [None]
            while None in codes and not any(codes):
                time.sleep(0.1)
                codes = [process.poll() for process in group]
        finally:
            deadline = time.monotonic() + GRACE_SECONDS
            for process in group:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))
                process.kill()
                process.wait()
            signal.signal(signal.SIGTERM, handler)
    for rank, code in enumerate(codes):
        if code is not None and code < 0:
            why = f"process {rank} was killed by signal {-code}: was there enough memory?"
            sys.stderr.write(f"{why} Run it again to continue; finished blocks are kept\n")
    return int(any(codes))


def _prune(asked: dict[str, Any]) -> None:
    """Do what the command line says, and say what came of it."""
    text, options, device = (asked.pop(name) for name in ("calibration", "options", "device"))
    wanted = {name: asked.pop(name) for name in ("sequences", "length", "seed")}
    try:
        of_method = dict(json.loads(options).items())
    except DAMAGED as error:
        raise BadParameter(
            f"--options {options!r} is not a JSON object ({error}): write it like "
            '{"iterations": 40}'
        ) from error
    for name in of_method.keys() & inspect.signature(prune_checkpoint).parameters.keys():
        raise BadParameter(f"--options holds {name}: it takes options of the method only")
    tokens = None
    with team_of(device) as (team, where):

        def write(line: str) -> None:
            if team.lead:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()

        if get_method(asked["method"]).needs_calibration:
            tokenizer = load_tokenizer(source_folder(asked["source"]))
            if tokenizer is None:
                raise BadParameter(f"{asked['source']} holds no tokenizer: save it there too")
            tokens = calibration_tokens(text, tokenizer, **wanted)
            team.part(tokens)  # refuses too few before anything is written
        report = prune_checkpoint(
            tokens=tokens,
            device=str(where),
            team=team,
            progress=lambda done, total, name: write(f"[{done}/{total}] {name}"),
            **asked,
            **of_method,
        )
        error = "" if report.error is None else f", mean layer error {report.error:.4f}"
        write(
            f"{report.folder}: sparsity {report.sparsity:.3f}{error}, "
            f"{report.resumed} blocks of an earlier run"
        )


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; errors are one line each."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.large.torchrun", description="Prune a checkpoint, file to file."
    )
    add = parser.add_argument
    add("--source", required=True, help='a folder of safetensors, or "embedded"')
    add("--destination", required=True, help="folder of the pruned model")
    add("--method", default="admm-grad")
    add("--sparsity", type=float, help="fraction of zeros; not with an N:M pattern")
    add("--pattern", default="unstructured")
    add("--options", default="{}", help='JSON, such as {"iterations": 40}')
    add("--calibration", default="embedded", help="embedded, c4, or a text file")
    add("--sequences", type=int, default=32)
    add("--length", type=int, default=512)
    add("--seed", type=int, default=0)
    add("--passes", type=int, default=2, help="1 takes less time and more memory")
    add("--precision", default="float32", help="of products with the text, or bfloat16, or auto")
    add("--batch", type=int)
    add("--device", default="auto")
    add("--dtype")
    add("--activations", default="memory", help="memory or disk")
    add("--processes", type=int, default=1, help="how many, on this machine")
    add("--anew", action="store_false", dest="resume", help="do not go on with an earlier run")
    add("--allow-pruned", action="store_true", help="prune a model that is pruned already")
    asked = vars(parser.parse_args(arguments))
    try:
        processes = check_whole("--processes", asked.pop("processes"))
        if processes > 1 and MEETING not in os.environ:
            return start(processes)
        _prune(asked)
        return 0
    except HelpersError as error:
        code, message = 1, f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        code, message = 130, "stopped: run it again to continue; finished blocks are kept"
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        code, message = 1, f"OutOfMemory: {first_line(error)}; finished blocks are kept"
    rank = os.environ.get("RANK")
    # in one go, so that lines of several processes do not mix
    sys.stderr.write(f"{message}\n" if rank is None else f"process {rank}: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
