"""Several processes prune one model: as one would, to rounding; and however one of them ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import families as fam
import psutil
import pytest
import saved
import torch
import torch.distributed as dist
import workers
from torch import Tensor

from helpers import calibration_tokens, load_model, prune_model
from helpers.errors import RunError
from helpers.large import torchrun
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


def request(model: Path, to: Path, text: Path, **changes: object) -> list[str]:
    """The command line of a run."""
    asked = {
        "source": model, "destination": to, "method": "admm-grad", "sparsity": 0.6,
        "calibration": text, "sequences": 7, "length": LENGTH, "device": "cpu", "batch": 1,
        **changes,
    }  # fmt: skip
    return [part for name, v in asked.items() if v is not None for part in (f"--{name}", str(v))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def group(
    size: int,
    target: Callable,
    folder: Path,
    *more: object,
    during: Callable[[list], None] = lambda _: None,
) -> tuple[list[int], str]:
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
    during(started)
    for process in started:
        process.join(max(0.1, began + PATIENCE - time.monotonic()))
    late = [process for process in started if process.exitcode is None]
    for process in late:
        process.kill()
    words = "".join(path.read_text() for path in sorted(output.glob("output-*")))
    assert not late, f"hung: {words}"
    return [process.exitcode for process in started], words


def listening(pid: int) -> set[str]:
    """The addresses on which a process and those that it has started listen."""
    found = set()
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            connections = getattr(process, "net_connections", process.connections)("inet")
            found |= {each.laddr.ip for each in connections if each.status == "LISTEN"}
    return found


def weights_of(folder: Path) -> dict[str, Tensor]:
    return dict(Checkpoint(folder).tensors())


def differ(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Names of the tensors that are not the same bits."""
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


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
    blocks = range(3)
    names = {f"{name}.weight" for name in fam.pruned_names(family)}
    names |= {name.replace(".1.", f".{block}.") for name in names for block in blocks}
    assert differ(found, expected) <= names
    for name in names:
        # no two scores of a model this small are equal up to rounding
        assert torch.equal(found[name] != 0, expected[name] != 0), name
        assert (found[name] - expected[name]).abs().max() <= worst, name


