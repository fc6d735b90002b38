"""Load a model; find its decoder blocks and the linear layers inside them, in any family."""

import contextlib
import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file, logging

from helpers.data.assets import MODELS, embedded_model_folder
from helpers.device import FLOATS, all_finite, pick_device, pick_dtype
from helpers.errors import (
    BadParameter,
    NonFinite,
    UnsupportedModel,
    described,
    first_line,
)
from helpers.memory import check_model_name
from helpers.paths import sha256_file

# the attribute by which a model carries its state
STATE = "pruning_state"
# what a weight has in a file of safetensors, unless it is quantised
STORED_FLOATS = ("F64", "F32", "F16", "BF16")


def load_model(
    name: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
) -> tuple[nn.Module, Any]:
    """Load a causal language model in eval mode, with its tokenizer.

    Args: name, one of "embedded" (SmolLM2-135M-Instruct, no account needed), "embedded-gemma"
    (Gemma-3-270M, fetched when it is first loaded, under its own terms: see NOTICE), "tiny" (random
    weights, for tests), a local folder, or a hub id; revision, needed for a hub id: a commit
    hash, or "main" for the newest (the resolved commit is recorded); device "auto",
    "cpu", "cuda" …; dtype, by default float32 on CPU and float16 on a GPU.
    Raises BadParameter, FileError, and UnsupportedModel for quantised weights without the
    configuration that says how.
    """
    where = pick_device(device)
    kind = pick_dtype(dtype, where)
    if str(name) == "tiny":
        model, tokenizer = _tiny_model()
        # parameters only: model.to(dtype) would also round the buffers, see below
        for parameter in model.parameters():
            parameter.data = parameter.data.to(kind)
    else:
        model, tokenizer = _load(*locate(name, revision), kind)
    # only moved: a cast would round the frequencies of the position embedding, which are float32
    model.to(device=where).eval()
    set_state(model, identity=_identity(name, model))
    return model, tokenizer


def locate(name: str | Path, revision: str | None) -> tuple[str | Path, str | None]:
    """The folder or (hub id, revision) that a model's name stands for. Raises BadParameter."""
    text = str(name)
    if text in MODELS:
        return embedded_model_folder(text), None
    folder = Path(text).expanduser()
    if text and folder.is_dir():
        if not (folder / "config.json").is_file():
            raise BadParameter(
                f"folder {text!r} holds no config.json: give the one in which a model was saved, "
                "with config.json, its tokenizer and safetensors weights"
            )
        return folder, None
    check_model_name(text)
    if text == "tiny":
        raise BadParameter(
            'model "tiny" is made in memory and lies in no folder: use load_model'
        )
    if revision is None:
        raise BadParameter(
            f'model {text!r} on the hub needs revision="main", the newest, or a commit hash'
        )
    return text, revision


def load_shapes(
    name: str | Path,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """A model without weights, on the meta device: what its layers are called and how large.

    Of a model on the hub config.json alone is downloaded. Arguments and errors as for `load_model`.
    """
    if str(name) == "tiny":
        return _tiny_model()[0].to("meta", dtype)
    source, revision = locate(name, revision)
    common = {"local_files_only": True} if isinstance(source, Path) else {}
    common["trust_remote_code"] = False
    with explain_loading(source), init_empty_weights():
        config = AutoConfig.from_pretrained(source, revision=revision, **common)
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=False
        )


def _load(
    source: str | Path, revision: str | None, dtype: torch.dtype
) -> tuple[nn.Module, Any]:
    """Load from a folder or the hub, refusing pickles and remote code."""
    # a folder that lacks a file must fail here, and not become a request to the hub
    local = isinstance(source, Path)
    common = {"local_files_only": True} if local else {"revision": revision}
    common["trust_remote_code"] = False
    with explain_loading(source), no_progress_bars():
        # first, because for a family that transformers does not know the config's error says so,
        # and the tokenizer's does not
        AutoConfig.from_pretrained(source, **common)
        with explain_loading(source, "the tokenizer of "):
            tokenizer = AutoTokenizer.from_pretrained(source, **common)
        # use_safetensors: a pickle (.bin) can run code when it is loaded
        model, loading = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **common,
        )
    # transformers fills what is missing with random numbers and goes on
    absent = sorted(map(str, [*loading["missing_keys"], *loading["mismatched_keys"]]))
    if absent:
        raise BadParameter(
            f"model {str(source)!r} lacks {len(absent)} of its weights, first {absent[0]}: "
            "its checkpoint is incomplete, fetch or save it again"
        )
    if not getattr(model.config, "quantization_config", None):
        # of the hub in its cache, at the commit that was loaded: "main" may have moved on
        commit = getattr(model.config, "_commit_hash", None) or revision
        config = cached_file(
            source, "config.json", revision=commit, local_files_only=True
        )
        check_stored_weights(Path(config).parent)
    return model, tokenizer


