"""A model of the Hugging Face hub as a folder on this machine, fetched at one commit.

Only weights as safetensors, configuration and tokenizer: no pickles, no code. A file that is there
in whole is not fetched again after a lost connection. Each is held to the size and hash that the
hub lists for it; a folder that was complete once is used again without a network.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # of the HTTP library that this version of the hub's client uses
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from helpers.errors import AssetError, UnknownModel
from helpers.paths import cache_dir, replace_file

LOG = logging.getLogger(__name__)
RECEIPT = "fetched.json"  # written last: the commit, and each file's size in bytes
COMMIT = re.compile(r"[0-9a-f]{40}")
# "model*", because some repositories hold the same weights a second time under another name
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
COMPANIONS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt"),
    *("tokenizer.model", "spiece.model", "tekken.json", "*.jinja", "*.tiktoken"),
)


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

    Raises UnknownModel (no such model or revision, no access, no safetensors) and AssetError (the
    connection was lost, the disk is full, a file is not what the hub lists): call again to go on.
    """
    if not isinstance(revision, str) or not revision:
        raise UnknownModel(
            f'model {name!r} needs a revision, not {revision!r}: give a commit hash, or "main"'
        )
    if COMMIT.fullmatch(revision):
        place = _place(name, revision, folder)
        if _complete(place, name, revision):
            return place
    files, commit = _listing(name, revision, endpoint)
    place = _place(name, commit, folder)
    if not _complete(place, name, commit):
        (place / RECEIPT).unlink(missing_ok=True)  # of another commit
        _download(name, commit, place, sorted(files), endpoint)
        for file, listed in files.items():
            _check(place / file, listed)
        sizes = {file: listed.size for file, listed in files.items()}
        receipt = {"name": name, "commit": commit, "files": sizes}
        replace_file(place / RECEIPT, json.dumps(receipt, indent=1) + "\n")
    LOG.info("%s at commit %s is in %s", name, commit, place)
    return place


def _place(name: str, commit: str, folder: str | os.PathLike[str] | None) -> Path:
    """Where the files of a commit go."""
    if folder is not None:
        return Path(folder).expanduser()
    # one folder, because a record calls a model by its folder's name
    return cache_dir() / "hub" / f"{name.replace('/', '--')}--{commit}"


def _complete(place: Path, name: str, commit: str) -> bool:
    """Whether all files of that commit are there, in their full size."""
    try:
        receipt = json.loads((place / RECEIPT).read_text(encoding="utf-8"))
        return (receipt["name"], receipt["commit"]) == (name, commit) and all(
            (place / file).stat().st_size == size for file, size in receipt["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _listing(name: str, revision: str, endpoint: str | None) -> tuple[dict[str, Any], str]:
    """The files to fetch, with the hub's sizes and hashes, and the commit.

    Raises UnknownModel, AssetError.
    """
    try:
        info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True)
    except (
        *(GatedRepoError, HFValidationError),
        *(RepositoryNotFoundError, RevisionNotFoundError),
    ) as error:
        raise UnknownModel(
            f"model {name!r} at revision {revision!r} cannot be fetched ({_reason(error)}): check "
            "the name, the revision and your access to it"
        ) from error
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _lost(name, error) from error
    wanted = {
        file.rfilename: file
        for file in info.siblings or []
        if any(fnmatch(file.rfilename, pattern) for pattern in (*WEIGHTS, *COMPANIONS))
        and "/" not in file.rfilename
    }
    for what, pattern in (("safetensors", WEIGHTS[0]), ("config.json", "config.json")):
        if not any(fnmatch(file, pattern) for file in wanted):
            raise UnknownModel(
                f"model {name!r} at commit {info.sha} holds no {what}: pickles are not loaded, "
                "choose a repository or a revision with model.safetensors and config.json"
            )
    return wanted, info.sha


def _download(name: str, commit: str, place: Path, files: list[str], endpoint: str | None) -> None:
    """Fetch what is missing. Raises AssetError."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        snapshot_download(
            name, revision=commit, local_dir=place, allow_patterns=files, endpoint=endpoint
        )
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _lost(name, error) from error


def _lost(name: str, error: BaseException) -> AssetError:
    """What to say when the hub cannot be reached, or the disk not written."""
    return AssetError(
        f"model {name!r} was not fetched whole ({_reason(error)}): what is fetched is kept, run "
        "again to go on; check the network and the room on the disk"
    )


def _reason(error: BaseException) -> str:
    """The first line of an exception's text, with its kind."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__


def _check(path: Path, listed: Any) -> None:
    """Delete a file that is not what the hub lists, and raise AssetError."""
    # large files are listed with their sha256, others with that of a git blob
    size = path.stat().st_size if path.is_file() else None
    digest, prefix = ("sha256", b"") if listed.lfs else ("sha1", b"blob %d\0" % (size or 0))
    expected = listed.lfs.sha256 if listed.lfs else listed.blob_id
    if size == listed.size and _digest(path, digest, prefix) == expected:
        return
    path.unlink(missing_ok=True)
    raise AssetError(
        f"{path} is not the file that the hub lists, and was discarded: run again, and if it "
        "persists check the proxy or mirror that serves it"
    )


def _digest(path: Path, kind: str, prefix: bytes) -> str:
    """The hash of a prefix and a file's content."""
    total = hashlib.new(kind, prefix, usedforsecurity=False)
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            total.update(part)
    return total.hexdigest()
