"""The set-up on Colab, with modules that stand for Colab's own; nothing here runs on Colab."""

import re
import runpy
import subprocess
import sysconfig
from types import SimpleNamespace

import pytest

from helpers.paths import notebooks_dir, replace_file, root
from reproduction.parameters import code_cells


def test_the_first_cell_clones_once_and_sets_up_on_colab_only(tmp_path):
    """The cell's command in a shell whose git and python print their arguments."""
    (tour, *_) = code_cells(notebooks_dir() / "00_start_here.ipynb")
    for name, work in (("git", "mkdir repo"), ("python", ":")):
        script = f'#!/bin/sh\necho {name} "$@"\n{work}\n'
        replace_file(tmp_path / name, script).chmod(0o755)

    line = tour[0].replace("\n!", "\n").replace("/content", str(tmp_path))

    def run_cell(**variables):
        variables["PATH"] = f"{tmp_path}:/usr/bin:/bin"
        output = subprocess.check_output(
            line, shell=True, env=variables, text=True, stderr=subprocess.STDOUT
        )
        return output.splitlines()

    assert run_cell() == []  # elsewhere
    clone, *rest = run_cell(COLAB_RELEASE_TAG="r1")
    assert re.match(
        r"git clone -q https://github.com/[\w-]+/pruning-reproduction repo", clone
    )
    assert rest == run_cell(COLAB_RELEASE_TAG="r1") == ["python repo/colab_setup.py"]
    (tmp_path / "repo").rmdir()
    # there is no such owner
    replace_file(tmp_path / "git", "#!/bin/sh\nexit 128\n").chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run_cell(COLAB_RELEASE_TAG="r1")
    (said,) = caught.value.output.splitlines()  # python was not started
    assert "GitHub name" in said


def test_the_script_makes_the_package_visible_to_the_kernel(
    tmp_path, monkeypatch, capsys
):
    commands = []
    done = SimpleNamespace(returncode=0)

    def run(command, check):
        commands.append(command)
        return done

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    for _ in range(2):  # in a second notebook too
        found = runpy.run_path(str(root() / "colab_setup.py"), run_name="__main__")
    assert commands[0][1:] == ["-m", "pip", "install", "-q", "-e", str(root())]
    linked = {path.name: path.resolve() for path in tmp_path.iterdir()}
    assert linked == {name: root() / name for name in found["PACKAGES"]}
    assert "helpers" in linked and "Ready" in capsys.readouterr().out
    done.returncode = 1
    with pytest.raises(SystemExit, match="pip"):
        runpy.run_path(str(root() / "colab_setup.py"), run_name="__main__")
