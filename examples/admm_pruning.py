"""The paper in one file: prune a language model with ADMM-Grad, and refit the weights that stay.

Boža, "Fast and Effective Weight Update for Pruned Large Language Models", TMLR 2024
(arXiv 2401.02938). ADMM is the alternating direction method of multipliers, ADMM-Grad is ADMM with
a gradual mask. You need torch, transformers 5, a model and two plain text files. The project has
some: `python -m helpers assets c4 wiki embedded` prints three paths, to be put here in that order:

    python examples/admm_pruning.py C4 WIKI --model EMBEDDED --sparsity 0.6

It takes about eight minutes on one core. Without --model it downloads a model.

Each linear layer is a problem of its own. Let X (tokens, d_in) be its inputs on calibration text
and W₀ (d_in, d_out) its dense weights. We look for weights Ŵ, a given share of them zero, that
minimise ‖XW₀ − XŴ‖². X enters only through its Gram matrix XᵀX (d_in, d_in), the `gram`. Left out:
N:M patterns, half precision, and models that do not fit in memory or are not built like Llama,
Mistral or Qwen.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer


def largest(score, sparsity):
    """Select a mask, True where a weight is kept: all but the round(sparsity · n) lowest scores."""
    flat, zeros = score.flatten(), round(sparsity * score.numel())
    threshold = flat.kthvalue(max(zeros, 1)).values  # for all outputs, which compete
    keep = flat > threshold
    ties = (flat == threshold).nonzero().flatten()  # of these the first are kept
    keep[ties[: len(flat) - zeros - int(keep.sum())]] = True
    return keep.view_as(score)


def magnitude(weight, gram, sparsity):
    """The simplest baseline: keep the largest |W|, unchanged."""
    keep = largest(weight.abs(), sparsity)
    return weight * keep, keep


def admm(weight, gram, sparsity, mask_steps=15, iterations=20, rho=1.0, damping=0.1):
    """Prune a layer by ADMM-Grad, or with mask_steps=0 by ADMM1: new weight (d_out, d_in), mask."""
    # Inputs of unit norm n let one rho suit all layers: XW = (X/n)(nW). G then holds cosines, and
    # |nW| is Wanda's score. A dead input, zero on every token, has no norm to divide by
    alive = gram.diagonal()[:, None] > 0  # (d_in, 1)
    n = torch.where(alive, gram.diagonal()[:, None].sqrt(), 1.0)
    G, W0 = gram / n.T / n, (weight.T * n).contiguous()
    G.diagonal().add_(damping * G.diagonal().mean())  # a ridge: it pulls towards W₀
    # one inverse for all outputs, masks and iterations: exact least squares takes one an output
    inverse = torch.cholesky_inverse(
        torch.linalg.cholesky(G + rho * torch.eye(len(G)).to(G))
    )
    # W fits the outputs and ignores the mask; Z, its copy, obeys the mask; U adds up the gaps
    # between the two and so pulls them together. W₀ fits best of all, so the loop begins with Z
    W, U, GW0 = W0, torch.zeros_like(W0), G @ W0
    for t in range(1, iterations + 1):
        # More is pruned from step to step, by a cubic schedule, so that the weights that stay can
        # make up for those that went. A pruned weight may return, since U remembers its score
        if t <= max(mask_steps, 1):
            left = (1 - t / mask_steps) ** 3 if mask_steps else 0.0
            keep = largest((W + U).abs() * alive, sparsity - sparsity * left)
        Z = (W + U) * keep  # the nearest weights that obey the mask
        U = U + W - Z  # add what that removed
        W = inverse @ (GW0 + rho * (Z - U))  # fit the outputs again, close to Z − U
    return ((W + U) * keep / n).T, keep.T  # Z once more, in the scale of the weights


METHODS = {
    "magnitude": magnitude,
    "admm1": partial(admm, mask_steps=0),
    "admm-grad": admm,
}


def relative_error(weight, new, gram):
    """‖XW₀ − XŴ‖² / ‖XW₀‖², where ‖XA‖² = tr(Aᵀ XᵀX A)."""
    lost = weight - new
    return ((lost @ gram * lost).sum() / (weight @ gram * weight).sum()).item()


def capture(model, windows):
    """Record the hidden states that enter block 0, (1, length, width) for each window.

    Returns them, and for each block a function that runs it on hidden states.
    """
    streams, runs = [], {}

    # Attention masks and positions differ from model to model, so none is made here: the arguments
    # that the model itself passes to its blocks are recorded and used again for every window
    def record(block, args, kwargs):
        stream, *others = args
        if block is model.model.layers[0]:
            streams.append(stream)
        runs[block] = lambda stream: block(stream, *others, **kwargs)

    hooks = [
        b.register_forward_pre_hook(record, with_kwargs=True)
        for b in model.model.layers
    ]
    for window in windows:
        model(window[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return streams, runs


@torch.no_grad()
def prune(model, windows, method, sparsity):
    """Prune all linear layers of the blocks, in place; yield the name, mask and error of each."""
    streams, runs = capture(model, windows)
    for index, (block, run) in enumerate(runs.items()):
        layers = {
            m: name for name, m in block.named_modules() if isinstance(m, nn.Linear)
        }
        grams = dict.fromkeys(layers, 0.0)

        def add(layer, inputs, grams=grams):
            X = inputs[0].flatten(0, 1)  # (tokens, d_in)
            grams[layer] = grams[layer] + X.T @ X

        # the text runs through the dense block, which gives the grams of all its layers,
        hooks = [layer.register_forward_pre_hook(add) for layer in layers]
        for stream in streams:
            run(stream)
        for hook in hooks:
            hook.remove()
        for layer, name in layers.items():
            new, keep = METHODS[method](layer.weight, grams[layer], sparsity)
            error = relative_error(layer.weight, new, grams[layer])
            layer.weight.copy_(new)
            yield f"{index}.{name}", keep, error
        # then through the pruned block, so that the next one is fitted to inputs it will really get
        streams = [run(stream) for stream in streams]


@torch.no_grad()
def perplexity(model, windows):
    """exp of the mean loss of the next token; each window is read without the text before it."""
    losses = [model(w[None], labels=w[None], use_cache=False).loss for w in windows]
    return torch.stack(losses).mean().exp().item()


def read_windows(path, tokenizer, device, length=512, most=32):
    """Tokenise a text file and cut it into (windows, length): so many, from all over the text."""
    ids = torch.tensor(
        tokenizer(Path(path).read_text(encoding="utf-8"), verbose=False).input_ids
    )
    if len(ids) < length:
        raise SystemExit(
            f"{path} has {len(ids)} tokens, fewer than {length}: give a longer text"
        )
    windows = ids[: len(ids) // length * length].view(-1, length).to(device)
    return windows[:: max(1, len(windows) // most)][:most]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs=2, help="a file to calibrate on, one to evaluate")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--method", default="admm-grad", choices=METHODS)
    parser.add_argument("--sparsity", default=0.6, type=float, help="share of zeros")
    given = parser.parse_args()
    if not 0 <= given.sparsity < 1:
        parser.error(f"sparsity {given.sparsity}: give 0 to below 1, 0.6 for 60 %")
    for path in given.text:
        if not Path(path).is_file():
            parser.error(f"no file {path}: give two text files")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    model.to(device).eval()
    windows, text = (read_windows(path, tokenizer, device) for path in given.text)
    print(f"dense: perplexity {perplexity(model, text):.2f}")
    for name, keep, error in prune(model, windows, given.method, given.sparsity):
        print(f"{name}: {1 - keep.float().mean():.1%} zeros, error {error:.4f}")
    print(f"{given.method}: perplexity {perplexity(model, text):.2f}")
