"""Checkpoints as files: safetensors, in one file or in shards with an index, read and written.

Reading opens a file only briefly, so that a checkpoint may be much larger than memory. Writing is
whole or not at all: a temporary file, synced to disk, then renamed.
"""

import contextlib
import errno
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from helpers.errors import FileError, first_line
from helpers.paths import replace_file, replacing, set_default_mode, writing

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# what makes a folder of weights a model: configuration and tokenizer
COMPANIONS = (
    "config.json",
    "generation_config.json",
    "*token*.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "tekken.json",
    "*.jinja",
    "*.tiktoken",
)
READ_BYTES = 1 << 25  # of a file mapped at once


class Checkpoint:
    """A saved model's weights by name: `files` maps each tensor's name to its file.

    Raises FileError if the index or a file is missing or damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        single = self.folder / SINGLE
        index = self.folder / INDEX
        if single.is_file():  # transformers too takes it where both are there
            with reading(single) as file:
                self.files = dict.fromkeys(file.keys(), single)
        else:
            try:
                files = json.loads(index.read_bytes())["weight_map"]
                # only the name: a folder in it could lead out of the model's
                self.files = {
                    name: self.folder / Path(file).name for name, file in files.items()
                }
            except (
                OSError,
                ValueError,
                LookupError,
                TypeError,
                AttributeError,
            ) as error:
                raise FileError(
                    f"folder {self.folder} holds neither {SINGLE} nor {INDEX} with a valid "
                    "weight_map: give a folder that model.save_pretrained(folder) wrote"
                ) from error
        self.paths = sorted(set(self.files.values()))
        self._stamps = {path: _stamp(path) for path in self.paths}

    def shape(self, name: str) -> tuple[int, ...]:
        """A tensor's shape, from the head of its file."""
        with reading(self.files[name]) as file:
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """A tensor as it is stored, mapped: read from the file when it is used."""
        with reading(self.files[name]) as file:
            return file.get_tensor(name)

    def read(self, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """One tensor in memory of its own; a floating-point one in `dtype`.

        The file is opened again for every few rows: its mapped pages count as this process's
        memory, and so next to none of them are there with the tensor.
        Raises FileError if the file has changed since the checkpoint was opened.
        """
        path = self.files[name]
        if _stamp(path) != self._stamps.setdefault(path, _stamp(path)):
            raise FileError(
                f"{path} has changed since this run began to read it: restore it and run again"
            )
        stored = self.tensor(name)
        kind = dtype if stored.is_floating_point() else stored.dtype
        tensor = torch.empty(stored.shape, dtype=kind, device=device)
        if not stored.shape:
            return tensor.copy_(stored)
        rows = max(1, READ_BYTES * len(stored) // max(1, stored.nbytes))
        for start in range(0, len(stored), rows):
            part = slice(start, start + rows)
            tensor[part] = self.tensor(name)[part]
        return tensor


@contextlib.contextmanager
def reading(path: Path) -> Iterator[Any]:
    """Open a safetensors file without reading its tensors. Raises FileError if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        raise FileError(
            f"{path} cannot be read ({first_line(error)}): it is missing, cut off or damaged; "
            "save it again"
        ) from error


def _stamp(path: Path) -> tuple[int, ...]:
    """A file's size, time and number, which change when it is replaced; empty if it is absent."""
    if not path.exists():
        return ()
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors to a safetensors file, whole or not at all; equal tensors give equal bytes.

    Raises FileError, and leaves no partial file, if the disk is full or not writable.
    """
    on_cpu = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with writing(path, SafetensorError), replacing(path) as temporary:
        # nothing else: safetensors writes several entries in an order that is never the same
        save_file(on_cpu, temporary, metadata={"format": "pt"})
        set_default_mode(temporary)


def write_index(folder: Path) -> None:
    """Write the index that makes a folder's shards a checkpoint: each tensor's file, and all bytes.

    Raises FileError.
    """
    files = {}
    total = 0
    for path in folder.glob("*.safetensors"):
        with reading(path) as file:
            for name in file.keys():  # noqa: SIM118
                files[name] = path.name
                total += file.get_tensor(name).nbytes  # mapped, and not read
    index = {"metadata": {"total_size": total}, "weight_map": files}
    replace_file(folder / INDEX, f"{json.dumps(index, indent=1, sort_keys=True)}\n")
