"""A pruned Llama as one GGUF file, the format of llama.cpp and what is built on it.

The file holds the zeros like any other value: no engine that reads it uses them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.data.assets import gguf_source
from helpers.errors import UnsupportedModel, check_choice
from helpers.large import writing
from helpers.models import check_model, no_progress_bars

TYPES = {
    "float32": (torch.float32, gguf.LlamaFileType.ALL_F32),
    "float16": (torch.float16, gguf.LlamaFileType.MOSTLY_F16),
}


def save_gguf(
    model: nn.Module,
    tokenizer: Any,
    path: str | os.PathLike[str],
    *,
    dtype: str = "float16",
    pre: str = "smollm",
) -> Path:
    """Write a Llama and its byte-level BPE tokenizer to a GGUF file, whole or not at all.

    Args: dtype of the matrices, "float16" or "float32"; norms are float32. In float16 a small
    weight may round to 0, and zeros stay zeros; pre, llama.cpp's name for the tokenizer's way to
    split text into words ("smollm" is that of the embedded model).
    Raises UnsupportedModel for another family or kind of tokenizer, BadParameter, FileError.
    """
    check_model(model)
    kind, file_type = TYPES[check_choice("dtype", dtype, TYPES)]
    vocabulary = check_gguf(model, tokenizer)
    config, path = model.config, Path(path).expanduser()
    partial = path.with_name(f".{path.name}.partial")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = gguf.GGUFWriter(partial, "llama")
            writer.add_file_type(file_type)
            _add_config(writer, config, path.stem)
            _add_tokenizer(writer, tokenizer, vocabulary, pre)
            for name, tensor in model.state_dict().items():
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue  # the format takes the embedding where there is no head
                matrix = tensor.ndim == 2
                values = _in_order(name, tensor, config).to(kind if matrix else torch.float32)
                known = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if known is None:
                    raise UnsupportedModel(f"GGUF has no place for {name} of this model")
                writer.add_tensor(known, values.cpu().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def load_gguf(path: str | os.PathLike[str]) -> tuple[nn.Module, Any]:
    """Model (float32) and tokenizer of a GGUF file, as transformers reads them."""
    source, options = gguf_source(Path(path))
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(**source, **options, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(**source)


def _in_order(name: str, tensor: Tensor, config: Any) -> Tensor:
    """A tensor with its rows as llama.cpp has them: the two halves that a rotation of q and k mixes
    alternate there, row by row, and follow one another in transformers.
    """
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    layer = name.split(".")[-2]
    if layer not in heads:
        return tensor
    halves = tensor.unflatten(0, (heads[layer], 2, -1))
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def check_gguf(model: nn.Module, tokenizer: Any) -> Mapping[str, Any]:
    """The tokenizer's tables, as its own file has them, if `save_gguf` can write this model.

    Raises UnsupportedModel.
    """
    family = getattr(model.config, "model_type", type(model).__name__)
    if family != "llama":
        raise UnsupportedModel(f"a model of type {family!r} cannot be written: give a Llama")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    tables = json.loads(backend.to_str()) if backend is not None else {"model": {}}
    if tables["model"].get("type") != "BPE" or tables["model"].get("byte_fallback"):
        raise UnsupportedModel(
            "the tokenizer is not a byte-level BPE, the only kind that can be written here"
        )
    rows, tokens = model.get_input_embeddings().weight.shape[0], len(tokenizer.get_vocab())
    if rows != tokens:
        raise UnsupportedModel(
            f"the embedding has {rows} rows and the tokenizer {tokens} tokens, which a GGUF file "
            "cannot say: give a model with one row for each token"
        )
    # what a config says and this file would not: its reader would take the usual instead
    config = model.config
    kind = config.rope_parameters.get("rope_type", "default")
    usual = config.hidden_size // config.num_attention_heads
    if kind != "default" or (getattr(config, "head_dim", None) or usual) != usual:
        raise UnsupportedModel(
            f"a Llama with scaled positions ({kind}) or heads of an unusual size cannot be written "
            "here: use llama.cpp's own converter on a folder of save_pruned"
        )
    return tables


def _add_config(writer: gguf.GGUFWriter, config: Any, name: str) -> None:
    """The sizes of a Llama."""
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_name(name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(
    writer: gguf.GGUFWriter, tokenizer: Any, tables: Mapping[str, Any], pre: str
) -> None:
    """Tokens in the order of their ids, those that text never gives marked, and the merges."""
    ids = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    special |= {token["content"] for token in tables.get("added_tokens", []) if token["special"]}
    tokens = sorted(ids, key=ids.get)
    merges = tables["model"]["merges"]
    types = [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    for kind in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{kind}_token_id")
        if token is not None:
            getattr(writer, f"add_{kind}_token_id")(token)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
