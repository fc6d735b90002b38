"""Memory of `prune_checkpoint` under a hard limit, and how well it is predicted.

Random models of LLaMA-2-7B's shapes are pruned in a process of its own whose address space is
limited, so that a byte too much ends it. One has as many blocks as make it larger than the limit:
`from_pretrained` cannot load it there.
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, LlamaConfig

from helpers.large import write_index, write_shard
from helpers.machine import checkpoint_memory
from helpers.paths import cache_dir, root

LIMIT = 12_000_000_000  # bytes of address space, files that are mapped included
TARGET = 0.15  # of the prediction
BARE_TARGET = 1.1
SEVEN = dict(hidden_size=4096, intermediate_size=11008, num_attention_heads=32, vocab_size=32000)
SMALL = dict(hidden_size=512, intermediate_size=1376, num_attention_heads=8, vocab_size=8000)
# name, shapes, blocks, what is asked of prune_checkpoint, sequences, length
CASES = [
    ("LLaMA-2-7B, 1 block", SEVEN, 1, dict(method="admm-grad", sparsity=0.6), 4, 512),
    ("LLaMA-2-7B, 14 blocks", SEVEN, 14, dict(method="wanda", sparsity=0.6), 2, 256),
]
QUICK = [("random Llama, 2 blocks of 512", SMALL, 2, dict(method="wanda", sparsity=0.6), 2, 64)]
NO_MEMORY = ("MemoryError", "allocate memory", "Cannot allocate", "not enough memory")
SPARE = 1.1  # of the disk that source and destination take


def measure(quick: bool = False) -> dict[str, Any]:
    """A row for each case: peak memory, the prediction, and whether plain loading fits the limit.

    A case that does not fit on the disk, and all on another system than Linux, are left out and
    named in "left out".
    """
    rows, left_out = [], []
    if not sys.platform.startswith("linux"):  # elsewhere neither limit nor peak can be relied on
        return {"rows": [], "left out": [case[0] for case in CASES]}
    for name, shapes, blocks, asked, sequences, length in QUICK if quick else CASES:
        cache_dir().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
            config = LlamaConfig(num_hidden_layers=blocks, **shapes)
            size = sum(4 * tensor.numel() for tensor in _empty(config).parameters())
            if shutil.disk_usage(folder).free < 2 * SPARE * size:
                left_out.append(name)
                continue
            source = Path(folder) / "source"
            write_random(config, source)
            rows.append(_row(name, source, asked, sequences, length))
    return {"rows": rows, "left out": left_out}


def _empty(config: LlamaConfig) -> Any:
    """The model without weights."""
    with init_empty_weights():
        return AutoModelForCausalLM.from_config(config)


def write_random(config: LlamaConfig, folder: Path) -> None:
    """Write a random checkpoint in float32, a shard for each block, with little memory."""
    folder.mkdir(parents=True)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in _empty(config).named_parameters():
        part = name.split(".")[2] if ".layers." in name else "rest"
        shards.setdefault(part, {})[name] = tensor
    generator = torch.Generator().manual_seed(0)
    files: dict[str, str] = {}
    size = 0
    for part, tensors in shards.items():
        # weights of this size keep a stream's scale; norms are 1
        made = {
            name: torch.randn(tensor.shape, generator=generator).mul_(0.02)
            if tensor.ndim > 1
            else torch.ones(tensor.shape)
            for name, tensor in tensors.items()
        }
        write_shard(folder / f"model-{part}.safetensors", made)
        files |= dict.fromkeys(made, f"model-{part}.safetensors")
        size += sum(tensor.nbytes for tensor in made.values())
    write_index(folder, files, size)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)


def _row(
    name: str, source: Path, asked: dict[str, Any], sequences: int, length: int
) -> dict[str, Any]:
    """Prune one checkpoint under the limit; evaluate the result there too."""
    found = checkpoint_memory(source, sequences=sequences, length=length, method=asked["method"])
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    job = dict(source=str(source), asked=asked, sequences=sequences, length=length)
    pruned = _child({"do": "prune", **job})
    return {
        "case": name,
        "method": asked["method"],
        "tokens": f"{sequences} x {length}",
        "model": size,
        "limit": LIMIT,
        "from_pretrained fits": "growth" in _child({"do": "load", **job}),
        "peak": pruned["growth"],
        "predicted": found.peak,
        "peak / predicted": pruned["growth"] / found.peak,
        "block + grams + activations": found.bare,
        "peak / those": pruned["growth"] / found.bare,
        "minutes": pruned["seconds"] / 60,
        "peak of perplexity": _child({"do": "evaluate", **job})["growth"],
    }


def _child(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job in a process of its own under the limit: what it measured, or {} if it failed.

    Raises RuntimeError with its error where a job that must fit did not.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", json.dumps(job)],
        capture_output=True,
        text=True,
        cwd=root(),
        check=False,
    )
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    memory = any(word in done.stderr for word in NO_MEMORY) or done.returncode < 0
    if job["do"] == "load" and memory:
        return {}
    raise RuntimeError(f"{job['do']} failed: {done.stderr.strip()[-2000:]}")


def child(job: dict[str, Any]) -> dict[str, Any]:
    """The job, in the process that is limited."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    # what is loaded once for any work does not belong to a model's footprint
    from helpers.device import memory_growth
    from helpers.evaluate import perplexity
    from helpers.large import load_streamed, prune_checkpoint

    source, vocabulary = Path(job["source"]), 8000
    destination = source.with_name("pruned")
    generator = torch.Generator().manual_seed(1)
    shape = (job["sequences"], job["length"])
    tokens = torch.randint(0, vocabulary, shape, generator=generator)
    load_streamed(source, device="cpu")
    torch.linalg.cholesky(torch.eye(256) + torch.ones(256, 256) @ torch.eye(256))
    started = time.perf_counter()
    with memory_growth("cpu") as growth:
        if job["do"] == "load":
            AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        elif job["do"] == "prune":
            prune_checkpoint(source, destination, tokens, device="cpu", **job["asked"])
        else:
            model, _ = load_streamed(destination, device="cpu")
            perplexity(model, tokens.flatten(), length=job["length"])
    return {"growth": growth.bytes, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
