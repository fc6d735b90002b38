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
from helpers.errors import NonFinite, UnknownModel, UnsupportedModel, first_line
from helpers.large.shards import Checkpoint
from helpers.models import IDENTITY, WEIGHT_READER, find_blocks


@dataclass(frozen=True)
class _Slot:
    """A tensor of the checkpoint and the places of the model that hold it.

    key: its name in the checkpoint; name: in the model. They differ where a checkpoint of the bare
    model leaves out the first part.
    """

    key: str
    name: str
    places: tuple[tuple[nn.Module, str], ...]
    empty: Tensor  # what is there while the tensor is not


class WeightStore:
    """Reads a model's weights where they are needed, and forgets them afterwards.

    `sources` says which checkpoint a block is read from: pruned blocks come from another one,
    which knows them by the model's names.
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
        held: list[_Slot] = []
        try:
            # inside, so that Ctrl-C leaves nothing behind
            for slot in self._outside.get(part, []) if is_module else self.slots[part]:
                held.append(slot)
                self._depth[id(slot)] += 1
                if self._depth[id(slot)] == 1:
                    _put(slot, self._read(slot, None if is_module else self.sources.get(part)))
            yield
        finally:
            for slot in held:
                self._depth[id(slot)] -= 1
                if self._depth[id(slot)] == 0:
                    _put(slot, slot.empty)

    def _read(self, slot: _Slot, pruned: Checkpoint | None) -> Tensor:
        """A slot's tensor, from the source or from a shard of a pruned block."""
        source, name = (pruned, slot.name) if pruned else (self.checkpoint, slot.key)
        tensor = source.read(name, self.device, self.dtype)
        # a buffer may well hold infinity: the mask of an attention does
        if isinstance(slot.empty, nn.Parameter) and not tensor.is_floating_point():
            raise UnsupportedModel(
                f"weight {name} is {tensor.dtype}: give the unquantised checkpoint"
            )
        if isinstance(slot.empty, nn.Parameter) and not all_finite(tensor):
            raise NonFinite(
                f"weight {name} holds NaN or infinity as {self.dtype}: check the checkpoint, and "
                "if it is sound use dtype bfloat16 or float32"
            )
        return tensor

    def tensors(self, index: int | None) -> dict[str, Tensor]:
        """What an open part holds now, by the model's names."""
        return {slot.name: getattr(*slot.places[0]).detach() for slot in self.slots[index]}

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

    Raises UnknownModel if the checkpoint lacks a tensor or has one of another shape;
    UnsupportedModel if a block shares a tensor with what lies outside it.
    """
    within = next(f"{name}." for name, module in model.named_modules() if module is blocks)
    slots: dict[int | None, list[_Slot]] = {None: [], **{i: [] for i in range(len(blocks))}}
    shapes, absent = checkpoint.shapes(), []
    for tensor, found in _places(model):
        names = [full for full, _, _ in found]
        keys = _keys(model, names, checkpoint)
        if not keys and not isinstance(tensor, nn.Parameter):
            continue  # a buffer, which the model has computed
        if not keys or shapes[keys[0][0]] != tuple(tensor.shape):
            absent.append(names[0])
            continue
        parts = {_part(name, within) for name in names}
        if len(parts) > 1:
            raise UnsupportedModel(
                f"{names[0]} and {names[-1]} of {type(model).__name__} are one tensor in two blocks"
                ": use load_model and prune_model"
            )
        _check_twins(checkpoint, [key for key, _ in keys])
        slot = _Slot(*keys[0], tuple((module, name) for _, module, name in found), tensor)
        slots[parts.pop()].append(slot)
    if absent:
        raise UnknownModel(
            f"{checkpoint.folder} lacks {len(absent)} weights of {type(model).__name__}, first "
            f"{absent[0]}: it is incomplete, or a family whose weights have other names in files, "
            "which cannot be read block by block; try load_model and prune_model"
        )
    return slots


def _part(name: str, within: str) -> int | None:
    """The block that a tensor belongs to, None if it lies outside."""
    return int(name.removeprefix(within).split(".")[0]) if name.startswith(within) else None


def _places(model: nn.Module) -> list[tuple[Tensor, list[tuple[str, nn.Module, str]]]]:
    """Each stored tensor of the model once, with all its places: (full name, module, name)."""
    found: dict[int, tuple[Tensor, list[tuple[str, nn.Module, str]]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, tensor in _stored(module):
            full = f"{path}.{name}" if path else name
            found.setdefault(id(tensor), (tensor, []))[1].append((full, module, name))
    return list(found.values())


def _check_twins(checkpoint: Checkpoint, keys: list[str]) -> None:
    """Raise UnknownModel if a tensor that the model ties is there twice, with other values."""
    first = None
    for name, tensor in checkpoint.tensors(keys if len(keys) > 1 else []):
        first = tensor if first is None else first
        if not torch.equal(first, tensor):
            # transformers would not tie them; config.json promises that they are one
            raise UnknownModel(
                f"{name} in {checkpoint.folder} differs from the tensor that config.json ties it "
                "to: set tie_word_embeddings to false there if the weights are right"
            )


def _stored(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a module itself that a checkpoint may hold."""
    for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def _keys(model: nn.Module, names: list[str], checkpoint: Checkpoint) -> list[tuple[str, str]]:
    """The checkpoint's names of a tensor, each with the model's (there are several if it is tied).

    Empty if the checkpoint does not hold it.
    """
    prefix = f"{model.base_model_prefix}."
    found: dict[str, str] = {}
    for name in names:
        # a checkpoint of the bare model lacks the prefix
        for candidate in (name, name.removeprefix(prefix)):
            if candidate in checkpoint.files:
                found.setdefault(candidate, name)
                break
    return list(found.items())


def load_streamed(
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """A model whose weights are read from a folder as they are needed, with its tokenizer.

    Args: folder, written by `save_pretrained`, or "embedded"; device and dtype as for `load_model`.
    Use it as any model in eval mode: a call reads each block once, and `perplexity` reads each a
    few times whatever the length of the text. Its weights cannot be changed.
    Raises UnknownModel, UnsupportedModel, CheckpointError.
    """
    path = source_folder(folder)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    checkpoint = Checkpoint(path)
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        _check_unquantised(config, path)
        tokenizer = load_tokenizer(path)
        # buffers are computed, not read
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config, dtype=kind, trust_remote_code=False)
    except (OSError, ValueError, ImportError) as error:
        raise UnknownModel(f"model {str(path)!r} cannot be built ({first_line(error)})") from error
    model.tie_weights()
    _compute_buffers(model, where)
    setattr(model, WEIGHT_READER, WeightStore(model, checkpoint, where, kind))
    setattr(model, IDENTITY, _identity(path, model, kind))
    return model.eval(), tokenizer


def _compute_buffers(model: nn.Module, device: torch.device) -> None:
    """Fill the buffers that no checkpoint holds, as `from_pretrained` does."""
    for module in model.modules():
        # again, because under the model's dtype some have been rounded on the way
        if any(name in module._buffers for name in module._non_persistent_buffers_set):
            model._init_weights(module)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _check_unquantised(config: Any, folder: Path) -> None:
    """Raise UnsupportedModel for quantised weights, which would be read without their scales."""
    if getattr(config, "quantization_config", None):
        raise UnsupportedModel(f"{folder} holds quantised weights: give the unquantised checkpoint")


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
