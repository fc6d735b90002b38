"""Calibration windows and evaluation text, without a network."""

import gzip
import hashlib
import json
import math
import random
import re
from pathlib import Path

import families as fam
import huggingface_hub
import numpy as np
import pytest
import saved
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from helpers import perplexity
from helpers.data import corpora
from helpers.data.corpora import HUB_TEXTS, corpus_identity, evaluation_tokens
from helpers.errors import BadParameter, FileError
from helpers.model.perplexity import check_windows

C4 = HUB_TEXTS["c4"]
WIKITEXT2 = HUB_TEXTS["wikitext2"]
END = 7


class WordTokenizer:
    """One token a word, numbers as themselves; -1 in front for special tokens."""

    def __init__(self, eos_token_id=END):
        self.eos_token_id = eos_token_id
        self.seen = []

    def __call__(self, text, *, add_special_tokens=True, verbose=True):
        if isinstance(text, list):
            rows = [self(one, add_special_tokens=False)["input_ids"] for one in text]
            return {"input_ids": rows}
        self.seen.append(text)
        words = [int(word) if word.isdecimal() else 1 for word in text.split()]
        return {"input_ids": [-1] * add_special_tokens + words}


def drawn(source, sequences, length, **options):
    """Windows as the text is cut, as in the papers, unless something else is given."""
    options = dict(seed=0, start_token=False, tokenizer=WordTokenizer()) | options
    options |= dict(sequences=sequences, length=length)
    return corpora.calibration_tokens(source, **options)


def numbers(first, last):
    return " ".join(str(number) for number in range(first, last))


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "numbers.txt"
    path.write_text(numbers(100, 200), "utf-8")
    return path


# ---- sampling


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 40), st.integers(0, 99))
def test_windows_lie_in_the_text_and_apart_where_there_is_room(
    tokens, sequences, length, seed
):
    assume(tokens >= length)
    offsets = corpora._offsets(tokens, sequences, length, random.Random(seed))
    assert len(offsets) == sequences
    assert min(offsets) >= 0 and max(offsets) <= tokens - length
    if tokens >= sequences * length:
        covered = {at + i for at in offsets for i in range(length)}
        assert len(covered) == sequences * length


def test_windows_of_a_file_overlap_with_a_warning_when_it_is_short(text_file, caplog):
    apart = drawn(text_file, 10, 10)
    assert sorted(apart.flatten().tolist()) == list(range(100, 200))
    assert apart[:, 0].tolist() != sorted(apart[:, 0].tolist())
    assert not caplog.text
    tokens = drawn(text_file, 40, 90)
    assert "40 sequences of 90 tokens are 36.0 times the text" in caplog.text
    # each row runs on in the text; the first and last start included
    assert torch.equal(tokens - tokens[:, :1], torch.arange(90).expand(40, 90))
    assert set(tokens[:, 0].tolist()) == set(range(100, 111))


@pytest.mark.parametrize("end", [END, None])
def test_documents_are_joined_by_the_end_token(tmp_path, end, one_line_error):
    path = tmp_path / "three.jsonl"
    rows = [{"text": "10 11"}, {"text": " \n"}, {"text": "20 21 22", "url": "x"}]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n", "utf-8")
    whole = [word for word in (10, 11, end, 20, 21, 22) if word]
    given = dict(length=len(whole), tokenizer=WordTokenizer(end))
    # a text of exactly one sequence will do, a shorter one will not
    assert drawn(path, 2, **given).tolist() == [whole] * 2
    given["length"] += 1
    with one_line_error(BadParameter, f"{len(whole)} tokens"):
        drawn(path, 1, **given)


# ---- bad input


