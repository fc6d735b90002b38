"""The verdict: records here beside committed ones, on both sides of what is allowed."""

import copy
import math
from typing import Any

import pytest
from handmade import metric, update_row

from helpers.paths import reference_dir
from helpers.records import read_records
from helpers.results import equal_to_printed_digits, judge, record_id, to_lines
from helpers.results.verdict import CEILING, FLOOR, UNKNOWN, Tolerances


def run(perplexity: float, seed: int = 0, method: str = "wanda", **asked: Any) -> dict[str, Any]:
    parameters = {"method": method, "sparsity": 0.5, "calibration_seed": seed, "device": "cpu"}
    metrics = {"perplexity": metric(perplexity), "prune_seconds": metric(9 * perplexity, "s")}
    name = f"{method}-{seed}"
    return {"notebook": "04", "name": name, "parameters": parameters | asked, "metrics": metrics}


def test_a_run_is_reproduced_within_its_tolerance() -> None:
    reference = [run(10.0), run(10.6, method="b"), run(10.0, method="gone"), run(1.0, method="c")]
    here = [run(10.1, device="cuda"), run(10.0, method="b"), run(1.0, method="c", rho=2.0)]
    found = judge([*here, run(5.0, method="new")], reference, [])
    assert (found.compared, found.reproduced) == (3, 1)  # gone has no record here
    assert found.without == 2  # c has other parameters, new is not in the reference
    lines = to_lines(found.comparisons)
    assert len({len(line.rstrip("OUT").rstrip()) for line in lines}) == 1, "not aligned"
    shown = {line.split()[1]: line for line in lines[1:]}
    assert "+1.00 %" in shown["wanda-0"] and not shown["wanda-0"].endswith("OUT")
    assert "-5.66 %" in shown["b-0"] and shown["b-0"].endswith("OUT")
    assert "missing" in shown["gone-0"] and shown["gone-0"].endswith("OUT")
    assert not any("seconds" in line for line in lines)


def test_a_parameter_that_an_older_reference_lacks_had_its_default() -> None:
    old, new = run(10.0), run(10.0, steps=3)
    assert judge([new], [old], []).without == 1
    assert judge([new], [old], [], {"04": {"steps": 3}}).reproduced == 1
    assert judge([new], [old], [], {"04": {"steps": 4}}).without == 1


@pytest.mark.parametrize("plan", ["laptop", "full"])
def test_a_plan_reproduces_itself(plan: str) -> None:
    records = read_records(reference_dir(plan) / "records")
    found = judge(records, records, [])
    measuring = [record for record in records if record["notebook"] != "06_tables_and_plots"]
    assert found.reproduced == found.compared == len(measuring) and found.without == 0
    assert not any(line for record in records for line in equal_to_printed_digits(record, record))


def test_tolerance_comes_from_the_seeds() -> None:
    spread = Tolerances(
        [run(10.0), run(11.0, 1), run(20.0, method="a"), run(20.1, 1, "a"), run(7.0, method="lone")]
    )
    assert spread.of(run(9.0), "perplexity") == pytest.approx(1 / 10.5)
    assert spread.of(run(9.0, method="a"), "perplexity") == FLOOR
    assert spread.of(run(9.0, method="new"), "perplexity") == pytest.approx(1 / 10.5)
    own = run(9.0)
    own["metrics"]["perplexity"]["tolerance"] = 0.3
    assert spread.of(own, "perplexity") == 0.3
    assert Tolerances([run(1.0)]).of(run(1.0), "perplexity") == UNKNOWN
    assert Tolerances([run(1.0), run(9.0, 1)]).of(run(1.0), "perplexity") == CEILING


def test_tolerance_of_a_perplexity_grows_with_the_damage() -> None:
    dense, near = run(10.0, method="dense"), run(10.2, method="near")
    seeds = [run(20.0), run(21.0, 1)]
    spread = Tolerances([dense, *seeds])
    share = math.log(21 / 20) / (math.log(420 / 100) / 2)  # of the mean damage, ln 2 and ln 2.1
    assert spread.of(run(20.0), "perplexity") == pytest.approx(2**share - 1)
    assert spread.of(run(40.0, method="new"), "perplexity") == pytest.approx(4**share - 1)
    assert spread.of(near, "perplexity") == spread.of(dense, "perplexity") == FLOOR
    # a dense model that was measured on other text, or seeds with hardly any damage: relative
    close = Tolerances([dense, run(10.1), run(10.6, 1)])
    assert close.of(run(40.0), "perplexity") == pytest.approx(0.5 / 10.35)
    dense["parameters"]["windows"] = 3
    other = Tolerances([dense, *seeds])
    assert other.of(run(40.0, method="new"), "perplexity") == pytest.approx(1 / 20.5)


@pytest.mark.parametrize(("name", "value", "here"), [("sparsity", 0.5, 0.5001), ("tokens", 7, 8)])
def test_exact_metrics_must_be_equal(name: str, value: float, here: float) -> None:
    reference, other = ({**run(1.0), "metrics": {name: metric(v)}} for v in (value, here))
    assert judge([reference], [reference], []).reproduced == 1
    assert judge([other], [reference], []).reproduced == 0


def test_equal_to_printed_digits() -> None:
    reference = run(66.156308)
    rows = [update_row("admm", excess=2e-7, error=0.0412345)]
    answers = {"rte": {"items": [1, 2], "acc": [0, 1]}}
    reference["series"] = {"update": rows, "zero_shot": answers, "curves": [{"error": [0.1]}]}
    here = copy.deepcopy(reference)
    here["metrics"]["perplexity"]["value"] = 66.1587  # 66.16 as well
    here["metrics"]["prune_seconds"]["value"] = 1.0
    here["series"]["curves"][0]["error"][0] = 0.2  # drawn, not printed
    here["series"]["update"][0] |= {"seconds": 9.0, "excess": 5e-7, "error": 0.0412349}
    assert equal_to_printed_digits(here, reference) == []
    here["metrics"]["perplexity"]["value"] = 66.1452
    here["series"]["update"][0] |= {"excess": 5e-5, "error": 0.04135}
    here["series"]["zero_shot"]["rte"]["acc"] = [1, 1]
    here["metrics"]["new"] = metric(1.0)
    differing = equal_to_printed_digits(here, reference)
    assert [line.split(":")[0].split()[1] for line in differing] == [
        "new", "perplexity", "update[0].error", "update[0].excess", "zero_shot.rte.acc[0]"
    ]  # fmt: skip
    assert differing[1] == f"{record_id(reference)} perplexity: 66.15, reference 66.16"
