"""What `make lab` gives Jupyter: files that are shown leave nothing in the project."""

import asyncio

from traitlets.config import PyFileConfigLoader

from helpers.paths import root


def test_checkpoints_lie_outside_the_project(tmp_path, monkeypatch):
    """As JupyterLab asks for one when it shows a file for the first time."""
    monkeypatch.setenv("PRUNING_CACHE", str(tmp_path / "cache"))
    config = PyFileConfigLoader("jupyter_server_config.py", str(root() / "book/lab"))
    c = config.load_config()
    assert c.LabApp.news_url is None
    project = tmp_path / "a project"
    texts = {"runs/a.yaml": "one", "runs/p/a.yaml": "two", "a.ipynb": "{}"}
    for name, text in texts.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    manager = c.ServerApp.contents_manager_class(
        root_dir=str(project), config=c, delete_to_trash=False
    )

    async def look():
        for name in texts:
            assert not await manager.list_checkpoints(name)
            made = await manager.create_checkpoint(name)
            assert await manager.list_checkpoints(name) == [made]
            (project / name).write_text("changed")
        for name in texts:  # of two files with one name, each has its own
            await manager.restore_checkpoint("checkpoint", name)
        await manager.rename("runs/a.yaml", "runs/b.yaml")
        assert len(await manager.list_checkpoints("runs/b.yaml")) == 1
        await manager.delete("a.ipynb")

    asyncio.run(look())
    left = {
        path.relative_to(project).as_posix(): path.read_text()
        for path in project.rglob("*")
        if path.is_file()
    }
    assert left == {"runs/b.yaml": "one", "runs/p/a.yaml": "two"}
    kept = sorted(path.name for path in (tmp_path / "cache").rglob("*.*"))
    assert kept == ["a-checkpoint.yaml", "b-checkpoint.yaml"]
