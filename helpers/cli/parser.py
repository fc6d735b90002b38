"""The verbs of the command line and their options.

What a value may be is checked by the function that takes it, not here.
"""

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
        self.exit(2, f"{message}: see {self.prog} --help\n")


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
    add_model(prune)
    evaluate = verbs.add_parser(
        "evaluate",
        help="measure perplexity and zero-shot accuracy",
        usage="%(prog)s MODEL [option ...]",
        description="Print the perplexity of a model and, with --tasks, its zero-shot accuracy.",
    )
    group = evaluate.add_argument_group("zero-shot tasks")
    text = "such as piqa rte"
    group.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help=text)
    text = "items of each task (default: all)"
    group.add_argument("--limit", type=int, metavar="N", help=text)
    add_model(evaluate)
    for name, text in PLAN_VERBS.items():
        verb = verbs.add_parser(name, help=text, description=f"{text.capitalize()}.")
        add_plan(verb, name)
    verbs.add_parser(
        "doctor",
        help="look for what is missing or broken",
        description="Look for what is missing or broken and say how to fix it. Works before any "
        "package is installed.",
    )
    assets = verbs.add_parser(
        "assets",
        help="download the embedded model and texts",
        description="Download models and texts, and say where they are.",
    )
    assets.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="what to download (default: everything but embedded-gemma)",
    )
    return parser


def add_option(group: Any, name: str, default: Any, text: str, **how: Any) -> None:
    """Add an option of the type of its default, which the help names."""
    text += f" (default: {default})"
    group.add_argument(name, type=type(default), default=default, help=text, **how)


def add_pruning(verb: argparse.ArgumentParser) -> None:
    """Add the options that say how layers are pruned, and the calibration text."""
    group = verb.add_argument_group("pruning")
    group.add_argument(
        "--save", required=True, metavar="FOLDER", help="new folder of the pruned model"
    )
    add_option(group, "--method", "admm-grad", "layer-wise pruning method")
    group.add_argument(
        "--sparsity",
        type=float,
        metavar="FRACTION",
        help="fraction of weights set to zero, such as 0.6; an N:M pattern implies it",
    )
    add_option(group, "--pattern", "unstructured", "N:M keeps N of every M inputs")
    group.add_argument(
        "--effort",
        metavar="PRESET",
        help="fast: allocate sparsity from gradients; balanced and long: also distil the dense "
        "model into the kept weights",
    )
    group.add_argument(
        "--ignore",
        nargs="+",
        default=(),
        metavar="PATTERN",
        help='layers to keep dense, such as "*.down_proj"',
    )
    group.add_argument(
        "--allow-pruned",
        action="store_true",
        help="accept a model that is pruned already",
    )
    group.add_argument(
        "--options",
        type=json_object,
        default="{}",
        metavar="JSON",
        help="further arguments of prune_model and the method, such as '{\"iterations\": 30}'",
    )
    group = verb.add_argument_group("calibration")
    text = "embedded, c4, wikitext2 or a text file"
    add_option(group, "--calibration", "embedded", text, metavar="TEXT")
    add_option(group, "--sequences", 32, "calibration sequences", metavar="N")
    add_option(group, "--length", 512, "tokens in each sequence", metavar="N")
    add_option(group, "--seed", 0, "random seed that draws the sequences", metavar="N")


def json_object(text: str) -> dict[str, Any]:
    """Named arguments from a JSON object."""
    return dict(json.loads(text))


def add_model(verb: argparse.ArgumentParser) -> None:
    """Add the model, and the text on which its perplexity is measured."""
    group = verb.add_argument_group("model")
    group.add_argument(
        "model",
        metavar="MODEL",
        help="embedded, a folder, or a Hugging Face id with --revision",
    )
    group.add_argument(
        "--revision",
        metavar="COMMIT",
        help="commit hash of a Hugging Face model, or main for the newest",
    )
    group.add_argument(
        "--streamed",
        action="store_true",
        help="hold one block in memory at a time, for a model larger than memory",
    )
    add_option(group, "--device", "auto", "auto, cpu, cuda or cuda:N")
    group.add_argument(
        "--dtype",
        help="float32, bfloat16 or float16 (default: float16 on a GPU, else float32)",
    )
    group = verb.add_argument_group("perplexity")
    text = "embedded, wikitext2 or a text file"
    add_option(group, "--evaluation", "embedded", text, metavar="TEXT")
    add_option(group, "--windows", 12, "evaluation windows", metavar="N")
    add_option(group, "--window", 1024, "tokens in each window", metavar="N")


def add_plan(verb: argparse.ArgumentParser, name: str) -> None:
    """Add the options of a verb in `PLAN_VERBS`."""
    add_option(verb, "--plan", "laptop", "folder in runs/")
    if name != "tables":
        text = "only the runs whose notebook or name matches"
        verb.add_argument("--only", metavar="GLOB", help=text)
    if name == "accept":
        text = "keep committed records of earlier code too"
        verb.add_argument("--stale", action="store_true", help=text)
    if name in ("reproduce", "run"):
        add_option(verb, "--jobs", "auto", "runs at the same time", metavar="N")
        text = "address or file of a Dask scheduler, to run on its cluster"
        verb.add_argument("--scheduler", metavar="ADDRESS", help=text)
