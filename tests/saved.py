"""Saved tiny models to prune file to file, and what their folders hold."""

import json
from pathlib import Path

import families as fam
import torch
import transformers as hf
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

SHARDS = "40KB"  # a block of the tiny Llama


def save(
    folder: Path, family: str = "llama", shards: str = SHARDS, **changes: object
) -> Path:
    """A tiny model of a family as `save_pretrained` writes it, with a tokenizer."""
    fam.build(family, **changes).save_pretrained(folder, max_shard_size=shards)
    tokenizer(folder)
    return folder


def tokenizer(folder: Path, *, start: bool = False) -> None:
    """A word for each id; with `start` a text begins with word 1, as Gemma's with <bos>."""
    words = {f"w{number}": number for number in range(fam.VOCABULARY)}
    tiny = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tiny.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if start:
        first = processors.TemplateProcessing(
            single="w1 $A", special_tokens=[("w1", 1)]
        )
        tiny.post_processor = first
    hf.PreTrainedTokenizerFast(tokenizer_object=tiny, unk_token="w0").save_pretrained(
        folder
    )


def loaded(folder: Path, dtype: torch.dtype | str = "auto") -> torch.nn.Module:
    """What transformers makes of a folder, after checking that nothing is missing or left over."""
    model, found = hf.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, local_files_only=True
    )
    assert not any(found.values()), found
    return model.eval()


def check_index(folder: Path) -> None:
    """Each tensor lies in one file of a folder, and the index says in which."""
    held = [
        (name, path.name, tensor.nbytes)
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    ]
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {name: file for name, file, _ in held}
    assert len(index["weight_map"]) == len(held)
    assert index["metadata"]["total_size"] == sum(size for *_, size in held)


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a pruned folder by their names, without the hidden report, which holds times."""
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*")}


def timeless(value: object) -> object:
    """A JSON value without the entries "seconds"."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def finished_blocks(folder: Path) -> set[int]:
    """The blocks whose shards lie in a folder; the last shard is of what lies outside them."""
    names = [path.stem.split("-") for path in folder.glob("model-*.safetensors")]
    return {int(number) - 1 for _, number, _, count in names if number < count}