@pytest.mark.parametrize(
    "source, content, words",
    [
        ("wikitex2", None, "'wikitext2'"),
        ("notes.pdf", None, ".jsonl"),
        ("missing.txt", None, ""),
        ("blank.txt", b"\xef\xbb\xbf \n\t\n", ""),
        ("latin.txt", "caf\xe9".encode("latin-1"), "UTF-8"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "2"),
        ("number.jsonl", b'{"text": 5}\n', "1"),
        ("list.jsonl", b'["a"]\n', "1"),
    ],
)
def test_a_bad_text_is_one_line(
    tmp_path, monkeypatch, source, content, words, one_line_error
):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(source).write_bytes(content)
    for read in (corpora.calibration_tokens, evaluation_tokens):
        with one_line_error(BadParameter, source, words):
            read(source, WordTokenizer())


@pytest.mark.parametrize(
    "name, value", [("sequences", 0), ("length", 2.0), ("seed", -1)]
)
def test_a_bad_number_is_one_line(text_file, name, value, one_line_error):
    with one_line_error(BadParameter, f"{name} {value}"):
        drawn(text_file, **dict(sequences=1, length=9) | {name: value})


# ---- evaluation of files, identity


def test_evaluation_reads_the_whole_file_in_order(tmp_path):
    path = tmp_path / "text.txt"
    tokenizer = WordTokenizer()
    path.write_bytes(b"\xef\xbb\xbf3 1\r\n2")  # as Windows' Notepad saves it
    assert evaluation_tokens(path, tokenizer).tolist() == [-1, 3, 1, 2]
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one\u2028two"}\n{"text": "three"}', "utf-8")
    assert evaluation_tokens(path, tokenizer).dtype == torch.int64
    assert tokenizer.seen == ["3 1\n2", "one\u2028two\n\nthree"]


def test_identity_pins_the_text_and_its_tokens_and_hides_the_folder(text_file):
    sha256 = hashlib.sha256(text_file.read_bytes()).hexdigest()
    assert corpus_identity(text_file) == {"name": "numbers.txt", "sha256": sha256}
    assert len(corpus_identity("embedded")["sha256"]) == 64
    for name in ("c4", "wikitext2"):
        assert re.fullmatch(r"[0-9a-f]{40}", corpus_identity(name)["revision"])
    # which tokens were used
    one = torch.tensor([[1, 2], [3, 4]])
    two = torch.tensor([5, 49151])
    octets = np.array([1, 2, 3, 4, 5, 49151], "<i8").tobytes()
    used = {"tokens": hashlib.sha256(octets).hexdigest()[:16]}
    assert corpus_identity("embedded", one, two) == corpus_identity("embedded") | used
    assert corpus_identity("c4", one.T) != corpus_identity("c4", one)


# ---- the start token


@pytest.mark.parametrize("starts", [True, False])
def test_windows_begin_as_the_tokenizer_begins_a_text(tmp_path, starts, one_line_error):
    saved.tokenizer(tmp_path, start=starts)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"w{2 + n % 90}" for n in range(120)), "utf-8")
    model = fam.build()
    text = evaluation_tokens(path, tokenizer)

    def windows_drawn(start_token):
        return drawn(path, 6, 9, tokenizer=tokenizer, start_token=start_token)

    def windows(start_token):
        return check_windows(model, text, 9, None, start_token)

    def begun(rows):
        """What the tokenizer makes of the same text without the first word."""
        if not starts:
            return rows
        texts = [tokenizer.decode(row[1:]) for row in rows]
        return torch.tensor([tokenizer(text).input_ids for text in texts])

    cut = text[: 13 * 9].view(13, 9)
    assert torch.equal(windows(False), cut)
    for find in (windows_drawn, windows):
        assert torch.equal(find("auto"), begun(find(False)))
        for refused in ("yes",) if starts else ("yes", True):
            with one_line_error(BadParameter, "start_token", str(refused)):
                find(refused)
    for tokens, rows in ((text, begun(cut)), (windows("auto"), begun(cut)), (cut, cut)):
        expected = math.exp(model(rows, labels=rows).loss.item())
        found = perplexity(model, tokens, length=9)
        assert found == pytest.approx(expected, rel=1e-5)
    for rows, known in ((windows_drawn("auto"), starts), (cut, False)):
        identity = corpus_identity(path, rows, tokenizer=tokenizer)
        assert identity.get("start_token") == (1 if known else None)


