"""A model larger than memory: its weights are read from safetensors where they are needed.

`load_streamed` builds a model without weights. Each block reads its own when it is called and
forgets them afterwards, and so do the parts outside the blocks, so the model can be called like
any other. A loop that works block by block opens one for as long as it needs it (`models.opened`),
and reads each once.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.assets import embedded_model_folder
from helpers.device import all_finite, pick_device, pick_dtype
from helpers.errors import NonFinite, UnknownModel
from helpers.models import IDENTITY, STORE, find_blocks
from helpers.shards import Checkpoint


@dataclass(frozen=True)
class _Slot:
    """A tensor of the checkpoint and the places of the model that hold it."""

    key: str
    places: tuple[tuple[nn.Module, str], ...]
    empty: Tensor  # what is there while the tensor is not


class WeightStore:
    """Reads a model's weights where they are needed, and forgets them afterwards.

    `sources` says which checkpoint a block is read from: pruned blocks come from another one.
    """

    def __init__(
        self, model: nn.Module, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.blocks = find_blocks(model)
        self.sources: dict[int, Checkpoint] = {}
        self.slots = _slots(model, self.blocks, checkpoint)
        self._depth: dict[int, int] = {
            id(slot): 0 for slots in self.slots.values() for slot in slots
        }
        self._outside: dict[nn.Module, list[_Slot]] = {}
        for slot in self.slots[None]:
            for module, _ in slot.places:
                self._outside.setdefault(module, []).append(slot)
        for part in [*range(len(self.blocks)), *self._outside]:
            module = self.blocks[part] if isinstance(part, int) else part
            module.forward = self._reading_first(module.forward, part)

    def _reading_first(self, forward: Any, part: int | nn.Module) -> Any:
        """The forward of a part, which opens it."""

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.opened(part):
                return forward(*args, **kwargs)

        return wrapped

    @contextlib.contextmanager
    def opened(self, part: int | nn.Module | None) -> Iterator[None]:
        """Inside, a part holds its weights: a block by its number, a module that lies outside the
        blocks, or all of those (None).

        Raises CheckpointError, and NonFinite, naming the tensor.
        """
        is_module = isinstance(part, nn.Module)
        slots = self._outside.get(part, []) if is_module else self.slots[part]
        source = self.checkpoint if is_module else self.sources.get(part, self.checkpoint)
        held: list[_Slot] = []
        try:
            for slot in slots:
                if self._depth[id(slot)] == 0:
                    _put(slot, self._read(slot, source))
                self._depth[id(slot)] += 1
                held.append(slot)
            yield
        finally:
            for slot in held:
                self._depth[id(slot)] -= 1
                if self._depth[id(slot)] == 0:
                    _put(slot, slot.empty)

    def _read(self, slot: _Slot, source: Checkpoint) -> Tensor:
        tensor = source.read(slot.key, self.device, self.dtype)
        if tensor.is_floating_point() and not all_finite(tensor):
            raise NonFinite(f"weight {slot.key} holds NaN or infinity: check the checkpoint")
        return tensor

    def tensors(self, index: int | None) -> dict[str, Tensor]:
        """What an open part holds now, by the checkpoint's names."""
        return {slot.key: getattr(*slot.places[0]).detach() for slot in self.slots[index]}

    def bytes(self) -> int:
        """All that the model holds, in its dtype."""
        empties = [slot.empty for slots in self.slots.values() for slot in slots]
        return sum(
            tensor.numel()
            * (self.dtype.itemsize if tensor.is_floating_point() else tensor.itemsize)
            for tensor in empties
        )


def _put(slot: _Slot, tensor: Tensor) -> None:
    """Let all places of a slot hold one tensor."""
    if isinstance(slot.empty, nn.Parameter) and not isinstance(tensor, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=False)
    for module, name in slot.places:
        kind = module._parameters if isinstance(slot.empty, nn.Parameter) else module._buffers
        kind[name] = tensor


