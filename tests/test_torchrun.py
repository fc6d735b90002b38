"""Several processes prune one model: as one would, to rounding; and however one of them ends."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import families as fam
import pytest
import saved
import torch
import workers
from torch import Tensor

from helpers import calibration_tokens, load_model, prune_model
from helpers.large.shards import Checkpoint
from helpers.large.torchrun import main
from helpers.paths import root

HERE = Path(__file__).parent
PATIENCE = 60.0  # seconds, within which a run that fails has ended
LENGTH = 16


# ---------------------------------------------------------------- models and processes


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny models of three blocks with a tokenizer, as folders."""
    folder = tmp_path_factory.mktemp("sources")
    return {
        "llama": saved.save(folder / "llama", "llama", num_hidden_layers=3),
        "gpt2": saved.save(folder / "gpt2", "gpt2", n_layer=3),
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little calibration text: words in an order that does not repeat."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"w{number}" for number in fam.random_tokens(1, 400)[0].tolist()))
    return path


def request(model: Path, to: Path, text: Path, **options: object) -> list[str]:
    """The command line of a run."""
    options = {"batch": 1} | options
    named = {"source": model, "destination": to, "calibration": text, "length": LENGTH}
    named |= {"method": "admm-grad", "sparsity": 0.6, "pattern": "unstructured", "sequences": 7}
    named |= {name: options.pop(name) for name in named.keys() & options.keys()}
    named["options"] = json.dumps(options)
    return [part for name, v in named.items() if v is not None for part in (f"--{name}", str(v))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def group(size: int, target: Callable, folder: Path, *more: object) -> tuple[list[int], str]:
    """Start processes that know of one another as torchrun's do; their exit codes and output.

    They are forks of a process that has imported everything already, which torchrun's are not.
    """
    workers.serve()
    port = free_port()
    output = folder / f"output-{port}"
    output.mkdir()
    began = time.monotonic()
    arguments = (size, port, str(output), *more)
    start = workers.PROCESSES.Process
    started = [start(target=target, args=(rank, *arguments)) for rank in range(size)]
    for process in started:
        process.start()
    for process in started:
        process.join(max(0.1, began + PATIENCE - time.monotonic()))
    late = [process for process in started if process.exitcode is None]
    for process in late:
        process.kill()
    words = "".join(path.read_text() for path in sorted(output.glob("output-*")))
    assert not late, f"hung: {words}"
    return [process.exitcode for process in started], words


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(Checkpoint(folder).tensors())


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same bits."""
    return {name for name in one | other if not torch.equal(one[name], other[name])}


# ---------------------------------------------------------------- the same as one process


def in_memory(source: Path, text: Path, dtype: str, **how: object) -> dict[str, Tensor]:
    """The weights that `prune_model` gives, by the checkpoint's names."""
    model, tokenizer = load_model(source, dtype=dtype, device="cpu")
    tokens = calibration_tokens(text, tokenizer, sequences=7, length=LENGTH)
    prune_model(model, tokens, batch=1, **how)
    return {name: model.state_dict()[name] for name in weights_of(source)}


def check_near(
    found: dict[str, Tensor], expected: dict[str, Tensor], family: str, worst: float
) -> None:
    """The same masks; only pruned weights differ, and by no more than `worst`."""
    names = {f"{name}.weight" for name in fam.pruned_names(family)}
    names |= {name.replace(".1.", f".{block}.") for name in names for block in range(3)}
    assert differ(found, expected) <= names
    for name in names:
        # no two scores of a model this small are equal up to rounding
        assert torch.equal(found[name] != 0, expected[name] != 0), name
        assert (found[name] - expected[name]).abs().max() <= worst, name


@pytest.mark.parametrize("passes", [2, 1])
def test_one_process_and_three(
    passes: int, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    source = sources["llama"]
    expected = in_memory(source, text, "float32", method="admm-grad", sparsity=0.6, passes=passes)
    for size in (1, 3):
        asked = request(source, tmp_path / f"by-{size}", text, passes=passes)
        codes, output = group(size, workers.command, tmp_path, asked)
        assert codes == [0] * size, output
        assert f"by-{size}: sparsity 0.600" in output and output.count("[21/21]") == 1
    assert differ(weights_of(tmp_path / "by-1"), expected) == set()
    three = weights_of(tmp_path / "by-3")
    assert differ(three, expected) != set()
    check_near(three, expected, "llama", 1e-5)


def test_transposed_weights_in_bfloat16_and_memory_that_runs_out_in_one_process(
    sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    source, to = sources["gpt2"], tmp_path / "pruned"
    expected = in_memory(source, text, "bfloat16", method="admm1", pattern="2:4")
    how = dict(method="admm1", sparsity=None, pattern="2:4", dtype="bfloat16", batch=4)
    codes, output = group(2, workers.short_of_memory, tmp_path, request(source, to, text, **how))
    assert codes == [0, 0], output
    _, said = saved.contents(to)["model-00004-of-00004.safetensors"]
    halved = ["process 1, block 1: batch lowered from 3 to 1, out of memory"]
    assert said["result"]["halved"] == halved
    found = weights_of(to)
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    check_near(found, expected, "gpt2", 2**-8)  # a step of bfloat16 for weights below 1


# ---------------------------------------------------------------- however one of them ends


def test_killed_failed_and_still_the_same_bits(
    sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    to, orders = tmp_path / "pruned", tmp_path / "orders"
    # process 1 solves three layers in a block: both end in block 1
    orders.write_text("killed 4\nraises 1")
    asked = request(sources["llama"], to, text, method="obedient", orders=str(orders))
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *(str(HERE / "workers.py"), *asked),
    ]
    environment = dict(os.environ, PYTHONPATH=str(root()), OMP_NUM_THREADS="1")
    killed = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=PATIENCE,
        check=False, cwd=root(), env=environment,
    )  # fmt: skip
    assert killed.returncode != 0 and "SIGKILL" in killed.stdout
    assert saved.finished_blocks(to) == {0}

    codes, output = group(2, workers.command, tmp_path, asked)
    assert codes == [1, 1] and saved.finished_blocks(to) == {0}
    zero, one = (line for line in output.splitlines() if line.startswith("process"))
    assert one.startswith("process 1: NonFinite: block 1 ") and "Traceback" not in output
    assert zero.startswith("process 0: RunError: ") and "run this again" in zero

    fewer = request(sources["llama"], tmp_path / "fewer", text, sequences=1)
    codes, output = group(2, workers.command, tmp_path, fewer)
    assert codes == [1, 1] and output.count("1 sequences are fewer than 2 processes") == 2

    codes, output = group(2, workers.command, tmp_path, asked)
    assert codes == [0, 0] and "[7/21]" not in output and "[21/21]" in output, output
    whole = request(sources["llama"], tmp_path / "whole", text, method="admm1")
    assert group(2, workers.command, tmp_path, whole)[0] == [0, 0]
    assert differ(weights_of(to), weights_of(tmp_path / "whole")) == set()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "admm-grat"}, ("BadParameter", "admm-grad")),
        ({"source": "nowhere"}, ("BadParameter", "nowhere")),
        ({"sequences": 0}, ("BadParameter", "sequences", "0")),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(
    changes: dict, words: tuple, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    asked = request(sources["llama"], tmp_path / "pruned", text, **changes)
    codes, output = group(1, workers.command, tmp_path, asked)
    line = output.splitlines()[-1]
    assert codes == [1] and line.startswith("process 0: ") and all(word in line for word in words)


def test_without_torchrun(capsys: pytest.CaptureFixture) -> None:
    assert main(["--source", "nowhere", "--destination", "nowhere"]) == 1
    assert "RunError: RANK is not set: start this with torchrun" in capsys.readouterr().err
