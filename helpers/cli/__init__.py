"""The command line, `python -m helpers VERB`: prune a model, evaluate it, run a plan."""

from helpers.cli.dispatch import main

__all__ = ["main"]
