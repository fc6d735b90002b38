"""The verbs of the command line and their options.

What a value may be is checked by the function that takes it, not here.
"""

from __future__ import annotations

import argparse
import json
from typing import Any, NoReturn

PLAN_VERBS = {
    "reproduce": "run a plan, write tables and figures, and compare with the committed results",
    "run": "run a plan",
    "tables": "write tables and figures again from the records of a plan",
    "accept": "make the results of a plan on this machine the committed reference",
    "list": "list the runs of a plan and whether they are done",
}


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports an error in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Write the error and exit with code 2, as argparse does."""
        self.exit(2, f"{message}: see {self.prog} --help, also after the verb\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; in what it returns, `verb` is the one that was given."""
    parser = OneLineParser(
        "python -m helpers",
        description="Prune a language model, evaluate it, or run a plan of notebooks.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    prune = verbs.add_parser(
        "prune",
        help="prune a model and save it",
        usage="%(prog)s MODEL --save FOLDER [option ...]",
        description="Prune a model and save it to a folder that transformers can load. Prints the "
        "sparsity, the mean layer error, and the perplexity before and after.",
    )
    add_pruning(prune)
    add_calibration(prune)
    add_model(prune)
    evaluate = verbs.add_parser(
        "evaluate",
        help="measure perplexity and zero-shot accuracy",
        usage="%(prog)s MODEL [option ...]",
        description="Print the perplexity of a model and, with --tasks, its zero-shot accuracy.",
    )
    option = evaluate.add_argument_group("zero-shot tasks").add_argument
    option("--tasks", nargs="+", default=[], metavar="TASK", help="such as piqa rte")
    option("--limit", type=int, help="items of each task (default: all)")
    add_model(evaluate)
    for name, text in PLAN_VERBS.items():
        add_plan(
            verbs.add_parser(name, help=text, description=f"{text.capitalize()}."), name
        )
    verbs.add_parser(
        "doctor",
        help="look for what is missing or broken",
        description="Look for what is missing or broken and say how to fix it. Works before any "
        "package is installed.",
    )
    verbs.add_parser(
        "assets",
        help="download the embedded model and texts",
        description="Download models and texts, and say where they are.",
    ).add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="what to download (default: everything but embedded-gemma)",
    )
    return parser


def add_pruning(verb: argparse.ArgumentParser) -> None:
    """Add the options that say how layers are pruned."""
    option = verb.add_argument_group("pruning").add_argument
    option(
        "--save", required=True, metavar="FOLDER", help="new folder of the pruned model"
    )
    option(
        "--method",
        default="admm-grad",
        help="layer-wise pruning method (default: %(default)s)",
    )
    option(
        "--sparsity",
        type=float,
        help="fraction of weights set to zero, such as 0.6; an N:M pattern implies it",
    )
    option(
        "--pattern",
        default="unstructured",
        help="N:M keeps N of every M inputs (default: %(default)s)",
    )
    option(
        "--effort",
        default="",
        help="fast: allocate sparsity from gradients; balanced and long: also distil the dense "
        "model into the kept weights",
    )
    option(
        "--ignore",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help='layers to keep dense, such as "*.down_proj"',
    )
    option(
        "--allow-pruned",
        action="store_true",
        help="accept a model that is pruned already",
    )
    option(
        "--options",
        type=json_object,
        default="{}",
        metavar="JSON",
        help="further arguments of prune_model and the method, such as '{\"iterations\": 30}'",
    )


def json_object(text: str) -> dict[str, Any]:
    """Named arguments from a JSON object."""
    return dict(json.loads(text))


def add_calibration(verb: argparse.ArgumentParser) -> None:
    """Add the options that choose the calibration text."""
    option = verb.add_argument_group("calibration").add_argument
    option(
        "--calibration",
        default="embedded",
        help="embedded, c4, wikitext2 or a text file (default: %(default)s)",
    )
    option(
        "--sequences",
        type=int,
        default=32,
        help="calibration sequences (default: %(default)s)",
    )
    option(
        "--length",
        type=int,
        default=512,
        help="tokens in each sequence (default: %(default)s)",
    )
    option(
        "--seed",
        type=int,
        default=0,
        help="random seed that draws the sequences (default: %(default)s)",
    )


def add_model(verb: argparse.ArgumentParser) -> None:
    """Add the model, and the text on which its perplexity is measured."""
    option = verb.add_argument_group("model").add_argument
    option(
        "model",
        metavar="MODEL",
        help="embedded, a folder, or a Hugging Face id with --revision",
    )
    option(
        "--revision",
        help="commit hash of a Hugging Face model, or main for the newest",
    )
    option(
        "--streamed",
        action="store_true",
        help="hold one block in memory at a time, for a model larger than memory",
    )
    option(
        "--device",
        default="auto",
        help="auto, cpu, cuda or cuda:N (default: %(default)s)",
    )
    option(
        "--dtype",
        help="float32, bfloat16 or float16 (default: float16 on a GPU, else float32)",
    )
    option = verb.add_argument_group("perplexity").add_argument
    option(
        "--evaluation",
        default="embedded",
        help="embedded, wikitext2 or a text file (default: %(default)s)",
    )
    option(
        "--windows",
        type=int,
        default=12,
        help="evaluation windows (default: %(default)s)",
    )
    option(
        "--window",
        type=int,
        default=1024,
        help="tokens in each window (default: %(default)s)",
    )


def add_plan(verb: argparse.ArgumentParser, name: str) -> None:
    """Add the options of a verb in `PLAN_VERBS`."""
    option = verb.add_argument
    option("--plan", default="laptop", help="folder in runs/ (default: %(default)s)")
    if name != "tables":
        option(
            "--only",
            default="*",
            metavar="GLOB",
            help="runs whose notebook or name matches (default: all)",
        )
    if name == "accept":
        option(
            "--stale",
            action="store_true",
            help="keep committed records of earlier code too",
        )
    if name in ("reproduce", "run"):
        option(
            "--jobs",
            default="auto",
            help="runs at the same time (default: %(default)s)",
        )
        option(
            "--scheduler",
            help="address or file of a Dask scheduler, to run on its cluster",
        )