@contextlib.contextmanager
def explain_loading(source: str | Path, part: str = "") -> Iterator[None]:
    """Re-raise as BadParameter, with advice, what transformers raises if it cannot load a model.

    part: "the tokenizer of ", if it is not the whole.
    """
    advice = (
        "check the name, the revision, the network and your access, and run it again"
    )
    if isinstance(source, Path):
        advice = (
            "give the folder of a complete saved model, with config.json, its tokenizer and "
            "safetensors weights; copy it again if it was cut off"
        )
    library = (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        TypeError,  # a config.json that holds no object
        AttributeError,
        SafetensorError,
        HTTPError,  # the HTTP library's own, which transformers lets through
    )
    try:
        yield
    except library as error:
        raise BadParameter(
            f"{part}model {str(source)!r} cannot be loaded ({first_line(error)}): {advice}"
        ) from error


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar of its own, which would stray through a notebook."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def check_stored_weights(folder: Path) -> None:
    """Raise UnsupportedModel if a folder's safetensors hold weights that are not plain floats.

    For a config.json without quantisation: transformers then reads such numbers as they are,
    without their scales.
    """
    for path in sorted(folder.glob("*.safetensors")):
        # a damaged file is reported when the model is read; this may be one that it does not read
        with (
            contextlib.suppress(SafetensorError),
            safe_open(path, framework="pt") as file,
        ):
            # other tensors may be whole numbers, such as the positions in older files
            for name in file.keys():  # noqa: SIM118
                kind = file.get_slice(name).get_dtype()
                if name.endswith("weight") and kind not in STORED_FLOATS:
                    raise UnsupportedModel(
                        f"{name} in {path} is of type {kind}, and config.json says nothing of how "
                        "it was quantised: give the unquantised checkpoint"
                    )


def _tiny_model() -> tuple[nn.Module, Any]:
    """A random 2-block Llama with the embedded tokenizer: the same weights every time."""
    tokenizer = AutoTokenizer.from_pretrained(
        embedded_model_folder(), local_files_only=True
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    # the caller's random state is restored; only the CPU's, as the model is initialised there
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config), tokenizer


def _identity(name: str | Path, model: nn.Module) -> dict:
    """What `model_identity` returns for a model of that name."""
    name = str(name)
    folder = Path(name).expanduser()
    identity = {"name": name}
    if name in MODELS:
        identity["sha256"] = MODELS[name].sha256
    elif name != "tiny" and folder.is_dir():
        # Not its path, which says nothing on another machine. Sorted, as a folder lists its files
        # in any order and the hash depends on the order
        files = sorted(folder.glob("*.safetensors"))
        hashes = "".join(f"{path.name} {sha256_file(path)}\n" for path in files)
        sha256 = hashlib.sha256(hashes.encode()).hexdigest()
        identity = {"name": folder.resolve().name, "sha256": sha256}
    return identity | {
        "revision": getattr(model.config, "_commit_hash", None),
        "architecture": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
    }


def model_identity(model: nn.Module) -> dict[str, Any]:
    """The model's entry in a record: name, revision or sha256, architecture, size, dtype.

    A model that `load_model` did not load has its config's `_name_or_path` as its name.
    Raises BadParameter like `check_model`.
    """
    check_model(model)
    known = state_of(model).identity
    if known is None:
        name = getattr(model.config, "_name_or_path", "")
        known = _identity(name or "unnamed", model)
    return dict(known)


def check_model(model: object, *, half_pruned: bool = False) -> None:
    """Raise BadParameter for what is no causal language model, and for a half-pruned one.

    A model is half pruned where `prune_model` was stopped, by an error or by hand: its numbers
    belong to no method. With `half_pruned` it passes.
    """
    if not isinstance(model, nn.Module) or not hasattr(model, "config"):
        raise BadParameter(
            f"expected a causal language model (the first value that load_model returns), got a "
            f"{type(model).__name__}"
        )
    if state_of(model).interrupted and not half_pruned:
        raise BadParameter(
            "pruning of this model was interrupted: load the dense model again"
        )


