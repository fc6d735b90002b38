"""The command line: a mistake is answered by one line, and `prune` does what it says."""

import functools
import json
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import families as fam
import pytest
import saved
import torch
from transformers import AutoTokenizer

import helpers
from helpers import (
    METHODS,
    calibration_tokens,
    cli,
    evaluation_tokens,
    load_model,
    memory,
    perplexity,
    pruning,
)
from helpers.cli import MOVED, main
from helpers.errors import BadParameter
from helpers.model.block_loop import PruneReport
from helpers.model.zero_shot import TaskScore

SHORT = "--windows 2 --window 16 --evaluation text.txt"
HALF = f"--sparsity 0.5 --save out {SHORT}"
WINDOWS = dict(length=16, limit=2)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """What a line answers, as exit code, output and errors, in a folder with a model and a text."""
    monkeypatch.chdir(tmp_path)
    saved.save(Path("dense"))
    words = fam.random_tokens(1, 400)[0].tolist()
    Path("text.txt").write_text(" ".join(f"w{number}" for number in words))

    def call(line, *more):
        capsys.readouterr()  # what transformers has shown before
        try:
            code = main([*line.split(), *more])
        except SystemExit as end:  # of argparse
            code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("verb", ["", "prune", "evaluate", "assets"])
def test_help_fits_a_terminal(verb, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, error = command(f"{verb} --help")
    assert (code, error) == (0, "")
    assert out.startswith("usage: python -m helpers")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    "line, code, word",
    [
        ("", 2, "VERB"),
        ("purne x", 2, "mean 'prune'"),
        (f"evaluate dense {SHORT} --windows 400", 1, "lower --windows"),
        ("prune x --sparsity 0.5", 2, "--save"),
        ("prune x --sparsity 0,5", 2, "point"),
        ("prune x --sequences 1e2", 2, "whole number"),
        ("evaluate --windows 2", 2, "MODEL"),
        ("evaluate x --dvice cpu", 2, "did you mean '--device'"),
        (f"prune tiny {HALF} --options 3", 2, '{"iterations": 30}'),
        (f"prune tiny {HALF} --options {{it}}", 2, '{"iterations": 30}'),
        (f"prune tiny {HALF} --sparcity 1", 2, "python -m helpers prune --help\n"),
        (f"prune tiny {HALF} --sparsity 60", 1, "0.6"),
        (f"prune tiny {HALF} --effort fast --streamed", 1, "--streamed"),
        (f"prune tiny {HALF} --effort fast --allow-pruned", 1, "dense"),
        (f"prune tiny {HALF} --effort lnog", 1, "long"),
        (f"prune tiny {HALF} --save dense", 1, "in use"),
        (f'prune tiny {HALF} --options {{"seed":1}}', 1, "--seed"),
        (f'prune tiny {HALF} --options {{"tokens":1}}', 1, "tokens"),
        (f'prune tiny {HALF} --options {{"progress":false}}', 1, "progress"),
        (f'prune tiny {HALF} --options {{"team":1}} --streamed', 1, "team"),
        (f"prune owner/name {HALF} --streamed", 1, "--revision main"),
        (f"prune tiny {HALF} --streamed", 1, "without --streamed"),
        (f"prune dense {HALF} --window 129", 1, "128"),
        (f"evaluate tiny --tasks rtee {SHORT}", 1, "'rte'"),
        (f"evaluate tiny --limit 5 {SHORT}", 1, "tasks"),
        *((f"{verb} --plan smoke", 1, f"reproduction {verb}") for verb in MOVED),
        ("assets modle", 1, "'model'"),
    ],
)
def test_a_mistake_is_one_line(line, code, word, command):
    answered, _, error = command(line)
    assert answered == code and word in error and error.count("\n") == 1, error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "line, word",
    [
        ('--options {"iterationz":30}', "iterationz"),
        ('--options {"passes":3}', "passes 3"),
        ('--options {"damping":-1} --method sparsegpt', "damping -1"),
        ("--ignore *.down_porj", "'*.down_porj'"),
        ("--sequences 0", "sequences 0"),
        ("--length 200", "128"),
        ("--seed -1", "seed -1"),
        ("--windows 0", "windows 0"),
        ("--window 1", "window 1"),
        ("--pattern 5:7 --method magnitude", "0.5"),
        ("--calibration missing.txt", "missing.txt"),
        ("--calibration c5", "'c5'"),
        ("--evaluation missing.txt", "missing.txt"),
        ("--keep nowhere", "nowhere"),
        ("--keep dense", "zero"),
        ("--sparsity 0", "--sparsity 0"),
        ("--save text.txt/sub", "cannot write"),
        ("--save text.txt", "in use"),
        ("--window 129", "--window 129"),
        ("--keep dense --effort fast", "--effort"),
        ("--keep gpt2", "transformer.h.0"),
        ("--keep half --sparsity 0.3", "0.3"),
    ],
)
def test_what_the_line_and_the_shapes_show_is_refused_before_loading(
    line, word, command, monkeypatch
):
    saved.save(Path("gpt2"), "gpt2", "1GB")
    command(f"prune dense {HALF} --method magnitude --save half")
    monkeypatch.setattr(cli, "load", None)
    code, out, error = command(f"prune dense {HALF} --length 16 {line}")
    assert (code, out) == (1, ""), error
    assert word in error and error.count("\n") == 1


