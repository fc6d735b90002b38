"""Records: what goes in comes out, and what would mislead a table is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest

from helpers.errors import BadParameter, FileError
from helpers.paths import reference_dir
from helpers.report import records


def a_record(**changes: object) -> dict:
    fields = dict(
        notebook="04_prune_model",
        name="wanda-50",
        parameters={"method": "wanda", "sparsity": 0.5, "record_path": "here.json"},
        metrics={"perplexity": {"value": 12.5, "unit": "1"}},
        model={"name": "tiny"},
        data=None,
        seeds={"calibration": 0},
        seconds=1.5,
        device="cpu, 1 thread",
        peak_memory_bytes=1000,
    )
    return records.make_record(**(fields | changes))


def test_round_trip(tmp_path: Path) -> None:
    record = a_record(layers=[{"block": 0, "error": 0.25}, {"block": 1, "error": None}])
    path = records.write_record(tmp_path / "deep" / "a.json", record)
    assert records.read_record(path) == record
    assert records.read_records(tmp_path / "deep") == [record]
    assert {"python", "torch", "transformers"} <= set(record["versions"])
    assert record["platform"]["processor"]  # equal numbers are promised on one kind only
    assert record["parameters"] == {"method": "wanda", "sparsity": 0.5}  # no path of this machine


def test_numpy_values_become_plain() -> None:
    record = a_record(
        metrics={"perplexity": {"value": np.float32(2.5), "unit": "1"}},
        series={"curve": {"y": np.arange(3), "z": (1, 2)}},
    )
    assert record["metrics"]["perplexity"]["value"] == 2.5
    assert json.loads(json.dumps(record))["series"] == {"curve": {"y": [0, 1, 2], "z": [1, 2]}}


@pytest.mark.parametrize("value", [float("inf"), np.float64("nan")])
def test_nan_never_becomes_a_record(value: float, tmp_path: Path, one_line_error) -> None:
    with one_line_error(FileError, "perplexity"):
        a_record(metrics={"perplexity": {"value": value, "unit": "1"}})
    with one_line_error(FileError, "series.y"):
        a_record(series={"y": [1.0, value]})
    record = a_record()
    record["metrics"]["perplexity"]["value"] = value
    with one_line_error(FileError):
        records.write_record(tmp_path / "a.json", record)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"schema": 1', "not JSON"),
        ("[]", "= []"),
        ("{}", "schema is missing"),
        ("[" * 100_000, "not JSON"),
        ({"schema": 99}, "schema = 99"),
        ({"metrics": "none"}, "metrics = 'none'"),
        ({"metrics": {"m": 1.0}}, "metrics.m = 1.0"),
        ({"metrics": {"m": {"value": 1.0}}}, "metrics.m.unit is missing"),
        ({"metrics": {"m": {"value": "1", "unit": "1"}}}, "metrics.m.value = '1'"),
        ({"metrics": {"m": {"value": True, "unit": "1"}}}, "metrics.m.value = True"),
        ({"series": {"y": [float("nan")]}}, "series.y"),
    ],
)
def test_a_file_that_cannot_be_used(
    content: str | dict, reason: str, tmp_path: Path, one_line_error
) -> None:
    text = content if isinstance(content, str) else json.dumps(a_record() | content)
    (tmp_path / "bad.json").write_text(text)
    with one_line_error(FileError, "bad.json", reason):
        records.read_records(tmp_path)


def test_what_json_cannot_hold_is_no_record(one_line_error) -> None:
    with one_line_error(FileError, "parameters.x = {1}"):
        a_record(parameters={"x": {1}})
    with one_line_error(FileError, "notebok"):  # a field that is misspelt
        a_record(notebok={1})


@pytest.mark.parametrize("plan", ["laptop", "full"])
def test_committed_records_are_written_as_they_were(plan: str, tmp_path: Path) -> None:
    for path in (reference_dir(plan) / "records").glob("*.json"):
        copy = records.write_record(tmp_path / path.name, records.read_record(path))
        assert copy.read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "name", ["../../outside", "/etc/passwd", "..", ".hidden", "", "a\\b", "a\0b", "a\nb", "a" * 200]
)
def test_a_records_own_name_leads_to_no_other_folder(
    name: str, tmp_path: Path, monkeypatch, one_line_error
) -> None:
    monkeypatch.setenv("PRUNING_RESULTS", str(tmp_path / "results"))
    for field in ("name", "notebook"):
        with one_line_error(FileError, f"{field} = "):
            a_record(**{field: name})
        hostile = a_record() | {field: name}
        with one_line_error(FileError, f"{field} = "):
            records.write_record("", hostile)
        (tmp_path / "here.json").write_text(json.dumps(hostile))
        with one_line_error(FileError, "here.json", f"{field} = "):
            records.read_record(tmp_path / "here.json")
    assert [path.name for path in tmp_path.iterdir()] == ["here.json"]
    a_record(name="my method at 60 %, 2nd try")


def test_files_that_are_not_there_or_in_the_way(tmp_path: Path, one_line_error) -> None:
    assert records.read_records(tmp_path / "none") == []
    with one_line_error(FileError, "cannot read"):
        records.read_record(tmp_path / "none.json")
    (tmp_path / "file").write_text("in the way")
    with one_line_error(FileError, "cannot write", "a.json"):
        records.write_record(tmp_path / "file" / "a.json", a_record())
    for use in (records.read_record, lambda path: records.write_record(path, a_record())):
        with one_line_error(FileError, "null"):
            use(str(tmp_path / "a\0b.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (("1e-3", float), "write 1.0e-3"),
        (("2E5", int, float), "write 2.0e+5"),
        (("0.5", float), "without quotes"),
        (("half", float), "give float"),
        ((True, int), "bool"),
        ((0.5, int), "give int"),
        ((None, float), "NoneType"),
        ((124, str), "quotes"),
        ((float("nan"), float), "finite"),
    ],
)
def test_parameter_types_refused(bad: tuple, reason: str, one_line_error) -> None:
    records.check_parameters(a=(1, float), b=(None, int, None), c=(np.float64(2), float))
    with one_line_error(BadParameter, "rho = ", reason):
        records.check_parameters(rho=bad)