# ---- the papers' own texts, through local files of the same schema


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A folder with files as on the hub, which are found instead of a download."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "hub"
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "cache"))
    shard = folder / C4.files["train"]
    shard.parent.mkdir(parents=True)
    with gzip.open(shard, "wt", encoding="utf-8") as stream:
        for n, size in enumerate((3, 20, 5, 30, 12, 13), start=1):
            row = {"text": numbers(1000 * n, 1000 * n + size), "url": ""}
            stream.write(json.dumps(row) + "\n")
    splits = {"train": ["", "1 2", "3 4 5 6"], "test": ["= 9 =", "", "10 11"]}
    for split, texts in splits.items():
        path = folder / WIKITEXT2.files[split]
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)

    def download(repo, file, *, repo_type, revision):
        (text,) = (text for text in (C4, WIKITEXT2) if text.repo == repo)
        assert (repo_type, revision) == ("dataset", text.revision)
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return folder


def test_c4_draws_what_the_papers_code_draws(hub, one_line_error):
    tokens = drawn("c4", 25, 13, seed=5)
    with gzip.open(hub / C4.files["train"], "rt", encoding="utf-8") as stream:
        texts = [json.loads(line)["text"] for line in stream]
    # the published loop, with the global generator as it is used there
    random.seed(5)
    expected = []
    for _ in range(25):
        while True:
            row = random.randint(0, len(texts) - 1)
            encoded = WordTokenizer()(texts[row])["input_ids"]
            if len(encoded) > 13:
                break
        at = random.randint(0, len(encoded) - 13 - 1)
        expected.append(encoded[at : at + 13])
    assert tokens.tolist() == expected
    # longer than 13 with the -1
    assert set((tokens[:, -1] // 1000).tolist()) == {2, 4, 6}
    with one_line_error(BadParameter, "none of the 6 documents"):
        drawn("c4", 1, 31)


def test_wikitext2_is_read_as_in_the_papers_code(hub):
    tokenizer = WordTokenizer()
    # joined by spaces with one token in front: -1 1 2 3 4 5 6; the papers never draw the last start
    starts = drawn("wikitext2", 50, 3, tokenizer=tokenizer).unique(dim=0)
    assert starts.tolist() == [[-1, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5]]
    assert evaluation_tokens("wikitext2", tokenizer).tolist() == [-1, 1, 9, 1, 10, 11]
    assert {" 1 2 3 4 5 6", "= 9 =\n\n\n\n10 11"} <= set(tokenizer.seen)


def test_a_hub_text_that_cannot_be_had_is_one_line(hub, monkeypatch, one_line_error):
    def unreachable(*_, **__):
        raise ConnectionError("no route\nto host")

    (hub / WIKITEXT2.files["test"]).write_bytes(b"not parquet")
    with one_line_error(FileError, "wikitext-2-raw-v1/test"):
        evaluation_tokens("wikitext2", WordTokenizer())
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with one_line_error(FileError, "no route"):
        drawn("c4", 1, 9)


# ---- the embedded texts


@pytest.mark.parametrize(
    "read, count, digest",
    [
        (corpora.c4_documents, 568, "cd1b1814e2946eb6"),
        (corpora.wiki_articles, 517, "a4d04fe63b950fe3"),
    ],
)
def test_the_embedded_texts_are_those_of_the_committed_records(read, count, digest):
    """On the real files, which a first `make` has fetched; offline and uncached, skipped."""
    try:
        texts = read()
    except FileError as error:
        pytest.skip(str(error))
    assert len(texts) == len(set(texts)) == count
    assert not any("<doc" in text or "</doc" in text for text in texts)
    assert hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] == digest
