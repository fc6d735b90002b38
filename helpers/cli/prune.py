"""The verbs `prune` and `evaluate`, through the public functions of `helpers`."""

import argparse
import os
import sys
from typing import Any

import helpers
from helpers import large, share
from helpers.beyond.recipe import text_needed
from helpers.block_grams import explain_out_of_memory
from helpers.device import pick_device, pick_dtype
from helpers.errors import BadParameter
from helpers.masks import target_sparsity
from helpers.memory import check_memory
from helpers.methods import get_method

# arguments of prune_loaded and of what it calls that are no option of a line
GIVEN = ("tokens", "progress", "folder", "team", "source", "destination")
OUT_OF_MEMORY_ADVICE = "try --streamed, or a smaller --window"


@explain_out_of_memory("prune", OUT_OF_MEMORY_ADVICE)
def prune(options: argparse.Namespace) -> None:
    """Prune a model into a folder; print sparsity, error, and perplexity before and after."""
    check_pruning(options)
    windows = text_needed(options.method, options.effort, options.sequences)
    kind = str(pick_dtype(options.dtype, pick_device(options.device)))
    memory = check_memory(
        options.model,
        device=options.device,
        dtype=kind.removeprefix("torch."),
        streamed=options.streamed,
        effort=options.effort,
        sequences=windows,
        length=options.length,
        window=options.window,
        windows=options.windows,
    )
    write_line(f"memory: {memory['needs']}")
    arguments = dict(
        method=options.method,
        effort=options.effort,
        sparsity=options.sparsity,
        pattern=options.pattern,
        ignore=options.ignore,
        progress=write_progress,
        **options.options,
    )
    if options.allow_pruned:  # which the recipe does not take
        arguments["allow_pruned"] = True
    with large.torchrun_team(options.device) as (team, device):
        model, tokenizer = load(options, device)
        tokens = None
        if windows:
            tokens = helpers.calibration_tokens(
                options.calibration,
                tokenizer,
                sequences=windows,
                length=options.length,
                seed=options.seed,
            )
        before = measure(options, model, tokenizer)
        report, model = helpers.prune_loaded(
            model, tokens, folder=options.save, team=team, **arguments
        )
        if not options.streamed:
            helpers.save_pruned(model, tokenizer, options.save, pattern=options.pattern)
        after = measure(options, model, tokenizer)
    error = "no layer error, since no text is read"
    if report.error is not None:
        error = f"mean layer error {report.error:.4g}"
    write_line(f"sparsity {report.sparsity:.4f}, {error}")
    write_line(
        f"perplexity {before:.6g} before, {after:.6g} after; saved to {options.save}"
    )


def check_pruning(options: argparse.Namespace) -> None:
    """Raise BadParameter for what can be refused before the model is loaded."""
    if options.effort and options.streamed:
        raise BadParameter(
            "--effort needs the model in memory: leave out --streamed, or --effort"
        )
    if options.effort and options.allow_pruned:
        raise BadParameter(
            "--effort needs a dense model: leave out --allow-pruned, or --effort"
        )
    if "RANK" in os.environ and not options.streamed:
        raise BadParameter(
            "processes of torchrun prune from file to file: add --streamed"
        )
    for name in options.options:
        if name in vars(options):
            raise BadParameter(
                f"--options holds {name}: give it as --{name.replace('_', '-')}"
            )
        if name in GIVEN:
            raise BadParameter(
                f"--options holds {name}, which the command line itself gives: leave it out"
            )
    if not options.streamed:  # which goes on in a folder that an earlier call has begun
        share.check_new_folder(options.save)
    get_method(options.method)  # "dense" is none
    target_sparsity(options.sparsity, options.pattern)


@explain_out_of_memory("evaluate", OUT_OF_MEMORY_ADVICE)
def evaluate(options: argparse.Namespace) -> None:
    """Print the perplexity of a model, and its scores on zero-shot tasks."""
    model, tokenizer = load(options, options.device)
    write_line(f"perplexity {measure(options, model, tokenizer):.6g}")
    if options.tasks or options.limit is not None:
        scores = helpers.zero_shot(
            model, tokenizer, tasks=options.tasks, limit=options.limit
        )
        for name, score in scores.items():
            write_line(
                f"{name}: accuracy {score.accuracy:.4f}, stderr {score.stderr:.4f}"
            )


def load(options: argparse.Namespace, device: str) -> tuple[Any, Any]:
    """The model of the command line on a device, and its tokenizer."""
    loader = helpers.load_streamed if options.streamed else helpers.load_model
    model, tokenizer = loader(
        options.model, revision=options.revision, device=device, dtype=options.dtype
    )
    if tokenizer is None:
        raise BadParameter(
            f"{options.model} holds no tokenizer: put its files into that folder"
        )
    return model, tokenizer


def measure(options: argparse.Namespace, model: Any, tokenizer: Any) -> float:
    """Perplexity on the evaluation windows."""
    text = helpers.evaluation_tokens(options.evaluation, tokenizer)
    return helpers.perplexity(
        model,
        text,
        length=options.window,
        limit=options.windows,
        progress=False,
    )


def write_progress(done: int, total: int, name: str) -> None:
    """Write a line at each twentieth of a part, so that a log stays short."""
    if done * 20 // total > (done - 1) * 20 // total:
        write_line(f"[{done}/{total}] {name}")


def write_line(text: str) -> None:
    """Write a line to standard output at once; of torchrun's processes only the first does."""
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
