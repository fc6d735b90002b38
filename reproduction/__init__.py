"""From a run file to a table: plans are run, records kept and compared, tables and claims made.

README.md beside this file follows a number, file by file. `helpers` never imports this package.
"""

from helpers import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, {"notebook": ("open_run",)})
