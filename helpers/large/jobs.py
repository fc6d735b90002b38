"""What lies on disk while a checkpoint is pruned: the workspace, and the job with its manifest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from helpers.errors import FileError, HelpersError, allowed, first_line
from helpers.large.shards import DAMAGED, TEMPORARY, folder_path, writing
from helpers.loop import LayerReport
from helpers.paths import replace_file, sha256_file, sync_folder

MANIFEST = "pruning.json"
FORMAT = 2
SHOWN = 8  # differences that a message names
REPORTED = {"seconds", "parity", "batch"}  # of a PruneReport, beside its layers
UNUSABLE = (OSError, *DAMAGED)  # what reading a manifest raises that cannot be used


def layer_report(row: Mapping[str, Any]) -> LayerReport:
    """A layer's report from its JSON."""
    return LayerReport(**{**row, "shape": tuple(row["shape"])})


class Job:
    """A pruned model in the making, or complete: its folder, and the manifest of what is done.

    resumed: blocks that were finished before this call; redone: blocks that are pruned again;
    halved: where earlier calls had to halve the batch.
    """

    def __init__(
        self, folder: str | Path, manifest: dict[str, Any], redone: Iterable[int] = ()
    ) -> None:
        self.folder, self.manifest = Path(folder), manifest
        self.resumed = len(manifest["blocks"])
        self.redone = list(redone)
        self.halved = list(manifest["halved"])

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job of a folder. Raises FileError if its manifest cannot be used."""
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ValueError(f"format {manifest['format']!r}, not {FORMAT}")
            job = cls(folder, manifest)
            job.check()
        except UNUSABLE as error:
            raise FileError(
                f"{path} cannot be used ({first_line(error)}), and only it says what is finished: "
                f"delete {folder}, or start anew with resume=False"
            ) from error
        return job

    @property
    def complete(self) -> bool:
        """Whether the model has all its files."""
        return "complete" in self.manifest

    def check(self) -> None:
        """Raise one of UNUSABLE unless the manifest holds all that is read from it."""
        count, found = self.manifest["request"]["blocks"], set(self.manifest["blocks"])
        every = {str(index) for index in range(count)}
        if not found <= every:
            raise ValueError(f"it names block {min(found - every)}, of a model of {count} blocks")
        if self.complete:
            if found < every:
                raise ValueError(f"it lacks block {min(every - found, key=int)}")
            if set(self.manifest["report"]) != REPORTED:
                raise ValueError(f"its report does not hold {allowed(REPORTED)}")
        self.lines()
        for _, file, sha256 in self.files():
            # a folder in the name could lead out of the model's
            if Path(file).name != file or not isinstance(sha256, str):
                raise ValueError(f"it names {file!r:.60}, which is no file of a model")

    def files(self) -> Iterator[tuple[str | None, str, str]]:
        """What was written: the block (None outside the blocks), the file's name and its sha256."""
        others = self.manifest["files"] if self.complete else {}
        yield from ((index, *row["file"]) for index, row in self.manifest["blocks"].items())
        yield from ((None, name, sha256) for name, sha256 in others.items())

    def lines(self) -> dict[int, list[LayerReport]]:
        """The report's lines of each finished block."""
        blocks = {int(index): entry for index, entry in self.manifest["blocks"].items()}
        return {
            index: [layer_report(row) for row in entry["layers"]]
            for index, entry in sorted(blocks.items())
        }

    def verify(self) -> None:
        """Forget finished blocks whose shard is no longer what was written.

        Raises FileError if the model is complete: someone may have gone on to work with it. Then
        every file counts, whether it holds weights, masks, the configuration or the tokenizer.
        """
        for index, file, sha256 in list(self.files()):
            path = self.folder / file
            if path.is_file() and sha256_file(path) == sha256:
                continue
            if self.complete:
                raise FileError(
                    f"{path} has changed since it was written: choose another destination, or "
                    "start anew with resume=False, which replaces the model there"
                )
            del self.manifest["blocks"][index]
            self.redone.append(int(index))
        self.resumed -= len(self.redone)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Add to an error that what is finished is kept."""
        try:
            yield
        except HelpersError as error:
            count = len(self.manifest["blocks"])
            if not count:
                raise
            raise type(error)(
                f"{error}; {count} finished blocks are kept, and the same call continues after them"
            ) from error

    def save(self) -> None:
        """Write the manifest. Raises FileError."""
        with writing(self.folder):
            replace_file(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")


class Workspace:
    """The folder `<destination>.pruning`, with a lock and the job that is under way.

    destination: absolute and without links.
    Raises FileError if source and destination are one, or one lies in the other, or something
    else than a pruned model lies at the destination; FileError for a path that cannot be.
    """

    def __init__(self, source: Path, destination: str | os.PathLike[str]) -> None:
        self.destination = to = folder_path(destination).resolve()
        self.folder = to.with_name(f"{to.name}.pruning")
        self.run = self.folder / "run-1"
        source = source.resolve()
        for folder in (to, self.folder):
            if source.is_relative_to(folder) or folder.is_relative_to(source):
                raise FileError(
                    f"destination {to} and source {source} overlap: choose another destination"
                )
        is_free = not to.exists() or (to.is_dir() and not any(to.iterdir()))
        if not is_free and not (to / MANIFEST).is_file():
            raise FileError(
                f"{to} holds something that prune_checkpoint did not write: choose another "
                "destination, or empty this one"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process works here; the lock goes with the process, however it ends.

        What a killed process had begun is finished first: a file to write, a model to publish.
        Raises FileError if another process holds it, FileError if nothing can be written.
        """
        path = self.folder / "lock"
        lock = FileLock(path, timeout=0)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self.folder.parent)
            try:
                lock.acquire()
            except Timeout as error:
                holder = path.read_text() or "another process"
                raise FileError(
                    f"{self.destination} is being pruned by {holder}: wait for it, or stop it"
                ) from error
        try:
            with contextlib.suppress(OSError):  # a full disk; it is for a message only
                path.write_text(f"process {os.getpid()}")
            # ours, and those that safetensors writes into: .tmp and six letters
            for partial in (*self.run.glob(f".*{TEMPORARY}"), *self.run.glob(".tmp*")):
                partial.unlink(missing_ok=True)
            with contextlib.suppress(FileError):  # there is none, or `job` will raise
                job = Job.read(self.run)
                if job.complete:
                    self.publish(job)
            yield
        finally:
            if not (self.run / MANIFEST).is_file():
                shutil.rmtree(self.folder, ignore_errors=True)
            lock.release()

    def job(self, request: dict[str, Any], resume: bool) -> Job:
        """The job of the same request, interrupted or complete; a new one if there is nothing.

        Without `resume` always a new one. It replaces an interrupted one.
        Raises FileError, with what differs, if there is only another one; FileError.
        """
        others = []
        for folder in (self.run, self.destination) if resume else ():
            if not (folder / MANIFEST).is_file():
                continue  # nothing there, or killed before it began
            job = Job.read(folder)
            if job.manifest["request"] == request:
                job.verify()
                return job
            if job.manifest["blocks"]:  # else there is nothing to lose
                others.append(job)
        if others:
            requests = [others[0].manifest["request"], request]
            # {"source": {"a": 1}} becomes {"source.a": 1}
            found, asked = (pd.json_normalize(each).to_dict("records")[0] for each in requests)
            lines = [
                f"{name} {str(found.get(name)):.24}, not {str(asked.get(name)):.24}"
                for name in sorted(found | asked)
                if found.get(name) != asked.get(name)
            ]
            more = f" and {len(lines) - SHOWN} more" * (len(lines) > SHOWN)
            raise FileError(
                f"the run in {others[0].folder} has {'; '.join(lines[:SHOWN])}{more}: ask for the "
                "same again, choose another destination, or start anew with resume=False, which "
                "replaces that run"
            )
        job = Job(self.run, {"format": FORMAT, "request": request, "blocks": {}, "halved": []})
        with writing(self.run):
            if self.run.is_dir():
                shutil.rmtree(self.run)  # if it breaks off, `verify` finds what is missing
            job.save()
            sync_folder(self.folder)
        return job

    def publish(self, job: Job) -> None:
        """Move a complete job to the destination; what it replaces is deleted afterwards.

        At each moment the old model or the new one is whole; if the process is killed, the next
        one does the rest. Raises FileError.
        """
        replaced = self.folder / "replaced"
        with writing(self.destination):
            if self.destination.is_dir():
                shutil.rmtree(replaced, ignore_errors=True)
                os.replace(self.destination, replaced)
            os.replace(job.folder, self.destination)
            sync_folder(self.destination.parent)
            sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        job.folder = self.destination
