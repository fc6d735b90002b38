"""`prune_checkpoint`: prune a model larger than memory, file to file, and never lose a block.

One block is in memory at a time. A pruned block becomes a shard of the new checkpoint, written
whole or not at all. However the process ends, the same call goes on with the block it was in, and
the files are byte for byte those of an uninterrupted call (unless memory ran out in one of them and
the batch was halved: then the weights are equal to rounding). A hidden file beside them holds what
differs, such as times: the reports of the layers, with a hash of the request. The index, without
which no program takes the shards for a model, is written last.
"""

import contextlib
import dataclasses
import importlib.metadata
import inspect
import json
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.code_hashes import LARGE, code_hash, core_code, file_hashes, hash_of
from helpers.errors import BadParameter, FileError
from helpers.large.shards import COMPANIONS, INDEX, reading, write_index, write_shard
from helpers.large.streaming import WeightReader, load_streamed
from helpers.model.block_loop import LayerReport, Loop, PruneReport, Store, Team
from helpers.model.models import find_layers, state_of
from helpers.model.prune import check_zeros
from helpers.paper.layer import Sparsity
from helpers.paths import replace_file, sha256_file, sync, writing
from helpers.progress import Progress

# whose versions decide the bits of a weight, like the code of the core and of this package
PACKAGES = ("torch", "transformers", "safetensors", "numpy")
REPORT = ".report.json"  # of the finished blocks; hidden, as it is no part of the model


