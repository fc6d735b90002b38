"""Jupyter's configuration in `make lab`: looking at a file changes nothing, and no news pop up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jupyter_server.services.contents.filecheckpoints import AsyncFileCheckpoints
from jupyter_server.services.contents.largefilemanager import AsyncLargeFileManager

from helpers.paths import cache_dir


class Checkpoints(AsyncFileCheckpoints):
    """Checkpoints in the cache folder, which JupyterLab would write beside each file it shows.

    They lie there by the whole path of their file: two files can have one name, and two projects
    one cache.
    """

    def checkpoint_path(self, checkpoint_id: str, path: str) -> str:
        """The path of the checkpoint of a file, whose folder is made."""
        file = Path(self.root_dir, path.strip("/")).absolute()
        folder = cache_dir() / "checkpoints" / file.parent.relative_to(file.anchor)
        with self.perm_to_403():
            folder.mkdir(parents=True, exist_ok=True)
        return str(folder / f"{file.stem}-{checkpoint_id}{file.suffix}")


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
c.ContentsManager.checkpoints_class = Checkpoints  # noqa: F821
# no question about news of JupyterLab over the first table, and no request to its host
c.LabApp.news_url = None  # noqa: F821
