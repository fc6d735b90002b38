"""Jupyter's configuration in `make lab`: looking at an executed copy of a notebook keeps it."""

from __future__ import annotations

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


class Contents(AsyncLargeFileManager):
    """Files as they are, but NAME.ran.ipynb, which is committed, is read-only.

    JupyterLab saves a notebook that is open every two minutes, with metadata of its own.
    """

    def is_writable(self, path: str) -> bool:
        """Whether a file or a folder may be written."""
        return not path.endswith(".ran.ipynb") and super().is_writable(path)


c.ServerApp.contents_manager_class = Contents  # noqa: F821 (Jupyter gives c to this file)
