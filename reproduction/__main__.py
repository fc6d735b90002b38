"""The command line of plans: `python -m reproduction VERB`.

What a value may be is checked by the function that takes it. Only the standard library is imported
at the top: `--help` answers at once, and `doctor` works before anything is installed, and with a
Python that is too old.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

from helpers.cli import OneLineParser, exit_code

PROGRAM = "python -m reproduction"
VERBS = {
    "reproduce": "run a plan, write tables and figures, and compare with the committed results",
    "run": "run a plan",
    "tables": "write tables and figures again from the records of a plan",
    "accept": "make the results of a plan on this machine the committed reference",
    "list": "list the runs of a plan and whether they are done",
    "doctor": "look for what is missing or broken, say how to fix it; needs no package",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Wrong arguments and --help raise SystemExit."""
    options = vars(make_parser().parse_args(arguments))
    return exit_code(lambda: call(options.pop("verb"), options))


def call(verb: str, options: dict[str, str]) -> int | None:
    """Call the function of a verb, which takes its options by their names."""
    if verb == "doctor":
        from reproduction.machine import examine

        return examine()
    from reproduction.commands import accept, list_runs, reproduce, tables
    from reproduction.schedule import run_plan

    # end on SIGTERM as on Ctrl-C, so that kernels are stopped too
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    functions = {
        "reproduce": reproduce,
        "run": run_plan,
        "tables": tables,
        "accept": accept,
        "list": list_runs,
    }
    return functions[verb](**options)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all verbs; in what it returns, `verb` is the one that was given."""
    parser = OneLineParser(
        PROGRAM,
        description="Run a plan of notebooks.",
        epilog="A run made here leaves its record in results/PLAN/records; the committed ones are "
        "in results/reference/PLAN/records. records.md, beside the tables, leads from a number to "
        "its records.",
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, text in VERBS.items():
        description = f"{text[0].upper()}{text[1:]}."
        verb = verbs.add_parser(name, help=text, description=description)
        if name != "doctor":
            add_options(name, verb.add_argument)
    return parser


def add_options(verb: str, option: Callable[..., object]) -> None:
    """Add the options of a verb that is about a plan, with `add_argument` of its parser."""
    option("--plan", default="laptop", help="folder in runs/ (default: %(default)s)")
    if verb != "tables":
        option(
            "--only",
            default="*",
            metavar="GLOB",
            help="runs whose notebook or name matches (default: all)",
        )
    if verb == "accept":
        option(
            "--stale",
            action="store_true",
            help="keep committed records of earlier code too",
        )
    if verb in ("reproduce", "run"):
        option(
            "--jobs",
            default="auto",
            help="runs at the same time (default: %(default)s)",
        )
        option(
            "--scheduler",
            help="address or file of a Dask scheduler, to run on its cluster",
        )


if __name__ == "__main__":
    sys.exit(main())
