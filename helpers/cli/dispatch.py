"""Do what a command line says; a failure is one line.

Only the standard library is imported at the top: `--help` answers at once, and `doctor` works
before anything is installed, and with a Python that is too old.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from helpers import machine, runner  # their names are loaded on use
from helpers.cli.parser import PLAN_VERBS, make_parser
from helpers.errors import HelpersError, first_line
from helpers.options import check_choice

# functions of `helpers.runner` that are not called like their verbs
PLAN_FUNCTIONS = {"run": "run_plan", "list": "list_runs"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Wrong arguments and --help raise SystemExit."""
    code = 1
    try:
        return dispatch(make_parser().parse_args(arguments))
    except ModuleNotFoundError as error:
        line = f"{first_line(error)}: run make setup"
    except (HelpersError, OSError) as error:
        line = first_line(error)
    except KeyboardInterrupt:
        code = 130
        line = "interrupted; the same command goes on with what is missing"
    rank = os.environ.get("RANK")  # of a process that torchrun has started
    # in one write, so that lines of several processes do not mix
    sys.stderr.write(f"{line}\n" if rank is None else f"process {rank}: {line}\n")
    return code


def dispatch(options: argparse.Namespace) -> int:
    """Call the function of the verb and return the exit code."""
    arguments = vars(options)
    verb = arguments.pop("verb")
    if verb in PLAN_VERBS:
        # end on SIGTERM as on Ctrl-C, so that kernels are stopped too
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # each takes the options of its verb by their names
        return getattr(runner, PLAN_FUNCTIONS.get(verb, verb))(**arguments) or 0
    if verb == "doctor":
        return machine.examine()
    if verb == "assets":
        fetch_assets(options.names)
        return 0
    from helpers.cli import prune  # here, since it loads torch

    getattr(prune, verb)(options)  # "prune" or "evaluate"
    return 0


def fetch_assets(names: Sequence[str]) -> None:
    """Download assets and embedded models (by default all that are not optional); print where."""
    from helpers.data.assets import ASSETS, MODELS, embedded_model_folder, fetch_asset

    known = ASSETS | MODELS
    for name in names or (*ASSETS, "embedded"):
        check_choice("asset", name, known)
        path = embedded_model_folder(name) if name in MODELS else fetch_asset(name)
        sys.stdout.write(f"{name}: {path}\n  {known[name].note}\n")
