"""The command line: a mistake is answered by one line, and `prune` does what it says."""

import json
from pathlib import Path

import families as fam
import pytest
import saved
import torch
from transformers import AutoTokenizer

import helpers
from helpers import (
    calibration_tokens,
    evaluation_tokens,
    load_model,
    perplexity,
    prune_model,
)
from helpers.cli import main, prune
from helpers.evaluate import TaskScore
from helpers.loop import PruneReport

SHORT = "--windows 2 --window 16 --evaluation text.txt"
ASKED = f"--sparsity 0.5 --save out {SHORT}"


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """What a line answers, as exit code, output and errors, in a folder with a model and a text."""
    monkeypatch.chdir(tmp_path)
    saved.save(Path("dense"))
    words = fam.random_tokens(1, 400)[0].tolist()
    Path("text.txt").write_text(" ".join(f"w{number}" for number in words))

    def call(line: str, *more: str) -> tuple[int, str, str]:
        capsys.readouterr()  # what transformers has shown before
        try:
            code = main([*line.split(), *more])
        except SystemExit as end:  # of argparse
            code = end.code
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("", 2, "required: VERB: see python -m helpers --help"),
        (
            "prune tiny --sparsity 0.5",
            2,
            "required: --save: see python -m helpers prune --help",
        ),
        (
            f"prune tiny {ASKED} --options 3",
            2,
            "--options: invalid json_object value: '3'",
        ),
        (f"prune tiny {ASKED} --sparsity 60", 1, "for 60.0 % write 0.6"),
        (f"prune tiny {ASKED} --method wnada", 1, "did you mean 'wanda'?"),
        (
            f"prune tiny {ASKED} --effort fast --streamed",
            1,
            "leave out --streamed, or --effort",
        ),
        (f"prune tiny {ASKED} --save dense", 1, "dense is in use already"),
        (f'prune tiny {ASKED} --options {{"seed":1}}', 1, "give it as --seed"),
        (f"prune owner/name {ASKED} --streamed", 1, "needs revision="),
        (
            f"prune dense {ASKED} --window 129",
            1,
            "length 129 is more than the 128 tokens",
        ),
        (f"evaluate tiny --tasks rtee {SHORT}", 1, "did you mean 'rte'?"),
        (f"evaluate tiny --limit 5 {SHORT}", 1, "give a list of tasks"),
        ("list --plan lapotp", 1, "did you mean 'laptop'?"),
        ("assets modle", 1, "did you mean 'model'?"),
    ],
)
def test_a_mistake_is_one_line(line: str, code: int, words: str, command) -> None:
    answered, _, error = command(line)
    assert answered == code and words in error and error.count("\n") == 1, error
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
        (ModuleNotFoundError("No module named 'x'"), 1, "No module named 'x'"),
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left"),
        (
            torch.OutOfMemoryError("CUDA out of memory.\nMore"),
            1,
            "evaluate: out of memory (CUDA",
        ),
    ],
)
def test_what_is_raised_is_one_line(raised, code, words, command, monkeypatch) -> None:
    def load(*_: object) -> None:
        raise raised

    monkeypatch.setattr(prune, "load", load)
    answered, out, error = command("evaluate tiny")
    assert (
        (answered, out) == (code, "")
        and error.startswith(words)
        and error.count("\n") == 1
    )
    monkeypatch.setenv("RANK", "3")
    assert command("evaluate tiny")[2] == f"process 3: {error}"
    assert "process 3: processes of torchrun" in command(f"prune tiny {ASKED}")[2]


def test_prune_is_prune_model_in_memory_and_from_file_to_file(command) -> None:
    dense, tokenizer = load_model("dense")
    windows = dict(length=16, limit=2)
    before = perplexity(
        dense, text := evaluation_tokens("text.txt", tokenizer), **windows
    )
    tokens = calibration_tokens("text.txt", tokenizer, sequences=4, length=24, seed=3)
    report = prune_model(dense, tokens, method="admm1", pattern="2:4", iterations=3)
    after = perplexity(dense, text, **windows)
    asked = f"prune dense {SHORT} --calibration text.txt --sequences 4"
    asked += " --length 24 --seed 3 --method admm1 --pattern 2:4 --options"
    for to, streamed in {"one": "--streamed", "two": "--dtype=float32"}.items():
        code, out, error = command(
            asked, json.dumps({"iterations": 3}), "--save", to, streamed
        )
        assert (code, error) == (0, "") and "[14/14] block 1 mlp.down_proj\n" in out
        assert f"\nsparsity 0.5000, mean layer error {report.error:.4g}\n" in out
        assert out.endswith(f"perplexity {before:.6g} before, {after:.6g} after\n")
        assert not fam.changed(saved.loaded(Path(to)), fam.snapshot(dense))
        assert AutoTokenizer.from_pretrained(to).get_vocab() == tokenizer.get_vocab()


def test_an_error_of_zero_is_a_number(command, monkeypatch) -> None:
    for method, error, said in (
        ("wanda", 0.0, "error 0\n"),
        ("magnitude", None, "error nan\n"),
    ):
        monkeypatch.setattr(PruneReport, "error", error)
        line = f"prune dense {SHORT} --sparsity 0.5 --calibration text.txt --length 4"
        assert said in command(f"{line} --method {method} --save {method}")[1]


def test_effort_and_ignored_layers_are_handed_on(command, monkeypatch) -> None:
    asked: dict[str, object] = {}

    def recipe(network: object, **arguments: object) -> object:
        asked.update(arguments)
        return prune_model(network, method="magnitude", sparsity=0.5)

    monkeypatch.setattr(helpers, "prune_and_repair", recipe)
    line = f"prune dense {ASKED} --calibration text.txt --length 4"
    assert command(f"{line} --effort fast --ignore 0.* *.down_proj")[0] == 0
    assert asked["effort"] == "fast" and asked["ignore"] == ["0.*", "*.down_proj"]
    assert asked["tokens"].shape == (32, 4) and asked["sparsity"] == 0.5


def test_evaluate_is_perplexity_and_zero_shot(command, monkeypatch) -> None:
    score = TaskScore("rte", 1, 277, [0, 1, 2, 3], [1, 0, 1, 1], None, [0] * 4)
    monkeypatch.setattr(
        helpers, "zero_shot", lambda *_, tasks, limit: {tasks[0]: score}
    )
    dense, tokenizer = load_model("dense")
    value = perplexity(
        dense, evaluation_tokens("text.txt", tokenizer), length=16, limit=2
    )
    for line in ("", "--streamed", "--tasks rte --limit 4"):
        code, out, error = command(f"evaluate dense {SHORT} {line}")
        assert (code, error) == (0, "") and out.startswith(f"perplexity {value:.6g}\n")
        assert ("rte_acc 0.7500\n" in out) == ("rte" in line)
