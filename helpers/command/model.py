"""The verbs `prune` and `evaluate`, in terms of the names that `helpers` offers to everybody."""

import argparse
import os
import sys
from typing import Any

import helpers
from helpers import large, share
from helpers.beyond.recipe import text_needed
from helpers.errors import BadParameter
from helpers.evaluate import zero_shot_metrics
from helpers.masks import target_sparsity


def prune(options: argparse.Namespace) -> None:
    """Prune a model into a folder; say its sparsity, error, and perplexity before and after.

    What can be refused without the model is refused before it is loaded.
    """
    if options.streamed and options.effort:
        raise BadParameter(
            "--effort needs the model in memory: leave out --streamed, or --effort"
        )
    if "RANK" in os.environ and not options.streamed:
        raise BadParameter(
            "processes of torchrun prune from file to file: add --streamed"
        )
    if both := vars(options).keys() & options.options.keys():
        raise BadParameter(f"--options holds {min(both)}: give it as --{min(both)}")
    if (
        not options.streamed
    ):  # with it, the folder may hold what an earlier call has pruned
        share.check_new_folder(options.save)
    target_sparsity(options.sparsity, options.pattern)
    windows = text_needed(options.method, options.effort, options.sequences)
    request = (
        given(options, "method", "sparsity", "pattern", "effort", "ignore")
        | options.options
    )
    with large.torchrun_team(options.device) as (team, options.device):
        model, tokenizer = load(options, options.model)
        if windows:
            draw = dict(sequences=windows, length=options.length, seed=options.seed)
            request["tokens"] = helpers.calibration_tokens(
                options.calibration, tokenizer, **draw
            )
        before = measure(options, model, tokenizer)
        if options.streamed:
            request |= given(options, "revision", "device", "dtype") | {"team": team}
            report = helpers.prune_checkpoint(
                options.model, options.save, progress=show, **request
            )
            model, _ = load(options, options.save)
        else:
            prune_in_memory = (
                helpers.prune_and_repair if options.effort else helpers.prune_model
            )
            report = prune_in_memory(model, progress=show, **request)
            helpers.save_pruned(model, tokenizer, options.save, pattern=options.pattern)
    error = (
        float("nan") if report.error is None else report.error
    )  # of a method that reads no text
    say(f"sparsity {report.sparsity:.4f}, mean layer error {error:.4g}")
    say(
        f"perplexity {before:.6g} before, {measure(options, model, tokenizer):.6g} after"
    )


def evaluate(options: argparse.Namespace) -> None:
    """Say the perplexity of a model and its scores on the tasks that are asked for."""
    model, tokenizer = load(options, options.model)
    say(f"perplexity {measure(options, model, tokenizer):.6g}")
    if options.tasks or options.limit is not None:
        scores = helpers.zero_shot(
            model, tokenizer, tasks=options.tasks, limit=options.limit
        )
        for name, (value, *_) in zero_shot_metrics(scores).items():
            say(f"{name} {value:.4f}")


def load(options: argparse.Namespace, name: str) -> tuple[Any, Any]:
    """A model, the one that is meant or its pruned copy, and its tokenizer."""
    loader = helpers.load_streamed if options.streamed else helpers.load_model
    model, tokenizer = loader(name, **given(options, "revision", "device", "dtype"))
    if tokenizer is None:
        raise BadParameter(f"{name} holds no tokenizer: put its files into that folder")
    return model, tokenizer


def measure(options: argparse.Namespace, model: Any, tokenizer: Any) -> float:
    """Perplexity on the windows that are asked for."""
    text = helpers.evaluation_tokens(options.evaluation, tokenizer)
    return helpers.perplexity(model, text, length=options.window, limit=options.windows)


def given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options of those names that are not None."""
    return {
        name: vars(options)[name] for name in names if vars(options)[name] is not None
    }


def show(done: int, total: int, name: str) -> None:
    """Say how far a part is, at each twentieth, so that a log stays short."""
    if done * 20 // total > (done - 1) * 20 // total:
        say(f"[{done}/{total}] {name}")


def say(text: str) -> None:
    """Write a line to standard output, at once; only the first of torchrun's processes does it."""
    if os.environ.get("RANK", "0") == "0":
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
