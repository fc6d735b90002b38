"""`prune_checkpoint`: prune a model larger than memory, file to file, and never lose a block.

One block is in memory at a time. A finished block becomes a shard of the new checkpoint and is
entered in a manifest; whatever ends the run, the same call goes on with the block it was in, and
the result is bit for bit that of a run without interruption (unless memory ran out in one of them
and the batch was halved: then to rounding).

While it runs everything lies in the folder `<destination>.pruning`; the destination itself
appears when it is complete, and an older one there is replaced only then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from helpers.capture import eval_mode
from helpers.errors import (
    BadParameter,
    CheckpointError,
    HelpersError,
    RecordError,
    ResumeError,
    check_choice,
)
from helpers.large.mask_files import save_masks
from helpers.large.shards import TEMPORARY, Checkpoint, sha256_of, write_index, write_shard
from helpers.large.streaming import WeightStore, load_streamed, source_folder
from helpers.methods import get_method
from helpers.models import WEIGHT_READER, find_layers
from helpers.paths import replace_file, root, sync_folder
from helpers.prune import LayerReport, Loop, Progress, PruneReport, Store, Team, check_request

MANIFEST = "pruning.json"
FORMAT = 1
ACTIVATIONS = ("memory", "disk")
_SHOWN = 8  # differences that a message names
# what decides the bits of a weight
PACKAGES = ("torch", "transformers", "safetensors", "numpy")
CODE = (
    *("admm", "capture", "checkpoint", "device", "distributed", "gram", "masks", "methods"),
    *("models", "packed", "prune", "shards", "streaming"),
)
# beside weights, what makes a folder a model
_COMPANIONS = (
    *("config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.jinja", "*.tiktoken"),
)


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
    sparsity: float | None = None,
    pattern: str = "unstructured",
    batch: int | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    activations: str = "memory",
    resume: bool = True,
    progress: Progress | None = None,
    team: Team | None = None,
    **options: Any,
) -> CheckpointReport:
    """Prune the model in folder `source` into folder `destination`, one block in memory at a time.

    The weights are those that `prune_model` gives, bit for bit on one machine with one number of
    threads. `from_pretrained` loads the destination like any model, by the model's own names;
    beside its shards lie the masks (`load_masks`) and a manifest.

    Args: source, a folder of safetensors with config.json, or "embedded"; tokens, method,
    sparsity, pattern, batch, progress and options as for `prune_model`; device and dtype as for
    `load_model`; activations, where the stream lies between blocks, "memory" (the machine's, not
    a GPU's) or "disk"; resume, go on where an earlier call with the same arguments was
    interrupted; False starts anew, and what was there is deleted when the new model is complete.
    team, for several processes: see `helpers.large.torchrun`.

    Memory, in bytes: see `helpers.machine.footprint`. Disk: the new checkpoint, and with
    activations="disk" the stream.

    Raises what `prune_model` raises, and ResumeError (an earlier run was asked for something
    else, naming what; another run is at work; the destination is not one of ours), CheckpointError
    (files missing, damaged, changed underneath, or no room to write).
    """
    check_choice("activations", activations, ACTIVATIONS)
    team, folder = team or Team(), source_folder(source)
    destination = _apart(folder, destination)
    model, _ = load_streamed(folder, device=device, dtype=dtype)
    arguments = dict(options, sparsity=sparsity, pattern=pattern)
    check_request(model, tokens, method, batch, None, arguments)
    # hashing reads the whole source, for which one process is enough
    request = _request(model, folder, tokens, method, batch, arguments, team) if team.lead else {}
    with contextlib.ExitStack() as stack:
        work = None
        if team.lead:
            work = stack.enter_context(_working(destination, request, resume))
        work = team.share(work)
        if work.complete:
            return work.report(method, pattern)
        store = ShardStore(model, work, team, activations)
        loop = Loop(model, method, arguments, progress=progress, store=store, team=team)
        _check_room(work, model, tokens, activations)
        with eval_mode(model), _told(work):
            loop.run(tokens, batch)
            _close(work, team, model, folder, loop.report)
        return team.share(work).report(method, pattern, loop.report)


def _close(work: Work, team: Team, model: nn.Module, source: Path, report: PruneReport) -> None:
    """Let the lead complete the new model. Raises CheckpointError."""
    if team.lead:
        with _writing():
            work.close(model, source, report)


def _apart(source: Path, destination: str | os.PathLike[str]) -> Path:
    """The destination itself, whatever links or working folder lead to it.

    Raises ResumeError if source and destination are one, or one lies in the other.
    """
    folder, source = Path(destination).expanduser().resolve(), source.resolve()
    for ours in (folder, _place_of(folder)):
        if source.is_relative_to(ours) or ours.is_relative_to(source):
            raise ResumeError(
                f"destination {folder} and source {source} overlap: choose another destination"
            )
    return folder


# --- what was asked for ----------------------------------------------------------------------


def _request(
    model: nn.Module,
    folder: Path,
    tokens: Tensor | None,
    method: str,
    batch: int | None,
    arguments: Mapping[str, Any],
    team: Team,
) -> dict[str, Any]:
    """Everything that decides the bits of the result; an interrupted run goes on only with it.

    Raises BadParameter for an option that JSON cannot hold.
    """
    store: WeightStore = getattr(model, WEIGHT_READER)
    if not get_method(method).needs_calibration:
        tokens = None  # they are never read
    request = {
        "source": store.checkpoint.hashes(),
        "configuration": sha256_of(folder / "config.json"),
        "calibration": None if tokens is None else _hash_tokens(tokens),
        "method": method,
        "method_code": _code_of(method),
        "arguments": dict(arguments),  # apart, since an option may have any name
        "batch": batch,
        "dtype": str(store.dtype).removeprefix("torch."),
        "device": store.device.type,
        "processes": team.size,
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "code": {name: sha256_of(path) for name, path in _code_files()},
    }
    try:
        return json.loads(json.dumps(request))
    except (TypeError, ValueError) as error:
        raise BadParameter(
            f"options {dict(arguments)!r} cannot be written to a manifest ({error}): give numbers, "
            "text, lists or mappings"
        ) from error


def _code_files() -> Iterator[tuple[str, Path]]:
    for name in CODE:
        path = root() / "helpers" / f"{name}.py"
        if path.is_file():
            yield name, path


def _code_of(method: str) -> str | None:
    """sha256 of a method's own code, which may be registered elsewhere; None if it has no file."""
    try:
        text = inspect.getsource(inspect.unwrap(get_method(method)))
    except (OSError, TypeError):
        return None
    return hashlib.sha256(text.encode()).hexdigest()


def _hash_tokens(tokens: Tensor) -> str:
    """sha256 of token ids and their shape."""
    digest = hashlib.sha256(str(tuple(tokens.shape)).encode())
    digest.update(tokens.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _differences(asked: Any, found: Any, name: str = "") -> list[str]:
    """The fields in which two requests differ, in words."""
    if isinstance(asked, dict) and isinstance(found, dict):
        lines = []
        for key in sorted(asked.keys() | found.keys()):
            where = f"{name}.{key}" if name else key
            lines += _differences(asked.get(key), found.get(key), where)
        return lines
    return [] if asked == found else [f"{name} {_short(found)}, not {_short(asked)}"]


def _short(value: Any) -> str:
    """A value for a message; of a hash only the beginning."""
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else repr(value)


# --- the place of work -----------------------------------------------------------------------


@dataclass
class Work:
    """One run on disk: its folder, its manifest, and the destination it will become."""

    destination: Path
    folder: Path
    manifest: dict[str, Any]
    complete: bool = False
    redone: list[int] = field(default_factory=list)
    resumed: int = 0
    halved_before: list[str] = field(default_factory=list)  # by calls that were interrupted

    def lines(self, index: int) -> list[LayerReport] | None:
        """The lines of a finished block, None if it is not finished."""
        entry = self.manifest["blocks"].get(str(index))
        return entry and [_line(row) for row in entry["layers"]]

    def enter(self, index: int, entry: dict[str, Any], halved: list[str]) -> None:
        """Write a finished block into the manifest; halved: where in this call, so far."""
        self.manifest["blocks"][str(index)] = entry
        self.manifest["halved"] = self.halved_before + halved
        self.save()

    def save(self) -> None:
        """Write the manifest."""
        replace_file(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")

    def verify(self) -> None:
        """Forget finished blocks whose shard is no longer what was written."""
        for index, entry in list(self.manifest["blocks"].items()):
            if self._damaged(entry):
                del self.manifest["blocks"][index]
                self.redone.append(int(index))
        self.resumed = len(self.manifest["blocks"])
        self.halved_before = list(self.manifest["halved"])

    def check(self) -> None:
        """Raise ResumeError if a file of the complete model is no longer what was written."""
        for entry in [*self.manifest["blocks"].values(), self.manifest["rest"]]:
            if self._damaged(entry):
                # not mended: it may be that someone has gone on to work with this model
                raise ResumeError(
                    f"{self.folder / entry['file']} is not what was written there: choose another "
                    "destination, or start anew with resume=False, which replaces the model there"
                )

    def _damaged(self, entry: Mapping[str, Any]) -> bool:
        path = self.folder / entry["file"]
        return not path.is_file() or sha256_of(path) != entry["sha256"]

    def report(self, method: str, pattern: str, run: PruneReport | None = None) -> CheckpointReport:
        """The report: of the whole model, with what this call did."""
        said = self.manifest["report"]
        rows = [_line(row) for _, e in _in_order(self.manifest["blocks"]) for row in e["layers"]]
        return CheckpointReport(
            method,
            pattern,
            rows,
            seconds=run.seconds if run else said["seconds"],
            parity=said["parity"],
            batch=said["batch"],
            halved=list(self.manifest["halved"]),
            folder=str(self.destination),
            resumed=self.resumed,
            redone=sorted(self.redone),
        )

    def close(self, model: nn.Module, source: Path, report: PruneReport) -> None:
        """Add what is not in blocks, and put the new model in the destination's place."""
        store: WeightStore = getattr(model, WEIGHT_READER)
        blocks = len(store.blocks)
        rest = _shard_name(blocks, blocks)
        with store.opened(None):
            digest = write_shard(self.folder / rest, store.tensors(None))
        files = {slot.name: rest for slot in store.slots[None]}
        for index, entry in _in_order(self.manifest["blocks"]):
            files |= {slot.name: entry["file"] for slot in store.slots[index]}
        _copy_companions(source, self.folder, store.dtype)
        write_index(self.folder, files, store.bytes())
        save_masks(self.folder, _Masks(self.folder, store), pattern=report.pattern)
        self.manifest |= {
            "rest": {"file": rest, "sha256": digest},
            "halved": self.halved_before + report.halved,
            "report": {name: getattr(report, name) for name in ("seconds", "parity", "batch")},
            "complete": True,
        }
        self.save()
        _take_place(self.folder, self.destination)
        self.folder, self.complete = self.destination, True


def _line(row: Mapping[str, Any]) -> LayerReport:
    """A layer's line as it was before JSON."""
    return LayerReport(**{**row, "shape": tuple(row["shape"])})


def _in_order(blocks: Mapping[str, Any]) -> list[tuple[int, Any]]:
    return sorted((int(index), entry) for index, entry in blocks.items())


class _Masks(Mapping):
    """The masks of a folder's shards by name, made one at a time when asked for."""

    def __init__(self, folder: Path, store: WeightStore) -> None:
        self._checkpoint = Checkpoint(folder)
        pruned = {
            id(layer): None for block in store.blocks for layer in find_layers(block).values()
        }
        self._names = [
            slot.name
            for index in range(len(store.blocks))
            for slot in store.slots[index]
            if any(id(module) in pruned and name == "weight" for module, name in slot.places)
        ]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, name: str) -> Tensor:
        ((_, weight),) = self._checkpoint.tensors([name])
        return weight != 0


def _shard_name(index: int, blocks: int) -> str:
    """The file of a block; what lies outside the blocks comes last."""
    return f"model-{index + 1:05d}-of-{blocks + 1:05d}.safetensors"


def _copy_companions(source: Path, folder: Path, dtype: torch.dtype) -> None:
    """Copy configuration and tokenizer; the configuration names the new weights' dtype."""
    for pattern in _COMPANIONS:
        for path in filter(Path.is_file, source.glob(pattern)):
            replace_file(folder / path.name, path.read_bytes())
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # its older name
    config["dtype"] = str(dtype).removeprefix("torch.")
    replace_file(path, json.dumps(config, indent=2) + "\n")


@contextlib.contextmanager
def _working(destination: Path, request: dict[str, Any], resume: bool) -> Iterator[Work]:
    """The run to go on with, or a new one, held by one process at a time.

    Raises ResumeError.
    """
    place = _place_of(destination)
    _check_destination(destination)
    with _held(place, destination):
        try:
            _mend_place(place, destination)
            work = _continued(place, destination, request) if resume else None
            if work is None:
                work = _begun(place, destination, request)
            if work.complete:
                work.check()
            else:
                for partial in work.folder.glob(f".*{TEMPORARY}"):
                    partial.unlink()  # of a run that was killed while it wrote
                work.verify()
            yield work
        finally:
            _tidy(place)


def _place_of(destination: Path) -> Path:
    """Where the work for a destination is done."""
    return destination.with_name(f"{destination.name}.pruning")


def _check_destination(destination: Path) -> None:
    """Raise ResumeError if something lies there that is not one of ours."""
    if destination.is_dir() and any(destination.iterdir()):
        if not (destination / MANIFEST).is_file():
            raise ResumeError(
                f"{destination} holds something else than a model of prune_checkpoint: "
                "choose another destination, or empty it"
            )
    elif destination.exists() and not destination.is_dir():
        raise ResumeError(f"{destination} is a file: choose another destination")


@contextlib.contextmanager
def _held(place: Path, destination: Path) -> Iterator[None]:
    """Hold the place of work: the lock goes with the process, however that ends.

    Raises ResumeError if another process holds it, CheckpointError if nothing can be written there.
    """
    try:
        lock = _lock(place)
    except BlockingIOError as error:
        raise ResumeError(
            f"{destination} is being pruned by {_holder(place)}: wait for it, or stop it"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot work in {place} ({error.strerror}): choose a destination that can be written"
        ) from error
    try:
        yield
    finally:
        os.close(lock)


def _lock(place: Path) -> int:
    """The open lock file of a place of work, held. Raises OSError; BlockingIOError if not free."""
    while True:
        if not place.is_dir():
            place.mkdir(parents=True, exist_ok=True)
            sync_folder(place.parent)
        try:
            lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:
            if place.is_dir():
                raise
            continue  # a run that was just completing has deleted it
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(lock, place / "lock"):
                with contextlib.suppress(OSError):  # a full disk; it is for a message only
                    os.truncate(lock, 0)
                    os.write(lock, f"process {os.getpid()}".encode())
                return lock
        except BaseException:
            os.close(lock)
            raise
        os.close(lock)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _holder(place: Path) -> str:
    """Who holds the lock, as far as it says."""
    try:
        return (place / "lock").read_text().strip() or "another process"
    except OSError:
        return "another process"


def _runs(place: Path) -> list[Path]:
    """The folders of the runs in a place of work, the newest first."""
    return sorted(place.glob("run-*"), key=_number, reverse=True)


def _mend_place(place: Path, destination: Path) -> None:
    """Finish what a run was killed in after its model was complete: taking its place."""
    for folder in _runs(place):
        with contextlib.suppress(ResumeError):
            if _read_manifest(folder).get("complete"):
                return _take_place(folder, destination)
    return None


def _tidy(place: Path) -> None:
    """Delete a place of work, except runs that may be gone on with."""
    for folder in _runs(place):
        if not (folder / MANIFEST).is_file():
            shutil.rmtree(folder, ignore_errors=True)
    if not _runs(place):
        shutil.rmtree(place, ignore_errors=True)


def _continued(place: Path, destination: Path, request: dict[str, Any]) -> Work | None:
    """The newest run of the same request, interrupted or complete; None if there is none at all.

    Raises ResumeError, with what differs, if there are only others.
    """
    others = []
    for folder in [*_runs(place), destination]:
        if not (folder / MANIFEST).is_file():
            continue  # nothing there, or killed before it began
        manifest = _read_manifest(folder)
        if manifest["request"] == request:
            complete = bool(manifest.get("complete"))
            return Work(destination, folder, manifest, complete, resumed=len(manifest["blocks"]))
        if manifest["blocks"]:  # else there is nothing to lose
            others.append((folder, manifest))
    if others:
        _check_same(request, others[0][1], others[0][0])
    return None


def _begun(place: Path, destination: Path, request: dict[str, Any]) -> Work:
    """A new run."""
    number = max([0, *map(_number, place.glob("run-*"))]) + 1
    work = Work(destination, place / f"run-{number}", {})
    work.manifest = {"format": FORMAT, "request": request, "blocks": {}, "halved": []}
    with _writing():
        work.save()
        sync_folder(place)
    return work


def _number(folder: Path) -> int:
    text = folder.name.removeprefix("run-")
    return int(text) if text.isdecimal() else 0


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a run. Raises ResumeError if it cannot be used."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        known = manifest["format"] == FORMAT
        if known:
            _check_manifest(manifest)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ResumeError(
            f"{path} cannot be read, so what is finished is not known: delete {folder}, or start "
            "anew with resume=False"
        ) from error
    if not known:
        raise ResumeError(
            f"{path} has format {manifest['format']!r}, not {FORMAT}: go on with the version that "
            "wrote it, or start anew with resume=False"
        )
    return manifest


def _check_manifest(manifest: Mapping[str, Any]) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError if something is not as written."""
    entries = list(manifest["blocks"].values())
    for entry in entries:
        for row in entry["layers"]:
            _line(row)
    if manifest.get("complete"):
        entries.append(manifest["rest"])
        manifest["report"]["seconds"], manifest["report"]["parity"], manifest["report"]["batch"]
    for entry in entries:
        if Path(entry["file"]).name != entry["file"] or len(entry["sha256"]) != 64:
            raise ValueError(f"not a file and its hash: {entry}")
    if not isinstance(manifest["request"], dict) or not isinstance(manifest["halved"], list):
        raise ValueError("no request")


def _check_same(request: dict[str, Any], manifest: dict[str, Any], folder: Path) -> None:
    """Raise ResumeError if a run was asked for something else."""
    lines = _differences(request, manifest["request"])
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"{len(lines) - _SHOWN} more"]
    if lines:
        raise ResumeError(
            f"the run in {folder} has {'; '.join(lines)}: ask for the same, choose another "
            "destination, or start anew with resume=False, which deletes that run once the new "
            "model is complete"
        )


def _take_place(folder: Path, destination: Path) -> None:
    """Put a complete run in the destination's place; what it replaces is deleted afterwards.

    So are the other runs. At each moment the old model or the new one is whole; killed at any,
    `_mend_place` does the rest.
    """
    place = _place_of(destination)
    replaced = place / "replaced"
    for other in _runs(place):
        if other != folder:
            # first: without a manifest a half deleted run is known as one
            (other / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(other, ignore_errors=True)
    if destination.is_dir():
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(destination, replaced)
    os.replace(folder, destination)
    sync_folder(destination.parent)
    sync_folder(place)
    shutil.rmtree(replaced, ignore_errors=True)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    """What cannot be written, as CheckpointError."""
    try:
        yield
    except (OSError, RecordError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"the pruned model cannot be written ({reason}): make room there and run again"
        ) from error


@contextlib.contextmanager
def _told(work: Work) -> Iterator[None]:
    """Add to an error that what is finished is kept."""
    try:
        yield
    except HelpersError as error:
        count = len(work.manifest["blocks"])
        if not count:
            raise
        raise type(error)(
            f"{error}; {count} finished blocks are kept, the same call goes on from there"
        ) from error


def _check_room(work: Work, model: nn.Module, tokens: Tensor | None, activations: str) -> None:
    """Raise CheckpointError if the new files do not fit the disk."""
    store: WeightStore = getattr(model, WEIGHT_READER)
    needed = store.bytes() + sum(p.numel() for p in model.parameters()) // 8
    needed -= sum(path.stat().st_size for path in work.folder.glob("*.safetensors"))
    if activations == "disk" and tokens is not None:
        width = model.config.get_text_config(decoder=True).hidden_size
        needed += tokens.numel() * width * store.dtype.itemsize
    free = shutil.disk_usage(work.folder).free
    if free < needed:
        raise CheckpointError(
            f"{work.folder} needs {needed / 1e9:.1f} GB and its disk has {free / 1e9:.1f} GB free: "
            "make room, or choose another destination"
        )


# --- blocks to shards ------------------------------------------------------------------------


class ShardStore(Store):
    """Pruned blocks become shards and entries of the manifest."""

    def __init__(self, model: nn.Module, work: Work, team: Team, activations: str) -> None:
        self.weights: WeightStore = getattr(model, WEIGHT_READER)
        self.work, self.team, self.activations = work, team, activations

    def begin(self) -> None:
        """From now on finished blocks are read as they were pruned."""
        for index, slots in self.weights.slots.items():
            if index is not None and self.work.lines(index) is not None:
                path = self.work.folder / self.work.manifest["blocks"][str(index)]["file"]
                files = {slot.name: path for slot in slots}
                self.weights.sources[index] = Checkpoint(self.work.folder, files)

    def finished(self, index: int) -> list[LayerReport] | None:
        """The lines of a block that an earlier run has finished."""
        return self.work.lines(index)

    def finish(self, index: int, layers: list[LayerReport], halved: list[str]) -> None:
        """Write a pruned block, then enter it."""
        if not self.team.lead:
            return
        name = _shard_name(index, len(self.weights.blocks))
        digest = write_shard(self.work.folder / name, self.weights.tensors(index))
        rows = [dataclasses.asdict(line) for line in layers]
        with _writing():
            self.work.enter(index, {"file": name, "sha256": digest, "layers": rows}, halved)

    def allocate(self, *shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for the stream: the machine's, or a file's."""
        if self.activations == "memory":
            return torch.empty(*shape, dtype=dtype)
        return _on_disk(
            self.work.folder / f".activations-{self.team.rank}{TEMPORARY}", shape, dtype
        )


def _on_disk(path: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor that lies in a file without a name, which goes with the tensor or the process.

    Raises CheckpointError if there is no room.
    """
    size = torch.Size(shape).numel()
    try:
        with path.open("wb") as stream:
            # all of it now: a full disk would end the process when the mapping is written to
            if hasattr(os, "posix_fallocate"):  # macOS lacks it
                os.posix_fallocate(stream.fileno(), 0, size * dtype.itemsize)
            stream.truncate(size * dtype.itemsize)
        return torch.from_file(str(path), shared=True, size=size, dtype=dtype).view(shape)
    except OSError as error:
        raise CheckpointError(
            f"{path.parent} does not take activations of {size * dtype.itemsize / 1e9:.3g} GB "
            f'({error.strerror}): make room, or use activations="memory"'
        ) from error
    finally:
        path.unlink(missing_ok=True)