def check_in_memory(model: nn.Module) -> None:
    """Raise UnsupportedModel for a streamed model, whose layers hold values during calls only."""
    if any(layer.weight.is_meta for layer in model_layers(model).values()):
        raise UnsupportedModel(
            "the model's weights are not in memory: load it with load_model, or prune it with "
            "prune_checkpoint"
        )


def check_tokens(model: nn.Module, tokens: Tensor, dimensions: int = 2) -> None:
    """Raise unless tokens are int64 ids of this model's vocabulary, (sequences, length) or
    (tokens,), and no sequence is longer than the model can take.

    Raises BadParameter (no sequence at all).
    """
    shape, source = "(sequences, length)", "calibration_tokens"
    if dimensions == 1:
        shape, source = "(tokens,)", "evaluation_tokens"
    if (
        not isinstance(tokens, Tensor)
        or tokens.dtype != torch.int64
        or tokens.ndim != dimensions
    ):
        raise BadParameter(
            f"tokens {described(tokens)}: give an int64 tensor {shape}, for example from "
            f"{source}(...)"
        )
    if dimensions == 2 and tokens.numel() == 0:
        raise BadParameter("tokens are empty: give at least one sequence of text")
    # The embedding's rows, not the tokenizer's length or config.vocab_size: they are what is
    # indexed. On a GPU a wrong index is an assertion in a kernel, after which no CUDA call works
    size = model.get_input_embeddings().weight.shape[0]
    if tokens.numel() and (tokens.min() < 0 or tokens.max() >= size):
        raise BadParameter(
            f"token ids range from {int(tokens.min())} to {int(tokens.max())}, but the model's "
            f"vocabulary is 0 to {size - 1}: use the model's own tokenizer"
        )
    if dimensions == 2:
        check_length(model, tokens.shape[1])


def check_length(model: nn.Module, length: int) -> None:
    """Raise BadParameter if the model cannot take a sequence of that length."""
    # a model of text and images has a config within its config; MPT has a name of its own for it
    config = model.config.get_text_config(decoder=True)
    longest = getattr(config, "max_position_embeddings", None)
    longest = longest or getattr(config, "max_seq_len", None)
    if longest and length > longest:
        raise BadParameter(
            f"length {length} is more than the {longest} tokens this model can take: lower it"
        )


def weights_in_memory(
    model: nn.Module, part: int | nn.Module | None = None
) -> contextlib.AbstractContextManager[Any]:
    """Context manager: hold the weights of a part of a model in memory.

    part: a block by its number, a module outside the blocks, or None for all of those. A model in
    memory has them already; a streamed one reads them (`helpers.large.streaming`).
    """
    reader = state_of(model).reader
    if reader is None:
        return contextlib.nullcontext()
    return reader.weights_in_memory(part)


def device_of(model: nn.Module) -> torch.device:
    """The device on which a model, or one of its blocks, computes."""
    # a model that is read block by block lies on the meta device, which cannot compute
    reader = state_of(model).reader
    device = next(model.parameters()).device if reader is None else reader.device
    # one of shapes alone (`load_shapes`)
    return torch.device("cpu") if device.type == "meta" else device


