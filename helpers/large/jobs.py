"""What lies on disk while a checkpoint is pruned: the workspace, and each job with its manifest."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from helpers.errors import CheckpointError, HelpersError, RecordError, ResumeError
from helpers.large.shards import TEMPORARY
from helpers.paths import replace_file, sha256_file, sync_folder
from helpers.prune import LayerReport

MANIFEST = "pruning.json"
FORMAT = 1
SHOWN = 8  # differences that a message names


@contextlib.contextmanager
def writing() -> Iterator[None]:
    """Raise CheckpointError for what cannot be written."""
    try:
        yield
    except (OSError, RecordError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"the pruned model cannot be written ({reason}): free some disk space there and run "
            "again"
        ) from error


class Job:
    """A pruned model in the making, or complete: its folder, and the manifest of what is done.

    resumed: blocks that were finished before this call; redone: blocks that are pruned again;
    halved: where earlier calls had to halve the batch.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.manifest = folder, manifest
        self.resumed = len(manifest["blocks"])
        self.redone: list[int] = []
        self.halved = list(manifest["halved"])

    @classmethod
    def read(cls, folder: Path) -> Job:
        """The job of a folder. Raises ResumeError if its manifest cannot be used."""
        path = folder / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != FORMAT:
                raise ResumeError(
                    f"{path} has format {manifest['format']!r}, not {FORMAT}: go on with the "
                    "version that wrote it, or start anew with resume=False"
                )
            job = cls(folder, manifest)
            for entry in job.entries().values():
                if Path(entry["file"]).name != entry["file"] or len(entry["sha256"]) != 64:
                    raise ValueError(f"not a file and its hash: {entry}")
            job.lines()
            if job.complete and manifest["report"].keys() != {"seconds", "parity", "batch"}:
                raise ValueError("no report")
            if not isinstance(manifest["request"]["arguments"], dict):
                raise ValueError("no request")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise ResumeError(
                f"{path} cannot be read, so what is finished is not known: delete {folder}, or "
                "start anew with resume=False"
            ) from error
        return job

    @property
    def complete(self) -> bool:
        """Whether the model has all its files."""
        return "complete" in self.manifest

    def entries(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of the finished files: of each block, and of all the "rest"."""
        rest = {"rest": self.manifest["rest"]} if self.complete else {}
        return {**self.manifest["blocks"], **rest}

    def lines(self) -> dict[int, list[LayerReport]]:
        """The report's lines of each finished block, as they were before JSON."""
        blocks = {int(index): entry for index, entry in self.manifest["blocks"].items()}
        return {
            index: [LayerReport(**{**row, "shape": tuple(row["shape"])}) for row in entry["layers"]]
            for index, entry in sorted(blocks.items())
        }

    def verify(self) -> None:
        """Forget finished blocks whose shard is no longer what was written.

        Raises ResumeError if the model is complete: someone may have gone on to work with it.
        """
        for index, entry in self.entries().items():
            path = self.folder / entry["file"]
            if path.is_file() and sha256_file(path) == entry["sha256"]:
                continue
            if self.complete:
                raise ResumeError(
                    f"{path} is not what was written there: choose another destination, or start "
                    "anew with resume=False, which replaces the model there"
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
                f"{error}; {count} finished blocks are kept, the same call goes on from there"
            ) from error

    @writing()
    def save(self) -> None:
        """Write the manifest. Raises CheckpointError."""
        replace_file(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")


class Workspace:
    """The folder `<destination>.pruning`: its lock, and a `run-<number>` for each job.

    destination: absolute and without links.
    Raises ResumeError if source and destination are one, or one lies in the other, or something
    else than a pruned model lies at the destination.
    """

    def __init__(self, source: Path, destination: str | os.PathLike[str]) -> None:
        self.destination = to = Path(destination).expanduser().resolve()
        self.folder = to.with_name(f"{to.name}.pruning")
        source = source.resolve()
        for folder in (to, self.folder):
            if source.is_relative_to(folder) or folder.is_relative_to(source):
                raise ResumeError(
                    f"destination {to} and source {source} overlap: choose another destination"
                )
        is_free = not to.exists() or (to.is_dir() and not any(to.iterdir()))
        if not is_free and not (to / MANIFEST).is_file():
            raise ResumeError(
                f"{to} is something else than a model of prune_checkpoint: choose another "
                "destination, or clear this one"
            )

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, no other process works here; the lock goes with the process, however it ends.

        Raises ResumeError if another process holds it, CheckpointError if nothing can be written.
        """
        path = self.folder / "lock"
        lock = FileLock(path, timeout=0)
        try:
            if not self.folder.is_dir():
                self.folder.mkdir(parents=True, exist_ok=True)
                sync_folder(self.folder.parent)
            lock.acquire()
        except Timeout as error:
            try:
                holder = path.read_text() or "another process"
            except OSError:
                holder = "another process"
            raise ResumeError(
                f"{self.destination} is being pruned by {holder}: wait for it, or stop it"
            ) from error
        except OSError as error:
            raise CheckpointError(
                f"cannot work in {self.folder} ({error.strerror}): choose a destination that can "
                "be written"
            ) from error
        try:
            with contextlib.suppress(OSError):  # a full disk; it is for a message only
                path.write_text(f"process {os.getpid()}")
            self._clean_up()
            yield
        finally:
            for folder in self.jobs():
                if not (folder / MANIFEST).is_file():
                    shutil.rmtree(folder, ignore_errors=True)
            if not self.jobs():
                shutil.rmtree(self.folder, ignore_errors=True)
            lock.release()

    def _clean_up(self) -> None:
        """Finish what a killed process had begun: a file to write, or a model to publish."""
        for partial in self.folder.glob(f"run-*/.*{TEMPORARY}"):
            partial.unlink()
        for folder in self.jobs():
            with contextlib.suppress(ResumeError):
                job = Job.read(folder)
                if job.complete:
                    self.publish(job)

    def jobs(self) -> list[Path]:
        """The folders of the jobs, the newest first."""
        return sorted(self.folder.glob("run-*"), key=_number, reverse=True)

    def continued(self, request: dict[str, Any]) -> Job | None:
        """The newest job of the same request, interrupted or complete; None if there is none.

        Raises ResumeError, with what differs, if there are only others.
        """
        others = []
        for folder in [*self.jobs(), self.destination]:
            if not (folder / MANIFEST).is_file():
                continue  # nothing there, or killed before it began
            job = Job.read(folder)
            if job.manifest["request"] == request:
                return job
            if job.manifest["blocks"]:  # else there is nothing to lose
                others.append(job)
        if not others:
            return None
        found, asked = _flat(others[0].manifest["request"]), _flat(request)
        lines = [
            f"{name} {str(found.get(name)):.24}, not {str(asked.get(name)):.24}"
            for name in sorted(found | asked)
            if found.get(name) != asked.get(name)
        ]
        more = f"; {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
        raise ResumeError(
            f"the run in {others[0].folder} has {'; '.join(lines[:SHOWN])}{more}: ask for the "
            "same, choose another destination, or start anew with resume=False, which deletes that "
            "run once the new model is complete"
        )

    def begun(self, request: dict[str, Any]) -> Job:
        """A new job. Raises CheckpointError."""
        number = max([0, *map(_number, self.jobs())]) + 1
        manifest = {"format": FORMAT, "request": request, "blocks": {}, "halved": []}
        job = Job(self.folder / f"run-{number}", manifest)
        job.save()
        with writing():
            sync_folder(self.folder)
        return job

    @writing()
    def publish(self, job: Job) -> None:
        """Move a complete job to the destination; what it replaces is deleted afterwards.

        So are the other jobs. At each moment the old model or the new one is whole; if the process
        is killed, the next one does the rest. Raises CheckpointError.
        """
        replaced = self.folder / "replaced"
        for other in self.jobs():
            if other != job.folder:
                # first: without a manifest a half deleted job is known as one
                (other / MANIFEST).unlink(missing_ok=True)
                shutil.rmtree(other, ignore_errors=True)
        if self.destination.is_dir():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(self.destination, replaced)
        os.replace(job.folder, self.destination)
        sync_folder(self.destination.parent)
        sync_folder(self.folder)
        shutil.rmtree(replaced, ignore_errors=True)
        job.folder = self.destination


def _number(folder: Path) -> int:
    text = folder.name.removeprefix("run-")
    return int(text) if text.isdecimal() else 0


def _flat(request: Any, name: str = "") -> dict[str, Any]:
    """A nested mapping as one: {"source": {"a": 1}} is {"source.a": 1}."""
    if not isinstance(request, dict):
        return {name: request}
    parts = [_flat(value, f"{name}.{key}".lstrip(".")) for key, value in request.items()]
    return {key: value for part in parts for key, value in part.items()}
