"""Tiny random causal models of many families, each with its prunable layers listed by hand.

The lists are written from the architectures' papers and source, not from `helpers.models`: they
are the independent answer to "which layers should have been pruned?".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

VOCABULARY = 97
SHORT_WINDOW = 8  # sliding attention windows, shorter than the test sequences


@dataclass(frozen=True)
class Family:
    """A family: how to build its config, where its blocks live, what is pruned in each."""

    name: str
    config: Callable[[], hf.PretrainedConfig]
    blocks: str
    layers: tuple[str, ...]
    depth: int = 2


_ATTENTION = tuple(f"self_attn.{part}_proj" for part in "qkvo")
_LLAMA_LAYERS = (*_ATTENTION, "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_OPT_LAYERS = (*(f"self_attn.{part}_proj" for part in ("k", "v", "q", "out")), "fc1", "fc2")
_NEOX_LAYERS = ("query_key_value", "dense")
_NEOX_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

_IDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
_BASE = dict(
    vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **_IDS
)
_LLAMA = dict(
    _BASE, num_key_value_heads=2, intermediate_size=64, max_position_embeddings=128,
)  # fmt: skip


def _gemma3() -> hf.PretrainedConfig:
    layers = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = dict(_LLAMA, num_hidden_layers=3, head_dim=16, sliding_window=SHORT_WINDOW)
    return hf.Gemma3TextConfig(**sizes, layer_types=layers)


def _opt() -> hf.PretrainedConfig:
    # word_embed_proj_dim differs: project_in and project_out are linears outside the blocks.
    return hf.OPTConfig(
        **_BASE, ffn_dim=64, max_position_embeddings=128, word_embed_proj_dim=16, dropout=0.1
    )


def _gpt_neo() -> hf.PretrainedConfig:
    return hf.GPTNeoConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, window_size=SHORT_WINDOW,
        attention_types=[[["global", "local"], 1]], max_position_embeddings=128, **_IDS,
    )  # fmt: skip


_GPT2 = dict(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, **_IDS)


def _gpt2(**changes: object) -> hf.PretrainedConfig:
    return hf.GPT2Config(**_GPT2, **changes)


def _mpt() -> hf.PretrainedConfig:
    return hf.MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4, max_seq_len=128)


def _xglm() -> hf.PretrainedConfig:
    return hf.XGLMConfig(
        vocab_size=VOCABULARY, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4,
        max_position_embeddings=128, **_IDS,
    )  # fmt: skip


# a window shorter than the text in the first block, none in the second
_ALTERNATING = dict(
    sliding_window=SHORT_WINDOW, layer_types=["sliding_attention", "full_attention"]
)


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("llama", lambda: hf.LlamaConfig(**_LLAMA), "model.layers", _LLAMA_LAYERS),
        Family(
            "llama-tied",
            lambda: hf.LlamaConfig(**_LLAMA, tie_word_embeddings=True),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family(
            "mistral",
            lambda: hf.MistralConfig(**_LLAMA, sliding_window=SHORT_WINDOW),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family("qwen2", lambda: hf.Qwen2Config(**_LLAMA), "model.layers", _LLAMA_LAYERS),
        Family(
            "qwen3", lambda: hf.Qwen3Config(**_LLAMA, head_dim=16), "model.layers", _LLAMA_LAYERS
        ),
        Family("gemma3", _gemma3, "model.layers", _LLAMA_LAYERS, depth=3),
        Family(
            "opt",
            _opt,
            "model.decoder.layers",
            _OPT_LAYERS,
        ),
        Family(
            "gpt-neox",
            lambda: hf.GPTNeoXConfig(**_BASE, intermediate_size=64, max_position_embeddings=128),
            "gpt_neox.layers",
            (*(f"attention.{part}" for part in _NEOX_LAYERS), *_NEOX_MLP),
        ),
        Family(
            "gpt2",
            _gpt2,
            "transformer.h",
            ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ),
        Family(
            "phi",
            lambda: hf.PhiConfig(**_BASE, intermediate_size=64, max_position_embeddings=128),
            "model.layers",
            (*_ATTENTION[:3], "self_attn.dense", "mlp.fc1", "mlp.fc2"),
        ),
        Family(
            "falcon",
            lambda: hf.FalconConfig(**_BASE, new_decoder_architecture=False, multi_query=True),
            "transformer.h",
            (*(f"self_attention.{part}" for part in _NEOX_LAYERS), *_NEOX_MLP),
        ),
        Family(
            "bloom",
            lambda: hf.BloomConfig(
                vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **_IDS
            ),
            "transformer.h",
            (*(f"self_attention.{part}" for part in _NEOX_LAYERS), *_NEOX_MLP),
        ),
        Family(
            "mpt",
            _mpt,
            "transformer.blocks",
            ("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"),
        ),
        Family(
            "gpt-neo",
            _gpt_neo,
            "transformer.h",
            (
                *(f"attn.attention.{part}_proj" for part in ("k", "v", "q", "out")),
                "mlp.c_fc",
                "mlp.c_proj",
            ),
        ),
        Family(
            "phi3",
            lambda: hf.Phi3Config(**_LLAMA, sliding_window=SHORT_WINDOW),
            "model.layers",
            ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
        ),
        Family(
            "stablelm",
            lambda: hf.StableLmConfig(**_LLAMA, use_parallel_residual=True, qk_layernorm=True),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family(
            "starcoder2",
            lambda: hf.Starcoder2Config(**_LLAMA, sliding_window=SHORT_WINDOW),
            "model.layers",
            (*_ATTENTION, "mlp.c_fc", "mlp.c_proj"),
        ),
        Family("olmo", lambda: hf.OlmoConfig(**_LLAMA), "model.layers", _LLAMA_LAYERS),
        Family("olmo2", lambda: hf.Olmo2Config(**_LLAMA), "model.layers", _LLAMA_LAYERS),
        Family(
            "olmo3",
            lambda: hf.Olmo3Config(**_LLAMA, **_ALTERNATING),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family("granite", lambda: hf.GraniteConfig(**_LLAMA), "model.layers", _LLAMA_LAYERS),
        Family(
            "cohere",
            # its norms of queries and keys hold matrices, which are nobody's linear layer
            lambda: hf.CohereConfig(**_LLAMA, use_qk_norm=True),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family(
            "cohere2",
            lambda: hf.Cohere2Config(**_LLAMA, **_ALTERNATING),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family(
            "gpt-j",
            lambda: hf.GPTJConfig(**_GPT2, rotary_dim=4),
            "transformer.h",
            (*(f"attn.{part}_proj" for part in ("k", "v", "q", "out")), "mlp.fc_in", "mlp.fc_out"),
        ),
        Family(
            "codegen",
            lambda: hf.CodeGenConfig(**_GPT2, rotary_dim=4),
            "transformer.h",
            ("attn.qkv_proj", "attn.out_proj", "mlp.fc_in", "mlp.fc_out"),
        ),
        Family(
            "gpt-bigcode",
            lambda: hf.GPTBigCodeConfig(**_GPT2),
            "transformer.h",
            ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ),
        Family(
            "gemma",
            lambda: hf.GemmaConfig(**dict(_LLAMA, num_key_value_heads=1), head_dim=16),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family(
            "gemma2",
            lambda: hf.Gemma2Config(**_LLAMA, **_ALTERNATING, head_dim=16),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family("smollm3", lambda: hf.SmolLM3Config(**_LLAMA), "model.layers", _LLAMA_LAYERS),
        Family(
            "glm4",
            lambda: hf.Glm4Config(**_LLAMA, head_dim=8),
            "model.layers",
            (*_ATTENTION, "mlp.gate_up_proj", "mlp.down_proj"),
        ),
        Family(
            "nemotron",
            lambda: hf.NemotronConfig(**_LLAMA),
            "model.layers",
            (*_ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        ),
        Family(
            "persimmon",
            lambda: hf.PersimmonConfig(**_BASE, intermediate_size=64, max_position_embeddings=128),
            "model.layers",
            (*(f"self_attn.{part}" for part in _NEOX_LAYERS), *_NEOX_MLP),
        ),
        Family(
            "exaone4",
            lambda: hf.Exaone4Config(**_LLAMA, **_ALTERNATING),
            "model.layers",
            _LLAMA_LAYERS,
        ),
        Family(
            "apertus",
            lambda: hf.ApertusConfig(**_LLAMA),
            "model.layers",
            (*_ATTENTION, "mlp.up_proj", "mlp.down_proj"),
        ),
        Family(
            "biogpt",
            lambda: hf.BioGptConfig(**_BASE, intermediate_size=64, max_position_embeddings=128),
            "biogpt.layers",
            _OPT_LAYERS,
        ),
        Family("xglm", _xglm, "model.layers", _OPT_LAYERS),
        Family(
            "ctrl",
            lambda: hf.CTRLConfig(**_GPT2, dff=64),
            "transformer.h",
            (*(f"multi_head_attention.{p}" for p in ("Wq", "Wk", "Wv", "dense")), "ffn.0", "ffn.2"),
        ),
    )
}


@dataclass(frozen=True)
class Refused:
    """A family that must be refused: its config, and the parameter that would stay dense."""

    config: Callable[[], hf.PretrainedConfig]
    parameter: str


_EXPERTS = dict(moe_intermediate_size=16, num_experts_per_tok=2)
_FUSED = "mlp.experts.gate_up_proj"


def _dbrx() -> hf.PretrainedConfig:
    return hf.DbrxConfig(
        vocab_size=VOCABULARY, d_model=32, n_heads=4, n_layers=2, max_seq_len=128,
        attn_config=dict(kv_n_heads=2, rope_theta=10000.0),
        ffn_config=dict(ffn_hidden_size=16, moe_num_experts=4, moe_top_k=2),
    )  # fmt: skip


def _deepseek3() -> hf.PretrainedConfig:
    # the first block is dense, as in the published models
    return hf.DeepseekV3Config(
        **dict(_LLAMA, num_key_value_heads=4), **_EXPERTS, n_routed_experts=4, n_shared_experts=1,
        first_k_dense_replace=1, n_group=1, topk_group=1, kv_lora_rank=8, q_lora_rank=8,
        qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8,
    )  # fmt: skip


def _jetmoe() -> hf.PretrainedConfig:
    return hf.JetMoeConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, num_key_value_heads=2,
        kv_channels=8, intermediate_size=64, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip


REFUSED: dict[str, Refused] = {
    "mixtral": Refused(
        lambda: hf.MixtralConfig(**_LLAMA, num_local_experts=4), f"block 0 {_FUSED}"
    ),
    "qwen2-moe": Refused(
        lambda: hf.Qwen2MoeConfig(**_LLAMA, **_EXPERTS, num_experts=4), f"block 0 {_FUSED}"
    ),
    "qwen3-moe": Refused(
        lambda: hf.Qwen3MoeConfig(**_LLAMA, **_EXPERTS, num_experts=4), f"block 0 {_FUSED}"
    ),
    "olmoe": Refused(
        lambda: hf.OlmoeConfig(**_LLAMA, num_experts=4, num_experts_per_tok=2), f"block 0 {_FUSED}"
    ),
    "phimoe": Refused(lambda: hf.PhimoeConfig(**_LLAMA, num_local_experts=4), f"block 0 {_FUSED}"),
    "granitemoe": Refused(
        lambda: hf.GraniteMoeConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2),
        "block 0 block_sparse_moe.experts.gate_up_proj",
    ),
    "gpt-oss": Refused(
        lambda: hf.GptOssConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2, head_dim=8),
        f"block 0 {_FUSED}",
    ),
    "deepseek-v3": Refused(_deepseek3, f"block 1 {_FUSED}"),
    "jetmoe": Refused(_jetmoe, "block 0 mlp.input_linear.weight"),
    # all experts of a matrix stacked in two dimensions
    "dbrx": Refused(_dbrx, "block 0 ffn.experts.mlp.w1"),
    "mamba": Refused(
        lambda: hf.MambaConfig(
            vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4
        ),
        "block 0 mixer.A_log",
    ),
    "recurrent-gemma": Refused(
        lambda: hf.RecurrentGemmaConfig(**_BASE, intermediate_size=64),
        "block 0 temporal_block.rg_lru.input_gate_weight",
    ),
    "lfm2": Refused(
        lambda: hf.Lfm2Config(**_LLAMA, layer_types=["conv", "full_attention"]),
        "block 0 conv.conv.weight",
    ),
}


def build(name: str = "llama", seed: int = 0, **changes: object) -> nn.Module:
    """A tiny random model in eval mode whose every block matters to the logits."""
    config = FAMILIES[name].config()
    for key, value in changes.items():
        setattr(config, key, value)
    return build_from(config, seed)


def build_from(config: hf.PretrainedConfig, seed: int = 0) -> nn.Module:
    """Random weights large enough that an error in one block cannot hide in the logits."""
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(noise / 5)
    return model


def build_mixture(seed: int = 0) -> nn.Module:
    """A Mixtral: its experts are fused three-dimensional parameters, not linears."""
    return build_from(REFUSED["mixtral"].config(), seed)


def let_rotations_depend_on_the_text(model: nn.Module) -> None:
    """Make a Llama hand its blocks arguments that hold for one text only."""
    seen, rotary = {}, model.model.rotary_emb.forward

    def note(_: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["shift"] = (args[0] if args else kwargs["input_ids"]).float()[..., None] / VOCABULARY

    def shifted(*args: object, **kwargs: object) -> tuple[Tensor, ...]:
        return tuple(part + seen["shift"] for part in rotary(*args, **kwargs))

    model.register_forward_pre_hook(note, with_kwargs=True)
    model.model.rotary_emb.forward = shifted


def random_tokens(sequences: int = 4, length: int = 24, seed: int = 1) -> Tensor:
    """int64 (sequences, length), without the special ids 0 to 2."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (sequences, length), generator=generator)


def pruned_names(name: str) -> list[str]:
    """Full module names of all layers that pruning must reach, block by block."""
    family = FAMILIES[name]
    return [f"{family.blocks}.{i}.{layer}" for i in range(family.depth) for layer in family.layers]


def matrix_of(layer: nn.Module) -> Tensor:
    """The layer's weight as (d_out, d_in), whichever way it is stored."""
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """A copy of everything in the model's state."""
    return {key: value.detach().clone() for key, value in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """State entries whose bits differ from the snapshot."""
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def inputs_by_hook(model: nn.Module, names: list[str], tokens: Tensor) -> dict[str, Tensor]:
    """(tokens, d_in) inputs of named layers in one plain forward pass of the whole model."""
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _, args: seen.__setitem__(name, args[0].flatten(0, -2).clone())

    handles = [model.get_submodule(n).register_forward_pre_hook(keep(n)) for n in names]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


def hook_count(model: nn.Module) -> int:
    """Forward hooks left on a model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
