"""Several processes prune one model: as one would, to rounding; and however one of them ends."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import workers
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from helpers import calibration_tokens, load_model, prune_model
from helpers.large.shards import Checkpoint
from helpers.large.torchrun import costs, main, share_out
from helpers.models import find_blocks, find_layers
from helpers.paths import root

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
    """A little calibration text: words in an order that does not repeat."""
    words = ["the", "of", "and", "a", "to", "in", "is", "was", "it", "for", "on"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words[i * i * 7 % 11] + str(i % 13) for i in range(600)))
    return path


def request(model: Path, to: Path, text: Path, **changes: object) -> list[str]:
    """The command line of a run."""
    asked = {
        "source": model, "destination": to, "method": "admm-grad", "sparsity": 0.6,
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def group() -> Callable[..., Ended]:
    """Start N processes that know of one another as torchrun's do, and wait until all have ended.

    They come from a process that has imported everything already, which torchrun's have not.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["helpers.large.torchrun"])

    def start(size: int, target: Callable, folder: Path, *more: object) -> Ended:
        port = free_port()
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
        assert [shape for _, shape, _ in found["lines"]] == [(4, 6), (4, 5), (4, 4), (2, 2)]
        for name, owner in owners.items():
            weight = found["weights"][name]
            expected = torch.arange(weight.numel()).view(weight.shape) + 100 * (owner + 1)
            assert torch.equal(weight, expected.float()), name
    assert zero["solve"]["done"] == ["big", "small"]
    assert one["solve"]["done"] == ["stored-transposed", "half"]


# ---------------------------------------------------------------- the same as one process


def drawn(source: Path, text: Path, sequences: int = 7) -> Tensor:
    """The tokens that the command line draws."""
    tokenizer = load_model(source)[1]
    return calibration_tokens(text, tokenizer, sequences=sequences, length=LENGTH)


def in_memory(source: Path, tokens: Tensor | None, dtype: str, **how: object) -> dict[str, Tensor]:
    """The weights that `prune_model` gives, by the checkpoint's names."""
    model, _ = load_model(source, dtype=dtype, device="cpu")
    prune_model(model, tokens, **how)
    return {name: model.state_dict()[name] for name in weights_of(source)}


def pruned_names(source: Path) -> list[str]:
    model, _ = load_model(source)
    paths = {id(module): name for name, module in model.named_modules()}
    layers = [layer for block in find_blocks(model) for layer in find_layers(block).values()]
    return [f"{paths[id(layer)]}.weight" for layer in layers]


def compared(one: dict[str, Tensor], other: dict[str, Tensor], names: list[str]) -> tuple:
    """Mask differences, and the largest difference of weights that stay in both."""
    flips, worst = 0, 0.0
    for name in names:
        kept = (one[name] != 0) & (other[name] != 0)
        flips += int(((one[name] != 0) != (other[name] != 0)).sum())
        worst = max(worst, (one[name] - other[name])[kept].abs().max().item())
    return flips, worst


