"""Several processes prune one model: as one would, to rounding; and however one of them ends."""

import json
import os
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import families as fam
import pytest
import saved
import torch
import workers

from helpers import calibration_tokens, load_model, prune_model
from helpers.errors import BadParameter
from helpers.large import torchrun
from helpers.large.shards import Checkpoint
from helpers.paper.gram import Gram
from helpers.paths import root

PATIENCE = 60.0  # seconds, within which a run that fails has ended
LENGTH = 16


# ---------------------------------------------------------------- models and processes


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A little calibration text: words in an order that does not repeat."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    numbers = fam.random_tokens(1, 400)[0].tolist()
    path.write_text(" ".join(f"w{number}" for number in numbers))
    return path


def request(model, to, text, batch=1, passes=2, orders="", **options):
    """The command line of a run; in it, what is not of the command line stands as --options."""
    line = f"prune {model} --streamed --save {to} --dtype float32 --sequences 7"
    line += f" --calibration {text} --length {LENGTH}"
    line += f" --evaluation {text} --window {LENGTH} --windows 1"
    for name, value in options.items():
        line += f" --{name} {value}"
    others = {"batch": batch, "passes": passes}
    if orders:
        others["orders"] = str(orders)
    return [*line.split(), "--options", json.dumps(others)]


def two_processes(folder, command):
    """Start two that know of one another as torchrun's do; their exit codes and output.

    They are forks of a process that has imported everything already, which torchrun's are not.
    """
    workers.serve()
    with socket.socket() as probe:  # a port that is free
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    output = folder / f"output-{port}"
    output.mkdir()
    started = []
    for rank in (0, 1):
        arguments = (rank, 2, port, str(output), command)
        process = workers.PROCESSES.Process(target=workers.command, args=arguments)
        process.start()
        started.append(process)
    for process in started:
        process.join(PATIENCE)
    codes = [process.exitcode for process in started]  # None where one hangs
    for process in started:
        process.kill()
    return codes, "".join(path.read_text() for path in sorted(output.iterdir()))


def weights_of(folder):
    checkpoint = Checkpoint(folder)
    return {name: checkpoint.tensor(name) for name in checkpoint.files}


# ---------------------------------------------------------------- the same as one process


@pytest.mark.parametrize(
    "family, how, worst",
    [
        ("llama", dict(method="admm-grad", sparsity=0.6, passes=1), 1e-5),
        # transposed weights; a step of bfloat16; memory that runs out in process 1
        ("gpt2", dict(method="admm1", pattern="2:4", dtype="bfloat16", batch=4), 2**-8),
    ],
    ids=str,
)
def test_two_processes_are_as_one(family, how, worst, text, tmp_path):
    source = saved.save(tmp_path / "source", family)
    command = request(source, tmp_path / "2", text, **how)
    codes, output = two_processes(tmp_path, command)
    assert codes == [0, 0], output
    assert output.count("block 1") == len(fam.FAMILIES[family].layers)
    whole, tokenizer = load_model(source, dtype=how.pop("dtype", "float32"))
    tokens = calibration_tokens(text, tokenizer, sequences=7, length=LENGTH)
    prune_model(whole, tokens, **how | {"batch": 1})
    one = whole.state_dict()
    two = weights_of(tmp_path / "2")
    assert family == "gpt2" or any((one[name] != two[name]).any() for name in two)
    for name in two:  # no two scores of a model this small are equal up to rounding
        assert torch.equal(two[name] != 0, one[name] != 0), name
        assert (two[name] - one[name]).abs().max() <= worst, name
    report = json.loads((tmp_path / "2/.report.json").read_text())
    halved = ["block 1: batch lowered from 3 to 1, out of memory"]  # of process 1
    said = report["model-00003-of-00003.safetensors"]["halved"]
    assert said == (halved if family == "gpt2" else [])


def test_an_expert_that_the_text_of_one_process_misses(monkeypatch):
    """Its layers share a gram where the text has reached them, and have empty ones elsewhere."""
    meeting = threading.Barrier(2, timeout=20)
    here = threading.local()
    values = [None, None]

    def gather(_team, value):
        values[here.rank] = value
        meeting.wait()
        gathered = list(values)
        meeting.wait()
        return gathered

    monkeypatch.setattr(torchrun.Processes, "__init__", lambda team: None)
    monkeypatch.setattr(torchrun.Processes, "gather", gather)
    all_reduce = lambda sums: sums.copy_(sum(gather(None, sums.clone())))  # noqa: E731
    monkeypatch.setattr(torchrun.dist, "all_reduce", all_reduce)
    inputs = torch.randn(2, 5, 4)

    def run(rank):
        here.rank = rank
        grams = {name: Gram(4) for name in ("down", "gate", "up")}
        if rank == 0:
            grams["up"] = grams["gate"]
            grams["gate"].add(inputs[0])
        grams["down"].add(inputs[rank])
        torchrun.Processes().sum(grams)
        return grams

    expected = {"down": inputs.flatten(0, 1), "gate": inputs[0], "up": inputs[0]}
    with ThreadPoolExecutor(2) as threads:
        for grams in threads.map(run, (0, 1)):
            for name, rows in expected.items():
                assert grams[name].tokens == len(rows)
                torch.testing.assert_close(grams[name].matrix, rows.T @ rows)


def test_fewer_sequences_than_processes(monkeypatch, one_line_error):
    monkeypatch.setattr(torchrun.Processes, "__init__", lambda team: None)
    team = torchrun.Processes()
    team.rank, team.size = 1, 2
    assert torch.equal(team.part(workers.TOKENS), workers.TOKENS[1::2])
    with one_line_error(BadParameter, "2 processes"):
        team.part(workers.TOKENS[:1])


# ---------------------------------------------------------------- however one of them ends


def test_killed_failed_and_still_the_same_bits(text, tmp_path):
    source = saved.save(tmp_path / "source", num_hidden_layers=3)
    to = tmp_path / "pruned"
    orders = tmp_path / "orders"
    # process 1 solves three layers in a block: both end in block 1
    orders.write_text("killed 4\nraises 1")
    command = request(source, to, text, method="obedient", orders=orders, sparsity=0.6)
    torchrun_command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun_command += ["--nproc-per-node=2", workers.__file__, *command]
    environment = dict(os.environ, PYTHONPATH=str(root()), OMP_NUM_THREADS="1")
    killed = subprocess.run(
        torchrun_command, capture_output=True, timeout=PATIENCE, env=environment
    )
    assert killed.returncode != 0 and b"SIGKILL" in killed.stderr
    assert saved.finished_blocks(to) == {0}

    codes, output = two_processes(tmp_path, command)
    assert codes == [1, 1] and saved.finished_blocks(to) == {0}
    zero, one = (line for line in output.splitlines() if line.startswith("process"))
    assert one.startswith("process 1: block 1 ") and "Traceback" not in output
    assert zero.startswith("process 0: another process")

    codes, output = two_processes(tmp_path, command)
    assert codes == [0, 0] and "[7/21]" not in output and "[21/21]" in output, output
    whole = request(source, tmp_path / "whole", text, method="admm1", sparsity=0.6)
    assert two_processes(tmp_path, whole)[0] == [0, 0]
    expected = weights_of(tmp_path / "whole")
    for name, weight in weights_of(to).items():
        assert torch.equal(weight, expected[name])
