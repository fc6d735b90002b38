"""Records: what goes in comes out, and what would mislead a table is refused in one line."""

import json
from types import NoneType

import numpy as np
import pytest

from helpers.errors import BadParameter, FileError
from helpers.paths import reference_dir
from reproduction import records


def a_record(**changes):
    fields = dict(
        notebook="04_prune_model",
        name="wanda-50",
        parameters={"method": "wanda", "sparsity": 0.5},
        metrics={"perplexity": {"value": 12.5, "unit": "1"}},
        model={"name": "tiny"},
        data=None,
        seeds={"calibration": 0},
        seconds=1.5,
        device="cpu, 1 thread",
        peak_memory_bytes=1000,
    )
    return records.make_record(**(fields | changes))


def test_round_trip(tmp_path):
    record = a_record(layers=[{"block": 0, "error": 0.25}, {"block": 1, "error": None}])
    path = records.write_record(tmp_path / "deep" / "a.json", record)
    assert records.read_record(path) == record
    assert records.read_records(tmp_path / "deep") == [record]
    assert {"python", "torch", "pruning-reproduction"} <= set(record["versions"])
    # equal numbers are promised on one kind only
    assert record["platform"]["processor"]


def test_committed_records_are_written_as_they_are(tmp_path):
    for path in reference_dir("laptop").glob("records/*.json"):
        copy = records.write_record(tmp_path / path.name, records.read_record(path))
        assert copy.read_bytes() == path.read_bytes()


NAN = float("nan")


@pytest.mark.parametrize(
    "change, reason",
    [
        ('{"schema": 1', "not JSON"),
        ("{}", "schema is missing"),
        ("[" * 100_000, "not JSON"),
        ({"schema": 99}, "schema = 99"),
        ({"metrics": "none"}, "metrics = 'none'"),
        ({"metrics": {"m": 1.0}}, "metrics.m = 1.0"),
        ({"metrics": {"m": {"value": 1.0}}}, "metrics.m.unit is missing"),
        ({"metrics": {"m": {"value": "1", "unit": "1"}}}, "metrics.m.value = '1'"),
        ({"metrics": {"m": {"value": NAN, "unit": "1"}}}, "metrics.m.value"),
        ({"series": {"y": [float("inf")]}}, "series.y"),
        ({"layers": [{"error": NAN}]}, "layers.0"),
        ({"run_seconds": NAN}, "run_seconds"),
        *(
            ({field: name}, f"{field} = ")  # a name that leads to another folder
            for name in (
                "../../outside",
                "/etc/passwd",
                ".hidden",
                "",
                "a\\b",
                "a\nb",
                "a" * 200,
            )
            for field in ("name", "notebook")
        ),
    ],
)
def test_a_bad_record_is_neither_read_nor_written(
    change, reason, tmp_path, one_line_error
):
    text = change if isinstance(change, str) else json.dumps(a_record() | change)
    (tmp_path / "bad.json").write_text(text)
    with one_line_error(FileError, "bad.json", reason):
        records.read_records(tmp_path)
    if isinstance(change, dict):
        with one_line_error(FileError, reason):
            records.write_record(tmp_path / "new.json", a_record() | change)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.json"]


def test_values_become_plain_or_are_refused(one_line_error):
    record = a_record(
        metrics={"perplexity": {"value": np.float32(2.5), "unit": "1"}},
        series={"curve": {"y": np.arange(3), "z": (1, 2)}},
    )
    assert json.loads(json.dumps(record))["series"] == {
        "curve": {"y": [0, 1, 2], "z": [1, 2]}
    }
    with one_line_error(FileError, "parameters.x = {1}"):
        a_record(parameters={"x": {1}})


def test_types_of_parameters(one_line_error):
    for good in ((1, float), (None, int, NoneType)):
        records.check_type("a", good[0], good[1:])
    for bad, reason in (
        ((True, int), "bool"),
        ((None, float), "NoneType"),
        ((NAN, float), "finite"),
        (("0.5 %", float, NoneType), "a number"),
    ):
        with one_line_error(BadParameter, "rho = ", reason):
            records.check_type("rho", bad[0], bad[1:])
