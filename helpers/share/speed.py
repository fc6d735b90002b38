"""Tokens a second of a pruned model: dense, and with the products that torch has for zeros."""

from __future__ import annotations

import copy
import math
import time
import warnings

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
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(beta state|prototype stage)")
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
    """How fast a model reads a text ("prefill") and how fast it writes ("generation"), at batch 1.

    Args: tokens, int64 (1, length), the text; new, the tokens whose writing is timed, after a first
    one that comes with the reading. The best of REPEATS. Raises BadParameter, CalibrationTooShort.
    """
    check_tokens(model, tokens)
    check_whole("new", new)
    device = device_of(model)
    tokens = tokens[:1].to(device)

    def seconds(count: int) -> float:
        asked = dict(max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        best = math.inf
        for _ in range(REPEATS):
            started = time.perf_counter()
            model.generate(tokens, attention_mask=torch.ones_like(tokens), **asked)
            synchronise(device)
            best = min(best, time.perf_counter() - started)
        return best

    with eval_mode(model):
        read, both = seconds(1), seconds(1 + new)
    # a clock may see no difference on a model of a few thousand weights
    return {"prefill": tokens.shape[1] / read, "generation": new / max(both - read, 1e-9)}
