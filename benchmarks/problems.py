"""Problems to benchmark: random layers with correlated inputs, random and truncated models."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.model.models import find_blocks, load_model
from helpers.paper.gram import gram_of


def random_inputs(
    tokens: int, width: int, device: str = "cpu", seed: int = 0
) -> Tensor:
    """Draw inputs (tokens, width) that are correlated and of unequal size, as activations are."""
    source = torch.Generator().manual_seed(seed)
    shared = max(1, width // 8)
    factors = torch.randn(tokens, shared, generator=source)
    inputs = torch.randn(tokens, width, generator=source)
    inputs.addmm_(
        factors, torch.randn(shared, width, generator=source), alpha=shared**-0.5
    )
    return (inputs * torch.randn(width, generator=source).mul_(0.5).exp()).to(device)


def random_gram(width: int, device: str = "cpu", seed: int = 0) -> Tensor:
    """Gram matrix (width, width) of twice as many correlated tokens as there are inputs."""
    return gram_of(random_inputs(2 * width, width, device, seed))


def random_weight(d_out: int, d_in: int, device: str = "cpu", seed: int = 1) -> Tensor:
    """Draw a dense weight (d_out, d_in)."""
    source = torch.Generator().manual_seed(seed)
    return torch.randn(d_out, d_in, generator=source).mul_(d_in**-0.5).to(device)


def random_llama(
    blocks: int,
    width: int,
    ff: int,
    heads: int,
    *,
    device: str = "cpu",
    dtype: str = "float32",
) -> nn.Module:
    """Make a Llama with random weights and a vocabulary of 1000, in eval mode."""
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=width,
        intermediate_size=ff,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return model.to(device=device, dtype=getattr(torch, dtype)).eval()


def cut_model(name: str, blocks: int, device: str = "cpu") -> nn.Module:
    """Load a model by its name for `load_model`, and keep its first blocks."""
    model, _ = load_model(name, device=device)
    del find_blocks(model)[blocks:]
    model.config.num_hidden_layers = blocks
    return model


def random_tokens(model: nn.Module, sequences: int, length: int) -> Tensor:
    """Draw random tokens (sequences, length): the cost does not depend on the text."""
    source = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    return torch.randint(size, (sequences, length), generator=source)


class Snapshot:
    """A copy of the weights of a model's blocks, to restore after a measurement."""

    def __init__(self, model: nn.Module) -> None:
        blocks = find_blocks(model)
        self._pairs = [(p, p.detach().clone()) for p in blocks.parameters()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back."""
        for parameter, saved in self._pairs:
            parameter.copy_(saved)
