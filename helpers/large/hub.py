"""A model of the Hugging Face hub as a folder on this machine, fetched at one commit.

Only weights as safetensors, configuration and tokenizer: no pickles, no code. A file that is there
in whole is not fetched again after a lost connection. Each is held to the hash that the hub lists
for it; a folder that was complete once is used again without a network.
"""

from __future__ import annotations

import json
import logging
import os
import re
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this version of the hub's client uses
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from helpers.errors import BadParameter, FileError, first_line
from helpers.large.shards import COMPANIONS, DAMAGED, INDEX, folder_path
from helpers.paths import cache_dir, replace_file

LOG = logging.getLogger(__name__)
RECEIPT = "fetched.json"  # written last: the commit, and each file's size in bytes
# "model*", because some repositories hold the same weights a second time under another name
WEIGHTS = "model*.safetensors"
REFUSED = (GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError)
INTERRUPTED = (HTTPError, OSError, RuntimeError, ValueError)


def fetch_checkpoint(
    name: str,
    revision: str,
    folder: str | os.PathLike[str] | None = None,
    *,
    endpoint: str | None = None,
) -> Path:
    """Fetch a hub model and return its folder, for `load_model`, `load_streamed` and
    `prune_checkpoint`.

    Args: name, such as "owner/name"; revision, a commit hash, or "main" for whatever is newest;
    folder, where the files go, by default `hub/<owner>--<name>--<commit>` in the cache; endpoint,
    the address of a mirror. The commit is logged, and written to `fetched.json` in the folder.

    Raises BadParameter (no such model or revision, no access, no safetensors) and FileError (the
    connection was lost, the disk is full, a file is not what the hub lists): call again to go on.
    """
    if not isinstance(revision, str) or not revision:
        raise BadParameter(
            f'model {name!r} needs a revision, not {revision!r}: give a commit hash, or "main"'
        )

    def target(commit: str) -> Path:
        # one folder, because a record calls a model by its folder's name
        default = cache_dir() / "hub" / f"{name.replace('/', '--')}--{commit}"
        return default if folder is None else folder_path(folder)

    if re.fullmatch("[0-9a-f]{40}", revision) and _complete(target(revision), name, revision):
        return target(revision)
    api = HfApi(endpoint=endpoint)
    try:
        info = api.model_info(name, revision=revision)
        commit, path = info.sha, target(info.sha)
        if not _complete(path, name, commit):
            files = _wanted(name, commit, [file.rfilename for file in info.siblings or []])
            (path / RECEIPT).unlink(missing_ok=True)  # of another commit
            path.mkdir(parents=True, exist_ok=True)
            asked = {"local_dir": path, "allow_patterns": files, "endpoint": endpoint}
            snapshot_download(name, revision=commit, **asked)
            found = api.verify_repo_checksums(name, revision=commit, local_dir=path)
            damaged = {file["path"] for file in found.mismatches} | set(found.missing_paths)
            for file in sorted(damaged & set(files)):
                (path / file).unlink(missing_ok=True)
                raise FileError(
                    f"{path / file} is not the file that the hub lists, and was discarded: "
                    "run again, and if it persists check the proxy or mirror that serves it"
                )
            sizes = {file: (path / file).stat().st_size for file in files}
            receipt = {"name": name, "commit": commit, "files": sizes}
            replace_file(path / RECEIPT, json.dumps(receipt, indent=1) + "\n")
    except REFUSED as error:
        raise BadParameter(
            f"model {name!r} at revision {revision!r} cannot be fetched ({first_line(error)}): "
            "check the name, the revision and your access to it"
        ) from error
    except INTERRUPTED as error:
        raise FileError(
            f"model {name!r} was not downloaded completely ({first_line(error)}): what was "
            "downloaded is kept; check the network and the free disk space, and run again to resume"
        ) from error
    LOG.info("%s at commit %s is in %s", name, commit, path)
    return path


def _complete(path: Path, name: str, commit: str) -> bool:
    """Whether all files of that commit are there, in their full size."""
    try:
        receipt = json.loads((path / RECEIPT).read_text(encoding="utf-8"))
        return (receipt["name"], receipt["commit"]) == (name, commit) and all(
            (path / file).stat().st_size == size for file, size in receipt["files"].items()
        )
    except (OSError, *DAMAGED):
        return False


def _wanted(name: str, commit: str, listed: list[str]) -> list[str]:
    """The files to fetch, of those that the hub lists. Raises BadParameter."""
    patterns = (WEIGHTS, INDEX, *COMPANIONS)
    wanted = [
        file
        for file in listed
        if "/" not in file and any(fnmatch(file, pattern) for pattern in patterns)
    ]
    if "config.json" not in wanted or not any(fnmatch(file, WEIGHTS) for file in wanted):
        raise BadParameter(
            f"model {name!r} at commit {commit} holds no safetensors or no config.json: pickles "
            "are not loaded, choose a repository or a revision with both"
        )
    return wanted
