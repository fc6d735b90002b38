"""A model larger than memory: its weights are read from safetensors when they are needed.

`load_streamed` builds a model without weights. Each block reads its own when it is called and
drops them afterwards, and so does each module outside the blocks, so the model can be called like
any other. A loop that works block by block keeps a block in memory for as long as it needs it
(`models.weights_in_memory`), and so reads each only once.
"""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError  # that of the client's HTTP library
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from helpers.device import all_finite, pick_device, pick_dtype
from helpers.errors import (
    BadParameter,
    FileError,
    NonFinite,
    UnsupportedModel,
    first_line,
)
from helpers.large.shards import COMPANIONS, INDEX, Checkpoint
from helpers.model.models import (
    check_stored_weights,
    explain_loading,
    find_blocks,
    locate,
    set_state,
)

# "model*", because some repositories hold the same weights a second time under another name
WEIGHTS = "model*.safetensors"
LOCAL = {"local_files_only": True, "trust_remote_code": False}


def load_streamed(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """Load a model whose weights are read from files as they are needed, and its tokenizer.

    Use it as any model in eval mode: a call reads each block once, and `perplexity` reads each a
    few times however long the text is. Its weights cannot be changed.

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
    with explain_loading(path):
        config = AutoConfig.from_pretrained(path, **LOCAL)
        # they would be read without their scales
        if getattr(config, "quantization_config", None):
            raise UnsupportedModel(
                f"{path} holds quantised weights: give the unquantised checkpoint"
            )
        check_stored_weights(path)
        if not Path(name).expanduser().is_dir():
            # what a record says of it, as after `load_model`; the hub's cache names by commit
            config._name_or_path = str(name)
            config._commit_hash = path.name if revision else None
        tokenizer = None
        if any(path.glob("tokenizer*.json")):
            tokenizer = AutoTokenizer.from_pretrained(path, **LOCAL)
        with init_empty_weights(include_buffers=False):  # buffers are computed
            model = AutoModelForCausalLM.from_config(
                config, dtype=kind, trust_remote_code=False
            )
    model.tie_weights()
    for module in model.modules():
        # again, because under the model's dtype some have been rounded on the way
        if module._non_persistent_buffers_set & module._buffers.keys():
            model._init_weights(module)
        own = module.named_buffers(recurse=False, remove_duplicate=False)
        for buffer_name, buffer in own:
            module._buffers[buffer_name] = buffer.to(where)
    set_state(model, reader=WeightReader(model, checkpoint, where, kind))
    return model.eval(), tokenizer


def checkpoint_folder(name: str | Path, revision: str | None = None) -> Path:
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


@dataclass
class Slot:
    """A tensor of the checkpoint and the modules that hold it.

    key: its name in the checkpoint; name: in the model. They differ where a checkpoint of the bare
    model leaves out the first part. holders: modules, with the attribute's name; several for tied
    tensors. empty: what the modules hold while the tensor is not in memory.
    """

    key: str
    name: str
    holders: list[tuple[nn.Module, str]]
    empty: Tensor

    @property
    def tensor(self) -> Tensor:
        """The tensor that the modules hold now."""
        module, attribute = self.holders[0]
        return getattr(module, attribute)

    def put(self, tensor: Tensor) -> None:
        """Let all modules of the slot hold one tensor."""
        for module, attribute in self.holders:
            setattr(module, attribute, tensor)


class WeightReader:
    """Reads a model's weights when they are needed, and drops them afterwards.

    slots: those of each block by its number, of each module outside the blocks, and under None
    all that lies outside.
    """

    def __init__(
        self,
        model: nn.Module,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.blocks = find_blocks(model)
        self.slots = _slots(model, self.blocks, checkpoint)
        outside = defaultdict(list)
        for slot in self.slots[None]:
            for module, _ in slot.holders:
                outside[module].append(slot)
        self.slots |= outside
        # a part's weights are in memory for as long as its forward runs
        for module in outside:
            module.forward = self.weights_in_memory(module)(module.forward)
        for index, block in enumerate(self.blocks):
            block.forward = self.weights_in_memory(index)(block.forward)

    @contextlib.contextmanager
    def weights_in_memory(self, part: int | nn.Module | None) -> Iterator[None]:
        """Keep the weights of a part in memory: those of a block by its number, of a module that
        lies outside the blocks, or of all of those (None).

        Raises FileError, and NonFinite, naming the tensor.
        """
        read = []
        try:
            for slot in self.slots[part]:  # none for a module without weights
                if slot.tensor is slot.empty:  # else an outer call keeps it in memory
                    read.append(slot)  # first, so that Ctrl-C leaves no tensor behind
                    slot.put(self._read(slot))
            yield
        finally:
            for slot in read:
                slot.put(slot.empty)

    def _read(self, slot: Slot) -> Tensor:
        tensor = self.checkpoint.read(slot.key, self.device, self.dtype)
        # a buffer may well hold infinity: the mask of an attention does
        if not isinstance(slot.empty, nn.Parameter):
            return tensor
        if not all_finite(tensor):
            raise NonFinite(
                f"weight {slot.key} holds NaN or infinity as {self.dtype}: check the checkpoint, "
                "and if it is sound use dtype bfloat16 or float32"
            )
        return nn.Parameter(tensor, requires_grad=False)

    def redirect(self, index: int, path: Path) -> None:
        """Read a block, not in memory now, from another file by the model's names from now on."""
        for slot in self.slots[index]:
            slot.key = slot.name
            self.checkpoint.files[slot.key] = path

    def masks(self, names: Iterable[str]) -> "Masks":
        """The masks of weights by their names in the model, see `helpers.model.models.masks_of`."""
        slots = {slot.name: slot for part in self.slots.values() for slot in part}
        return Masks(self, {name: slots[name] for name in names})

    def tensors(self, index: int | None) -> dict[str, Tensor]:
        """The tensors of a part that is in memory, by the model's names."""
        return {slot.name: slot.tensor for slot in self.slots[index]}


class Masks(Mapping):
    """Masks of a streamed model by the names of its weights, each read when it is looked up."""

    def __init__(self, reader: WeightReader, slots: dict[str, Slot]) -> None:
        self.reader = reader
        self.slots = slots

    def __getitem__(self, name: str) -> Tensor:
        return self.reader._read(self.slots[name]) != 0

    def __iter__(self) -> Iterator[str]:
        return iter(self.slots)

    def __len__(self) -> int:
        return len(self.slots)


def _slots(
    model: nn.Module, blocks: nn.ModuleList, checkpoint: Checkpoint
) -> defaultdict[Any, list[Slot]]:
    """The slots of each block and, under None, of all that lies outside.

    Raises BadParameter if the checkpoint lacks a tensor or has one of another shape;
    UnsupportedModel if a block shares a tensor with what lies outside it.
    """
    inside = next(name for name, module in model.named_modules() if module is blocks)
    in_block = re.compile(rf"{re.escape(inside)}\.(\d+)\.")
    bare = f"{model.base_model_prefix}."
    # the head of every file is read here: one that is damaged or missing is found before the work
    shapes = {name: checkpoint.shape(name) for name in checkpoint.files}
    slots = defaultdict(list)
    aliases = defaultdict(list)  # all names of each tensor
    for name, tensor in model.state_dict(keep_vars=True).items():
        aliases[tensor].append(name)
    absent = []
    for tensor, names in aliases.items():
        # in the checkpoint → in the model; a checkpoint of the bare model lacks the prefix, and a
        # tied tensor may be there several times
        stored = {}
        for name in names:
            stored |= {name: name, name.removeprefix(bare): name}
        keys = [key for key in stored if key in shapes]
        if keys and shapes[keys[0]] == tensor.shape:
            check_copies(checkpoint, keys)
            # the numbers of their blocks, None outside the blocks
            parts = {match and int(match[1]) for match in map(in_block.match, names)}
            if len(parts) > 1:  # reading one part would not fill the other
                raise UnsupportedModel(
                    f"{' and '.join(names)} are one tensor, which does not belong to one block "
                    "alone: use load_model"
                )
            paths = [name.rpartition(".") for name in names]
            holders = [(model.get_submodule(path), last) for path, _, last in paths]
            slots[parts.pop()].append(Slot(keys[0], stored[keys[0]], holders, tensor))
        # else a buffer, which the model computes
        elif keys or isinstance(tensor, nn.Parameter):
            absent.append(names[0])
    if absent:
        raise BadParameter(
            f"{checkpoint.folder} lacks {len(absent)} weights of {type(model).__name__}, first "
            f"{absent[0]}: it is incomplete, or of a family that names its weights differently in "
            "files and cannot be read block by block; try load_model"
        )
    return slots


def check_copies(checkpoint: Checkpoint, keys: list[str]) -> None:
    """Raise BadParameter if tensors that the model ties differ in the checkpoint.

    transformers would not tie them; config.json promises that they are one.
    """
    for key in keys[1:]:
        if not torch.equal(checkpoint.tensor(keys[0]), checkpoint.tensor(key)):
            raise BadParameter(
                f"{keys[0]} and {key} in {checkpoint.folder} differ, and config.json ties them: "
                "set tie_word_embeddings to false there if the weights are right"
            )
