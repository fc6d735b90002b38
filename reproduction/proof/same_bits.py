"""Does today's code compute what the code of the records computed? `make same` asks it.

    python -m reproduction.proof [--from COMMIT]

Records name the hashes of the code that made them. Where today's hashes are others, the code may
still compute the same, and that is proven here and not argued: the probes (probes.py beside this
file) and the plan smoke, which runs every notebook, are run in a checkout of the earlier commit and
in this one, in one environment on this machine, and every value is compared bit for bit. Each
checkout runs its own probes and names its own hashes, so that files may move. If all values are
equal, the pairs of hashes go to results/reference/same.json, where `reproduction` follows them.
If one is not, nothing is written. Only likelihoods may be others with another token_trees.py, which
is then not linked: it counts for zero-shot alone.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from helpers.errors import HelpersError, RunError
from helpers.paths import (
    TABLES_NOTEBOOK,
    reference_dir,
    replace_file,
    results_dir,
    root,
)
from reproduction.compare import COMPUTING, NOT_JUDGED
from reproduction.fingerprint import equal_hashes, proofs_path, read_proofs, tree_hashes
from reproduction.machine import THREAD_VARIABLES
from reproduction.plan import plan_names
from reproduction.records import SOURCES, processor, read_records

# where a checkout has its probes, and the package that runs its plans; the latter up to 0.10.0
LAYOUTS = {
    "reproduction/proof/probes.py": "reproduction",
    "tests/probes.py": "helpers",
}
PLAN = "smoke"
SHOWN = 12  # differences that are printed
# of a record, what depends on the machine and the hour, or says which code it was
UNEQUAL = ("seconds", "created", "git", "versions", "platform", "peak_memory_bytes")
UNEQUAL += ("fingerprint", "run_seconds", "plan")


class OtherEnvironment(RunError):
    """The packages that compute are not those of the records."""


class Difference(NamedTuple):
    """A value that is not the same, earlier and today; a missing one is None."""

    name: str
    earlier: Any
    today: Any

    def __str__(self) -> str:
        text = f"{self.name}: {self.earlier!r} earlier, {self.today!r} today"
        if self.earlier and {type(value) for value in self[1:]} <= {int, float}:
            text += f", relative difference {self.today / self.earlier - 1:+.2g}"
        return text


def main() -> int:
    """Prove it or say what differs; 0 if the code is equal, 1 if not or if it cannot be told, 3 if
    this environment is not that of the records.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="commit", metavar="COMMIT", default="")
    try:
        return prove(parser.parse_args().commit)
    except HelpersError as error:
        sys.stderr.write(f"{error}\n")
        return 3 if isinstance(error, OtherEnvironment) else 1


def prove(wanted: str) -> int:
    """Compare today's code with that of a commit, by default the one that the records name."""
    started, records, today = time.monotonic(), committed_records(), tree_hashes(root())
    if not wanted and not others(records, today):
        made = "made by today's core and notebooks" if records else "of earlier code"
        say(f"nothing to prove: the records are {made}")
        return 0
    check_environment(records)
    head = clean_head()
    commit = commit_of(wanted) if wanted else earlier_commit(records, today)
    with worktree(commit) as tree:
        say(
            f"earlier: {commit[:12]}, today: {head[:12]}; about six minutes on two cores"
        )
        with ThreadPoolExecutor(2) as threads:
            before, after = threads.map(values_of, (tree, root()), (commit, head))
    # as its own checkout says, since records and proofs name that
    earlier = before.pop("code")
    after.pop("code")
    if clean_head() != head:
        raise RunError("another commit was checked out meanwhile: run make same again")
    unequal, new = compare(before, after)
    # with other scoring, likelihoods may differ: all other values prove the core
    moved = [
        item for item in unequal if "/likelihoods/" in item.name and item.name in after
    ]
    if moved and earlier.pop("scoring", None) != today.get("scoring"):
        say("token_trees.py finds other likelihoods: of it nothing is proven")
        unequal = [item for item in unequal if item not in moved]
        for item in moved:
            del before[item.name]
    minutes = f"{(time.monotonic() - started) / 60:.1f} min"
    if unequal:
        for difference in unequal[:SHOWN]:
            say(str(difference))
        say(
            f"NOT the same: {len(unequal)} of {len(before)} values differ or are missing today "
            f"({minutes}). The records stay of earlier code until their plans are run again, or "
            "the change is taken back; nothing was written"
        )
        return 1
    say(f"the same: {len(before)} values are equal bit for bit ({minutes})")
    if new:
        say(f"{len(new)} values are new, and were not compared")
    pairs = {
        name: [code, today[name]] for name, code in earlier.items() if name in today
    }
    link(commit, head, pairs, len(before))
    if left := others(records, today) - set().union(*map(equal_hashes, today.values())):
        say(
            f"still of other code: records of {', '.join(sorted(left))}; give their commit as FROM"
        )
    return 0