@pytest.mark.parametrize("verb", [f"prune {{}} {HALF}", f"evaluate {{}} {SHORT}"])
def test_a_model_that_is_misspelt(verb, command):
    code, out, error = command(verb.format("embeded"))
    assert (code, out) == (1, "")
    assert "did you mean 'embedded'" in error and error.count("\n") == 1


def test_all_that_a_line_lacks_is_named_at_once(command):
    for line, lacking in {
        "prune": ("MODEL", "--sparsity", "--save"),
        "prune x --sparsty=0.5": ("mean '--sparsity'", "--save"),
        "prune x --save out --sparsity": ("--sparsity",),
        "prune --pattern 2:4": ("MODEL", "--save"),
        "prune x --keep half": ("--save",),
    }.items():
        code, _, error = command(line)
        assert code == 2 and error.count("\n") == 1
        for word in ("MODEL", "--sparsity", "--save", "mean '--sparsity'"):
            assert (word in error) == (word in lacking or word in str(lacking)), error


@pytest.mark.parametrize(
    "given, name, value",
    [
        ('dtype="float32"', "dtype", "float32"),
        ("allow_pruned=True", "allow_pruned", True),
        ("sparsity=0.25", "sparsity", 0.25),
        ("passes=1", "options", {"passes": 1}),
        ('precision="bfloat16"', "options", {"precision": "bfloat16"}),
        ("progress=False", "options", {"progress": False}),
    ],
)
def test_an_argument_in_a_message_is_what_a_line_takes(given, name, value):
    parser = cli.make_parser()
    line = ["prune", "x", "--save", "y", "--pattern", "2:4"]
    options = parser.parse_args(line)
    with pytest.raises(BadParameter) as caught, cli.in_words_of_a_line(options):
        raise BadParameter(f"give {given}, or keep= and of_mine=3")
    said, end = str(caught.value).removeprefix("give ").split(", or ")
    assert end == "--keep and of_mine=3"
    assert vars(parser.parse_args([*line, *shlex.split(said)]))[name] == value


def test_help_has_an_example_and_names_the_methods_and_the_assets(command):
    out = command("prune --help")[1]
    assert "example, about" in out
    listed = " ".join(out.split()).partition("--method NAME")[2].partition(", or")[0]
    ours = {n for n, m in METHODS.items() if m.__module__.startswith("helpers.")}
    assert ours == {*re.findall(r"[\w-]+", listed)}
    assert "assets" in command("--help")[1].partition("VERB")[2].partition("VERB")[0]


