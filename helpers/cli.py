"""The command line, `python -m helpers VERB`: prune or evaluate a model, or download assets.

Only the standard library is imported at the top, so that `--help` answers at once. What a value may
be is checked by the function that takes it. A failure is one line.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import helpers  # its names are loaded on use
from helpers.errors import BadParameter, HelpersError, first_line
from helpers.memory import check_memory, check_model_name
from helpers.options import check_choice, check_whole, did_you_mean

# verbs of another package
MOVED = ("reproduce", "run", "tables", "accept", "list", "doctor")
# arguments in a message, such as dtype="float32", allow_pruned=True, or revision= with none
ARGUMENT = re.compile(r'(?<![-\w])(\w+)=(?:"([^"]*)"|([\w.]+))?')
# and functions, which are a choice of an option
FUNCTIONS = {
    "load_model": "a line without --streamed",
    "prune_checkpoint": "--streamed",
}
# arguments of `perplexity` that a line calls otherwise
WINDOWS = {"length": "--window", "limit": "--windows"}
GOES_ON = "the same command goes on with what is missing"
# arguments of prune_loaded and of what it calls that are no option of a line
GIVEN = ("tokens", "progress", "folder", "team", "source", "destination")


PRUNE = """\
Prune a model and save it to a folder that transformers can load. Prints the
sparsity, the mean layer error, and the perplexity before and after.
"""
# the time is that of the record 04_prune_model--admm-grad-60 of the plan full
EXAMPLE = """\
example, about 5 minutes on one CPU core:
  python -m helpers prune embedded --sparsity 0.6 --save my-model
then from 60 to 70 %, where no zero of my-model becomes a weight again:
  python -m helpers prune embedded --keep my-model --sparsity 0.7 --save sparser
what it is worth:
  python -m helpers evaluate my-model
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Wrong arguments and --help raise SystemExit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in MOVED:
        sys.stderr.write(
            f"{arguments[0]} belongs to another command: python -m reproduction {arguments[0]}\n"
        )
        return 1
    options = make_parser().parse_args(arguments)
    # a model in memory is written at the end
    goes_on = options.verb == "assets" or options.streamed
    return exit_code(lambda: run(options), GOES_ON if goes_on else "nothing was saved")


def exit_code(action: Callable[[], int | None], interrupted: str = GOES_ON) -> int:
    """Call an action and return its exit code, 0 for None. A failure is one line.

    interrupted: what to say after Ctrl-C.
    """
    code = 1
    try:
        return action() or 0
    except ModuleNotFoundError as error:
        line = f"{first_line(error)}: run make setup"
    except (HelpersError, OSError) as error:
        line = first_line(error)
    except KeyboardInterrupt:
        code = 130
        line = f"interrupted; {interrupted}"
    rank = os.environ.get("RANK")  # of a process that torchrun has started
    # in one write, so that lines of several processes do not mix
    sys.stderr.write(f"{line}\n" if rank is None else f"process {rank}: {line}\n")
    return code


def run(options: argparse.Namespace) -> None:
    """Do what the verb of a command line says."""
    verb = options.verb
    del options.verb
    if verb == "assets":
        fetch_assets(options.names)
        return
    check_model_name(options.model)
    # here, since it loads torch
    from helpers.model.block_grams import explain_out_of_memory

    advice = "try --streamed, or a smaller --window"
    with in_words_of_a_line(options), explain_out_of_memory(verb, advice):
        {"prune": prune, "evaluate": evaluate}[verb](options)