def find_blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks: the shallowest ModuleList as long as the config's number of layers.

    Raises UnsupportedModel.
    """
    kind = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModel(
            f"{kind} is an encoder-decoder: give a decoder-only model"
        )
    # the config and not a name such as "model.layers", which differs by family
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    lists = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise UnsupportedModel(
            f"{kind} has no list of {count} decoder blocks: choose another model"
        )
    # a mixture of experts may have as many experts as blocks; that list lies deeper
    return min(lists, key=lambda pair: pair[0])[1]


def find_layers(block: nn.Module, where: str = "block") -> dict[str, nn.Module]:
    """The linear layers of a block by name: `nn.Linear` and GPT-2's `Conv1D`.

    Raises UnsupportedModel where weights would silently stay dense: experts fused in one parameter
    (3-D or 2-D), convolutions, recurrences, or quantised weights.
    """
    others = {}
    for module_name, module in block.named_modules():
        # a norm may hold one scale per head and channel: a matrix that nothing is multiplied by
        known = isinstance(module, (nn.Linear, Conv1D, nn.Embedding))
        known |= "Norm" in type(module).__name__
        # recurse=False: each parameter once, judged by the module that owns it
        for name, parameter in module.named_parameters(module_name, recurse=False):
            if parameter.ndim >= (3 if known else 2):
                others[name] = parameter
    if others:
        name = max(others, key=lambda key: others[key].numel())
        raise UnsupportedModel(
            f"{where} {name} is not the weight of a linear layer: with shape "
            f"{tuple(others[name].shape)} it looks like fused experts, quantised weights, a "
            "convolution or a recurrence; choose a model of linear layers only, such as Llama"
        )
    layers = {
        n: m for n, m in block.named_modules() if isinstance(m, (nn.Linear, Conv1D))
    }
    if not layers:
        raise UnsupportedModel(
            f"{where} has no linear layer to prune: choose another model"
        )
    for name, layer in layers.items():
        weight = layer.weight
        # on the meta device while it is not read: `check_weights` looks at what is in memory
        plain = weight.dtype in FLOATS and weight.layout == torch.strided
        if not plain or weight.ndim != 2 or weight.numel() == 0:
            raise UnsupportedModel(
                f"{where} {name}: its weight {described(weight)}: load the model unquantised, with "
                "dense weights (d_out, d_in)"
            )
    return layers


def layer_key(index: int, name: str) -> str:
    """The name of a layer within the model, such as "3.self_attn.q_proj" in block 3."""
    return f"{index}.{name}"


def model_layers(
    model: nn.Module, ignored: Collection[str] = ()
) -> dict[str, nn.Module]:
    """All layers of a model but those ignored, by `layer_key`, block by block.

    Raises as `find_layers`.
    """
    return {
        key: layer
        for index, block in enumerate(find_blocks(model))
        for name, layer in find_layers(block, f"block {index}").items()
        if (key := layer_key(index, name)) not in ignored
    }


def read_weight(layer: nn.Module) -> Tensor:
    """The weight as (d_out, d_in); for Conv1D, which stores it transposed, a transposed view."""
    return as_matrix(layer, layer.weight.detach())


def as_matrix(layer: nn.Module, stored: Tensor) -> Tensor:
    """A view (d_out, d_in) of a tensor in the layout in which a layer's weight is stored."""
    return stored.T if isinstance(layer, Conv1D) else stored


def write_weight(layer: nn.Module, weight: Tensor) -> None:
    """Overwrite the layer's weight in place with `weight` (d_out, d_in)."""
    with torch.no_grad():
        # through the view into the layer's own memory; copy_ also casts to the layer's type
        read_weight(layer).copy_(weight)


def check_weights(name: str, layer: nn.Module) -> None:
    """Raise NonFinite, naming the layer, if its weight holds NaN or infinity."""
    if not all_finite(layer.weight):
        raise NonFinite(
            f"weight of {name} holds NaN or infinity as {layer.weight.dtype}: check the "
            "checkpoint, and if it is sound use dtype bfloat16 or float32"
        )


def masks_of(model: nn.Module) -> Mapping[str, Tensor]:
    """Where the weights of the blocks' linear layers are not zero, by name in the state dict.

    Each mask is boolean, on its weight's device and in the layout in which the weight is stored:
    (d_out, d_in) for `nn.Linear`, but (d_in, d_out) for GPT-2's `Conv1D`. A kept weight that
    happens to be zero counts as pruned. The masks of a dense model are all True. Those of a
    streamed model are read from its files, each when it is looked up.

    Raises BadParameter like `check_model`, and NonFinite if a weight holds NaN or infinity.
    """
    check_model(model)
    names = weight_names(model)
    reader = state_of(model).reader
    if reader is not None:
        return reader.masks(names.values())
    check_in_memory(model)
    masks = {}
    for key, layer in model_layers(model).items():
        check_weights(names[key], layer)
        masks[names[key]] = layer.weight.detach() != 0
    return masks


def weight_names(model: nn.Module) -> dict[str, str]:
    """`layer_key` → the name of that layer's weight in the model's state dict."""
    names = {module: name for name, module in model.named_modules()}
    return {key: f"{names[layer]}.weight" for key, layer in model_layers(model).items()}


# --- what this package has to remember of a model, carried by the model itself -------------------


@dataclass(frozen=True)
class PruningState:
    """Facts about a model that its weights do not show.

    identity: see `model_identity`, as `load_model` found it. reader: reads the weights of a model
    that is not in memory (`helpers.large.streaming`). interrupted: `prune_model` has changed a
    weight and has not finished. report: that of `prune_model`, once it has.
    """

    identity: dict | None = None
    reader: Any = None
    interrupted: bool = False
    report: Any = None


def state_of(model: nn.Module) -> PruningState:
    """The state of a model; that of a model which was loaded elsewhere is empty."""
    return getattr(model, STATE, PruningState())


def set_state(model: nn.Module, **changes: Any) -> None:
    """Change some fields of a model's state."""
    setattr(model, STATE, replace(state_of(model), **changes))
