"""Several processes prune one model: as one would, to rounding; and however one of them ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import workers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from helpers import calibration_tokens, load_model, prune_model
from helpers.checkpoint import prune_checkpoint
from helpers.distributed import costs, main, share_out
from helpers.models import find_blocks, find_layers, read_weight
from helpers.paths import root
from helpers.shards import Checkpoint

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds, within which a run that fails has ended
LENGTH = 32


# ---------------------------------------------------------------- models and processes


def save(config: object, folder: Path, tokenizer: object, dtype: torch.dtype) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of three blocks with a tokenizer, as folders."""
    _, tokenizer = load_model("tiny")
    place = tmp_path_factory.mktemp("sources")
    llama = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True,
    )  # fmt: skip
    gpt2 = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=3, n_head=2, bos_token_id=1, eos_token_id=2
    )
    return {
        "llama": save(llama, place / "llama", tokenizer, torch.float32),
        "gpt2": save(gpt2, place / "gpt2", tokenizer, torch.bfloat16),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little calibration text: 31 words in an order that does not repeat."""
    words = "the of and a to in is was it for on with as his her at by not are but from".split()
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words[i * i * 7 % 21] + str(i % 13) for i in range(600)))
    return path


def request(source: Path, destination: Path, text: Path, **changes: object) -> list[str]:
    """The command line of a run."""
    asked = {
        "source": source, "destination": destination, "method": "admm-grad", "sparsity": 0.6,
        "calibration": text, "sequences": 7, "length": LENGTH, "device": "cpu",
        **changes,
    }  # fmt: skip
    return [part for name, v in asked.items() if v is not None for part in (f"--{name}", str(v))]


@dataclass
class Ended:
    """How a group of processes ended."""

    codes: list[int]
    said: str
    seconds: float


@pytest.fixture(scope="module")
def group() -> Callable[..., Ended]:
    """Start N processes that know of one another as torchrun's do, and wait until all have ended.

    They come from a process that has imported everything already, which torchrun's have not.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.distributed"])

    def start(size: int, target: Callable, folder: Path, *more: object) -> Ended:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        said = folder / f"said-{port}"
        said.mkdir(parents=True)
        began = time.monotonic()
        started = [
            context.Process(target=target, args=(rank, size, port, str(said), *more))
            for rank in range(size)
        ]
        for process in started:
            process.start()
        for process in started:
            process.join(max(0.1, began + PATIENCE - time.monotonic()))
        late = [process for process in started if process.exitcode is None]
        for process in late:
            process.kill()
        words = "".join(path.read_text() for path in sorted(said.glob("said-*")))
        assert not late, f"hung: {words}"
        codes = [process.exitcode for process in started]
        return Ended(codes, words, time.monotonic() - began)

    return start


def torchrun(size: int, *arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={size}", *arguments,
    ]  # fmt: skip


SETTINGS = dict(cwd=root(), env=dict(os.environ, PYTHONPATH=str(root()), OMP_NUM_THREADS="1"))


def run(size: int, *arguments: str) -> Ended:
    """torchrun, to its end."""
    began = time.monotonic()
    answer = subprocess.run(
        torchrun(size, *arguments), capture_output=True, text=True, timeout=PATIENCE, check=False,
        **SETTINGS,
    )  # fmt: skip
    return Ended([answer.returncode], answer.stdout + answer.stderr, time.monotonic() - began)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(Checkpoint(folder).tensors())


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same bits."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def left_behind(destination: Path) -> list[Path]:
    """What a run should have cleared away."""
    place = destination.with_name(f"{destination.name}.pruning")
    temporary = [path for path in destination.rglob("*") if path.suffix == ".tmp"]
    return ([place] if place.exists() else []) + temporary


# ---------------------------------------------------------------- who does what


def test_layers_are_shared_out_by_cost() -> None:
    # 9 to the first; 5 and 4 to the second; 2 to the first, as the lower of two equals; 1 then
    # goes to the second
    given = {"e": 1.0, "d": 2.0, "c": 4.0, "b": 5.0, "a": 9.0}
    assert share_out(given, 2) == {"a": 0, "b": 1, "c": 1, "d": 0, "e": 1}
    assert share_out({"y": 1.0, "x": 1.0}, 3) == {"x": 0, "y": 1}
    assert share_out(given, 1) == dict.fromkeys(given, 0)


def test_a_layer_costs_its_outputs_times_its_inputs_squared() -> None:
    layers = {"wide": torch.nn.Linear(3, 5), "transposed": workers.Conv1D(5, 3)}
    assert costs(layers) == {"wide": 45.0, "transposed": 45.0}


def test_what_a_team_does(group, tmp_path: Path) -> None:
    ended = group(2, workers.team, tmp_path)
    assert ended.codes == [0, 0], ended.said
    (folder,) = tmp_path.glob("said-*")
    zero, one = (torch.load(folder / f"team-{rank}.pt") for rank in range(2))
    assert zero["share"] == one["share"] == {"rank": 0}
    assert zero["gather"] == one["gather"] == ["from 0", "from 1"]
    assert zero["part"].flatten().tolist() == [0, 2, 4, 6]
    assert one["part"].flatten().tolist() == [1, 3, 5]
    # 1 row and 2 rows of ones; 1² and 10²: twice that if a shared gram were summed twice
    assert zero["sum"] == one["sum"] == {"k": (3.0, 3), "q": (3.0, 3), "down": (101.0, 2)}
    # by cost 4·36, 4·25, 4·16, 2·4
    owners = {"big": 0, "stored-transposed": 1, "half": 1, "small": 0}
    for found in (zero["solve"], one["solve"]):
        assert [name for name, _, _ in found["lines"]] == list(owners)
        assert {name: rank for name, _, rank in found["lines"]} == owners
        assert dict((name, shape) for name, shape, _ in found["lines"])["big"] == (4, 6)
        for name, owner in owners.items():
            weight = found["weights"][name]
            expected = torch.arange(weight.numel()).view(weight.shape) + 100 * (owner + 1)
            assert torch.equal(weight, expected.float()), name
    assert zero["solve"]["done"] == ["big", "small"]
    assert one["solve"]["done"] == ["stored-transposed", "half"]
