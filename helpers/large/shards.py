"""Checkpoints as files: safetensors, in one file or in shards with an index, read and written.

Reading opens a file for as short as it can, so that a checkpoint may be much larger than memory.
Writing is whole or not at all: a temporary name, synced to disk, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.errors import CheckpointError, first_line
from helpers.paths import replace_file, share, sync, sync_folder

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READ_BYTES = 1 << 25  # of a file mapped at once
TEMPORARY = ".tmp"  # ends the name of a file that is not whole yet

T = TypeVar("T")


class Checkpoint:
    """A saved model's weights by name.

    `files` maps each tensor's name to its file: read from the folder, or given.
    Raises CheckpointError if the index or a file is missing or damaged.
    """

    def __init__(self, folder: str | Path, files: Mapping[str, Path] | None = None) -> None:
        self.folder = Path(folder).expanduser()
        self.files = dict(files) if files is not None else _files_of(self.folder)
        self._stamps = {path: _stamp(path) for path in self.paths}

    @property
    def paths(self) -> list[Path]:
        """The files, sorted by name."""
        return sorted(set(self.files.values()))

    def shapes(self, names: Iterable[str] | None = None) -> dict[str, tuple[int, ...]]:
        """Shapes of those of `names` (None: of all tensors) that are there."""
        return dict(self._each(names, lambda file, name: tuple(file.get_slice(name).get_shape())))

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) one at a time, file by file: all of them, or those of `names`."""
        return self._each(names, lambda file, name: file.get_tensor(name))

    def _each(
        self, names: Iterable[str] | None, how: Callable[[Any, str], T]
    ) -> Iterator[tuple[str, T]]:
        wanted = self.files.keys() if names is None else self.files.keys() & set(names)
        by_file: dict[Path, list[str]] = {}
        for name in sorted(wanted):
            by_file.setdefault(self.files[name], []).append(name)
        for path, inside in sorted(by_file.items()):
            with reading(path) as stream:
                for name in inside:
                    yield name, how(stream, name)

    def read(self, name: str, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        """One tensor in memory of its own; a floating-point one in `dtype`.

        The file is opened for some rows at a time, so that next to none of its pages, which count
        as this process's memory while they are mapped, are here beside the tensor.
        Raises CheckpointError if the file has changed since the checkpoint was opened.
        """
        path = self.files[name]
        if _stamp(path) != self._stamps[path]:
            raise CheckpointError(
                f"{path} has changed since this run began to read it: restore it and run again, "
                "or start anew with resume=False"
            )
        shape, stored = self._describe(name)
        kind = dtype if stored.is_floating_point else stored
        tensor = torch.empty(shape, dtype=kind, device=device)
        if not shape:
            with reading(path) as stream:
                return tensor.copy_(stream.get_tensor(name))
        rows = max(1, READ_BYTES * shape[0] // max(1, tensor.numel() * stored.itemsize))
        for start in range(0, shape[0], rows):
            with reading(path) as stream:
                tensor[start : start + rows] = stream.get_slice(name)[start : start + rows]
        return tensor

    def _describe(self, name: str) -> tuple[tuple[int, ...], torch.dtype]:
        """Shape and stored dtype of a tensor."""
        with reading(self.files[name]) as stream:
            part = stream.get_slice(name)
            shape = tuple(part.get_shape())
            row = part[:1] if shape and shape[0] else stream.get_tensor(name)
        return shape, row.dtype

    def stored_bytes(self) -> int:
        """Size of the weights' files on disk."""
        return sum(path.stat().st_size for path in self.paths)

    def hashes(self) -> dict[str, str]:
        """The sha256 of every file, by its name."""
        return {path.name: sha256_of(path) for path in self.paths}


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """A safetensors file, opened lazily; what is wrong with it is raised as CheckpointError."""
    try:
        with safe_open(path, framework="pt") as stream:
            yield stream
    except (SafetensorError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise CheckpointError(
            f"{path} cannot be read ({first_line(error)}): it is missing, cut off or damaged, "
            "save it again"
        ) from error


def _files_of(folder: Path) -> dict[str, Path]:
    """Each tensor's name with its file."""
    # transformers too takes the single file where both are there
    if (folder / SINGLE).is_file():
        with reading(folder / SINGLE) as stream:
            return dict.fromkeys(stream.keys(), folder / SINGLE)
    return {name: folder / file for name, file in _read_index(folder / INDEX).items()}


def _read_index(path: Path) -> dict[str, str]:
    """Name → file of a sharded model's index. Raises CheckpointError."""
    if not path.is_file():
        raise CheckpointError(
            f"folder {path.parent} holds neither {SINGLE} nor {INDEX}: give a folder that "
            "model.save_pretrained(folder) wrote"
        )
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        # a name with a folder in it could lead out of the model's folder
        sound = all(isinstance(file, str) and Path(file).name == file for file in files.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise CheckpointError(f"{path} names no files of weights in its folder: save it again")
    return files


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes when a file is written or replaced; nothing for one that is not there."""
    try:
        status = path.stat()
    except OSError:
        return ()
    return (status.st_size, status.st_mtime_ns, status.st_ino)


def sha256_of(path: Path) -> str:
    """The sha256 of a file. Raises CheckpointError if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): restore it") from error


def write_shard(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> str:
    """Write tensors to a safetensors file, whole or not at all; return the file's sha256.

    metadata: one text, by default that it is torch's; the order of several would be by chance.

    Raises CheckpointError, and leaves no partial file, if the disk is full or not writable.
    """
    temporary = path.with_name(f".{path.name}{TEMPORARY}")
    try:
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(held, temporary, metadata=metadata or {"format": "pt"})
        share(temporary)
        sync(temporary)
        digest = sha256_of(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be written ({error}): make room on that disk and run again"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)  # also after Ctrl-C
    return digest


def write_index(folder: Path, files: Mapping[str, str], total: int) -> Path:
    """Write the index that makes shards a checkpoint: each tensor's file, and all their bytes."""
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
    return replace_file(folder / INDEX, json.dumps(index, indent=1) + "\n")