@dataclasses.dataclass
class CheckpointReport(PruneReport):
    """A `PruneReport` of the whole model; `seconds`, `parity` and `batch` are of the last call.

    folder: where the pruned model lies; resumed: blocks that an earlier call had pruned.
    """

    folder: str = ""
    resumed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for a record."""
        values = super().to_dict()
        del values["folder"]  # where the model lies says nothing on another machine
        return values

    def discard(self) -> None:
        """Delete the pruned model."""
        shutil.rmtree(self.folder)


def prune_checkpoint(
    source: str | Path,
    destination: str | Path,
    tokens: Tensor | None = None,
    *,
    method: str,
    sparsity: Sparsity = None,
    pattern: str = "unstructured",
    keep: Mapping[str, Tensor] | None = None,
    passes: int = 2,
    precision: str = "float32",
    batch: int | None = None,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    allow_pruned: bool = False,
    progress: Progress | bool = True,
    ignore: Collection[str] = (),
    team: Team | None = None,
    **options: Any,
) -> CheckpointReport:
    """Prune the model `source` into the folder `destination`, one block in memory at a time.

    The weights are those that `prune_model` gives, bit for bit on one machine with one number of
    threads. `from_pretrained` loads the destination like any model, by the model's own names.

    Interrupted, the same call goes on after the blocks that are done. A folder with the result of
    another call (another method, text, source or version) is never written to: delete it to start
    again. The disk needs room for the new checkpoint. Memory holds one block, its grams, the stream
    and what the solver takes for one layer (see `prune_model`).

    Args:
        source: "embedded", a folder of safetensors with config.json, or a hub id with `revision`.
        destination: a new or empty folder, or one that the same call began to fill.
        tokens, method, sparsity, pattern, passes, precision, batch, progress, ignore, options: as
            for `prune_model`.
        keep: too; the masks of a model that is loaded by `load_streamed` are read one by one.
        revision: of a hub model, a commit hash or "main".
        device, dtype: as for `load_model`.
        allow_pruned: as for `prune_model`; the first block says whether the source is pruned.
        team: several processes, see `helpers.large.torchrun`.

    Raises what `prune_model` raises, and FileError (the destination holds something else; files
    missing, damaged, changed meanwhile; no disk space to write).
    """
    check_plain(options)
    model, _ = load_streamed(source, revision=revision, device=device, dtype=dtype)
    reader = state_of(model).reader
    loop = Loop(
        model,
        tokens,
        method=method,
        options=options,
        sparsity=sparsity,
        pattern=pattern,
        keep=keep,
        passes=passes,
        precision=precision,
        batch=batch,
        progress=progress,
        ignore=ignore,
        team=team,
    )
    if not allow_pruned:
        # one block says it, and the others are on disk
        with reader.weights_in_memory(0):
            check_zeros(
                f"the weights of the first block of {source}",
                [layer.weight for layer in find_layers(reader.blocks[0]).values()],
                "give the dense model, or allow_pruned=True to prune it further",
            )
    folder = Path(destination).expanduser().absolute()
    loop.store = store = ShardStore(folder, reader, loop)
    if len(store.results) < len(store.names):
        store.save_outside(loop.run())
    if loop.team.rank == 0 and not (folder / INDEX).is_file():
        store.complete()
    loop.team.gather(None)  # no process goes on to a model that is not complete
    *blocks, whole = (store.results[name] for name in store.names.values())
    layers = [layer_report(row) for block in blocks for row in block["layers"]]
    return CheckpointReport(
        # what was saved with the last shard, of the whole run
        **vars(loop.report) | {"layers": layers} | whole,
        folder=str(folder),
        resumed=store.resumed,
    )


def check_plain(options: Mapping[str, Any]) -> None:
    """Raise BadParameter for an option that is no JSON value, since the request is hashed."""
    for name, value in options.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise BadParameter(
                f"option {name} is of type {type(value).__name__}, which cannot be written into "
                "the report: give numbers, text, lists or mappings, or use prune_model"
            ) from error


def request_hash(reader: WeightReader, loop: Loop) -> str:
    """Hash of all that decides the bits of the result: only shards of the same one are kept."""
    method_code = None
    # a method of the caller's may have no file
    with contextlib.suppress(OSError, TypeError):
        method_code = code_hash(inspect.getsource(inspect.unwrap(loop.method)))
    parts = {
        "source": {path.name: sha256_file(path) for path in reader.checkpoint.paths},
        "configuration": sha256_file(reader.checkpoint.folder / "config.json"),
        # else the tokens are never read
        "calibration": loop.method.needs_calibration and hash_of(loop.tokens.tolist()),
        "target": dataclasses.asdict(loop.target),
        "keep": loop.report.keep,
        "method_code": method_code,
        "passes": loop.passes,
        "precision": loop.precision,
        "batch": loop.batch,
        "processes": loop.team.size,
        "ignored": loop.ignored,
        "dtype": str(reader.dtype),
        "device": reader.device.type,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "code": core_code() | file_hashes(LARGE),
    }
    return hash_of(parts)


class ShardStore(Store):
    """Saves pruned blocks as shards of a checkpoint. Process 0 writes; all know what is written.

    names: of the shards, by the number of the block and last under None for what lies outside them.
    results: of those that are there, by their names, as the hidden REPORT holds them with the
    `request_hash`.
    """

    def __init__(self, folder: Path, reader: WeightReader, loop: Loop) -> None:
        self.folder = folder
        self.reader = reader
        self.team = loop.team
        parts = [*range(len(reader.blocks)), None]
        self.names = {
            part: f"model-{number:05d}-of-{len(parts):05d}.safetensors"
            for number, part in enumerate(parts, 1)
        }
        results = None
        if self.team.rank == 0:
            # hashing reads the whole source, for which one process is enough
            self.hash = request_hash(reader, loop)
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
                sync(folder.parent)
                # what a killed writer has left: our temporary files, and those of safetensors
                for path in (*folder.glob(".*.tmp"), *folder.glob(".tmp*")):
                    path.unlink(missing_ok=True)
            results = self._read()
        self.results = self.team.gather(results)[0]
        self.resumed = 0  # blocks that earlier calls have pruned
        self.halved = []  # where they had to halve the batch
        for index, name in self.names.items():
            if index is not None and name in self.results:
                reader.redirect(index, folder / name)
                self.resumed += 1
                self.halved = self.results[name]["halved"]

    def _read(self) -> dict[str, dict[str, Any]]:
        """The results of the shards that are in the folder, which are all of this request.

        Raises FileError if the folder holds anything else.
        """
        report = {}
        with contextlib.suppress(OSError, ValueError):
            report = json.loads((self.folder / REPORT).read_bytes())
        others = report or any(self.folder.glob("[!.]*"))
        if others and report.get("request") != self.hash:
            raise FileError(
                f"{self.folder} was written by a different run (method, options, text, source, "
                "package versions or code differ) or holds other files: choose another "
                "destination, or delete that folder to start again"
            )
        results = {}
        for name in self.names.values():
            # one that is missing or damaged is written again
            with contextlib.suppress(FileError, KeyError), reading(self.folder / name):
                results[name] = report[name]
        return results

    def saved(self, index: int) -> list[LayerReport] | None:
        """The reports of a block that an earlier call has pruned."""
        result = self.results.get(self.names[index])
        return result and [*map(layer_report, result["layers"])]

    def save(self, index: int, layers: list[LayerReport], halved: list[str]) -> None:
        """Write the shard of a pruned block."""
        rows = [*map(dataclasses.asdict, layers)]
        self._write(index, {"layers": rows, "halved": self.halved + halved})

    def save_outside(self, report: PruneReport) -> None:
        """Write the last shard: what lies outside the blocks, and facts about the whole run."""
        facts = {name: getattr(report, name) for name in ("seconds", "parity", "batch")}
        with self.reader.weights_in_memory(None):
            self._write(None, facts | {"halved": self.halved + report.halved})

    def _write(self, part: int | None, result: dict[str, Any]) -> None:
        name = self.names[part]
        self.results[name] = result
        if self.team.rank == 0:
            # another call may have begun here meanwhile; the same one may have gone further
            report = {"request": self.hash} | self._read() | self.results
            # before the shard, so that no kill comes between the two
            replace_file(self.folder / REPORT, json.dumps(report))
            write_shard(self.folder / name, self.reader.tensors(part))

    def complete(self) -> None:
        """Add what makes the shards a model: tokenizer, configuration and, last, the index."""
        source = self.reader.checkpoint.folder
        config = json.loads((source / "config.json").read_bytes())
        config.pop("torch_dtype", None)  # its older name
        config["dtype"] = str(self.reader.dtype).removeprefix("torch.")
        for pattern in COMPANIONS:
            for path in source.glob(pattern):
                replace_file(self.folder / path.name, path.read_bytes())
        replace_file(self.folder / "config.json", f"{json.dumps(config, indent=2)}\n")
        write_index(self.folder)


def layer_report(row: dict[str, Any]) -> LayerReport:
    """A layer's report from its JSON."""
    return LayerReport(**row | {"shape": tuple(row["shape"])})
