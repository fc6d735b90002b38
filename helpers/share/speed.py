"""Tokens a second of a pruned model: dense, and with the products that torch has for zeros."""

from __future__ import annotations

import contextlib
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


def has_semi_structured(device: torch.device) -> bool:
    """Whether a device has products for two of four: NVIDIA's from the A100's generation on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def check_products(model: nn.Module, products: str) -> None:
    """Raise BadParameter where a kind of product is not possible for a model."""
    check_choice("products", products, PRODUCTS)
    device, own = device_of(model), next(model.parameters()).dtype
    if products == "csr" and device.type == "cpu" and own != torch.float32:
        raise BadParameter(
            f'products "csr" on a CPU need float32, and the model is {own}: load it in float32'
        )
    if products != "semi-structured":
        return
    if not has_semi_structured(device):
        raise BadParameter(
            'products "semi-structured" need CUDA and a GPU as new as the A100: take "csr" here'
        )
    if own not in (torch.float16, torch.bfloat16):
        raise BadParameter(f'products "semi-structured" need float16 or bfloat16, not {own}')
    for name, layer in model_layers(model).items():
        weight = read_weight(layer)
        if weight.shape[0] % 32 or weight.shape[1] % 64:
            raise BadParameter(
                f'products "semi-structured" need multiples of 32 outputs and 64 inputs, and layer '
                f"{name} is {tuple(weight.shape)}"
            )
        # torch would drop what is too many without a word
        if (weight.unflatten(1, (-1, 4)) != 0).sum(2).max() > 2:
            raise BadParameter(
                f'products "semi-structured" take two of four weights, and layer {name} has more: '
                'prune with pattern "2:4"'
            )


def possible_products(model: nn.Module) -> list[str]:
    """Those of PRODUCTS that are possible for this model on its device."""
    kinds = []
    for products in PRODUCTS:
        with contextlib.suppress(BadParameter):
            check_products(model, products)
            kinds.append(products)
    return kinds


def with_products(model: nn.Module, products: str) -> nn.Module:
    """A copy of a model whose layers multiply in one of PRODUCTS.

    Raises BadParameter where a kind of product is not possible.
    """
    check_model(model)
    check_products(model, products)
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
    one that comes with the reading. The best of REPEATS. Raises BadParameter.
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
