"""Saved tiny models to prune file to file, and what their folders hold."""

import json
from pathlib import Path

import families as fam
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from helpers.large.jobs import MANIFEST

SHARDS = "40KB"  # a block of the tiny Llama


def save(folder: Path, family: str = "llama", shards: str = SHARDS, **changes: object) -> Path:
    """A tiny model of a family as `save_pretrained` writes it, with a tokenizer."""
    fam.build(family, **changes).save_pretrained(folder, max_shard_size=shards)
    tokenizer(folder)
    return folder


def tokenizer(folder: Path) -> None:
    """A word for each id."""
    words = {f"w{number}": number for number in range(fam.VOCABULARY)}
    tiny = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tiny.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    hf.PreTrainedTokenizerFast(tokenizer_object=tiny, unk_token="w0").save_pretrained(folder)


def loaded(folder: Path, dtype: torch.dtype | str = "auto") -> torch.nn.Module:
    """What transformers makes of a folder, after checking that nothing is missing or left over."""
    model, found = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    assert not any(found.values()), found
    return model.eval()


def contents(folder: Path) -> dict[str, object]:
    """All files of a pruned checkpoint: their bytes, and the manifest without its seconds."""
    files: dict[str, object] = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
    files[MANIFEST] = timeless(json.loads(files[MANIFEST]))
    return files


def timeless(value: object) -> object:
    """A JSON value without the entries "seconds"."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def workspace(destination: Path) -> Path:
    """Where a job for a destination is done."""
    return destination.with_name(f"{destination.name}.pruning")


def finished_blocks(destination: Path) -> set[int]:
    """The blocks that an interrupted run has finished."""
    manifest = workspace(destination) / "run-1" / MANIFEST
    return (
        set(map(int, json.loads(manifest.read_text())["blocks"])) if manifest.is_file() else set()
    )