@contextlib.contextmanager
def in_words_of_a_line(
    options: argparse.Namespace, words: Mapping[str, str] = FUNCTIONS
) -> Iterator[None]:
    """Context manager: an error that names arguments of Python names options of the line.

    What is no option itself, and an argument of `prune_model`, is a part of --options. words: what
    other words are called here.
    """

    def option(found: re.Match) -> str:
        name, text, word = found.groups()
        if name in vars(options):
            value = word if text is None else text
            value = "" if value in (None, "True") else f" {value}"
            return f"--{name.replace('_', '-')}{value}"
        if name in inspect.signature(helpers.prune_model).parameters:
            value = (word or "...").lower() if text is None else json.dumps(text)
            return f"--options '{{\"{name}\": {value}}}'"
        return found[0]

    try:
        yield
    except HelpersError as error:
        message = ARGUMENT.sub(option, str(error))
        for word, name in words.items():
            message = re.sub(rf"\b{word}\b", name, message)
        raise type(error)(message) from error


def fetch_assets(names: Sequence[str]) -> None:
    """Download assets and embedded models (by default all that are not optional); print where."""
    from helpers.data.assets import ASSETS, MODELS, embedded_model_folder, fetch_asset

    known = ASSETS | MODELS
    for name in names or (*ASSETS, "embedded"):
        check_choice("asset", name, known)
        path = embedded_model_folder(name) if name in MODELS else fetch_asset(name)
        write_line(f"{name}: {path}\n  {known[name].note}")


# --- the verbs prune and evaluate ---------------------------------------------------------------


def prune(options: argparse.Namespace) -> None:
    """Prune a model into a folder; print sparsity, error, and perplexity before and after."""
    # here, since they load torch
    from helpers.beyond.recipe import text_needed
    from helpers.device import pick_device, pick_dtype
    from helpers.large import torchrun_team

    check_line(options)
    windows = text_needed(options.method, options.effort, options.sequences)
    kind = pick_dtype(options.dtype, pick_device(options.device))
    memory = check_memory(
        options.model,
        device=options.device,
        dtype=str(kind).removeprefix("torch."),
        streamed=options.streamed,
        effort=options.effort,
        sequences=windows,
        length=options.length,
        window=options.window,
        windows=options.windows,
    )
    arguments = dict(
        method=options.method,
        effort=options.effort,
        sparsity=options.sparsity,
        pattern=options.pattern,
        ignore=options.ignore,
        progress=write_progress,
        **options.options,
    )
    # which the recipe does not take
    if options.allow_pruned:
        arguments["allow_pruned"] = True
    if options.keep:
        # read one by one, so that no second model is in memory
        folder = Path(options.keep).expanduser().absolute()
        pruned, _ = helpers.load_streamed(folder, device="cpu")
        arguments["keep"] = helpers.masks_of(pruned)
    check_shapes(options, kind, windows, arguments)
    write_line(f"memory: {memory['needs']}")
    with torchrun_team(options.device) as (team, device):
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


