"""Where folders are, and how files are hashed and replaced safely.

Three environment variables move things: `PRUNING_CACHE` (downloads), `PRUNING_RESULTS`
(what runs write) and `PRUNING_RUNS` (run files). They are read at each call, not at import.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from helpers.errors import FileError, first_line

# reads the records of all other runs and measures nothing of its own
TABLES_NOTEBOOK = "06_tables_and_plots"
ZERO_SHOT_NOTEBOOK = "05_zero_shot"


def root() -> Path:
    """The project's root: the folder above `helpers/`."""
    return Path(__file__).resolve().parent.parent


def _from_environment(variable: str, default: Path) -> Path:
    """The folder that an environment variable names (empty counts as unset), else `default`."""
    value = os.environ.get(variable, "").strip()
    # absolute, because a notebook's kernel may be started in another folder
    return Path(value).expanduser().absolute() if value else default


def cache_dir() -> Path:
    """Folder of pinned downloads and of what is converted from them; may not exist yet."""
    return _from_environment(
        "PRUNING_CACHE", Path.home() / ".cache" / "pruning-reproduction"
    )


def results_dir(plan: str) -> Path:
    """Folder where the runs of `plan` on this machine write; may not exist yet."""
    return _from_environment("PRUNING_RESULTS", root() / "results") / plan


def reference_dir(plan: str) -> Path:
    """Folder of the committed results of `plan`, which only `make accept` writes."""
    return root() / "results" / "reference" / plan


def runs_dir(plan: str) -> Path:
    """Folder of the run files of `plan`."""
    return _from_environment("PRUNING_RUNS", root() / "runs") / plan


def notebooks_dir() -> Path:
    """Folder of the notebooks."""
    return root() / "notebooks"


def own_methods_dir() -> Path:
    """Folder of the methods that a user adds, a file each."""
    return root() / "helpers" / "own"


def own_method_file(name: str) -> Path:
    """The file of a user's method, whether or not it exists."""
    return own_methods_dir() / f"{name.replace('-', '_')}.py"


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder that a pattern fits, sorted.

    Not those whose path from there has a part that begins with a dot: a tool has left them, as
    JupyterLab does in .ipynb_checkpoints beside a file that it shows.
    """
    return sorted(
        path
        for path in folder.glob(pattern)
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def sha256_file(path: str | Path) -> str:
    """The sha256 of a file's content, hexadecimal; the file is read in parts."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def replace_file(path: str | Path, data: bytes | str) -> Path:
    """Write `data` (text as UTF-8) to `path` whole or not at all, and return the path.

    Missing parent folders are made.
    Raises FileError, and leaves no partial file, when the folder cannot be written.
    """
    path = Path(path)
    with writing(path, ValueError):  # a NUL in the path
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@contextlib.contextmanager
def writing(
    path: Path,
    *errors: type[Exception],
    advice: str = "free some space there or choose a folder that can be written, and run again",
) -> Iterator[None]:
    """Context manager: raise FileError, naming the path, for a disk that is full or read-only.

    errors: those that say so, beside OSError.
    """
    try:
        yield
    except (OSError, *errors) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FileError(f"cannot write {path} ({reason}): {advice}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context manager: a temporary file to write, which then replaces `path`, whole or not at all.

    After an error there is neither a new file nor a partial one.
    """
    # in the same folder, because os.replace is atomic within one file system only
    temporary = temporary_beside(path)
    try:
        yield temporary
        # on the disk before the rename: a power cut could leave a new but empty file
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:  # also after Ctrl-C
        with contextlib.suppress(OSError, ValueError):
            temporary.unlink(missing_ok=True)


def set_default_mode(path: str | Path) -> None:
    """Give a file that was made private the mode of any new file."""
    # which a new file shows: umask can only be read by setting it, in all threads of the process
    example = temporary_beside(Path(path))
    try:
        with open(example, "xb") as stream:
            os.chmod(path, stat.S_IMODE(os.fstat(stream.fileno()).st_mode))
    finally:
        example.unlink(missing_ok=True)


def temporary_beside(path: Path) -> Path:
    """A new hidden name in a file's folder; what a killed writer leaves can be told by it."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's entries, are on the disk.

    Without the latter a rename can be lost.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