@pytest.mark.parametrize("streamed", ["", "--streamed"])
def test_zeros_of_a_pruned_model_stay(streamed, command):
    half = f"{HALF} --method wanda --calibration text.txt --length 16"
    assert command(f"prune dense {half} --save half")[0] == 0
    before = saved.loaded(Path("half"))
    line = f"prune dense {SHORT} --calibration text.txt --length 16 --keep half"
    for to, more, share in (("one", "", 0.5), ("two", "--sparsity 0.75", 0.75)):
        code, out, error = command(f"{line} {streamed} --save {to} {more}")
        assert (code, error) == (0, "")
        assert f"sparsity {share:.4f}" in out
        after = saved.loaded(Path(to))
        lost = fam.kept(after, "llama") & ~fam.kept(before, "llama")
        assert not lost.any()
        assert fam.changed(after, fam.snapshot(before))


@pytest.mark.parametrize("method", ["dense", "wnada"])
@pytest.mark.parametrize("effort", ["", "--effort fast"])
def test_a_method_that_prunes_nothing_is_refused_before_loading(
    method, effort, command, monkeypatch
):
    monkeypatch.setattr(cli, "load", None)
    code, out, error = command(f"prune dense {HALF} --method {method} {effort}")
    assert (code, out) == (1, "")
    assert f"{method!r} is unknown" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "raised, code, words",
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ModuleNotFoundError("No module named 'x'"), 1, "No module named 'x'"),
        (OSError(28, "No space left on device"), 1, "[Errno 28]"),
        (torch.OutOfMemoryError("CUDA full.\nMore"), 1, "evaluate"),
    ],
)
def test_what_is_raised_is_one_line(raised, code, words, command, monkeypatch):
    def load(*_):
        raise raised

    monkeypatch.setattr(cli, "load", load)
    answered, out, error = command("evaluate tiny")
    assert (answered, out) == (code, "")
    assert error.count("\n") == 1
    assert error.startswith(words)
    monkeypatch.setenv("RANK", "3")
    assert command("evaluate tiny")[2] == f"process 3: {error}"
    assert "process 3: processes of torchrun" in command(f"prune tiny {HALF}")[2]


def test_what_an_interrupt_leaves(command, monkeypatch):
    monkeypatch.setattr(cli, "load", Mock(side_effect=KeyboardInterrupt))
    for line, said in {"": "nothing was saved", "--streamed": "goes on"}.items():
        code, _, error = command(f"prune dense {HALF} --method magnitude {line}")
        assert code == 130 and said in error


def test_memory_is_checked_before_a_model_is_loaded(command, monkeypatch):
    monkeypatch.setattr(memory, "ram", lambda: (10**8, 10**8))
    monkeypatch.setattr(cli, "load", None)
    code, _, error = command(f"prune dense {HALF}")
    assert code == 1 and "0.1 GB are free" in error