def link(commit: str, head: str, pairs: Mapping[str, list[str]], values: int) -> None:
    """Write a proof behind the others; it replaces one of the same two trees."""
    moved = {name: pair for name, pair in pairs.items() if len(set(pair)) > 1}
    proof = {
        "from": commit,
        "to": head,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "processor": processor(),
        "values": values,
        "equal": moved,
    }
    before = [p for p in read_proofs() if (p["from"], p["equal"]) != (commit, moved)]
    replace_file(proofs_path(), json.dumps([*before, proof], indent=1) + "\n")
    names = ", ".join(moved) or "nothing, as no hash differs"
    say(f"linked in {proofs_path().relative_to(root())}: {names}")


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


# --- what is checked before anything runs ----------------------------------------------------


def committed_records() -> list[dict[str, Any]]:
    """The records of all plans but those that are known as of earlier code (earlier.txt).

    Without those of the tables, which measure nothing.
    """
    records = []
    for folder in map(reference_dir, plan_names()):
        if not (folder / "earlier.txt").is_file():
            records += read_records(folder / "records")
    return [record for record in records if record["notebook"] != TABLES_NOTEBOOK]


def hashes_of(record: Mapping[str, Any]) -> dict[str, str]:
    """The code that a record names, under the names of `tree_hashes`."""
    made = record.get("fingerprint")
    parts = made if isinstance(made, Mapping) else {}
    names = {part: part for part in ("core", "scoring", "large")}
    names["notebook"] = record["notebook"]
    return {names[part]: code for part, code in parts.items() if part in names}


def others(records: list[dict[str, Any]], today: Mapping[str, str]) -> set[str]:
    """The hashes that records name and today's code does not have, linked or not."""
    named = [item for record in records for item in hashes_of(record).items()]
    return {code for name, code in named if today.get(name) != code}


def check_environment(records: list[dict[str, Any]]) -> None:
    """Raise OtherEnvironment unless the packages that compute are those of the records."""
    for name in COMPUTING:
        made = {record["versions"][name].partition("+")[0] for record in records}
        here = importlib.metadata.version(name).partition("+")[0]
        if {here} != made:
            raise OtherEnvironment(
                f"{name} is {here} here, and the records were made with {', '.join(sorted(made))}: "
                "prove it in their environment, which is that of constraints.txt"
            )


def git(*arguments: str) -> str:
    """What git answers; subprocess.CalledProcessError where it refuses."""
    command = ["git", "-C", str(root()), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=True
    ).stdout.strip()


def clean_head() -> str:
    """The commit of this checkout. Raises RunError if what decides numbers differs from it."""
    changed = git("status", "--porcelain", "--", *SOURCES, *LAYOUTS).splitlines()
    if changed:
        raise RunError(
            f"{changed[0].split()[-1]} differs from the commit: commit your changes first, since "
            "what is proven is proven of a commit"
        )
    return git("rev-parse", "HEAD")


def commit_of(name: str) -> str:
    """The full hash of a commit. Raises RunError."""
    try:
        return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except subprocess.CalledProcessError as error:
        raise RunError(
            f"FROM = {name!r} is no commit of this repository: give one that git log shows, or "
            "fetch the whole history"
        ) from error


