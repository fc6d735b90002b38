"""Tokens a second of a pruned model: dense, and with the products that torch has for zeros."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn

from helpers.capture import check_tokens, eval_mode
from helpers.device import synchronise
from helpers.errors import BadParameter, check_choice, check_whole
from helpers.models import check_model, device_of, model_layers, read_weight

# "csr": compressed sparse rows, for any zeros. "semi-structured": two of four, on CUDA alone
PRODUCTS = ("dense", "csr", "semi-structured")
REPEATS = 3


class SparseLinear(nn.Module):
    """A layer whose weight (d_out, d_in) is stored without its zeros."""

    def __init__(self, layer: nn.Module, products: str) -> None:
        super().__init__()
        weight = read_weight(layer).contiguous()
        make = torch.Tensor.to_sparse_csr
        if products == "semi-structured":
            make = torch.sparse.to_sparse_semi_structured
        self.weight, self.bias, self.rows = make(weight), layer.bias, len(weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs (..., d_in) → (..., d_out)."""
        # as (weight · inputsᵀ)ᵀ, since only a matrix on the left may be sparse
        outputs = (self.weight @ inputs.flatten(0, -2).T).T
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.view(*inputs.shape[:-1], self.rows)


def with_products(model: nn.Module, products: str) -> nn.Module:
    """A copy of a model whose layers multiply in one of PRODUCTS.

    Raises BadParameter where a kind of product is not possible.
    """
    check_model(model)
    check_choice("products", products, PRODUCTS)
    if products == "semi-structured" and device_of(model).type != "cuda":
        raise BadParameter('products "semi-structured" need CUDA: move the model, or take "csr"')
    changed = copy.deepcopy(model)
    if products == "dense":
        return changed
    layers = set(model_layers(changed).values())
    for module in list(changed.modules()):
        for name, child in list(module.named_children()):
            if child in layers:
                setattr(module, name, SparseLinear(child, products))
    return changed


def tokens_per_second(model: nn.Module, tokens: Tensor, *, new: int = 16) -> dict[str, float]:
    """How fast a model reads a text and how fast it writes, at batch 1.

    Args: tokens, int64 (1, length), the text; new, the tokens that are written after it. Each is
    the best of REPEATS. Raises BadParameter, CalibrationTooShort.
    """
    check_tokens(model, tokens)
    check_whole("new", new)
    device, best = device_of(model), {"prefill": 0.0, "generation": 0.0}
    tokens = tokens[:1].to(device)

    def timed(count: int, work: object) -> tuple[float, object]:
        started = time.perf_counter()
        answer = work()
        synchronise(device)
        return count / (time.perf_counter() - started), answer

    with eval_mode(model), torch.no_grad():
        for _ in range(REPEATS):
            rate, read = timed(tokens.shape[1], lambda: model(input_ids=tokens, use_cache=True))
            best["prefill"] = max(best["prefill"], rate)
            first = read.logits[:, -1:].argmax(-1)

            def write(read: object = read, word: Tensor = first) -> None:
                cache = read.past_key_values
                for _ in range(new):
                    step = model(input_ids=word, past_key_values=cache, use_cache=True)
                    cache, word = step.past_key_values, step.logits[:, -1:].argmax(-1)

            best["generation"] = max(best["generation"], timed(new, write)[0])
    return best
