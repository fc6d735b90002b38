"""From a run file to a table: running the notebooks, recording, comparing, reporting."""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {"notebook": ("open_run",)})
