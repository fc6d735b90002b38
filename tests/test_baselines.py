"""What notebook 07 sets one's own method beside: runs of this machine before committed ones."""

import math

import pytest
from handmade import pruned

import reproduction.baselines
from helpers.paths import reference_dir, results_dir
from reproduction import claim_draws
from reproduction.baselines import baselines
from reproduction.records import read_record, write_record

OURS = reference_dir("laptop") / "records"


@pytest.fixture
def made_here(tmp_path, monkeypatch):
    """`made_here(name, perplexity)`: put a record of a run on this machine, of today's code."""
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path))
    monkeypatch.setattr(
        reproduction.baselines, "is_done", lambda run: run.record_path.is_file()
    )
    monkeypatch.setattr(reproduction.baselines, "processor", lambda: "mine")

    def write(name, perplexity):
        record = read_record(OURS / f"{name}.json")
        record["metrics"]["perplexity"]["value"] = perplexity
        write_record(results_dir("laptop") / "records" / f"{name}.json", record)

    return write


def perplexities(records):
    return {
        record["name"]: record["metrics"]["perplexity"]["value"] for record in records
    }


def test_a_run_of_this_machine_stands_for_the_committed_one(made_here):
    made_here("04_prune_model--wanda-60", 1.25)
    records, made_on = baselines("laptop", "my-method")
    names = [path.stem[16:] for path in OURS.glob("04_prune_model--*.json")]
    found = perplexities(records)
    assert sorted(found) == sorted(names)
    assert found["wanda-60"] == 1.25
    other = read_record(OURS / "04_prune_model--admm1-60.json")
    assert found["admm1-60"] == other["metrics"]["perplexity"]["value"]
    assert f"{len(names) - 1} of {len(names)}" in made_on
    assert other["platform"]["processor"] in made_on
    assert "mine" in made_on


def test_nothing_is_said_of_another_processor_once_all_was_made_here(made_here):
    for path in OURS.glob("04_prune_model--*.json"):
        made_here(path.stem, 2.0)
    records, made_on = baselines("laptop", "my-method")
    assert set(perplexities(records).values()) == {2.0}
    assert "AMD" not in made_on


def test_an_earlier_run_of_the_method_itself_is_left_out(made_here):
    """The row would be the mean of a method and of what it was before the last change."""
    made_here("04_prune_model--admm1-60", 1.0)
    records, _ = baselines("laptop", "admm1")
    assert "admm1-60" not in perplexities(records)


@pytest.mark.parametrize(
    ("seeds", "processor", "device", "pairs", "said"),
    [
        (3, "mine", "cpu, 1 thread", 3, ""),
        (3, "ours", "cpu, 1 thread", 0, "3 of another processor: run alps here"),
        (3, "mine", "cpu, 2 threads", 0, "3 of another device: run alps here"),
        (2, "mine", "cpu, 1 thread", 2, "± takes three samples that both have"),
        (0, "mine", "cpu, 1 thread", 0, "no run of alps at 60 %"),
    ],
)
def test_a_comparison_without_pairs_says_why(
    seeds, processor, device, pairs, said, monkeypatch
):
    def made(method, seeds, processor, device):
        more = {"platform": {"processor": processor}, "device": device}
        return [pruned(method, "60 %", 20.0 + n, n) | more for n in range(seeds)]

    here = made("mine", 3, "mine", "cpu, 1 thread")
    theirs = made("alps", seeds, processor, device)
    monkeypatch.setattr(
        claim_draws,
        "read_records",
        lambda folder: theirs if "reference" in folder.parts else here,
    )
    (row,) = claim_draws.against("mine", ["alps"]).to_dict("records")
    assert (row["pairs"], row["missing"]) == (pairs, said)
    assert math.isnan(row["±"]) == bool(said)
