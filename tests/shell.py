"""An IPython in this process: the cells of a notebook are run in it as a kernel runs them."""

from pathlib import Path
from types import ModuleType
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config


class Shell:
    """Runs cells. names: what they have bound. There is one at a time: `close` it."""

    def __init__(self, folder: Path) -> None:
        self._shell = InteractiveShell.instance(
            config=Config({"HistoryManager": {"enabled": False}}),
            ipython_dir=str(folder / "ipython"),
            user_module=ModuleType("cells"),
        )
        self.names = self._shell.user_ns

    def run(self, code: str) -> Any:
        """The value of a cell's last line; raises what the cell raises."""
        result = self._shell.run_cell(code)
        result.raise_error()
        return result.result

    def close(self) -> None:
        """Leave no IPython behind."""
        self._shell.restore_sys_module_state()
        InteractiveShell.clear_instance()
