"""`prune_checkpoint`: prune a model larger than memory, file to file, and never lose a block.

One block is in memory at a time. A finished block becomes a shard of the new checkpoint and is
entered in a manifest. Whatever ends the process, the same call goes on with the block it was in,
and the result is bit for bit that of an uninterrupted call (unless memory ran out in one of them
and the batch was halved: then to rounding).

Meanwhile all files lie in the folder `<destination>.pruning` (see `helpers.large.jobs`); the
destination itself appears when it is complete, and an older one there is replaced only then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import inspect
import json
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from helpers.capture import Progress, eval_mode
from helpers.errors import BadParameter, check_choice, check_switch
from helpers.large.jobs import REPORTED, Job, Workspace
from helpers.large.mask_files import write_masks
from helpers.large.shards import (
    COMPANIONS,
    Checkpoint,
    tensor_on_disk,
    write_index,
    write_shard,
    writing,
)
from helpers.large.streaming import WeightReader, load_streamed, source_folder
from helpers.loop import LayerReport, Loop, PruneReport, Sparsity, Store, Team
from helpers.methods import get_method
from helpers.models import WEIGHT_READER, find_layers, opened
from helpers.paths import replace_file, sha256_file
from helpers.precision import precision_for
from helpers.prune import check_request, check_zeros
from helpers.runner import code_hash, core_code

ACTIVATIONS = ("memory", "disk")
# what decides the bits of a weight, beside the core and this package
PACKAGES = ("torch", "transformers", "safetensors", "numpy")


@dataclass
class CheckpointReport(PruneReport):
    """A `PruneReport` of the whole model; `seconds` and `batch` are those of the last call.

    folder: where the pruned model lies; resumed: blocks that an earlier call had finished;
    redone: those of them whose shard was found damaged, and which were pruned again.
    """

    folder: str = ""
    resumed: int = 0
    redone: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        return super().to_dict() | {"resumed": self.resumed, "redone": list(self.redone)}


def prune_checkpoint(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    tokens: Tensor | None = None,
    *,
    method: str,
    sparsity: Sparsity = None,
    pattern: str = "unstructured",
    passes: int = 2,
    precision: str = "float32",
    batch: int | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    activations: str = "memory",
    resume: bool = True,
    allow_pruned: bool = False,
    progress: Progress | None = None,
    team: Team | None = None,
    **options: Any,
) -> CheckpointReport:
    """Prune the model in folder `source` into folder `destination`, one block in memory at a time.

    The weights are those that `prune_model` gives, bit for bit on one machine with one number of
    threads. `from_pretrained` loads the destination like any model, by the model's own names;
    beside its shards lie the masks (`load_masks`) and a manifest.

    Args: source, a folder of safetensors with config.json, or "embedded"; tokens, method, sparsity,
    pattern, passes, precision, batch, progress and options as for `prune_model`; allow_pruned as
    there (the first block says whether the source is pruned already); device and dtype as for
    `load_model`; activations, where the stream lies between blocks, "memory" (the machine's, not a
    GPU's) or "disk"; resume, go on where an earlier call with the same arguments was interrupted;
    False deletes what that call had finished, and replaces a complete model once the new one is
    complete too. team, for several processes: see `helpers.large.torchrun`.

    Memory: see `helpers.checkpoint_memory`. Disk: the new checkpoint, and the stream if asked for.

    Raises what `prune_model` raises, and FileError (an earlier call had other arguments, naming
    which; another process is pruning into the destination; the destination is not one of ours),
    FileError (files missing, damaged, changed meanwhile, or no disk space to write).
    """
    check_choice("activations", activations, ACTIVATIONS)
    team, source = team or Team(), source_folder(source)
    model, _ = load_streamed(source, device=device, dtype=dtype)
    reader: WeightReader = getattr(model, WEIGHT_READER)
    arguments = dict(options, sparsity=sparsity, pattern=pattern)
    check_request(model, tokens, method, batch, arguments, passes=passes)
    precision = precision_for(reader.dtype, precision, reader.device)
    workspace = Workspace(source, destination)
    if not check_switch("allow_pruned", allow_pruned):
        with weights_in_memory(model, 0):  # one block says it, and the others are on disk
            weights = [layer.weight for layer in find_layers(reader.blocks[0]).values()]
            advice = "give the dense model, or allow_pruned=True to prune it further"
            check_zeros(f"the weights of the first block of {source}", weights, advice)
    with workspace.locked() if team.lead else contextlib.nullcontext():
        job = None
        if team.lead:  # hashing reads the whole source, for which one process is enough
            how = {"batch": batch, "passes": passes, "precision": precision}
            how["processes"] = team.size
            request = _request(reader, tokens, method, arguments, how)
            job = workspace.job(request, resume)
        job = Job(*team.share(job and [str(job.folder), job.manifest, job.redone]))
        if not job.complete:
            store = ShardStore(job, reader, team, activations)
            steps = dict(progress=progress, passes=passes, precision=precision)
            steps |= dict(store=store, team=team)
            loop = Loop(model, method, arguments, **steps)
            with eval_mode(model), job.kept():
                loop.run(tokens, batch)
                if team.lead:
                    store.finish_model(loop.report)
                    workspace.publish(job)
            job.manifest = team.share(job.manifest)
    return CheckpointReport(
        method,
        pattern,
        [line for lines in job.lines().values() for line in lines],
        **job.manifest["report"],
        halved=list(job.manifest["halved"]),
        precision=precision,
        folder=str(workspace.destination),
        resumed=job.resumed,
        redone=sorted(job.redone),
    )


def _request(
    reader: WeightReader,
    tokens: Tensor | None,
    method: str,
    arguments: dict[str, Any],
    how: dict[str, int | str | None],
) -> dict[str, Any]:
    """Everything that decides the bits of the result; an interrupted job goes on only with it.

    Args: how, the batch, passes, precision and processes. Raises BadParameter for an option that
    JSON cannot hold.
    """
    solve = get_method(method)
    calibration = method_code = None
    if solve.needs_calibration:  # else the tokens are never read
        digest = hashlib.sha256(str(tuple(tokens.shape)).encode())
        digest.update(tokens.cpu().contiguous().numpy().tobytes())
        calibration = digest.hexdigest()
    with contextlib.suppress(OSError, TypeError):  # a method of the caller's may have no file
        method_code = code_hash(inspect.getsource(inspect.unwrap(solve)))
    request = {
        "source": {path.name: sha256_file(path) for path in reader.checkpoint.paths},
        "blocks": len(reader.blocks),
        "configuration": sha256_file(reader.checkpoint.folder / "config.json"),
        "calibration": calibration,
        "method": method,
        "method_code": method_code,
        "arguments": arguments,  # apart, since an option may have any name
        **how,
        "dtype": str(reader.dtype).removeprefix("torch."),
        "device": reader.device.type,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "code": core_code(wings=["large"]),
    }
    try:
        return json.loads(json.dumps(request))
    except (TypeError, ValueError) as error:
        raise BadParameter(
            f"options {arguments!r} cannot be written to a manifest ({error}): give numbers, "
            "text, lists or mappings"
        ) from error


@dataclass
class ShardStore(Store):
    """Pruned blocks become shards and entries of the job's manifest."""

    job: Job
    reader: WeightReader
    team: Team
    activations: str

    def begin(self) -> None:
        """From now on finished blocks are read as they were pruned."""
        for index, entry in self.job.manifest["blocks"].items():
            self.reader.redirect(int(index), self.job.folder / entry["file"][0])

    def finished(self, index: int) -> list[LayerReport] | None:
        """The lines of a block that an earlier call has finished."""
        return self.job.lines().get(index)

    def finish(self, index: int, layers: list[LayerReport], halved: list[str]) -> None:
        """Write a pruned block, then enter it."""
        if not self.team.lead:
            return
        job = self.job
        rows = [dataclasses.asdict(line) for line in layers]
        job.manifest["blocks"][str(index)] = {"file": self.write(index), "layers": rows}
        job.manifest["halved"] = job.halved + halved
        job.save()

    def allocate(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the stream: the machine's, or a file's."""
        if self.activations == "memory":
            return torch.empty(*shape, dtype=dtype)
        return tensor_on_disk(self.job.folder, shape, dtype)

    def shard(self, part: int | None) -> str:
        """The file of a block; what lies outside the blocks (None) comes last."""
        count = len(self.reader.blocks)
        number = count if part is None else part
        return f"model-{number + 1:05d}-of-{count + 1:05d}.safetensors"

    def write(self, part: int | None) -> tuple[str, str]:
        """Write the shard of an open part, and return its name and sha256."""
        name = self.shard(part)
        return name, write_shard(self.job.folder / name, self.reader.tensors(part))

    def finish_model(self, report: PruneReport) -> None:
        """Add what makes the blocks a model: weights outside them, configuration, index, masks.

        Raises FileError.
        """
        reader, job = self.reader, self.job
        source = reader.checkpoint.folder
        with reader.opened(None):
            name, digest = self.write(None)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config.pop("torch_dtype", None)  # its older name
        config["dtype"] = str(reader.dtype).removeprefix("torch.")
        files, pruned, total = {}, [], 0
        for part, slots in reader.slots.items():
            layers = [] if part is None else list(find_layers(reader.blocks[part]).values())
            for slot in slots:
                files[slot.name] = self.shard(part)
                kind = reader.dtype if slot.empty.is_floating_point() else slot.empty.dtype
                total += slot.empty.numel() * kind.itemsize
                if any(module in layers and name == "weight" for module, name in slot.holders):
                    pruned.append(slot.name)
        with writing(job.folder):
            found = [path for pattern in COMPANIONS for path in source.glob(pattern)]
            others = [replace_file(job.folder / path.name, path.read_bytes()) for path in found]
            replace_file(job.folder / "config.json", json.dumps(config, indent=2) + "\n")
            others.append(write_index(job.folder, files, total))
        weights = Checkpoint(job.folder)
        masks = (next(weights.tensors([name]))[1] != 0 for name in pruned)  # one at a time
        others.append(write_masks(job.folder, pruned, masks, report.pattern))
        job.manifest |= {
            "files": {name: digest} | {path.name: sha256_file(path) for path in others},
            "halved": job.halved + report.halved,
            "report": {name: getattr(report, name) for name in sorted(REPORTED)},
            "complete": True,
        }
        job.save()
