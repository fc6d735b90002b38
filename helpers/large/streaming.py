"""A model larger than memory: its weights are read from safetensors when they are needed.

`load_streamed` builds a model without weights. Each block reads its own when it is called and
drops them afterwards, and so does each module outside the blocks, so the model can be called like
any other. A loop that works block by block opens a block for as long as it needs it
(`models.weights_in_memory`), and so reads each only once.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    HTTPError,
)  # of the HTTP library that the hub's client uses
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.device import pick_device, pick_dtype
from helpers.errors import (
    BadParameter,
    FileError,
    NonFinite,
    UnsupportedModel,
    first_line,
)
from helpers.large.shards import COMPANIONS, INDEX, Checkpoint
from helpers.model_state import set_state
from helpers.models import check_stored_weights, find_blocks, locate
from helpers.tensors import all_finite

# "model*", because some repositories hold the same weights a second time under another name
WEIGHTS = "model*.safetensors"
LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_streamed(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """A model whose weights are read from files as they are needed, with its tokenizer.

    Use it as any model in eval mode: a call reads each block once, and `perplexity` reads each a
    few times whatever the length of the text. Its weights cannot be changed.

    Args:
        name: "embedded", a folder that `save_pretrained` wrote, or a hub id (see
            `checkpoint_folder`).
        revision: of a hub model, a commit hash or "main".
        device, dtype: as for `load_model`.

    The tokenizer is None if the folder has none.
    Raises BadParameter, UnsupportedModel, FileError.
    """
    path = checkpoint_folder(name, revision)
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    checkpoint = Checkpoint(path)
    try:
        config = AutoConfig.from_pretrained(path, **LOCAL)
        if getattr(
            config, "quantization_config", None
        ):  # they would be read without their scales
            raise UnsupportedModel(
                f"{path} holds quantised weights: give the unquantised checkpoint"
            )
        check_stored_weights(path)
        if not Path(name).expanduser().is_dir():
            # what a record says of it, as after `load_model`; the hub's cache names by commit
            config._name_or_path, config._commit_hash = (
                str(name),
                path.name if revision else None,
            )
        named = any(
            (path / file).is_file()
            for file in ("tokenizer.json", "tokenizer_config.json")
        )
        tokenizer = AutoTokenizer.from_pretrained(path, **LOCAL) if named else None
        with init_empty_weights(include_buffers=False):  # buffers are computed
            model = AutoModelForCausalLM.from_config(
                config, dtype=kind, trust_remote_code=False
            )
    except (OSError, ValueError, ImportError, RecursionError) as error:
        raise BadParameter(
            f"model {str(path)!r} cannot be built ({first_line(error)})"
        ) from error
    model.tie_weights()
    for module in model.modules():
        # again, because under the model's dtype some have been rounded on the way
        if any(name in module._buffers for name in module._non_persistent_buffers_set):
            model._init_weights(module)
        for buffer_name, buffer in module._buffers.items():
            module._buffers[buffer_name] = None if buffer is None else buffer.to(where)
    set_state(model, reader=WeightReader(model, checkpoint, where, kind))
    return model.eval(), tokenizer


def checkpoint_folder(
    name: str | os.PathLike[str], revision: str | None = None
) -> Path:
    """The folder of safetensors that a model's name stands for.

    A hub model is downloaded once, at one commit, into the hub's own cache: weights as safetensors,
    configuration and tokenizer, no pickles and no code. Raises BadParameter, FileError.
    """
    source, revision = locate(name, revision)
    if isinstance(source, Path):
        # absolute, because the working folder may change while the model is read
        return source.absolute()
    try:
        files = [WEIGHTS, INDEX, *COMPANIONS]
        return Path(snapshot_download(source, revision=revision, allow_patterns=files))
    except (HTTPError, OSError, ValueError) as error:
        raise FileError(
            f"model {source!r} at revision {revision!r} was not downloaded ({first_line(error)}): "
            "check name, revision, network and your access to it; what was downloaded is kept"
        ) from error


@dataclass(frozen=True)
class Slot:
    """A tensor of the checkpoint and the modules that hold it.

    key: its name in the checkpoint; name: in the model. They differ where a checkpoint of the bare
    model leaves out the first part. empty: what the modules hold while the tensor is not read.
    """

    key: str
    name: str
    holders: list[tuple[nn.Module, str]]
    empty: Tensor

    def put(self, tensor: Tensor) -> None:
        """Let all modules of the slot hold one tensor."""
        for module, name in self.holders:
            setattr(module, name, tensor)


class WeightReader:
    """Reads a model's weights when they are needed, and drops them afterwards.

    slots: those of each block by its number, and under None all that lies outside the blocks.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint, self.device, self.dtype = checkpoint, device, dtype
        self.blocks = find_blocks(model)
        self.slots = _slots(model, self.blocks, checkpoint)
        self._outside: dict[nn.Module, list[Slot]] = {}
        for slot in self.slots[None]:
            for module, _ in slot.holders:
                self._outside.setdefault(module, []).append(slot)
        for part, module in [
            *enumerate(self.blocks),
            *((each, each) for each in self._outside),
        ]:
            module.forward = self._reading_first(module.forward, part)

    def _reading_first(self, forward: Any, part: int | nn.Module) -> Any:
        """The forward of a part, which opens it."""

        @functools.wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.weights_in_memory(part):
                return forward(*args, **kwargs)

        return wrapped

    @contextlib.contextmanager
    def weights_in_memory(self, part: int | nn.Module | None) -> Iterator[None]:
        """Inside, a part holds its weights: a block by its number, a module that lies outside the
        blocks, or all of those (None).

        Raises FileError, and NonFinite, naming the tensor.
        """
        slots = (
            self._outside.get(part, [])
            if isinstance(part, nn.Module)
            else self.slots[part]
        )
        read: list[Slot] = []
        try:
            for slot in slots:
                if (
                    getattr(*slot.holders[0]) is slot.empty
                ):  # else it is open further out
                    read.append(
                        slot
                    )  # first, so that Ctrl-C leaves no tensor in memory
                    slot.put(self._read(slot))
            yield
        finally:
            for slot in read:
                slot.put(slot.empty)

    def _read(self, slot: Slot) -> Tensor:
        tensor = self.checkpoint.read(slot.key, self.device, self.dtype)
        if not isinstance(slot.empty, nn.Parameter):
            return (
                tensor  # a buffer may well hold infinity: the mask of an attention does
            )
        if not all_finite(tensor):
            raise NonFinite(
                f"weight {slot.key} holds NaN or infinity as {self.dtype}: check the checkpoint, "
                "and if it is sound use dtype bfloat16 or float32"
            )
        return nn.Parameter(tensor, requires_grad=False)

    def redirect(self, index: int, path: Path) -> None:
        """From now on read a block, which is not open, from another file by the model's names."""
        self.slots[index] = [replace(slot, key=slot.name) for slot in self.slots[index]]
        self.checkpoint.files |= {slot.name: path for slot in self.slots[index]}

    def tensors(self, index: int | None) -> dict[str, Tensor]:
        """What an open part holds now, by the model's names."""
        return {
            slot.name: getattr(*slot.holders[0]).detach() for slot in self.slots[index]
        }