@pytest.mark.parametrize("streamed", ["", "--streamed"])
def test_a_disk_without_room_is_seen_before_the_pruning(streamed, command, monkeypatch):
    size = Path("dense").glob("*.safetensors")
    size = sum(path.stat().st_size for path in size)
    line = f"prune dense {HALF} --method magnitude {streamed}"
    full = SimpleNamespace(free=size // 2)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: full)
        patched.setattr(cli, "load", None)
        code, out, error = command(line)
        assert (code, out) == (1, "") and error.count("\n") == 1
        assert "GB free" in error
        assert not Path("out").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    assert command(line)[0] == 0
    if streamed:  # what is there already needs no room
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
        assert command(line)[0] == 0


def test_prune_is_prune_model_in_memory_and_from_file_to_file(command):
    dense, tokenizer = load_model("dense")
    text = evaluation_tokens("text.txt", tokenizer)
    before = perplexity(dense, text, **WINDOWS)
    tokens = calibration_tokens("text.txt", tokenizer, sequences=4, length=24, seed=3)
    report = helpers.prune_model(
        dense, tokens, method="admm1", pattern="2:4", iterations=3
    )
    after = perplexity(dense, text, **WINDOWS)
    line = f"prune dense {SHORT} --calibration text.txt --sequences 4 --length 24"
    line += " --seed 3 --method admm1 --pattern 2:4 --options"
    options = json.dumps({"iterations": 3})
    for to, streamed in {"one": "--streamed", "two": "--dtype=float32"}.items():
        code, out, error = command(line, options, "--save", to, streamed)
        assert (code, error) == (0, "")
        assert "[14/14] block 1 mlp.down_proj\n" in out
        assert f"\nsparsity 0.5000, mean layer error {report.error:.4g}\n" in out
        assert out.endswith(
            f"perplexity {before:.6g} before, {after:.6g} after; saved to {to}\n"
        )
        assert not fam.changed(saved.loaded(Path(to)), fam.snapshot(dense))
        assert AutoTokenizer.from_pretrained(to).get_vocab() == tokenizer.get_vocab()


def test_a_folder_may_have_the_name_of_a_pinned_model(command):
    """What is measured after pruning is the folder's model, and not the pinned one."""
    line = f"prune dense {HALF} --method magnitude --streamed --save embedded"
    code, out, error = command(line)
    assert (code, error) == (0, "")
    pruned, tokenizer = load_model(Path("embedded").absolute())
    text = evaluation_tokens("text.txt", tokenizer)
    after = perplexity(pruned, text, **WINDOWS)
    assert f" before, {after:.6g} after; saved to embedded\n" in out


@pytest.mark.parametrize("streamed", ["", "--streamed"])
def test_a_pruned_model_is_pruned_further_on_request_only(streamed, command):
    line = f"{SHORT} --method magnitude {streamed}"
    assert command(f"prune dense --save once --sparsity 0.5 {line}")[0] == 0
    again = f"prune once --save twice --sparsity 0.75 {line}"
    code, _, error = command(again)
    assert code == 1
    assert "zero already" in error
    assert "--allow-pruned" in error
    code, out, _ = command(f"{again} --allow-pruned")
    assert code == 0
    assert "sparsity 0.7500" in out


def test_an_error_of_zero_is_a_number(command, monkeypatch):
    line = f"prune dense {SHORT} --sparsity 0.5 --calibration text.txt --length 4"
    for method, error, said in (("wanda", 0.0, " 0\n"), ("magnitude", None, ", since")):
        monkeypatch.setattr(PruneReport, "error", error)
        out = command(f"{line} --method {method} --save {method}")[1]
        assert f"error{said}" in out


def test_effort_and_ignored_layers_are_passed_on(command, monkeypatch):
    passed = {}

    @functools.wraps(pruning.prune_and_repair)  # whose signature is looked at
    def recipe(network, tokens, **arguments):
        passed.update(arguments, tokens=tokens)
        return helpers.prune_model(network, method="magnitude", sparsity=0.5)

    monkeypatch.setattr(pruning, "prune_and_repair", recipe)
    line = f"prune dense {HALF} --calibration text.txt --length 4"
    assert command(f"{line} --effort fast --ignore 0.* *.down_proj")[0] == 0
    assert passed["effort"] == "fast"
    assert passed["ignore"] == ["0.*", "*.down_proj"]
    assert passed["tokens"].shape == (32, 4)
    assert passed["sparsity"] == 0.5


def test_evaluate_is_perplexity_and_zero_shot(command, monkeypatch):
    score = TaskScore("rte", 1, 277, [0, 1, 2, 3], [1, 0, 1, 1], None, [0] * 4)
    scores = {"rte": score}
    monkeypatch.setattr(helpers, "zero_shot", lambda *_, tasks, limit: scores)
    dense, tokenizer = load_model("dense")
    text = evaluation_tokens("text.txt", tokenizer)
    value = perplexity(dense, text, **WINDOWS)
    for line in ("", "--streamed", "--tasks rte --limit 4"):
        code, out, error = command(f"evaluate dense {SHORT} {line}")
        assert (code, error) == (0, "")
        assert out.startswith(f"perplexity {value:.6g}\n")
        assert ("rte: accuracy 0.7500" in out) == ("rte" in line)