def check_line(options: argparse.Namespace) -> None:
    """Raise BadParameter for what the line itself shows, before anything is loaded."""
    from helpers.data import corpora
    from helpers.paper.masks import target_sparsity
    from helpers.paper.methods import check_method_options
    from helpers.pruning import method_options
    from helpers.share import check_new_folder

    if options.effort and options.streamed:
        raise BadParameter(
            "--effort needs the model in memory: leave out --streamed, or --effort"
        )
    if options.effort and options.allow_pruned:
        raise BadParameter(
            "--effort needs a dense model: leave out --allow-pruned, or --effort"
        )
    if options.effort and options.keep:
        raise BadParameter(
            "--effort chooses the masks itself: leave out --keep, or --effort"
        )
    if options.keep and not Path(options.keep).expanduser().is_dir():
        raise BadParameter(
            f"--keep {options.keep!r} is no folder: give that of a pruned model"
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
        check_new_folder(options.save)
    own = method_options(
        options.options, effort=options.effort, streamed=options.streamed
    )
    check_method_options(options.method, own)  # "dense" is no method
    if not options.keep:
        target_sparsity(options.sparsity, options.pattern)
    if options.sparsity == 0:
        raise BadParameter("--sparsity 0 prunes nothing: give a fraction, such as 0.6")
    for name, least in (("sequences", 1), ("length", 1), ("seed", 0), ("windows", 1)):
        check_whole(name, getattr(options, name), least=least)
    check_whole("window", options.window, least=2)
    corpora.check_text(options.calibration, corpora.CALIBRATION_SOURCES)
    corpora.check_text(options.evaluation, corpora.EVALUATION_SOURCES)


def check_shapes(
    options: argparse.Namespace, kind: Any, windows: int, arguments: dict[str, Any]
) -> None:
    """Raise what the function that prunes would refuse, from the shapes of the model's layers.

    kind: the dtype; windows: of calibration text; arguments: of `prune_loaded`.
    """
    import torch

    from helpers.model.models import check_length, load_shapes
    from helpers.pruning import check_pruning
    from helpers.share import check_room

    shapes = load_shapes(options.model, revision=options.revision, dtype=kind)
    with in_words_of_a_line(options, WINDOWS):
        check_length(shapes, options.window)
    size = sum(each.numel() * each.element_size() for each in shapes.parameters())
    check_room(options.save, size)
    check_pruning(
        shapes,
        torch.zeros(windows, options.length, dtype=torch.int64),
        streamed=options.streamed,
        **arguments,
    )
    if options.keep and all(mask.all() for mask in arguments["keep"].values()):
        raise BadParameter(
            f"no weight of --keep {options.keep!r} is zero: give a pruned model's folder"
        )


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
    with in_words_of_a_line(options, WINDOWS):
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


# --- the options of the verbs -------------------------------------------------------------------


class OneLineParser(argparse.ArgumentParser):
    """A parser that reports all that is wrong in one line, without the usage.

    lacking: names what a line's options leave out and need (argparse would name that alone).
    """

    def __init__(
        self,
        *arguments: Any,
        lacking: Callable[[argparse.Namespace], list[str]] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.lacking = lacking

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is not known here, in the verb's own parser, which knows its name."""
        options, unknown = super().parse_known_args(args, namespace)
        wrong = []
        if unknown:
            near = did_you_mean(
                unknown[0].partition("=")[0], self._option_string_actions
            )
            wrong.append(f"unrecognized arguments: {' '.join(unknown)}{near}")
        if missing := self.lacking and self.lacking(options):
            wrong.append(f"missing: {', '.join(missing)}")
        if wrong:
            self.error("; ".join(wrong))
        return options, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is none of the choices, and name the nearest one."""
        if action.choices is not None:
            try:
                check_choice(action.metavar or action.dest, value, action.choices)
            except BadParameter as error:
                self.error(str(error))

    def error(self, message: str) -> NoReturn:
        """Write the error and exit with code 2, as argparse does."""
        self.exit(2, f"{message}: see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; in what it returns, `verb` is the one that was given."""
    parser = OneLineParser(
        "python -m helpers",
        description="Prune a language model, evaluate one, or download the assets: the embedded "
        "model and texts.",
        epilog="python -m helpers prune --help has the options of prune, and an example.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    prune = verbs.add_parser(
        "prune",
        help="prune a model and save it",
        usage="%(prog)s MODEL --sparsity S --save FOLDER [option ...]",
        description=PRUNE,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        lacking=lacking_to_prune,
    )
    add_model(prune)
    add_pruning(prune)
    add_calibration(prune)
    add_perplexity(prune)
    evaluate = verbs.add_parser(
        "evaluate",
        help="measure perplexity and zero-shot accuracy",
        usage="%(prog)s MODEL [option ...]",
        description="Print the perplexity of a model and, with --tasks, its zero-shot accuracy.",
        lacking=lacking_to_evaluate,
    )
    add_model(evaluate)
    add_perplexity(evaluate)
    option = evaluate.add_argument_group("zero-shot tasks").add_argument
    option("--tasks", nargs="+", default=[], metavar="TASK", help="such as piqa rte")
    option(
        "--limit", type=whole, metavar="N", help="questions of each task (default: all)"
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


def lacking_to_evaluate(options: argparse.Namespace) -> list[str]:
    """What a line of `evaluate` leaves out and needs."""
    return [] if options.model else ["MODEL (such as embedded)"]


def lacking_to_prune(options: argparse.Namespace) -> list[str]:
    """What a line of `prune` leaves out and needs."""
    missing = lacking_to_evaluate(options)
    # an N:M pattern implies a sparsity, and masks have theirs
    grouped = options.pattern != "unstructured"
    if options.sparsity is None and not grouped and not options.keep:
        missing.append("--sparsity S (such as 0.6, or --pattern N:M)")
    if not options.save:
        missing.append("--save FOLDER")
    return missing


def add_model(verb: argparse.ArgumentParser) -> None:
    """Add the model, and where and how it is held."""
    option = verb.add_argument_group("model").add_argument
    option(
        "model",
        metavar="MODEL",
        nargs="?",
        help="embedded, embedded-gemma, a folder, or a Hugging Face id with --revision",
    )
    option(
        "--revision",
        metavar="HASH",
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


def add_pruning(verb: argparse.ArgumentParser) -> None:
    """Add the options that say how layers are pruned."""
    option = verb.add_argument_group("pruning").add_argument
    option(
        "--sparsity",
        type=fraction,
        metavar="S",
        help="fraction of weights set to zero, such as 0.6; an N:M pattern implies it",
    )
    option("--save", metavar="FOLDER", help="new folder of the pruned model")
    option(
        "--method",
        default="admm-grad",
        metavar="NAME",
        help="magnitude, wanda, sparsegpt, admm1, admm-grad, alps, or one of helpers/own "
        "(default: %(default)s)",
    )
    option(
        "--pattern",
        default="unstructured",
        metavar="N:M",
        help="keep N of every M inputs, such as 2:4 (default: %(default)s)",
    )
    option(
        "--keep",
        default="",
        metavar="FOLDER",
        help="folder of a pruned model whose zeros stay: without --sparsity its masks are used as "
        "they are; a larger --sparsity adds zeros to them",
    )
    option(
        "--effort",
        default="",
        metavar="NAME",
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


def fraction(text: str) -> float:
    """A number of the line, which argparse would call a float."""
    with contextlib.suppress(ValueError):
        return float(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is no number: write a fraction with a point, such as 0.6"
    )


def whole(text: str) -> int:
    """A whole number of the line, which argparse would call an int."""
    with contextlib.suppress(ValueError):
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no whole number, such as 32")


def json_object(text: str) -> dict[str, Any]:
    """Named arguments from a JSON object."""
    with contextlib.suppress(ValueError):
        if isinstance(found := json.loads(text), dict):
            return found
    raise argparse.ArgumentTypeError(
        f"{text!r} is no JSON object, such as '{{\"iterations\": 30}}'"
    )


def add_calibration(verb: argparse.ArgumentParser) -> None:
    """Add the options that choose the calibration text."""
    option = verb.add_argument_group("calibration").add_argument
    option(
        "--calibration",
        default="embedded",
        metavar="TEXT",
        help="embedded, c4, wikitext2 or a text file (default: %(default)s)",
    )
    option(
        "--sequences",
        type=whole,
        default=32,
        metavar="N",
        help="calibration sequences (default: %(default)s)",
    )
    option(
        "--length",
        type=whole,
        default=512,
        metavar="N",
        help="tokens in each sequence (default: %(default)s)",
    )
    option(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="random seed that draws the sequences (default: %(default)s)",
    )


def add_perplexity(verb: argparse.ArgumentParser) -> None:
    """Add the text on which perplexity is measured."""
    option = verb.add_argument_group("perplexity").add_argument
    option(
        "--evaluation",
        default="embedded",
        metavar="TEXT",
        help="embedded, wikitext2 or a text file (default: %(default)s)",
    )
    option(
        "--windows",
        type=whole,
        default=12,
        metavar="N",
        help="evaluation windows (default: %(default)s)",
    )
    option(
        "--window",
        type=whole,
        default=1024,
        metavar="N",
        help="tokens in each window (default: %(default)s)",
    )
