"""Zero-shot scores against likelihoods summed by hand (lm-eval's are in test_token_trees.py)."""

import os
import socket

import datasets
import families as fam
import huggingface_hub.constants
import lm_eval
import pytest
import torch

from helpers.data.assets import fetch_asset
from helpers.data.tasks import TASKS, task_rows
from helpers.errors import BadParameter, NonFinite
from helpers.model.zero_shot import (
    TaskScore,
    check_zero_shot,
    zero_shot,
    zero_shot_examples,
    zero_shot_metrics,
)
from helpers.models import load_model

NORMALISED = ("hellaswag", "arc_easy", "arc_challenge", "openbookqa", "piqa", "sciq")


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def all_scores(tiny):
    """All tasks, eight items each."""
    return zero_shot(*tiny, limit=8, batch=4)


# --- against sums by hand ------------------------------------------------------------------


def worded(task, row):
    """(context, continuation) for each choice and the right one, as in lm-eval's YAML files."""
    if task == "boolq":
        given = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        return [(given, " no"), (given, " yes")], row["label"]
    if task == "lambada_openai":
        given, _, word = row["text"].rpartition(" ")
        return [(given, f" {word}")], 0
    if task == "rte":
        given = (
            f"{row['sentence1']}\nQuestion: {row['sentence2']} True or False?\nAnswer:"
        )
        return [(given, " True"), (given, " False")], row["label"]
    if task == "winogrande":
        before, after = row["sentence"].split("_")
        options = (row["option1"], row["option2"])
        return [(before + o, " " + after.strip()) for o in options], int(
            row["answer"]
        ) - 1
    if task == "hellaswag":
        given = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}".strip()
        return [(given, f" {ending}") for ending in row["endings"]], int(row["label"])
    if task == "piqa":
        return [
            (f"Question: {row['goal']}\nAnswer:", f" {row[s]}")
            for s in ("sol1", "sol2")
        ], row["label"]
    if task == "sciq":
        given = f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:"
        names = ("distractor1", "distractor2", "distractor3", "correct_answer")
        return [(given, f" {row[name]}") for name in names], 3
    given = row.get("question_stem") or f"Question: {row['question']}\nAnswer:"
    right = row["choices"]["label"].index(row["answerKey"])
    return [(given, f" {text}") for text in row["choices"]["text"]], right


def log_likelihood(model, tokenizer, context, continuation):
    """Sum of log p of the tokens of `continuation`, which follow `context`."""
    start = len(tokenizer(context)["input_ids"])
    tokens = torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.no_grad():
        scores = model(tokens).logits[0, start - 1 : -1].double().log_softmax(-1)
    # each position says what comes after it
    return scores.gather(1, tokens[0, start:, None]).sum().item()


@pytest.mark.parametrize("task", [task for task in TASKS if task != "lambada_openai"])
def test_choices_are_those_of_sums_by_hand(tiny, all_scores, task):
    score = all_scores[task]
    rows = task_rows(task)
    assert (score.acc_norm is not None) == (task in NORMALISED)
    assert score.scoring == "as trees"
    # otherwise scores that never change would pass
    assert len(score.acc) == len(score.answers) == 8
    assert set(score.acc) == {0, 1}
    for place, item in enumerate(score.items):
        pairs, right = worded(task, rows[item])
        if task == "hellaswag" and any("[" in text for pair in pairs for text in pair):
            continue  # lm-eval takes out WikiHow's marks
        sums = [
            log_likelihood(*tiny, context, continuation)
            for context, continuation in pairs
        ]
        assert score.answers[place] == sums.index(max(sums))
        assert score.acc[place] == int(score.answers[place] == right)
        if score.acc_norm is not None:
            lengths = [len(choice) - 1 for _, choice in pairs]
            means = [s / n for s, n in zip(sums, lengths, strict=True)]
            assert score.acc_norm[place] == int(means.index(max(means)) == right)


def test_a_word_is_right_if_the_model_would_write_it():
    model, tokenizer = load_model("tiny", device="cpu")
    task = "lambada_openai"
    score = zero_shot(model, tokenizer, tasks=[task], limit=20)[task]
    assert (score.acc, score.answers) == ([0] * 20, [-1] * 20)
    assert score.acc_norm is None
    rows = task_rows(task)
    words = [rows[item]["text"].rpartition(" ")[2] for item in score.items]
    tokens = [tokenizer(f" {word}")["input_ids"] for word in words]
    # a model that writes this and no other
    whole = next(ids for ids in tokens if len(ids) == 1)
    model.lm_head.register_forward_hook(
        lambda _layer, _args, logits: logits.index_fill(-1, torch.tensor(whole), 50.0)
    )
    score = zero_shot(model, tokenizer, tasks=[task], limit=20)[task]
    assert score.acc == [int(ids == whole) for ids in tokens]
    assert score.answers == [answer - 1 for answer in score.acc]


# --- what decides nothing ----------------------------------------------------------------


def test_batch_company_and_repetition_change_nothing(tiny, all_scores):
    names = ["winogrande", "openbookqa"]
    scores = zero_shot(*tiny, tasks=names, limit=8, batch=7)
    assert list(scores.items()) == [(name, all_scores[name]) for name in names]


