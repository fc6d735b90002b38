"""What zeros buy: bytes by way of storing, and tokens a second by way of multiplying.

OpenVINO is measured where it is installed (`pip install openvino nncf`): as it is, with the layers'
weights in int8, and with those stored without their zeros, if the processor has what it needs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.problems import random_llama, random_tokens
from benchmarks.timing import interleaved, summary
from helpers.data.corpora import calibration_tokens
from helpers.models import load_model
from helpers.prune import prune_model
from helpers.share import storage_report, tokens_per_second, with_products
from helpers.share.speed import has_semi_structured

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9)
PREFILL, NEW = 256, 16


def measure(quick: bool = False) -> dict[str, Any]:
    """Bytes for each sparsity, and speed for each sparsity and kind of product.

    Magnitude pruning, since only the place and number of zeros counts here.
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
            found = tokens_per_second(with_products(model, products), tokens, new=NEW)
            speeds.append({"sparsity": 0.5, "products": f"{products}, 2:4, float16"} | found)
    return {"sizes": sizes, "speeds": speeds, "device": device, "threads": torch.get_num_threads()}


def _problem(quick: bool, device: str) -> tuple[nn.Module, torch.Tensor]:
    """A dense model and the text that it reads."""
    if quick:
        model = random_llama(2, 64, 128, 4, device=device)
        return model, random_tokens(model, 1, 32)
    model, tokenizer = load_model("embedded", device=device, dtype="float32")
    return model, calibration_tokens("embedded", tokenizer, sequences=1, length=PREFILL)


def _speeds(model: nn.Module, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Tokens a second of each kind of product that this machine has."""
    rows = [
        {"products": kind} | tokens_per_second(with_products(model, kind), tokens, new=NEW)
        for kind in ("dense", "csr")
    ]
    if all(map(importlib.util.find_spec, ("openvino", "nncf"))):
        rows += _openvino(model, tokens)
    return rows


class _Logits(nn.Module):
    """A model as a function of tokens to logits, which is what OpenVINO converts."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # with a mask, since without one transformers looks for several texts in a row, by an
        # operation that OpenVINO does not know
        seen = torch.ones_like(tokens)
        return self.model(input_ids=tokens, attention_mask=seen, use_cache=False).logits


def _openvino(model: nn.Module, tokens: torch.Tensor) -> list[dict[str, Any]]:
    """Reading a text, and one token without a cache, which is what bounds writing from above."""
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
        small = nncf.compress_weights(core.read_model(path), mode=nncf.CompressWeightsMode.INT8_SYM)
        for name, kind, options in (
            ("OpenVINO", plain, {}),
            ("OpenVINO, int8", small, {}),
            ("OpenVINO, int8, sparse", small, {"CPU_SPARSE_WEIGHTS_DECOMPRESSION_RATE": 0.3}),
        ):
            compiled = core.compile_model(kind, "CPU", options)
            found = {}
            for what, text in (("prefill", example), ("generation", example[:, :1])):
                inputs = np.ascontiguousarray(text.numpy())
                taken = interleaved({what: lambda i=inputs: compiled(i)}, 3)  # noqa: B023
                found[what] = text.shape[1] / summary(taken[what])["min"]
            rows.append({"products": name} | found)
    return rows