@pytest.mark.parametrize("passes", [2, 1])
def test_one_process_alone_one_of_torchruns_and_three(
    passes: int,
    sources: dict[str, Path],
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = sources["llama"]
    expected = in_memory(source, text, "float32", method="admm-grad", sparsity=0.6, passes=passes)
    asked = {name: request(source, tmp_path / name, text, passes=passes)
             for name in ("alone", "three", "one")}  # fmt: skip
    assert main(asked["alone"]) == 0
    codes, output = group(3, workers.command, tmp_path, asked["three"])
    assert codes == [0, 0, 0], output
    assert f"{tmp_path / 'three'}: sparsity 0.600" in output
    assert output.count("[21/21] block 2") == 1
    for name, value in workers.environment(0, 1, free_port()).items():
        monkeypatch.setenv(name, value)
    assert main(asked["one"]) == 0 and not dist.is_initialized()
    for folder in ("alone", "one"):
        assert differ(weights_of(tmp_path / folder), expected) == set()
    three = weights_of(tmp_path / "three")
    assert differ(three, expected) != set()
    check_near(three, expected, "llama", 1e-5)


def test_transposed_weights_in_bfloat16_and_memory_that_runs_out_in_one_process(
    sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    source, to = sources["gpt2"], tmp_path / "pruned"
    expected = in_memory(source, text, "bfloat16", method="admm1", pattern="2:4")
    how = dict(method="admm1", sparsity=None, pattern="2:4", dtype="bfloat16", activations="disk")
    asked = request(source, to, text, sequences=7, **how | {"batch": 4})
    codes, output = group(2, workers.short_of_memory, tmp_path, asked)
    assert codes == [0, 0], output
    halved = json.loads((to / "pruning.json").read_text())["halved"]
    assert halved == ["process 1, block 1: batch lowered from 3 to 1, out of memory"]
    found = weights_of(to)
    assert {weight.dtype for weight in found.values()} == {torch.bfloat16}
    check_near(found, expected, "gpt2", 2**-8)  # a step of bfloat16 for weights below 1
    assert not saved.workspace(to).exists() and not list(to.rglob("*.tmp"))


# ---------------------------------------------------------------- however one of them ends


def test_killed_failed_interrupted_and_still_the_same_bits(
    sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    to, orders = tmp_path / "pruned", tmp_path / "orders"
    # process 1 solves four layers in a block: the first two end in block 1, the last in block 2
    orders.write_text("killed 5\nraises 1\ninterrupted 5")
    how = dict(method="obedient", options=json.dumps({"orders": str(orders)}))
    asked = request(sources["llama"], to, text, **how)

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
    # the only stack trace is torchrun's own
    assert killed.stdout.count("Traceback") == 1 and "ChildFailedError" in killed.stdout
    assert saved.finished_blocks(to) == {0} and not to.exists()

    codes, output = group(2, workers.command, tmp_path, asked)
    assert codes == [1, 1] and saved.finished_blocks(to) == {0}
    zero, one = (line for line in output.splitlines() if line.startswith("process"))
    assert one.startswith("process 1: NonFinite: block 1 ")
    assert "made up; 1 finished blocks are kept" in one
    assert zero.startswith("process 0: RunError: ") and "run again" in zero
    assert "peer" in zero and "pair.cc" not in zero and "Traceback" not in output

    def interrupt(processes: list) -> None:
        began = time.monotonic()
        while orders.read_text() and time.monotonic() < began + PATIENCE:
            time.sleep(0.05)
        for process in processes:
            os.kill(process.pid, signal.SIGINT)

    codes, output = group(2, workers.command, tmp_path, asked, during=interrupt)
    assert 0 not in codes and "process 1: stopped: run it again" in output
    assert saved.finished_blocks(to) == {0, 1} and not to.exists()

    codes, output = group(2, workers.command, tmp_path, asked)
    assert codes == [0, 0] and "2 blocks of an earlier run" in output, output

    # started by the module itself, which opens no port to the outside
    whole = request(sources["llama"], tmp_path / "whole", text, method="admm1", processes=2)
    command = [sys.executable, "-m", "helpers.large.torchrun", *whole]
    started, heard = subprocess.Popen(command, cwd=root(), env=environment), set()
    while started.poll() is None:
        heard |= listening(started.pid)
        time.sleep(0.05)
    assert started.returncode == 0 and heard == {"127.0.0.1"}
    assert differ(weights_of(to), weights_of(tmp_path / "whole")) == set()
    assert not saved.workspace(to).exists() and not list(to.rglob("*.tmp"))


def test_fewer_sequences_than_processes(
    sources: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    asked = request(sources["llama"], tmp_path / "pruned", text, sequences=1)
    codes, output = group(2, workers.command, tmp_path, asked)
    assert codes == [1, 1]
    lines = output.splitlines()
    assert len(lines) == 2 and all("1 calibration sequences are fewer than 2" in x for x in lines)
    assert lines[1].startswith("process 1: BadParameter: ")
    assert [path for path in tmp_path.iterdir() if path.name.startswith("pruned")] == []


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"method": "admm-grat"}, "BadParameter", "admm-grad"),
        ({"options": "[40]"}, "BadParameter", "JSON object"),
        ({"options": '{"sparsity": 0.5}'}, "BadParameter", "sparsity"),
        ({"pattern": "2:4"}, "BadParameter", "2:4"),
        ({"source": "nowhere"}, "BadParameter", "nowhere"),
        ({"device": "tpu"}, "BadParameter", "tpu"),
        ({"processes": 0}, "BadParameter", "--processes 0"),
        ({"calibration": "no-such-file.txt"}, "BadParameter", "no-such-file"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_one_line(
    changes: dict, error: str, word: str, sources: dict[str, Path], text: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    assert main(request(sources["llama"], tmp_path / "pruned", text, **changes)) == 1
    lines = capfd.readouterr().err.splitlines()
    lines = [line for line in lines if "Loading weights" not in line]
    assert len(lines) == 1 and lines[0].startswith(f"{error}: ") and word in lines[0], lines
    assert list(tmp_path.iterdir()) == []


def test_a_pruned_source_needs_a_word(
    sources: dict[str, Path], text: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert main(request(sources["llama"], once, text, method="magnitude")) == 0
    again = request(once, twice, text, method="magnitude", sparsity=0.8)
    assert main(again) == 1 and "once are zero already" in capfd.readouterr().err
    assert not twice.exists()
    assert main([*again, "--allow-pruned"]) == 0
    assert f"{twice}: sparsity 0.800" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("environment", "more", "words"),
    [
        ({"RANK": "0"}, {}, "RANK is set and WORLD_SIZE is not"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, {}, "RANK is 'one'"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, {}, "RANK is 2 and WORLD_SIZE 2"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {}, "MASTER_PORT is not"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "9"}, {}, "MASTER_ADDR is not"),
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"processes": 2}, "--processes 2 is given and RANK"),
    ],
    ids=str,
)
def test_an_environment_that_nobody_has_set_up(
    environment: dict, more: dict, words: str, sources: dict[str, Path], text: Path,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(request(sources["llama"], tmp_path / "pruned", text, **more)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "BadParameter: " in line and words in line and "torchrun" in line


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("pass", 0, ""),
        ("sys.exit(3) if rank else time.sleep(60)", 1, ""),
        ("os.kill(os.getpid(), 9) if rank else time.sleep(60)", 1, "process 1 was killed by sig"),
    ],
)
def test_processes_that_end(
    how: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    """Each has its rank, all meet where nobody else can enter, and none outlives another."""
    program = (
        "import os, pathlib, sys, time; rank = int(os.environ['RANK']);"
        "folder = pathlib.Path(os.environ['PRUNING_MEETING']).parent;"
        f"pathlib.Path({str(tmp_path)!r}, str(rank)).write_text(os.environ['WORLD_SIZE'] + "
        "oct(folder.stat().st_mode)[-3:] + os.environ['OMP_NUM_THREADS']); time.sleep(0.3);" + how
    )
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torchrun, "cpus", lambda: range(6))  # that this process may use
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    monkeypatch.setattr(torchrun, "GRACE_SECONDS", 0.2)
    began = time.monotonic()
    assert torchrun.start(2) == code and time.monotonic() < began + 30
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == dict.fromkeys("01", "27003")
    assert capfd.readouterr().err.startswith(said)


def test_sigterm_interrupts_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = f"""
import os, pathlib, signal, time
here, rank = pathlib.Path({str(tmp_path)!r}), os.environ["RANK"]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start tests without it
try:
    (here / rank).touch()
    while len(list(here.iterdir())) < 2:
        time.sleep(0.01)
    if rank == "0":
        os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
except KeyboardInterrupt:
    (here / rank).write_text("stopped")
"""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-c", program])
    with pytest.raises(KeyboardInterrupt):
        torchrun.start(2)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["stopped"] * 2


@pytest.mark.parametrize("place", ["distributed.all_gather", "Tensor.cpu"])
def test_a_lost_process_is_named_wherever_it_shows(
    place: str, monkeypatch: pytest.MonkeyPatch, one_line_error: Callable
) -> None:
    """With nccl it may show only where a result is waited for."""

    def fail(*_: object) -> None:
        raise RuntimeError("NCCL error: remote process exited")

    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather", lambda *_: None)
    monkeypatch.setattr(f"torch.{place}", fail)
    with one_line_error(RunError, "another process has ended", "remote process exited"):
        torchrun.Processes(torch.device("cpu")).gather(1)