def test_half_precision_is_summed_in_float32(monkeypatch):
    model, tokenizer = load_model("tiny", device="cpu", dtype="bfloat16")
    evaluate = lm_eval.evaluate
    samples = []

    def look(**options):
        answer = evaluate(**options)
        samples.extend(answer["samples"]["openbookqa"])
        return answer

    monkeypatch.setattr(lm_eval, "evaluate", look)
    zero_shot(model, tokenizer, tasks=["openbookqa"], limit=8)
    seen = torch.tensor([sample["filtered_resps"] for sample in samples])[..., 0]
    assert not torch.equal(seen, seen.bfloat16().float())


# --- no traces ----------------------------------------------------------------------------


def test_the_model_is_left_as_it_was():
    model, tokenizer = load_model("tiny", device="cpu")
    model.train()
    model.model.norm.eval()
    tokenizer.pad_token = None
    before = fam.snapshot(model)
    zero_shot(model, tokenizer, tasks=["rte"], limit=4)
    assert model.training
    assert not model.model.norm.training
    assert tokenizer.pad_token is None
    assert not fam.changed(model, before)


def test_embedded_rows_need_no_network_and_leave_no_files(
    tiny, monkeypatch, tmp_path, capfd
):
    def refuse(*_, **__):
        raise AssertionError("a connection was opened")

    # a cache of its own: other processes use the user's meanwhile
    home = tmp_path / "home"
    cache = tmp_path / "cache"
    home.mkdir()
    cache.mkdir()
    (cache / "assets").symlink_to(fetch_asset("tasks").parent)
    monkeypatch.setenv("PRUNING_CACHE", str(cache))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.chdir(home)
    zero_shot(*tiny, tasks=["hellaswag", "rte"], limit=3)
    assert os.listdir(home) == []
    assert os.listdir(cache) == ["assets"]
    assert capfd.readouterr() == ("", "")


# --- what cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(tasks=[]), "tasks []"),
        (dict(tasks="boolq"), "tasks 'boolq'"),
        (dict(tasks=["boolk"]), "'boolk' 'boolq'"),
        (dict(tasks=["rte", "boolq", "rte"]), "tasks 'rte'"),
        (dict(tasks=["boolq", "rte"], limit=300), "300 277 rte"),
        (dict(limit=1), "limit 1"),
        (dict(seed=-1), "seed -1"),
        (dict(batch="auto"), "batch 'auto'"),
    ],
)
def test_bad_arguments(wrong, words, one_line_error):
    with one_line_error(BadParameter, *words.split()):
        check_zero_shot(**dict(tasks=TASKS, limit=None, seed=0, batch=1) | wrong)


def test_a_broken_model_has_no_score(one_line_error):
    model, tokenizer = load_model("tiny", device="cpu")
    model.model.norm.weight.data[3] = float("nan")
    with one_line_error(NonFinite, "rte item"):
        zero_shot(model, tokenizer, tasks=["rte"], limit=4)


# --- what a record and a reader get --------------------------------------------------------


def test_scores_and_metrics_by_hand():
    answers = ([1, 0, 1, 1], [0, 0, 1, 0], [2, 0, 1, 3])
    four = TaskScore("arc_easy", 1.0, 2376, [1, 5, 7, 9], *answers)
    none = TaskScore("rte", 1.0, 277, [1, 5], [0, 0], None, [1, 1])
    # three of four: squares 3 · 1/16 + 9/16 = 3/4, deviation sqrt(1/4), over sqrt(4)
    assert four.accuracy == 0.75
    assert four.stderr == pytest.approx(0.25)
    kept = dict(version=1.0, size=277, items=[1, 5], acc=[0, 0], acc_norm=None)
    assert none.to_dict() == kept | {"scoring": "stock"}
    metrics = zero_shot_metrics({"arc_easy": four, "rte": none})
    names = (
        "arc_easy_acc arc_easy_acc_stderr arc_easy_acc_norm arc_easy_acc_norm_stderr"
    )
    assert list(metrics) == f"{names} rte_acc rte_acc_stderr mean_acc".split()
    assert metrics["arc_easy_acc"] == (0.75, "1", pytest.approx(1 / 3))
    assert metrics["rte_acc"] == (0.0, "1", 0.02)
    # sqrt(0.25² + 0²) over two tasks, as a share of the mean
    assert metrics["mean_acc"] == (0.375, "1", pytest.approx(0.125 / 0.375))
    narrow = TaskScore("rte", 1.0, 277, [*range(200)], [1] * 199 + [0], None, [0] * 200)
    assert zero_shot_metrics({"rte": narrow})["rte_acc"][2] == 0.02


def test_examples_begin_with_the_right_choice():
    examples = zero_shot_examples()
    assert tuple(examples) == TASKS
    for task, texts in examples.items():
        pairs, right = worded(task, task_rows(task)[0])
        assert texts[0] == " | ".join(pairs[right])
        assert set(texts) == {" | ".join(pair) for pair in pairs}
