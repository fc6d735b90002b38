"""Hub models as folders: from a small hub on this machine, whose connection can be broken."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import families as fam
import huggingface_hub
import pytest
import torch
from transformers import AutoTokenizer

from helpers import fetch_checkpoint, load_model, load_streamed
from helpers.capture import forward
from helpers.data.assets import embedded_model_folder
from helpers.errors import BadParameter, FileError

NAME, COMMIT = "some/model", "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "model-00002-of-00003.safetensors"
UNWANTED = {
    "pytorch_model.bin": b"a pickle", "modeling.py": b"code", "tokenizer.pkl": b"a pickle",
    "consolidated.safetensors": b"the same again", "onnx/config.json": b"{}", "README.md": b"...",
}  # fmt: skip


class Hub:
    """The files of one model at one commit; what was asked of it, and when it breaks."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.cut: str | None = None  # the connection is lost in the middle of this file
        self.down = False
        self.sent: list[str] = []
        self.address = ""

    def tree(self) -> list[dict]:
        """What the hub lists: weights are large files with a sha256, the others git blobs."""
        rows = []
        for name, content in self.files.items():
            blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            row = {"type": "file", "path": name, "size": len(content), "oid": blob}
            if name.endswith(".safetensors"):
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"size": len(content), "oid": digest, "pointerSize": 130}
            rows.append(row)
        return rows


class Handler(BaseHTTPRequestHandler):
    """Answers as the hub does, for one model."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if self.hub.down:
            self.close_connection = True  # without an answer
        elif not path.removeprefix("/api/models").startswith(f"/{NAME}"):
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif not {"main", COMMIT} & set(path.split("/")):
            self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif "/revision/" in path:
            siblings = [{"rfilename": name} for name in self.hub.files]
            answer = {"id": NAME, "sha": COMMIT, "siblings": siblings}
            self.answer(200, json.dumps(answer).encode())
        elif path.endswith(f"/tree/{COMMIT}"):
            self.answer(200, json.dumps(self.hub.tree()).encode())
        else:
            self.file(path.partition(f"/resolve/{COMMIT}/")[2])

    do_HEAD = do_GET

    def file(self, name: str) -> None:
        content = self.hub.files.get(name)
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        broken = name == self.hub.cut and self.command == "GET"
        self.hub.down |= broken
        if self.command == "GET":
            self.hub.sent.append(name)
        tag = hashlib.sha256(content).hexdigest()
        self.answer(200, content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}, broken)

    def answer(self, code: int, body: bytes, headers: dict | None = None, broken=False) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if broken else body)
        self.close_connection |= broken

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


@pytest.fixture(scope="module")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A tiny Llama in three shards, its tokenizer, and what should stay on the hub."""
    folder = tmp_path_factory.mktemp("files")
    fam.build("llama").save_pretrained(folder, max_shard_size="42KB")
    AutoTokenizer.from_pretrained(embedded_model_folder()).save_pretrained(folder)
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert WEIGHTS in found
    return found | UNWANTED


@pytest.fixture
def hub(model_files: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub, whose address is at `hub.address`; the cache is a folder of the test."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # between the client's attempts
    hub = Hub(dict(model_files))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Of", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()
    server.server_close()


def fetched(folder: Path) -> dict[str, bytes]:
    """The files of a fetched model, without the receipt and the client's notes."""
    names = [path.name for path in folder.iterdir() if path.is_file()]
    return {name: (folder / name).read_bytes() for name in names if name != "fetched.json"}


def test_a_lost_connection_costs_nothing_but_time(
    hub: Hub, model_files: dict, tmp_path: Path, one_line_error
) -> None:
    hub.cut = WEIGHTS
    with one_line_error(FileError, NAME, "what was downloaded is kept", "run again"):
        fetch_checkpoint(NAME, COMMIT, endpoint=hub.address)
    folder = tmp_path / "cache" / "hub" / f"some--model--{COMMIT}"
    assert WEIGHTS not in fetched(folder)
    # still down: not taken for whole because something is there
    with one_line_error(FileError, "run again"):
        fetch_checkpoint(NAME, COMMIT, endpoint=hub.address)
    before, hub.cut, hub.down = set(fetched(folder)), None, False
    hub.sent.clear()
    assert fetch_checkpoint(NAME, COMMIT, endpoint=hub.address) == folder
    wanted = {name: body for name, body in model_files.items() if name not in UNWANTED}
    assert fetched(folder) == wanted
    assert WEIGHTS in hub.sent and not before & set(hub.sent)
    assert not list(folder.rglob("*.incomplete"))


def test_the_fetched_model_loads_and_needs_no_network_again(hub: Hub) -> None:
    folder = fetch_checkpoint(NAME, "main", endpoint=hub.address)
    assert folder.name.endswith(COMMIT)
    (folder / WEIGHTS).unlink()  # then this is fetched again, and nothing else
    hub.sent.clear()
    fetch_checkpoint(NAME, COMMIT, endpoint=hub.address)
    assert hub.sent == [WEIGHTS]
    (folder / "fetched.json").write_text("[" * 100_000)  # is written again
    fetch_checkpoint(NAME, COMMIT, endpoint=hub.address)
    hub.down = True
    assert fetch_checkpoint(NAME, COMMIT, endpoint=hub.address) == folder
    (model, tokenizer), (streamed, _) = load_model(folder), load_streamed(folder)
    expected, tokens = fam.build("llama"), fam.random_tokens(2)
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, expected(tokens).logits)
        assert torch.equal(forward(streamed, tokens), expected(tokens).logits)
    assert tokenizer("a").input_ids


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_content_that_is_not_what_is_listed(
    name: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_line_error
) -> None:
    good, listed = hub.files[name], hub.tree()
    monkeypatch.setattr(hub, "tree", lambda: listed)
    hub.files[name] = good[:-1] + b"?"
    with one_line_error(FileError, name, "discarded"):
        fetch_checkpoint(NAME, COMMIT, tmp_path / "here", endpoint=hub.address)
    assert name not in fetched(tmp_path / "here")
    hub.files[name] = good
    folder = fetch_checkpoint(NAME, COMMIT, tmp_path / "here", endpoint=hub.address)
    assert (folder / name).read_bytes() == good


def test_what_is_not_on_the_hub_and_what_holds_only_pickles(
    hub: Hub, one_line_error, tmp_path: Path
) -> None:
    for name, revision in [("some/other", "main"), (NAME, "v9"), ("..", "main"), (NAME, None)]:
        with one_line_error(BadParameter, name, str(revision), "revision"):
            fetch_checkpoint(name, revision, endpoint=hub.address)
    for file in [file for file in hub.files if file.startswith("model-")]:
        del hub.files[file]
    with one_line_error(BadParameter, NAME, "no safetensors", "pickles"):
        fetch_checkpoint(NAME, COMMIT, endpoint=hub.address)
    assert hub.sent == [] and not (tmp_path / "cache").exists()


def test_load_model_says_that_the_connection_was_lost(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, one_line_error
) -> None:
    # transformers asks the hub that is named in the environment when it is imported
    for module in (huggingface_hub.constants, huggingface_hub.file_download.constants):
        monkeypatch.setattr(module, "ENDPOINT", hub.address)
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE",
                            hub.address + "/{repo_id}/resolve/{revision}/{filename}")  # fmt: skip
        monkeypatch.setattr(module, "HF_HUB_CACHE", str(tmp_path))
    hub.cut = WEIGHTS
    with one_line_error(FileError, "run again"):
        load_model(NAME, revision=COMMIT)
    assert WEIGHTS in hub.sent
