"""Bytes of a pruned model by format, and tokens a second by kind of matmul.

torch's own sparse matmuls are measured ("csr" for any zeros, "semi-structured" for 2:4 on a GPU).

OpenVINO is measured where it is installed (`pip install openvino nncf`): as it is, with the layers'
weights in int8, and with those stored without their zeros, if the processor has what it needs.
"""

from __future__ import annotations

import copy
import importlib.util
import math
import time
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.problems import random_llama, random_tokens
from benchmarks.timing import interleaved, summary
from helpers.data.corpora import calibration_tokens
from helpers.device import synchronise
from helpers.model.models import device_of, load_model, model_layers, read_weight
from helpers.model.prune import prune_model
from reproduction.studies import storage_report

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
PREFILL, NEW = 256, 16
REPEATS = 3


def measure(quick: bool = False) -> dict[str, Any]:
    """Measure bytes at each sparsity, and speed at each sparsity with each kind of matmul.

    By magnitude pruning, since only the place and number of zeros matters here.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes, speeds = [], []
    for sparsity in SPARSITIES[:1] if quick else SPARSITIES:
        model, tokens = _problem(quick, device)
        prune_model(model, method="magnitude", sparsity=sparsity)
        report = storage_report(model)
        sizes.append({"sparsity": sparsity, "share": report["share"].to_dict(),
                      "dense": int(report["bytes"].iloc[0])})  # fmt: skip
        speeds += [{"sparsity": sparsity, **row} for row in _speeds(model, tokens)]
    if has_semi_structured(torch.device(device)):
        model, tokens = _problem(quick, device)
        prune_model(model.half(), method="magnitude", pattern="2:4")
        for products in ("dense", "semi-structured"):
            rates = tokens_per_second(with_products(model, products), tokens)
            speeds.append(
                {"sparsity": 0.5, "products": f"{products}, 2:4, float16"} | rates
            )
    return {
        "sizes": sizes,
        "speeds": speeds,
        "device": device,
        "threads": torch.get_num_threads(),
    }


def _problem(quick: bool, device: str) -> tuple[nn.Module, torch.Tensor]:
    """Load a dense model and the text that it reads."""
    if quick:
        model = random_llama(2, 64, 128, 4, device=device)
        return model, random_tokens(model, 1, 32)
    model, tokenizer = load_model("embedded", device=device, dtype="float32")
    return model, calibration_tokens("embedded", tokenizer, sequences=1, length=PREFILL)


def _speeds(model: nn.Module, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Measure tokens a second with each kind of matmul that this machine has.

    Raises ValueError if the sparse matmuls give other answers than the dense ones.
    """
    sparse = with_products(model, "csr")
    with torch.no_grad():
        dense, answers = (
            kind(tokens.to(device_of(model))).logits for kind in (model, sparse)
        )
    if not torch.allclose(
        answers, dense, rtol=1e-3, atol=1e-3 * float(dense.abs().max())
    ):
        raise ValueError(
            "the sparse products differ from the dense ones: nothing is timed"
        )
    rows = [
        {"products": name} | tokens_per_second(kind, tokens)
        for name, kind in (("dense", model), ("csr", sparse))
    ]
    if all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        rows += _openvino(model, tokens)
    return rows


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

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """inputs (..., d_in) → (..., d_out)."""
        # as (weight · inputsᵀ)ᵀ, since only a matrix on the left may be sparse
        outputs = (self.weight @ inputs.flatten(0, -2).T).T
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.view(*inputs.shape[:-1], self.rows)


def has_semi_structured(device: torch.device) -> bool:
    """Whether a device has 2:4 matmuls: NVIDIA's from the A100's generation on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def with_products(model: nn.Module, products: str) -> nn.Module:
    """Copy a model so that its layers multiply "dense", as "csr" or "semi-structured"."""
    changed = copy.deepcopy(model)
    layers = set(model_layers(changed).values()) if products != "dense" else set()
    for module in list(changed.modules()):
        for name, child in list(module.named_children()):
            if child in layers:
                setattr(module, name, SparseLinear(child, products))
    return changed


def tokens_per_second(model: nn.Module, tokens: torch.Tensor) -> dict[str, float]:
    """Measure how fast a model reads a text (1, length) ("prefill") and writes ("generation").

    NEW tokens are written after a first one, which comes with the reading. The best of REPEATS.
    """
    device = device_of(model)
    tokens = tokens.to(device)

    def seconds(count: int) -> float:
        best = math.inf
        for _ in range(REPEATS):
            started = time.perf_counter()
            model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
            synchronise(device)
            best = min(best, time.perf_counter() - started)
        return best

    read = seconds(1)
    both = seconds(1 + NEW)
    # a clock may see no difference on a model of a few thousand weights
    return {
        "prefill": tokens.shape[1] / read,
        "generation": NEW / max(both - read, 1e-9),
    }


class _Logits(nn.Module):
    """A model as a function from tokens to logits, for OpenVINO to convert."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # with a mask, since without one transformers looks for several texts in a row, by an
        # operation that OpenVINO does not know
        seen = torch.ones_like(tokens)
        return self.model(input_ids=tokens, attention_mask=seen, use_cache=False).logits


def _openvino(model: nn.Module, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Measure reading a text, and one token without a cache, an upper bound for writing."""
    import nncf
    import openvino

    example = tokens.cpu()
    converted = openvino.convert_model(_Logits(model.cpu()), example_input=example)
    rows = []
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(converted, path, compress_to_fp16=False)
        core = openvino.Core()
        plain = core.read_model(path)
        small = nncf.compress_weights(
            core.read_model(path), mode=nncf.CompressWeightsMode.INT8_SYM
        )
        for name, kind, options in (
            ("OpenVINO", plain, {}),
            ("OpenVINO, int8", small, {}),
            (
                "OpenVINO, int8, sparse",
                small,
                {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.3},
            ),
        ):
            compiled = core.compile_model(kind, "CPU", options)
            rates = {}
            for what, text in (("prefill", example), ("generation", example[:, :1])):
                inputs = np.ascontiguousarray(text.numpy())
                taken = interleaved({what: lambda i=inputs: compiled(i)}, 3)  # noqa: B023
                rates[what] = text.shape[1] / summary(taken[what])["min"]
            rows.append({"products": name} | rates)
    return rows
