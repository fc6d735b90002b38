"""Calibration windows and evaluation text, without a network."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import corpora
from helpers.errors import AssetError, BadParameter, BadText, CalibrationTooShort

END = 7


class WordTokenizer:
    """One token a word, numbers as themselves; -1 in front when special tokens are asked for."""

    def __init__(self, eos_token_id: int | None = END) -> None:
        self.eos_token_id = eos_token_id

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool = True, verbose: bool = True
    ) -> dict[str, Any]:
        if isinstance(text, list):
            return {"input_ids": [self._encode(one, add_special_tokens) for one in text]}
        return {"input_ids": self._encode(text, add_special_tokens)}

    @staticmethod
    def _encode(text: str, special: bool) -> list[int]:
        words = [int(word) if word.isdecimal() else 1 for word in text.split()]
        return [-1] * special + words


def numbers(first: int, last: int) -> str:
    return " ".join(str(number) for number in range(first, last))


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "numbers.txt"
    path.write_text(numbers(100, 200), encoding="utf-8")
    return path


# ---- sampling


def test_windows_of_a_file_do_not_overlap_when_there_is_room(text_file: Path) -> None:
    for seed in range(20):
        tokens = corpora.calibration_tokens(
            text_file, WordTokenizer(), sequences=9, length=11, seed=seed
        )
        assert tokens.shape == (9, 11) and tokens.dtype == torch.int64
        # each row runs on in the text, and no token is drawn twice
        assert torch.equal(tokens - tokens[:, :1], torch.arange(11).expand(9, 11))
        assert tokens.unique().numel() == 99
    exact = corpora.calibration_tokens(text_file, WordTokenizer(), sequences=10, length=10)
    assert sorted(exact.flatten().tolist()) == list(range(100, 200))


def test_windows_overlap_with_a_warning_when_there_is_no_room(
    text_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = corpora.calibration_tokens(text_file, WordTokenizer(), sequences=40, length=90)
    assert tokens.shape == (40, 90) and "overlap" in caplog.text
    assert set(tokens[:, 0].tolist()) == set(range(100, 111))  # the first and last start included


def test_the_seed_decides(text_file: Path) -> None:
    def draw(seed: int) -> torch.Tensor:
        return corpora.calibration_tokens(
            str(text_file), WordTokenizer(), sequences=4, length=8, seed=seed
        )

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    starts = torch.stack([draw(seed)[:, 0] for seed in range(30)])
    assert (starts[:, 0] > starts[:, 1]).any(), "windows come in random order, not sorted"


@pytest.mark.parametrize("end", [END, None])
def test_documents_are_joined_by_the_end_token(tmp_path: Path, end: int | None) -> None:
    path = tmp_path / "three.jsonl"
    rows = [{"text": "10 11"}, {"text": " \n"}, {"text": "20 21 22", "url": "x"}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    joint = [] if end is None else [end]
    whole = [10, 11, *joint, 20, 21, 22]
    tokens = corpora.calibration_tokens(
        path, WordTokenizer(end), sequences=1, length=len(whole), seed=1
    )
    assert tokens.tolist() == [whole]


def test_a_text_of_exactly_one_sequence_will_do_and_a_shorter_one_will_not(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("1 2 3 4 5", encoding="utf-8")
    tokens = corpora.calibration_tokens(path, WordTokenizer(), sequences=2, length=5)
    assert tokens.tolist() == [[1, 2, 3, 4, 5]] * 2
    with pytest.raises(CalibrationTooShort, match=r"5 tokens.*6") as caught:
        corpora.calibration_tokens(path, WordTokenizer(), sequences=1, length=6)
    assert "\n" not in str(caught.value)


def test_a_real_tokenizer_takes_the_same_calls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"end": 0, "a": 1, "b": 2, "?": 3}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="end", unk_token="?", model_max_length=4
    )
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "a b a"}\n{"text": "b c b"}\n', encoding="utf-8")
    tokens = corpora.calibration_tokens(path, tokenizer, sequences=1, length=7)
    assert tokens.tolist() == [[1, 2, 1, 0, 2, 3, 2]]
    assert corpora.evaluation_tokens(path, tokenizer).tolist() == [1, 2, 1, 2, 3, 2]
    assert "longer than" not in caplog.text


# ---- bad input


@pytest.mark.parametrize(
    ("name", "value"),
    [("sequences", 0), ("sequences", True), ("length", 0), ("length", 2.0), ("seed", -1)]
    + [("seed", "0"), ("sequences", "16")],
)
def test_counts_are_checked_by_name(text_file: Path, name: str, value: object) -> None:
    with pytest.raises(BadParameter, match=name):
        corpora.calibration_tokens(text_file, WordTokenizer(), **{name: value})


@pytest.mark.parametrize("source", ["wikitex2", "notes.pdf", "", 3, None])
def test_an_unknown_source_lists_what_is_allowed(source: Any) -> None:
    for read in (corpora.calibration_tokens, corpora.evaluation_tokens):
        with pytest.raises(BadParameter, match="embedded"):
            read(source, WordTokenizer())
    with pytest.raises(BadParameter, match="embedded"):
        corpora.corpus_identity(source)


def test_a_misspelt_source_gets_a_hint() -> None:
    with pytest.raises(BadParameter, match="did you mean 'wikitext2'"):
        corpora.calibration_tokens("wikitex2", WordTokenizer())


def test_c4_is_no_evaluation_text() -> None:
    with pytest.raises(BadParameter, match="'c4'"):
        corpora.evaluation_tokens("c4", WordTokenizer())


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("missing.txt", None, "does not exist"),
        ("empty.txt", b"", "holds no text"),
        ("blank.txt", b" \n\t\n", "holds no text"),
        ("bom.txt", b"\xef\xbb\xbf", "holds no text"),
        ("latin.txt", "caf\xe9".encode("latin-1"), r"not UTF-8 text \(byte 3\)"),
        ("empty.jsonl", b"\n\n", "holds no text"),
        ("blank.jsonl", b'{"text": ""}\n', "holds no text"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("field.jsonl", b'{"content": "a"}\n', 'line 1 has no "text" string'),
        ("number.jsonl", b'{"text": 5}\n', 'line 1 has no "text" string'),
        ("list.jsonl", b'["a"]\n', 'line 1 has no "text" string'),
        ("latin.jsonl", '{"text": "caf\xe9"}'.encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_bad_file_is_one_line(
    tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    for read in (corpora.calibration_tokens, corpora.evaluation_tokens):
        with pytest.raises(BadText, match=reason) as caught:
            read(path, WordTokenizer())
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_is_no_text_file(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(BadText, match="cannot be read"):
        corpora.evaluation_tokens(tmp_path / "folder.txt", WordTokenizer())


# ---- evaluation of files, identity


def test_evaluation_reads_the_whole_file_in_order(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbf3 1\r\n2")  # as Windows' Notepad saves it
    assert corpora.evaluation_tokens(path, WordTokenizer()).tolist() == [-1, 3, 1, 2]


def test_evaluation_joins_rows_by_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "one\u2028two"}\n{"text": "three"}', encoding="utf-8")
    seen: list[str] = []

    def tokenizer(text: str, verbose: bool) -> dict[str, list[int]]:
        seen.append(text)
        return {"input_ids": [1, 2]}

    tokens = corpora.evaluation_tokens(path, tokenizer)
    assert seen == ["one\u2028two\n\nthree"] and tokens.dtype == torch.int64


def test_identity_pins_the_text_and_hides_the_folder(text_file: Path) -> None:
    found = corpora.corpus_identity(text_file)
    assert found == {
        "name": "numbers.txt",
        "sha256": hashlib.sha256(text_file.read_bytes()).hexdigest(),
    }
    assert corpora.corpus_identity("c4")["revision"] == corpora.C4.revision
    assert corpora.corpus_identity("wikitext2")["dataset"] == "Salesforce/wikitext"
    assert len(corpora.corpus_identity("embedded")["sha256"]) == 64
    for hub in corpora.HUB_TEXTS.values():
        assert len(hub.revision) == 40 and int(hub.revision, 16) >= 0


# ---- the papers' own texts, through local files of the same schema


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder with files as on the hub, which `_hub_file` then finds instead of downloading."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "hub"
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "cache"))
    shard = folder / corpora.C4.files["train"]
    shard.parent.mkdir(parents=True)
    rows = [
        {"text": numbers(1000 * n, 1000 * n + size), "timestamp": "2019-04-25T12:57:54Z", "url": ""}
        for n, size in enumerate((3, 20, 5, 30, 12, 13), start=1)
    ]
    with gzip.open(shard, "wt", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)
    for split, texts in (("train", ["", "1 2", "3 4 5 6"]), ("test", ["= 9 =", "", "10 11"])):
        path = folder / corpora.WIKITEXT2.files[split]
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)
    monkeypatch.setattr(corpora, "_hub_file", lambda text, split: folder / text.files[split])
    return folder


def test_c4_draws_what_the_papers_code_draws(hub: Path) -> None:
    tokens = corpora.calibration_tokens("c4", WordTokenizer(), sequences=25, length=13, seed=5)
    with gzip.open(hub / corpora.C4.files["train"], "rt", encoding="utf-8") as stream:
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
    assert set((tokens[:, -1] // 1000).tolist()) == {2, 4, 6}  # longer than 13 with the -1


def test_c4_without_a_long_document_stops(hub: Path) -> None:
    with pytest.raises(CalibrationTooShort, match="none of the 6 documents.*31"):
        corpora.calibration_tokens("c4", WordTokenizer(), sequences=1, length=31)


def test_wikitext2(hub: Path) -> None:
    tokens = corpora.calibration_tokens("wikitext2", WordTokenizer(), sequences=50, length=3)
    # joined by spaces with one token in front: -1 1 2 3 4 5 6; the papers never draw the last start
    assert {tuple(row) for row in tokens.tolist()} == {(-1, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5)}
    with pytest.raises(CalibrationTooShort, match="7 tokens"):
        corpora.calibration_tokens("wikitext2", WordTokenizer(), sequences=1, length=8)
    assert corpora.evaluation_tokens("wikitext2", WordTokenizer()).tolist() == [
        *[-1, 1, 9, 1],
        *[10, 11],
    ]


def test_wikitext2_is_joined_as_in_the_papers_code(hub: Path) -> None:
    seen: list[str] = []

    def tokenizer(text: str, verbose: bool) -> dict[str, list[int]]:
        seen.append(text)
        return {"input_ids": [0]}

    corpora.evaluation_tokens("wikitext2", tokenizer)
    corpora.calibration_tokens("wikitext2", tokenizer, sequences=1, length=1)
    assert seen == ["= 9 =\n\n\n\n10 11", " 1 2 3 4 5 6"]


def test_a_broken_hub_file_is_one_line(hub: Path) -> None:
    (hub / corpora.C4.files["train"]).write_bytes(b"not gzip, not JSON")
    (hub / corpora.WIKITEXT2.files["test"]).write_bytes(b"not parquet")
    calls = ((corpora.calibration_tokens, "c4"), (corpora.evaluation_tokens, "wikitext2"))
    for read, source in calls:
        with pytest.raises(AssetError, match="delete .* and try again") as caught:
            read(source, WordTokenizer())
        assert "\n" not in str(caught.value)


def test_a_hub_file_without_text_is_refused(hub: Path) -> None:
    with gzip.open(hub / corpora.C4.files["train"], "wt", encoding="utf-8") as stream:
        stream.write('{"content": "x"}\n')
    with pytest.raises(BadText, match='"text" column'):
        corpora.calibration_tokens("c4", WordTokenizer())


def test_no_hub_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def unreachable(repo: str, file: str, *, repo_type: str, revision: str) -> str:
        assert (repo, repo_type, revision) == ("allenai/c4", "dataset", corpora.C4.revision)
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    with pytest.raises(AssetError, match='could not download allenai/c4.*use "embedded"') as caught:
        corpora.calibration_tokens("c4", WordTokenizer())
    assert "\n" not in str(caught.value)


# ---- the embedded texts


def test_cleaning_of_the_embedded_c4(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    prose = "It rained all day. Nobody minded."
    path = tmp_path / "c4.utf8"
    path.write_text(f"{prose}\nHome Shop Cart Login {'Menu ' * 60}\n\n {prose} \nYes!\n")
    monkeypatch.setattr(corpora, "fetch_asset", lambda name: path)
    assert corpora.c4_documents() == [prose, "Yes!"]


def test_cleaning_of_the_embedded_wiki(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def page(title: str, body: str) -> str:
        return f'<doc id="1" url="u" title="{title}">\n{title}\n\n{body}\n\n</doc>\n'

    line = "word " * 99 + "last."  # 500 characters
    path = tmp_path / "wiki.utf8"
    pages = page("Long", f"History.\n{line}") + page("x " * 400, "too short") + page("Empty", "")
    path.write_text(pages + page("Just short", line[1:]), encoding="utf-8")
    monkeypatch.setattr(corpora, "fetch_asset", lambda name: path)
    assert corpora.wiki_articles() == [line]


def test_the_embedded_texts_themselves() -> None:
    """On the real files, which a first `make` has fetched; offline and uncached, skipped."""
    tokenizer = WordTokenizer()
    try:
        documents, articles = corpora.c4_documents(), corpora.wiki_articles()
    except AssetError as error:
        pytest.skip(str(error))
    assert len(documents) == len(set(documents)) == 568
    assert 1_260_000 < sum(map(len, documents)) < 1_280_000
    assert len(articles) == 517 and min(map(len, articles)) >= 500
    assert not any("<doc" in text or "</doc" in text for text in articles)
    tokens = corpora.calibration_tokens("embedded", tokenizer, sequences=16, length=512)
    assert tokens.shape == (16, 512)
    assert corpora.evaluation_tokens("embedded", tokenizer).numel() > 250_000
