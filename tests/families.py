"""Tiny random causal models of many families, each with its prunable layers listed by hand.

The lists are written from the architectures' papers and source, not from `helpers.model.models`:
they are the independent answer to "which layers should have been pruned?".
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from helpers import METHODS, gram_of

VOCABULARY = 97
SHORT_WINDOW = 8  # sliding attention windows, shorter than the test sequences


def parts(form: str, names: str) -> tuple[str, ...]:
    """Names of one form, `{}` standing for each of these."""
    return tuple(map(form.format, names.split()))


QKVO = parts("self_attn.{}_proj", "q k v o")
LLAMA_LAYERS = (*QKVO, *parts("mlp.{}_proj", "gate up down"))
UP_DOWN = (*QKVO, "mlp.up_proj", "mlp.down_proj")
OPT_LAYERS = (*parts("self_attn.{}_proj", "k v q out"), "fc1", "fc2")
NEOX_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
FALCON_LAYERS = (*parts("self_attention.{}", "query_key_value dense"), *NEOX_MLP)
GPT2_LAYERS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")

# sizes as the families' configs call them
IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
WORDS = dict(vocab_size=VOCABULARY, **IDS)
BASE = dict(WORDS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
PLAIN = dict(BASE, intermediate_size=64, max_position_embeddings=128)
LLAMA = dict(PLAIN, num_key_value_heads=2)
GPT2 = dict(WORDS, n_embd=32, n_layer=2, n_head=4, n_positions=128)
MPT = dict(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128)
WINDOW = dict(sliding_window=SHORT_WINDOW)
# a window shorter than the text in the first block, none in the second
ALTERNATING = dict(WINDOW, layer_types=["sliding_attention", "full_attention"])
EXPERTS = dict(moe_intermediate_size=16, num_experts_per_tok=2)


@dataclass(frozen=True)
class Tiny:
    """A family: the name of its config's class without "Config", and the arguments."""

    kind: str
    sizes: dict[str, Any]

    def config(self) -> Any:
        return getattr(hf, f"{self.kind}Config")(**self.sizes)


@dataclass(frozen=True)
class Family(Tiny):
    """A family that is pruned: where its blocks live, and what is pruned in each."""

    layers: tuple[str, ...] = LLAMA_LAYERS
    blocks: str = "model.layers"
    depth: int = 2


@dataclass(frozen=True)
class Refused(Tiny):
    """A family that must be refused, and the parameter that would stay dense."""

    parameter: str = "block 0 mlp.experts.gate_up_proj"