def _slots(
    model: nn.Module, blocks: nn.ModuleList, checkpoint: Checkpoint
) -> dict[int | None, list[Slot]]:
    """The slots of each block and, under None, of all that lies outside.

    Raises BadParameter if the checkpoint lacks a tensor or has one of another shape;
    UnsupportedModel if a block shares a tensor with what lies outside it.
    """
    within = next(
        f"{name}." for name, module in model.named_modules() if module is blocks
    )
    prefix = f"{model.base_model_prefix}."
    shapes, absent = {name: tensor.shape for name, tensor in checkpoint.tensors()}, []
    slots: dict[int | None, list[Slot]] = {
        None: [],
        **{i: [] for i in range(len(blocks))},
    }
    tensors = model.state_dict(keep_vars=True)
    aliases: dict[int, list[str]] = {}  # all names of each tensor
    for name, tensor in tensors.items():
        aliases.setdefault(id(tensor), []).append(name)
    for names in aliases.values():
        tensor = tensors[names[0]]
        # in the checkpoint → in the model; a checkpoint of the bare model lacks the prefix, and a
        # tied tensor may be there several times
        both = [
            (key, name) for name in names for key in (name, name.removeprefix(prefix))
        ]
        stored = {key: name for key, name in both if key in shapes}
        key = next(iter(stored), None)
        if key and shapes[key] == tensor.shape:
            copies = dict(checkpoint.tensors(stored)) if len(stored) > 1 else {}
            if any(not torch.equal(copies[key], copy) for copy in copies.values()):
                # transformers would not tie them; config.json promises that they are one
                raise BadParameter(
                    f"{' and '.join(stored)} in {checkpoint.folder} differ, and config.json ties "
                    "them: set tie_word_embeddings to false there if the weights are right"
                )
            parts = {
                int(name.removeprefix(within).split(".")[0])
                if name.startswith(within)
                else None
                for name in names
            }
            if len(parts) > 1:  # reading one part would not fill the other
                raise UnsupportedModel(
                    f"{' and '.join(names)} are one tensor in two blocks: use load_model and "
                    "prune_model"
                )
            paths = [name.rpartition(".") for name in names]
            holders = [
                (model.get_submodule(path), attribute) for path, _, attribute in paths
            ]
            slots[parts.pop()].append(Slot(key, stored[key], holders, tensor))
        elif key or isinstance(
            tensor, nn.Parameter
        ):  # else a buffer, which the model computes
            absent.append(names[0])
    if absent:
        raise BadParameter(
            f"{checkpoint.folder} lacks {len(absent)} weights of {type(model).__name__}, first "
            f"{absent[0]}: it is incomplete, or of a family that names its weights differently in "
            "files and cannot be read block by block; try load_model and prune_model"
        )
    return slots
