"""Send a folder of `save_pruned` to the Hugging Face Hub: make push FOLDER=... NAME=owner/name."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

from helpers.errors import BadParameter, HelpersError, first_line
from helpers.large import check_masks


def push(
    folder: str | os.PathLike[str],
    name: str,
    *,
    private: bool = True,
    endpoint: str | None = None,
) -> str:
    """Send a saved model to the hub, and return the address of the commit.

    Args: folder, of `save_pruned`; name, such as "owner/name"; private, whether a repository
    that is made now is private; endpoint, the address of another hub.
    Raises BadParameter (no account, a name that the hub does not take, no access), FileError
    and BadParameter (the folder is not what was saved).
    """
    if not get_token():
        raise BadParameter("no account on the hub is known here: run `hf auth login`, then retry")
    check_masks(folder)
    api = HfApi(endpoint=endpoint)
    try:
        # a name without an owner is one of the account's own
        full = api.create_repo(name, private=private, exist_ok=True).repo_id
        return api.upload_folder(repo_id=full, folder_path=Path(folder)).commit_url
    # HTTPError is a connection that was lost
    except (HfHubHTTPError, HFValidationError, HTTPError, OSError) as error:
        raise BadParameter(
            f"{folder} could not be sent to {name!r} ({first_line(error)}): check the name, your "
            "access and the network, and run again"
        ) from error


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line says and return the exit code; an error is one line."""
    parser = argparse.ArgumentParser(prog="python -m helpers.share.upload", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("name", help="owner/name")
    parser.add_argument("--public", action="store_true", help="everybody may see it")
    asked = parser.parse_args(arguments)
    try:
        sys.stdout.write(push(asked.folder, asked.name, private=not asked.public) + "\n")
    except HelpersError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