def _slots(
    model: nn.Module, blocks: nn.ModuleList, checkpoint: Checkpoint
) -> dict[int | None, list[_Slot]]:
    """The slots of each block and, under None, of all that lies outside.

    Raises UnknownModel if the checkpoint lacks a tensor or has one of another shape.
    """
    block_of = {id(module): i for i, block in enumerate(blocks) for module in block.modules()}
    places: dict[int, list[tuple[str, nn.Module, str]]] = {}
    tensors: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        for name, tensor in _stored(module):
            tensors[id(tensor)] = tensor
            full = f"{path}.{name}" if path else name
            places.setdefault(id(tensor), []).append((full, module, name))
    slots: dict[int | None, list[_Slot]] = {None: [], **{i: [] for i in range(len(blocks))}}
    shapes, absent = checkpoint.shapes(), []
    for identity, found in places.items():
        key = _key(model, [full for full, _, _ in found], checkpoint)
        if key is None and not isinstance(tensors[identity], nn.Parameter):
            continue  # a buffer, which the model has computed
        if key is None or shapes[key] != tuple(tensors[identity].shape):
            absent.append(found[0][0])
            continue
        slot = _Slot(key, tuple((module, name) for _, module, name in found), tensors[identity])
        slots[block_of.get(id(found[0][1]))].append(slot)
    if absent:
        raise UnknownModel(
            f"{checkpoint.folder} lacks {len(absent)} weights of {type(model).__name__}, first "
            f"{absent[0]}: if it is whole its names are of an older format, so load it with "
            "load_model and save it again with save_pretrained"
        )
    return slots


def _stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module itself that a checkpoint may hold."""
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def _key(model: nn.Module, names: list[str], checkpoint: Checkpoint) -> str | None:
    """The checkpoint's name of a tensor that the model knows by `names` (more than one if tied)."""
    prefix = f"{model.base_model_prefix}."
    for name in names:
        # a checkpoint of the bare model lacks the prefix
        for candidate in (name, name.removeprefix(prefix)):
            if candidate in checkpoint.files:
                return candidate
    return None


def load_streamed(
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """A model whose weights are read from a folder as they are needed, with its tokenizer.

    Args: folder, written by `save_pretrained`, or "embedded"; device and dtype as for `load_model`.
    Use it as any model in eval mode; `perplexity` reads each block once. Its weights cannot be
    changed. Raises UnknownModel, UnsupportedModel, CheckpointError.
    """
    path = source_folder(folder)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    checkpoint = Checkpoint(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        tokenizer = load_tokenizer(path)
        # buffers are computed, not read
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnknownModel(f"model {str(path)!r} cannot be built ({reason})") from error
    model.tie_weights()
    for buffered in model.modules():
        for name, buffer in buffered._buffers.items():
            buffered._buffers[name] = None if buffer is None else buffer.to(where)
    setattr(model, STORE, WeightStore(model, checkpoint, where, kind))
    setattr(model, IDENTITY, _identity(path, model, kind))
    return model.eval(), tokenizer


def source_folder(source: str | os.PathLike[str]) -> Path:
    """The folder that a source stands for. Raises UnknownModel."""
    folder = embedded_model_folder() if str(source) == "embedded" else Path(source).expanduser()
    if not (folder / "config.json").is_file():
        raise UnknownModel(
            f"{folder} holds no config.json: give a folder that save_pretrained wrote, or fetch a "
            "hub model with fetch_checkpoint(name, revision)"
        )
    return folder


def source_tokenizer(source: str | os.PathLike[str]) -> Any:
    """The tokenizer of a source. Raises UnknownModel."""
    tokenizer = load_tokenizer(source_folder(source))
    if tokenizer is None:
        raise UnknownModel(f"{source} holds no tokenizer: save its tokenizer there too")
    return tokenizer


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a folder, or None if it has none."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _identity(folder: Path, model: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """What a record says of the model. Its files are hashed by those who need that."""
    return {
        "name": folder.resolve().name,
        "sha256": None,
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
    }
