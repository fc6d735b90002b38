"""Jupyter's configuration in `make lab`: looking at a notebook does not change it."""

from __future__ import annotations

from typing import Any

from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager


class Contents(AsyncLargeFileManager):
    """Files as they are, but NAME.ran.ipynb, which is committed, is read-only.

    JupyterLab saves a notebook that is open every two minutes, with metadata of its own.
    """

    def is_writable(self, path: str) -> bool:
        """Whether a file or a folder may be written."""
        return not path.endswith(".ran.ipynb") and super().is_writable(path)

    async def save(self, model: dict[str, Any], path: str = "") -> dict[str, Any]:
        """Save a file; a notebook without the versions of this kernel, which git would show."""
        if model["type"] == "notebook" and model.get("content"):
            metadata = model["content"]["metadata"]
            if "kernelspec" in metadata:
                metadata["kernelspec"]["display_name"] = "Python 3"
            metadata["language_info"] = {"name": "python"}
        return await super().save(model, path)


c.ServerApp.contents_manager_class = Contents  # noqa: F821 (Jupyter gives c to this file)