# fmt: off
FAMILIES: dict[str, Family] = {
    "llama": Family("Llama", LLAMA),
    "llama-tied": Family("Llama", dict(LLAMA, tie_word_embeddings=True)),
    "mistral": Family("Mistral", LLAMA | WINDOW),
    "qwen2": Family("Qwen2", LLAMA),
    "qwen3": Family("Qwen3", dict(LLAMA, head_dim=16)),
    "gemma": Family("Gemma", dict(LLAMA, num_key_value_heads=1, head_dim=16)),
    "gemma2": Family("Gemma2", LLAMA | ALTERNATING | dict(head_dim=16)),
    "gemma3": Family("Gemma3Text", LLAMA | WINDOW | dict(
        num_hidden_layers=3, head_dim=16,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"]), depth=3),
    "smollm3": Family("SmolLM3", LLAMA),
    "olmo": Family("Olmo", LLAMA),
    "olmo2": Family("Olmo2", LLAMA),
    "olmo3": Family("Olmo3", LLAMA | ALTERNATING),
    "granite": Family("Granite", LLAMA),
    # its norms of queries and keys hold matrices, which belong to no linear layer
    "cohere": Family("Cohere", dict(LLAMA, use_qk_norm=True)),
    "cohere2": Family("Cohere2", LLAMA | ALTERNATING),
    "exaone4": Family("Exaone4", LLAMA | ALTERNATING),
    "stablelm": Family("StableLm", dict(LLAMA, use_parallel_residual=True, qk_layernorm=True)),
    "starcoder2": Family("Starcoder2", LLAMA | WINDOW, (*QKVO, "mlp.c_fc", "mlp.c_proj")),
    "nemotron": Family("Nemotron", LLAMA, UP_DOWN),
    "apertus": Family("Apertus", LLAMA, UP_DOWN),
    "glm4": Family("Glm4", dict(LLAMA, head_dim=8), (*QKVO, "mlp.gate_up_proj", "mlp.down_proj")),
    "phi": Family("Phi", PLAIN, (*QKVO[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2")),
    "phi3": Family("Phi3", LLAMA | WINDOW, (
        "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")),
    "persimmon": Family(
        "Persimmon", PLAIN, (*parts("self_attn.{}", "query_key_value dense"), *NEOX_MLP)),
    # word_embed_proj_dim differs: project_in and project_out are linears outside the blocks
    "opt": Family("OPT", dict(
        BASE, ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=16, dropout=0.1,
    ), OPT_LAYERS, "model.decoder.layers"),
    "biogpt": Family("BioGpt", PLAIN, OPT_LAYERS, "biogpt.layers"),
    "xglm": Family("XGLM", dict(
        WORDS, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4, max_position_embeddings=128,
    ), OPT_LAYERS),
    "gpt-neox": Family(
        "GPTNeoX", PLAIN, (*parts("attention.{}", "query_key_value dense"), *NEOX_MLP),
        "gpt_neox.layers"),
    "falcon": Family("Falcon", dict(BASE, new_decoder_architecture=False, multi_query=True),
                     FALCON_LAYERS, "transformer.h"),
    "bloom": Family("Bloom", dict(WORDS, hidden_size=32, n_layer=2, n_head=4),
                    FALCON_LAYERS, "transformer.h"),
    "gpt2": Family("GPT2", GPT2, GPT2_LAYERS, "transformer.h"),
    "gpt-bigcode": Family("GPTBigCode", GPT2, GPT2_LAYERS, "transformer.h"),
    "gpt-j": Family("GPTJ", dict(GPT2, rotary_dim=4), (
        *parts("attn.{}_proj", "k v q out"), "mlp.fc_in", "mlp.fc_out",
    ), "transformer.h"),
    "codegen": Family("CodeGen", dict(GPT2, rotary_dim=4), (
        "attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"), "transformer.h"),
    "gpt-neo": Family("GPTNeo", dict(
        WORDS, hidden_size=32, num_layers=2, num_heads=4, window_size=SHORT_WINDOW,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128,
    ), (*parts("attn.attention.{}_proj", "k v q out"), "mlp.c_fc", "mlp.c_proj"),
        "transformer.h"),
    "mpt": Family("Mpt", MPT, ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"),
                  "transformer.blocks"),
    "ctrl": Family("CTRL", dict(GPT2, dff=64), (
        *parts("multi_head_attention.{}", "Wq Wk Wv dense"), "ffn.0", "ffn.2",
    ), "transformer.h"),
}

REFUSED: dict[str, Refused] = {
    "mixtral": Refused("Mixtral", dict(LLAMA, num_local_experts=4)),
    "qwen2-moe": Refused("Qwen2Moe", LLAMA | EXPERTS | dict(num_experts=4)),
    "qwen3-moe": Refused("Qwen3Moe", LLAMA | EXPERTS | dict(num_experts=4)),
    "olmoe": Refused("Olmoe", dict(LLAMA, num_experts=4, num_experts_per_tok=2)),
    "phimoe": Refused("Phimoe", dict(LLAMA, num_local_experts=4)),
    "granitemoe": Refused("GraniteMoe", dict(LLAMA, num_local_experts=4, num_experts_per_tok=2),
                          "block 0 block_sparse_moe.experts.gate_up_proj"),
    "gpt-oss": Refused(
        "GptOss", dict(LLAMA, num_local_experts=4, num_experts_per_tok=2, head_dim=8)),
    # the first block is dense, as in the published models
    "deepseek-v3": Refused("DeepseekV3", LLAMA | EXPERTS | dict(
        num_key_value_heads=4, n_routed_experts=4, n_shared_experts=1, first_k_dense_replace=1,
        n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8, qk_nope_head_dim=8,
        qk_rope_head_dim=8, v_head_dim=8), "block 1 mlp.experts.gate_up_proj"),
    "jetmoe": Refused("JetMoe", dict(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_key_value_heads=2,
        kv_channels=8, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2,
    ), "block 0 mlp.input_linear.weight"),
    # all experts of a matrix stacked in two dimensions
    "dbrx": Refused("Dbrx", MPT | dict(
        attn_config=dict(kv_n_heads=2, rope_theta=10000.0),
        ffn_config=dict(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2),
    ), "block 0 ffn.experts.mlp.w1"),
    "mamba": Refused("Mamba", dict(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4,
    ), "block 0 mixer.A_log"),
    "recurrent-gemma": Refused("RecurrentGemma", dict(BASE, intermediate_size=64),
                               "block 0 temporal_block.rg_lru.input_gate_weight"),
    "lfm2": Refused("Lfm2", dict(LLAMA, layer_types=["conv", "full_attention"]),
                    "block 0 conv.conv.weight"),
}
# fmt: on


def build(name: str = "llama", **changes: object) -> nn.Module:
    """A tiny random model in eval mode; an error in one block cannot hide in the logits."""
    config = (FAMILIES | REFUSED)[name].config()
    for key, value in changes.items():
        setattr(config, key, value)
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * noise)
        else:
            parameter.data.copy_(noise / 5)
    return model


def random_tokens(sequences: int = 4, length: int = 24, seed: int = 1) -> Tensor:
    """int64 (sequences, length), without the special ids 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)


def blocks_of(name: str) -> list[list[str]]:
    """Full module names of the layers that pruning must reach, a list for each block."""
    family = FAMILIES[name]
    return [
        [f"{family.blocks}.{i}.{layer}" for layer in family.layers]
        for i in range(family.depth)
    ]


def pruned_names(name: str) -> list[str]:
    """The same in one list."""
    return sum(blocks_of(name), [])


def matrix_of(layer: nn.Module) -> Tensor:
    """The layer's weight as (d_out, d_in), however it is stored."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the model's state."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """State entries whose bits differ from the snapshot."""
    return {
        key
        for key, value in model.state_dict().items()
        if not torch.equal(value, before[key])
    }


def inputs_by_hook(
    model: nn.Module, names: list[str], tokens: Tensor
) -> dict[str, Tensor]:
    """(tokens, d_in) inputs of named layers in one plain forward pass of the whole model."""
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable:
        return lambda _, args: seen.__setitem__(name, args[0].flatten(0, -2).clone())

    handles = [model.get_submodule(n).register_forward_pre_hook(note(n)) for n in names]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def prune_by_hand(
    model: nn.Module,
    groups: list[list[str]],
    tokens: Tensor,
    method: str = "wanda",
    forward: Callable = contextlib.nullcontext,
) -> None:
    """Prune groups of layers to half, each after a whole run of the model, inside `forward()`."""
    for group in groups:
        with forward():
            inputs = inputs_by_hook(model, group, tokens)
        for name in group:
            weight = matrix_of(model.get_submodule(name)).detach()
            gram = gram_of(inputs[name])
            weight.copy_(METHODS[method](weight.clone(), gram, sparsity=0.5).weight)


def kept(model: nn.Module, name: str) -> Tensor:
    """Where the weights that pruning must reach are not zero, all layers in one row."""
    layers = map(model.get_submodule, pruned_names(name))
    return torch.cat([layer.weight.flatten() != 0 for layer in layers])


def hook_count(model: nn.Module) -> int:
    """Forward hooks left on a model."""
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()
    )
