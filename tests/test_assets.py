"""Pinned downloads: damage, wrong hashes, no network. pip and the cache are stand-ins."""

import functools
import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from helpers.data import assets
from helpers.errors import FileError

WEIGHTS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(2, np.float32),
}
TEXT = b"a small text\n" * 50
WHEEL = "downloads/small_pack-1.0-py3-none-any.whl"
ONE = "assets/small-pack-1.0/pack/one.txt"
TWO = "assets/small-pack-1.0/pack/sub/two.txt"


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def files_below(folder):
    return {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    }


def damage(path, content):
    path.write_bytes(content)
    os.utime(path, ns=(1, 1))  # however coarse the clock, the time differs


@pytest.fixture
def shop(monkeypatch, tmp_path):
    """A cache of its own, two small assets in one wheel, and a pip that copies or fails."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRUNING_CACHE", str(cache))
    source = tmp_path / Path(WHEEL).name
    files = {"one": ("pack/one.txt", TEXT), "two": ("pack/sub/two.txt", b"two")}
    with zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in files.values():
            archive.writestr(*member)
    state = SimpleNamespace(cache=cache, calls=0, code=0, stderr="")
    state.data = source.read_bytes()
    pin = ("small-pack", "1.0", sha256(state.data))
    both = {key: (name, sha256(data)) for key, (name, data) in files.items()}
    one = assets.Asset(*pin, {"one": both["one"]}, "")
    known = {"one": one, "both": assets.Asset(*pin, both, "")}
    monkeypatch.setattr(assets, "ASSETS", known)

    def pip(command, **_):
        assert {"--no-deps", "--require-hashes", "--only-binary"} < set(command)
        wanted = Path(command[command.index("-r") + 1]).read_text("utf-8")
        assert wanted == f"small-pack==1.0 --hash=sha256:{pin[2]}\n"
        state.calls += 1
        target = Path(command[command.index("--dest") + 1]) / source.name
        target.write_bytes(state.data)
        return subprocess.CompletedProcess(command, state.code, stderr=state.stderr)

    monkeypatch.setattr(assets.subprocess, "run", pip)
    return state


def test_a_second_fetch_downloads_nothing(shop):
    path = assets.fetch_asset("one")
    assert path == shop.cache / ONE
    assert path.read_bytes() == TEXT
    assert files_below(shop.cache) == {WHEEL, ONE}
    shop.code = 1  # from here on, no network
    assert assets.fetch_asset("one") == path
    # another asset of the same wheel needs no download either; several files give the folder
    assert assets.fetch_asset("both") == shop.cache / "assets/small-pack-1.0"
    assert files_below(shop.cache) == {WHEEL, ONE, TWO}
    assert shop.calls == 1


def test_what_is_damaged_is_made_good(shop, caplog):
    path = assets.fetch_asset("one")
    damage(path, TEXT[:-1] + b"?")  # as long as before
    assert assets.fetch_asset("one").read_bytes() == TEXT
    assert shop.calls == 1
    assert "damaged" in caplog.text
    path.unlink()
    damage(shop.cache / WHEEL, shop.data[: len(shop.data) // 2])
    assert assets.fetch_asset("one").read_bytes() == TEXT
    assert shop.calls == 2
    assert (shop.cache / WHEEL).read_bytes() == shop.data


def test_damage_without_wheel_or_network_is_an_error(shop, one_line_error):
    damage(assets.fetch_asset("one"), b"?")
    (shop.cache / WHEEL).unlink()
    shop.code = 1
    shop.stderr = "WARNING: Retrying\nERROR: no versions found\nERROR: No matching\n"
    shop.data = b"half a whe"
    with one_line_error(FileError, "no versions found"):
        assets.fetch_asset("one")
    assert files_below(shop.cache) == set(), "neither damaged file may stay to be used"


# ---- the converted model


@pytest.fixture
def converter(shop, monkeypatch):
    """Stand-in for the conversion, which takes 15 seconds: how often it ran, and what it writes."""

    def write(folder, weights=WEIGHTS):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        hashes = {path.name: sha256(path.read_bytes()) for path in folder.glob("[mc]*")}
        (folder / "sha256.json").write_text(json.dumps(hashes))

    def convert(source, folder):
        assert source.name == "joined.gguf"
        assert source.read_bytes() == 2 * TEXT
        state.runs += 1
        state.write(folder)

    lines = b"a float32 (2, 3)\n" + WEIGHTS["a"].tobytes()
    lines += b"b float32 (2,)\n" + WEIGHTS["b"].tobytes()
    pin = ("joined.gguf", "5" * 64, sha256(lines))
    model = assets.EmbeddedModel(("one", "one"), *pin, (), "")
    monkeypatch.setattr(assets, "MODELS", {"embedded": model})
    monkeypatch.setattr(assets, "_convert", convert)
    state = SimpleNamespace(runs=0, write=write)
    return state


def test_the_model_is_converted_once(shop, converter):
    folder = assets.embedded_model_folder()
    assert folder == shop.cache / "models/joined-555555555555-float32"
    assert files_below(folder) == {"model.safetensors", "config.json", "sha256.json"}
    (shop.cache / ONE).unlink()  # the converted model is enough
    assert assets.embedded_model_folder() == folder
    assert converter.runs == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "file, content",
    [
        ("model.safetensors", b"WEIGHTS"),
        ("model.safetensors", None),
        ("sha256.json", b'{"mod'),
        ("config.json", b'{"x": 1}'),
        ("config.json", None),
    ],
)
def test_a_damaged_conversion_is_done_again(converter, file, content):
    folder = assets.embedded_model_folder()
    if content is None:
        (folder / file).unlink()
    else:
        damage(folder / file, content)
    assert assets.embedded_model_folder() == folder
    assert converter.runs == 2
    assert assets.is_converted(folder, "embedded")


def test_changed_weights_are_not_believed_with_their_hash(converter, one_line_error):
    folder = assets.embedded_model_folder()
    # the head is the embedding a second time, which some versions of transformers store too
    converter.write(folder, WEIGHTS | {"lm_head.weight": WEIGHTS["a"]})
    assert assets.is_converted(folder, "embedded")
    zeroed = WEIGHTS | {"a": 0 * WEIGHTS["a"]}
    converter.write(folder, zeroed)  # with its hash
    assert not assets.is_converted(folder, "embedded")
    assert assets.embedded_model_folder() == folder
    assert converter.runs == 2
    # versions of transformers that convert to something else
    shutil.rmtree(folder)
    converter.write = functools.partial(converter.write, weights=zeroed)
    with one_line_error(FileError, "constraints.txt"):
        assets.embedded_model_folder()
    assert not folder.exists()


def test_an_interrupted_conversion_leaves_nothing(shop, converter, one_line_error):
    def full_disk(folder):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    converter.write = full_disk
    with one_line_error(FileError, "No space left on device"):
        assets.embedded_model_folder()
    assert files_below(shop.cache / "models") == set()


def test_the_real_conversion_agrees_with_the_gguf_library():
    """On the real model, which a first `make` has converted; offline and uncached, skipped."""
    import gguf
    from safetensors import safe_open

    try:
        folder = assets.embedded_model_folder()
        source = assets.fetch_asset("model")
    except FileError as error:
        pytest.skip(str(error))
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(source).tensors}
    with safe_open(folder / "model.safetensors", framework="np") as stored:
        for theirs, ours in (
            ("ffn_down", "mlp.down_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("attn_v", "self_attn.v_proj"),
        ):
            packed = tensors[f"blk.7.{theirs}.weight"]
            expected = gguf.dequantize(packed.data, packed.tensor_type)
            found = stored.get_tensor(f"model.layers.7.{ours}.weight")
            assert found.dtype == np.float32
            assert np.array_equal(found, expected.reshape(found.shape))
