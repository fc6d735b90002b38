"""The repair's text in other steps: more windows in a step, and other learning rates.

`distil` makes a step of each window. Here the same windows are read one or several at a time, from
the same pruned model, with one draw of the text.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from helpers.beyond.distil import adam, descend, divergence
from helpers.beyond.training import rate_at, trained
from helpers.beyond.ways import draw_windows, shared_out
from helpers.data.corpora import evaluation_tokens
from helpers.evaluate import check_windows, perplexity
from helpers.models import load_model, model_layers
from helpers.precision import chosen_precision
from helpers.prune import prune_model

SPARSITY = 0.6
# of 512 tokens, as in notebook 08: for evaluation, for the layers, for the repair
WINDOWS = {"web": 16, "layers": 32, "repair": 32}
GUIDED_BY = 4  # of the sequences for the layers
WIKI, LENGTH = 12, 1024  # windows of Wikipedia
VECTOR_RATE = 4  # times that of the weights, as in the recipe
RATES = {1: (1.25e-4, 2.5e-4, 5e-4), 4: (2.5e-4, 5e-4, 1e-3)}  # by windows in a step


def measure(quick: bool = False) -> dict[str, Any]:
    """Divergence on web text and perplexity on Wikipedia, before any repair and after each."""
    windows, name, articles = WINDOWS, "embedded", WIKI
    if quick:
        windows, name, articles = {"web": 2, "layers": 4, "repair": 4}, "tiny", 1
    dense, tokenizer = load_model(name, dtype="float32")
    precision = chosen_precision("auto", dense.device)
    text = draw_windows("embedded", tokenizer, **windows, pool=244, length=512, seed=0)
    wiki = check_windows(dense, evaluation_tokens("embedded", tokenizer), LENGTH, articles)
    target = {"sparsity": SPARSITY, "pattern": "unstructured"}
    asked = {"guided_by": GUIDED_BY, "progress": lambda *_: None}
    target |= shared_out(dense, text.layers, "guide", **asked, **target)
    pruned, how = copy.deepcopy(dense), {"passes": 1, "precision": "float32"}
    prune_model(pruned, text.layers, method="admm-grad", **how, **target)

    def measured(model: nn.Module) -> dict[str, float]:
        found = perplexity(model, wiki.flatten(), length=LENGTH)
        return {"divergence": divergence(model, dense, text.web), "perplexity": found}

    rows = [{"batch": 0, "steps": 0, **measured(pruned)}]
    for batch, rates in RATES.items():
        read = text.repair[: windows["repair"]].split(batch)
        for rate in rates:
            model = repaired(pruned, dense, read, rate, precision)
            rows.append({"batch": batch, "steps": len(read), "rate": rate, **measured(model)})
    return {"runs": rows, "precision": precision, "windows": windows}


def repaired(
    pruned: nn.Module, dense: nn.Module, read: tuple[Tensor, ...], rate: float, precision: str
) -> nn.Module:
    """A copy of the pruned model after one step on each of `read`, int64 (windows, length)."""
    model = copy.deepcopy(pruned)
    with trained(model, model_layers(model)) as parameters:
        optimiser = adam(parameters, rate, VECTOR_RATE * rate)
        schedule = LambdaLR(optimiser, lambda done: rate_at(done + 1, len(read)))
        for windows in read:
            descend(model, dense, windows, optimiser, precision)
            schedule.step()
    return model
