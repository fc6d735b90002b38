"""The command line, `python -m helpers VERB`: prune a model, evaluate it, run a plan."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {"door": ("main",)})
