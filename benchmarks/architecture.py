"""The recipe (allocation, pruning, distillation) on a model without any tuning: a small GPT-2.

The embedded model is a Llama. A GPT-2 has learned positions, LayerNorms with biases, a GELU instead
of a gate, q, k and v in one layer, and stores its weights transposed. This one is trained for some
minutes on Wikipedia articles and task texts; the C4 text is for calibration and distillation.
"""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.timing import once
from helpers.beyond.recipe import prune_and_repair, windows_of
from helpers.data.corpora import calibration_tokens, wiki_articles
from helpers.data.tasks import task_rows
from helpers.device import products
from helpers.model.perplexity import perplexity
from helpers.model.prune import prune_model

VOCABULARY, LENGTH, BATCH = 8192, 256, 8
# small, so that pruning hurts: of six blocks of 320, trained on a third of the text, 60 % could be
# pruned at no cost
SIZES = {"n_embd": 192, "n_layer": 4, "n_head": 3}
STEPS, RATE, WARM_UP = 4800, 2e-3, 200  # of AdamW, a batch each
PRECISION = "bfloat16"  # of the products while it learns
UNSEEN = 10  # one article in so many is kept for evaluation
SPARSITIES, SEEDS, SEQUENCES, WEB = (0.6, 0.7, 0.8), 3, 32, 32
END = "<end>"
# name: the method, and the effort (budget preset) of the recipe; None for the method alone
PIPELINES: dict[str, tuple[str, str | None]] = {
    "wanda": ("wanda", None),
    "sparsegpt": ("sparsegpt", None),
    "admm-grad": ("admm-grad", None),
    "wanda, balanced": ("wanda", "balanced"),
    "sparsegpt, balanced": ("sparsegpt", "balanced"),
    "admm-grad, fast": ("admm-grad", "fast"),
    "admm-grad, balanced": ("admm-grad", "balanced"),
}


def measure(quick: bool = False) -> dict[str, Any]:
    """Measure each pipeline's perplexity on two texts, and its seconds; a row for each."""
    learned, unseen = texts()
    pipelines, sequences = PIPELINES, SEQUENCES
    if quick:
        learned, unseen, sequences = learned[:100], unseen[:5], 4
        pipelines = {name: PIPELINES[name] for name in ("admm-grad", "admm-grad, fast")}
    tokenizer = trained_tokenizer(learned)
    model = trained_model(joined(tokenizer, learned), steps=2 if quick else STEPS)
    unseen_tokens = joined(tokenizer, unseen)
    rows = []
    for seed in range(1 if quick else SEEDS):
        needed = WEB + windows_of("balanced", sequences)
        windows = calibration_tokens(
            "embedded", tokenizer, sequences=needed, length=LENGTH, seed=seed
        )
        web = windows[:WEB].flatten()
        text = windows[WEB:]
        row = {"pipeline": "dense", "sparsity": 0.0, "seed": seed}
        rows.append(row | perplexities(model, unseen_tokens, web))
        for sparsity in SPARSITIES[:1] if quick else SPARSITIES:
            for name, (method, effort) in pipelines.items():
                network = copy.deepcopy(model)
                work = functools.partial(
                    run, network, text, sequences, sparsity, method, effort
                )
                row = {"pipeline": name, "sparsity": sparsity, "seed": seed}
                row["seconds"] = once(work)
                rows.append(row | perplexities(network, unseen_tokens, web))
    layers = sum(p.numel() for p in model.transformer.h.parameters())
    return {"runs": rows, "layers": layers, "tokens": STEPS * BATCH * LENGTH}


def perplexities(model: nn.Module, wiki: Tensor, web: Tensor) -> dict[str, float]:
    """Measure the perplexity on both texts, each int64 (tokens,)."""
    return {
        "wiki": perplexity(model, wiki, length=LENGTH),
        "web": perplexity(model, web, length=LENGTH),
    }


def run(
    model: nn.Module,
    text: Tensor,
    sequences: int,
    sparsity: float,
    method: str,
    effort: str | None,
) -> None:
    """Prune the model by a method alone, with two passes, or with the recipe around it."""
    if effort is None:
        prune_model(model, text[:sequences], method=method, sparsity=sparsity)
    else:
        own = text[: windows_of(effort, sequences)]
        prune_and_repair(model, own, sparsity=sparsity, method=method, effort=effort)


def texts() -> tuple[list[str], list[str]]:
    """Load the texts that the model is trained on, and the articles on which it is measured."""
    articles = wiki_articles()
    learned = [text for index, text in enumerate(articles) if index % UNSEEN]
    learned += sorted({row["passage"] for row in task_rows("boolq")})
    for row in task_rows("hellaswag"):
        ending = row["endings"][int(row["label"])]
        learned.append(f"{row['ctx_a']} {row['ctx_b']}".strip() + f" {ending}")
    return learned, articles[::UNSEEN]


def trained_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on documents."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        documents, VOCABULARY, special_tokens=[END], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=END)


def joined(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> Tensor:
    """Tokenise all documents, each with an end token, to int64 (tokens,)."""
    encoded = tokenizer(documents)["input_ids"]
    return torch.tensor(
        [token for ids in encoded for token in (*ids, tokenizer.eos_token_id)]
    )


def trained_model(tokens: Tensor, steps: int) -> GPT2LMHeadModel:
    """Train a GPT-2 on a text (tokens,), in windows drawn at random."""
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, bos_token_id=0, eos_token_id=0,
                        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **SIZES)  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    draw = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(
        model.parameters(), RATE, betas=(0.9, 0.95), weight_decay=0.1
    )
    rate = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: rate_at(step, steps)
    )
    for _ in range(steps):
        starts = torch.randint(len(tokens) - LENGTH, (BATCH,), generator=draw)
        batch = torch.stack([tokens[at : at + LENGTH] for at in starts])
        with products(PRECISION, model.device):
            logits = model(input_ids=batch).logits[:, :-1].flatten(0, 1)
        loss = nn.functional.cross_entropy(logits.float(), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        rate.step()
    return model.eval().requires_grad_(False)


def rate_at(step: int, steps: int) -> float:
    """Learning rate schedule: a linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / WARM_UP) * (1 + math.cos(math.pi * step / steps)) / 2


def closed(runs: pd.DataFrame, pipeline: str, text: str) -> float:
    """Share of ADMM-Grad's ln(perplexity / dense) that a pipeline removes, mean over seeds.

    runs: those at one sparsity, and of the dense model.
    """
    losses = np.log(runs.pivot(index="seed", columns="pipeline", values=text))
    gap = losses["admm-grad"] - losses["dense"]
    return float(((losses["admm-grad"] - losses[pipeline]) / gap).mean())