def test_one_process_alone_one_of_torchruns_and_three(
    group, sources: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, how = sources["llama"], dict(method="admm-grad", sparsity=0.6)
    expected = in_memory(source, drawn(source, text), "float32", **how)
    assert main(request(source, tmp_path / "alone", text)) == 0
    ended = group(3, workers.command, tmp_path, request(source, tmp_path / "three", text))
    assert ended.codes == [0, 0, 0], ended.said
    for name, value in workers.place(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    assert main(request(source, tmp_path / "one", text)) == 0 and not dist.is_initialized()
    for folder in ("alone", "one"):
        assert differ(weights_of(tmp_path / folder), expected) == []
    names = pruned_names(source)
    flips, worst = compared(weights_of(tmp_path / "three"), expected, names)
    # no two scores of a model this small are equal up to rounding
    assert len(names) == 21 and flips == 0 and 0 < worst < 1e-6
    assert set(differ(weights_of(tmp_path / "three"), expected)) <= set(names)
    assert not any(left_behind(tmp_path / folder) for folder in ("alone", "one", "three"))


@pytest.fixture(scope="module")
def whole(sources: dict[str, Path], text: Path, tmp_path_factory) -> tuple[Path, Ended]:
    """What two processes of torchrun make of seven sequences, with the method admm1."""
    to = tmp_path_factory.mktemp("whole") / "pruned"
    asked = request(sources["llama"], to, text, method="admm1")
    return to, run(2, "-m", "helpers.large.torchrun", *asked)


def test_two_processes_of_torchrun(whole: tuple, sources: dict[str, Path], text: Path) -> None:
    to, ended = whole
    assert ended.codes == [0] and "Traceback" not in ended.said, ended.said
    source = sources["llama"]
    expected = in_memory(source, drawn(source, text), "float32", method="admm1", sparsity=0.6)
    flips, worst = compared(weights_of(to), expected, pruned_names(source))
    assert flips == 0 and 0 < worst < 1e-6
    assert f"{to}: sparsity 0.600" in ended.said and "[21/21] block 2" in ended.said
    assert left_behind(to) == []


def test_transposed_weights_in_bfloat16(
    group, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    source, to = sources["gpt2"], tmp_path / "pruned"
    expected = in_memory(source, drawn(source, text), "bfloat16", method="admm1", pattern="2:4")
    how = dict(method="admm1", sparsity=None, pattern="2:4", dtype="bfloat16", activations="disk")
    ended = group(2, workers.command, tmp_path, request(source, to, text, **how))
    assert ended.codes == [0, 0], ended.said
    found = weights_of(to)
    flips, worst = compared(found, expected, pruned_names(source))
    # one step of bfloat16 where weights are below 1/16
    assert flips == 0 and worst <= 2**-12
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    assert left_behind(to) == []


def test_memory_runs_out_in_one_process(
    group, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    asked = request(sources["llama"], tmp_path / "pruned", text, method="admm1", sequences=8)
    ended = group(2, workers.short_of_memory, tmp_path, [*asked, "--batch", "2"])
    assert ended.codes == [0, 0], ended.said
    manifest = json.loads((tmp_path / "pruned" / "pruning.json").read_text())
    assert manifest["halved"] == ["process 1, block 1: batch 2 to 1, memory ran out"]
    tokens = drawn(sources["llama"], text, 8)
    expected = in_memory(sources["llama"], tokens, "float32", method="admm1", sparsity=0.6)
    found = weights_of(tmp_path / "pruned")
    flips, worst = compared(found, expected, pruned_names(sources["llama"]))
    assert flips == 0 and worst < 1e-6


# ---------------------------------------------------------------- however one of them ends


def finished_blocks(destination: Path) -> list[str]:
    place = destination.with_name(f"{destination.name}.pruning")
    (manifest,) = place.glob("run-*/pruning.json")
    return list(json.loads(manifest.read_text())["blocks"])


def interrupted(orders: Path, *arguments: str) -> Ended:
    """torchrun with two processes, and Ctrl-C once process 1 has no orders left."""
    process = subprocess.Popen(
        torchrun(2, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        **SETTINGS,
    )  # fmt: skip
    waited = time.monotonic()
    while orders.read_text() and time.monotonic() < waited + PATIENCE:
        time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    return Ended([process.returncode], said, time.monotonic() - began)


def test_killed_then_interrupted_and_still_the_same_bits(
    whole: tuple, group, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    to, orders = tmp_path / "pruned", tmp_path / "orders"
    # process 1 solves four layers in a block: in block 1, then in block 2
    orders.write_text("killed 5\ninterrupted 5")
    options = json.dumps({"orders": str(orders)})
    asked = request(sources["llama"], to, text, method="obedient", options=options)
    killed = run(2, str(HERE / "workers.py"), *asked)
    assert killed.codes[0] != 0 and "SIGKILL" in killed.said
    # the only stack trace is torchrun's own
    assert killed.said.count("Traceback") == 1 and "ChildFailedError" in killed.said
    assert finished_blocks(to) == ["0"] and not to.exists()
    stopped = interrupted(orders, str(HERE / "workers.py"), *asked)
    assert stopped.codes[0] != 0 and "process 1: stopped: run it again" in stopped.said
    assert finished_blocks(to) == ["0", "1"] and not to.exists()
    ended = group(2, workers.command, tmp_path, asked)
    assert ended.codes == [0, 0] and "2 blocks of an earlier run" in ended.said, ended.said
    assert differ(weights_of(to), weights_of(whole[0])) == []
    assert left_behind(to) == []


def test_an_error_in_one_process_ends_all(
    group, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    to, orders = tmp_path / "pruned", tmp_path / "orders"
    orders.write_text("raises 5")
    options = json.dumps({"orders": str(orders)})
    asked = request(sources["llama"], to, text, method="obedient", options=options)
    ended = group(2, workers.command, tmp_path, asked)
    assert ended.codes == [1, 1] and finished_blocks(to) == ["0"]
    zero, one = (line for line in ended.said.splitlines() if line.startswith("process"))
    assert one.startswith("process 1: NonFinite: block 1 ") and one.endswith("made up")
    assert zero.startswith("process 0: ProcessLost: ") and "run again" in zero
    assert "peer" in zero and "pair.cc" not in zero
    assert "Traceback" not in ended.said


def test_fewer_sequences_than_processes(
    group, sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    asked = request(sources["llama"], tmp_path / "pruned", text, sequences=2)
    ended = group(3, workers.command, tmp_path, asked)
    assert ended.codes == [1, 1, 1]
    lines = ended.said.splitlines()
    assert len(lines) == 3 and all("2 calibration sequences are fewer than 3" in x for x in lines)
    assert lines[2].startswith("process 2: CalibrationTooShort: ")
    assert [path for path in tmp_path.iterdir() if path.name.startswith("pruned")] == []


def test_a_mistake_found_late_does_not_stand_in_the_way(
    sources: dict[str, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    asked = request(sources["llama"], tmp_path / "pruned", text, method="admm1")
    assert main([*asked, "--options", '{"iterations": NaN}']) == 1
    assert "BadParameter: block 0 self_attn.q_proj: iterations" in capfd.readouterr().err
    assert main([*asked, "--options", '{"iterations": 3}']) == 0
    assert left_behind(tmp_path / "pruned") == []


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"method": "admm-grat"}, "UnknownMethod", "admm-grad"),
        ({"options": "{iterations: 40}"}, "BadParameter", "JSON"),
        ({"options": "[40]"}, "BadParameter", "no names"),
        ({"options": '{"sparsity": 0.5}'}, "BadParameter", "sparsity"),
        ({"options": '{"iteration": 40}'}, "BadParameter", "iterations"),
        ({"pattern": "2:4"}, "BadSparsity", "2:4"),
        ({"pattern": "4:2", "sparsity": None}, "BadPattern", "4:2"),
        ({"sparsity": None}, "BadSparsity", "sparsity"),
        ({"sparsity": "nan"}, "BadSparsity", "nan"),
        ({"source": "nowhere"}, "UnknownModel", "nowhere"),
        ({"sequences": 0}, "BadParameter", "sequences"),
        ({"batch": 0}, "BadParameter", "batch"),
        ({"device": "tpu"}, "BadParameter", "tpu"),
        ({"dtype": "float12"}, "BadParameter", "float12"),
        ({"activations": "cloud"}, "BadParameter", "cloud"),
        ({"calibration": "no-such-file.txt"}, "BadText", "no-such-file"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(
    changes: dict, error: str, word: str, sources: dict[str, Path], text: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    asked = request(sources["llama"], tmp_path / "pruned", text, **changes)
    assert main(asked) == 1
    said = capfd.readouterr().err
    lines = [line for line in said.splitlines() if "Loading weights" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"{error}: ") and word in lines[0], said
    assert list(tmp_path.iterdir()) == []
