"""Zero-shot scores against likelihoods summed by hand (lm-eval's are in test_token_trees.py)."""

import os
import socket
from unittest import mock

import datasets
import families as fam
import huggingface_hub.constants
import lm_eval
import pytest
import torch

from helpers.data.assets import fetch_asset
from helpers.data.tasks import TASK_TABLE, TASKS, choose_items, task_rows
from helpers.errors import BadParameter, NonFinite
from helpers.model.models import load_model
from helpers.model.zero_shot import (
    TaskScore,
    check_zero_shot,
    zero_shot,
    zero_shot_examples,
    zero_shot_metrics,
)

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
    asked = "{}\nQuestion: {}\nAnswer:".format
    if task == "boolq":
        given = asked(row["passage"], f"{row['question']}?")
        return [(given, " no"), (given, " yes")], row["label"]
    if task == "lambada_openai":
        given, _, word = row["text"].rpartition(" ")
        return [(given, f" {word}")], 0
    if task == "rte":
        given = asked(row["sentence1"], f"{row['sentence2']} True or False?")
        return [(given, " True"), (given, " False")], row["label"]
    if task == "winogrande":
        before, after = row["sentence"].split("_")
        options = (row["option1"], row["option2"])
        right = int(row["answer"]) - 1
        return [(before + option, " " + after.strip()) for option in options], right
    if task == "hellaswag":
        given = f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}"
        choices, right = row["endings"], int(row["label"])
        given = given.strip()
    elif task == "piqa":
        given = f"Question: {row['goal']}\nAnswer:"
        choices, right = (row["sol1"], row["sol2"]), row["label"]
    elif task == "sciq":
        given = asked(row["support"].lstrip(), row["question"])
        wrong = [row[f"distractor{number}"] for number in (1, 2, 3)]
        choices, right = [*wrong, row["correct_answer"]], 3
    else:
        given = row.get("question_stem") or f"Question: {row['question']}\nAnswer:"
        choices = row["choices"]["text"]
        right = row["choices"]["label"].index(row["answerKey"])
    return [(given, f" {choice}") for choice in choices], right


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
        sums = torch.tensor([log_likelihood(*tiny, *pair) for pair in pairs])
        assert score.answers[place] == sums.argmax()
        assert score.acc[place] == int(score.answers[place] == right)
        if score.acc_norm is not None:
            lengths = torch.tensor([len(choice) - 1 for _, choice in pairs])
            assert score.acc_norm[place] == ((sums / lengths).argmax() == right)


def test_a_word_is_right_if_the_model_would_write_it():
    model, tokenizer = load_model("tiny", device="cpu")
    task = "lambada_openai"
    items = choose_items(TASK_TABLE[task].size, 20, 0)
    words = [task_rows(task)[item]["text"].rpartition(" ")[2] for item in items]
    tokens = [tokenizer(f" {word}")["input_ids"] for word in words]
    # a model that writes this and no other
    whole = next(ids for ids in tokens if len(ids) == 1)
    model.lm_head.register_forward_hook(
        lambda _layer, _args, logits: logits.index_fill(-1, torch.tensor(whole), 50.0)
    )
    score = zero_shot(model, tokenizer, tasks=[task], limit=20)[task]
    assert score.acc == [int(ids == whole) for ids in tokens]
    assert score.answers == [answer - 1 for answer in score.acc]
    assert score.acc_norm is None


def test_another_part_asks_other_questions(tiny):
    first, second = (
        zero_shot(*tiny, tasks=["sciq"], limit=4, part=part)["sciq"] for part in (0, 1)
    )
    assert not set(first.items) & set(second.items)
    assert second.items == choose_items(TASK_TABLE["sciq"].size, 4, 0, 1)


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


def test_no_network_no_files_and_the_model_as_it_was(monkeypatch, tmp_path, capfd):
    model, tokenizer = load_model("tiny", device="cpu")
    model.train()
    model.model.norm.eval()
    tokenizer.pad_token = None
    before = fam.snapshot(model)
    refuse = mock.Mock(side_effect=AssertionError("a connection was opened"))
    # a cache of its own: other processes use the user's meanwhile
    home, cache = tmp_path / "home", tmp_path / "cache"
    for folder in (home, cache):
        folder.mkdir()
    (cache / "assets").symlink_to(fetch_asset("tasks").parent)
    monkeypatch.setenv("PRUNING_CACHE", str(cache))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home))
    monkeypatch.chdir(home)
    zero_shot(model, tokenizer, tasks=["hellaswag", "rte"], limit=3)
    assert os.listdir(home) == []
    assert os.listdir(cache) == ["assets"]
    assert capfd.readouterr() == ("", "")
    assert model.training
    assert not model.model.norm.training
    assert tokenizer.pad_token is None
    assert not fam.changed(model, before)


# --- what cannot be ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, word",
    [
        (dict(tasks=[]), "tasks []"),
        (dict(tasks="boolq"), "tasks 'boolq'"),
        (dict(tasks=["boolk"]), "'boolk'"),
        (dict(tasks=["rte", "boolq", "rte"]), "'rte'"),
        (dict(tasks=["boolq", "rte"], limit=300), "277"),
        (dict(limit=1), "limit 1"),
        (dict(seed=-1), "seed -1"),
        (dict(batch="auto"), "batch 'auto'"),
    ],
)
def test_bad_arguments(wrong, word, one_line_error):
    with one_line_error(BadParameter, word):
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
    assert metrics["arc_easy_acc"] == (0.75, "1", pytest.approx(1 / 3))
    assert metrics["arc_easy_acc_norm"][0] == 0.25
    assert metrics["rte_acc"] == (0.0, "1", 0.02)
    assert "rte_acc_norm" not in metrics
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
