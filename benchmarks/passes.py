"""One pass of the calibration text compared with two, with Wanda and with the published path."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.model import Bench
from benchmarks.problems import cut_model, random_llama, random_tokens
from benchmarks.solver import SPARSITY
from benchmarks.timing import interleaved, ratio, summary
from helpers.data.corpora import calibration_tokens
from helpers.model.models import load_model
from helpers.model.prune import prune_model

TARGET = 1.0  # of ADMM-Grad with one pass over Wanda with two
ONCE, TWICE, WANDA = "admm-grad, one pass", "admm-grad, two passes", "wanda, two passes"
LOWER = f"{ONCE}, bfloat16"
RUNS = {
    TWICE: {"method": "admm-grad", "passes": 2},
    ONCE: {"method": "admm-grad", "passes": 1},
    LOWER: {"method": "admm-grad", "passes": 1, "precision": "bfloat16"},
    WANDA: {"method": "wanda", "passes": 2},
    "wanda, one pass": {"method": "wanda", "passes": 1},
}


def measure(quick: bool = False) -> dict[str, Any]:
    """Time each of `RUNS`, in turns, on some blocks of the embedded model."""
    if quick:
        model = random_llama(2, 64, 128, 4)
        case = "random Llama, 2 blocks of 64"
        tokens = random_tokens(model, 8, 32)
        rounds = 2
    else:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = cut_model("embedded", 6, device)
        rounds = 3
        _, tokenizer = load_model("embedded")
        tokens = calibration_tokens("embedded", tokenizer, sequences=32, length=512)
        case = "embedded model, 6 blocks"
    bench = Bench(model, tokens)

    def pruning(settings: dict[str, Any]) -> Any:
        # dense again: `restore` has put the weights back
        return lambda: prune_model(
            model, tokens, sparsity=SPARSITY, allow_pruned=True, **settings
        )

    runs = {name: pruning(settings) for name, settings in RUNS.items()} | {
        "published": bench.published
    }
    seconds = interleaved(
        runs, rounds, warm=False, before=bench.restore, device=bench.device
    )
    bench.restore()
    row = {
        "case": f"{case}, {len(tokens)} x {tokens.shape[1]} tokens",
        "device": str(bench.device.type),
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "one over two": ratio(seconds, ONCE, TWICE),
        "one over wanda": ratio(seconds, ONCE, WANDA),
        "lower over wanda": ratio(seconds, LOWER, WANDA),
        "published over one": ratio(seconds, "published", ONCE),
    }
    return {"rows": [row]}
