"""What `make setup` installs on which machine, and what it says when pip fails.

A small index is served on the loopback address: its torch is a wheel without content.
"""

import functools
import http.server
import json
import threading
import zipfile

import pytest

import local_setup
from helpers.paths import root

ROOT = root()
NAME = f"torch-{local_setup.TORCH}+cpu"


@pytest.fixture(autouse=True)
def an_untold_pip(monkeypatch):
    """Nothing tells pip where packages are; there is no GPU."""
    for name in ("FIND_LINKS", "INDEX_URL", "EXTRA_INDEX_URL", "NO_INDEX"):
        monkeypatch.delenv(f"PIP_{name}", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(local_setup, "has_nvidia_driver", lambda: False)
    monkeypatch.setattr(local_setup.platform, "system", lambda: "Linux")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "torch"
    folder.mkdir()
    info = f"{NAME}.dist-info"
    with zipfile.ZipFile(folder / f"{NAME}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA",
            f"Metadata-Version: 2.1\nName: torch\nVersion: {local_setup.TORCH}+cpu\n",
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    handler = functools.partial(
        http.server.SimpleHTTPRequestHandler, directory=folder.parent
    )
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_version_is_that_of_the_committed_results():
    for path in (ROOT / "results/reference").glob("*/records/*.json"):
        versions = json.loads(path.read_text("utf-8"))["versions"]
        assert versions["torch"].split("+")[0] == local_setup.TORCH


def test_without_a_gpu_torch_comes_from_its_own_index(index, tmp_path):
    (step,), line = local_setup.choose_torch(index, [])
    assert "CPU" in line
    assert not local_setup.pip_install("--target", str(tmp_path), *step)
    assert (tmp_path / f"{NAME}.dist-info").is_dir()


def test_an_index_that_does_not_answer_or_lacks_the_version(index, monkeypatch):
    steps, line = local_setup.choose_torch("http://127.0.0.1:9", [])
    assert not steps
    assert "CUDA" in line
    monkeypatch.setattr(local_setup, "TORCH", "2.99.0")
    assert not local_setup.choose_torch(index, [])[0]


def test_with_a_driver_torch_has_cuda(index, monkeypatch):
    monkeypatch.setattr(local_setup, "has_nvidia_driver", lambda: True)
    steps, line = local_setup.choose_torch(index, [])
    assert not steps
    assert "CUDA" in line


@pytest.mark.parametrize(
    "options", [["--find-links", "/wheels"], ["--index-url=http://mirror"], ["-f", "x"]]
)
def test_the_users_options_win(index, options):
    assert local_setup.choose_torch(index, options) == ([], "")


def test_the_users_configuration_wins(index, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    assert local_setup.choose_torch(index, []) == ([], "")


def test_pips_own_reason(index, tmp_path, capfd):
    """A conflict is told as a conflict."""
    asked = ("--dry-run", "--no-deps", "--index-url", index)
    reason = local_setup.pip_install(*asked, "torch==9")
    assert "torch==9" in reason
    reason = local_setup.pip_install(*asked, f"torch=={local_setup.TORCH}", "torch==9")
    assert "conflict" in reason
    assert reason in capfd.readouterr().err
    closed = ("--retries", "1", "--index-url", "http://127.0.0.1:9")
    assert "network" in local_setup.pip_install(*closed, "not-installed")