def earlier_commit(records: list[dict[str, Any]], today: Mapping[str, str]) -> str:
    """The commit that records of other code name, or a later one that is proven equal to it.

    That is the newest with probes and with other code than today's. Raises RunError.
    """
    made = sorted(
        (record["created"], record["git"]["commit"])
        for record in records
        if others([record], today)
    )
    candidates = [commit for _, commit in reversed(made)]
    known = set().union(*map(equal_hashes, others(records, today)))
    for proof in read_proofs():
        pairs = proof["equal"]
        other = any(today.get(name, new) != new for name, (_, new) in pairs.items())
        if other and known.intersection(itertools.chain(*pairs.values())):
            candidates.insert(0, proof["to"])
    for commit in dict.fromkeys(candidates):
        for probes in LAYOUTS:
            with contextlib.suppress(subprocess.CalledProcessError):
                git("cat-file", "-e", f"{commit}:{probes}")
                return commit
    raise RunError(
        "no commit that the records name has probes: give one that has as FROM"
    )


# --- two checkouts ---------------------------------------------------------------------------


@contextlib.contextmanager
def worktree(commit: str) -> Iterator[Path]:
    """A checkout of a commit, deleted at the end."""
    scratch = results_dir("scratch")
    scratch.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="same-") as folder:
        tree = Path(folder, commit[:12])
        git("worktree", "add", "--detach", str(tree), commit)
        try:
            yield tree
        finally:
            git("worktree", "remove", "--force", str(tree))


def layout(tree: Path) -> tuple[str, str]:
    """Where a checkout has its probes, and the package that runs its plans. Raises RunError."""
    for probes, package in LAYOUTS.items():
        if (tree / probes).is_file():
            return probes, package
    raise RunError(f"{tree.name} has no probes: give a later commit as FROM")


def values_of(tree: Path, commit: str) -> dict[str, Any]:
    """The values of a checkout's probes and of its plan smoke, and under "code" its hashes.

    Raises RunError.
    """
    from reproduction.proof.probes import flat  # here, since it loads torch

    probes, package = layout(tree)
    with tempfile.TemporaryDirectory() as folder:
        # one thread: a sum over several has another order on another number of cores
        variables = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
        variables |= {
            "HF_HUB_OFFLINE": "1",
            # first of all places, so that both runs import the package of their own checkout
            "PYTHONPATH": str(tree),
            "PRUNING_RESULTS": folder,
            "PRUNING_RUNS": "",
        }

        def run(*arguments: str) -> str:
            command = [sys.executable, *arguments]
            done = subprocess.run(
                command, cwd=tree, env=variables, capture_output=True, text=True
            )
            if done.returncode:
                lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
                raise RunError(
                    f"{commit[:12]}: {' '.join(arguments)} ended in: {lines[-1]}"
                )
            return done.stdout

        values = json.loads(run(probes))
        if Path(values.pop("package")) != tree / "helpers":
            raise RunError(
                f"the probes of {commit[:12]} imported another checkout's helpers"
            )
        run("-m", package, "run", "--plan", PLAN, "--jobs", "1")
        records = read_records(Path(folder, PLAN, "records"))
    for record in records:
        if record["git"]["commit"] != commit:
            raise RunError(
                f"plan {PLAN} ran {record['git']['commit']} instead of {commit}"
            )
        name = f"{PLAN}/{record['notebook']}--{record['name']}"
        values |= flat(without_time(record), name)
    return values


def without_time(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what two runs of one code need not have in common."""
    kept = {key: value for key, value in record.items() if key not in UNEQUAL}
    metrics = record["metrics"].items()
    return kept | {"metrics": {k: m for k, m in metrics if m["unit"] not in NOT_JUDGED}}


def compare(
    earlier: Mapping[str, Any], today: Mapping[str, Any]
) -> tuple[list[Difference], list[str]]:
    """What differs or is missing today, and the names that only today has."""
    new = [name for name in today if name not in earlier]
    # as text, which has all digits of a float and tells 1 from 1.0 and 0.0 from -0.0
    unequal = [
        Difference(name, value, today.get(name))
        for name, value in earlier.items()
        if (name not in today or json.dumps(value) != json.dumps(today[name]))
        # nothing was there, and now there are values, each under a name of its own
        and not (value is None and any(each.startswith(f"{name}/") for each in new))
    ]
    return unequal, new
