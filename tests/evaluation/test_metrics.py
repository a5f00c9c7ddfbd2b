"""The table of metrics is the only one: what is added to it is everywhere, and nobody else keeps a list."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stepwarp
from stepwarp.batch.conclude import csv_of as batch_csv_of
from stepwarp.batch.conclude import row_of
from stepwarp.benchmark.runner import _line
from stepwarp.benchmark.summary import csv_of, summarise, table_of
from stepwarp.cli.benchmark import _print_summary
from stepwarp.cli.scores import print_evaluation
from stepwarp.evaluation.metric import VIEWS, Metric
from stepwarp.evaluation.metrics import METRICS, of_similarities
from stepwarp.report.batch import render as batch_page
from stepwarp.report.benchmark import render as benchmark_page

NEW = Metric(
    "nsd_percent",
    "normalised surface Dice",
    "higher",
    "accuracy",
    "share of the surface that is met",
    unit="%",
    decimals=1,
    short="NSD",
    case="evaluation.nsd.share",
    record=("measures.nsd.share",),
    factor=100,
)
MEASURED = {"nsd": {"share": 0.875}, "std_log_jacobian": 0.4}


@pytest.fixture(autouse=True)
def added(monkeypatch):
    monkeypatch.setitem(METRICS, NEW.key, NEW)


def case(method, share):
    evaluation = MEASURED | {"nsd": {"share": share}}
    return {"pair": "p", "method": method, "status": "done", "run": {"seconds": 1.0}, "evaluation": evaluation}


def summary_of(*cases):
    manifest = {"name": "n", "split": None, "pairs": ["p"], "label_groups": {}}
    titles = {"ours": "Ours", "theirs": "Theirs"}
    return summarise(cases, manifest=manifest, titles=titles, baseline="theirs", environment={})


CASES = [case("ours", 0.875), case("theirs", 0.5)]


def test_a_new_metric_is_in_the_summary_and_the_tables():
    summary = summary_of(*CASES)
    against = summary["methods"]["ours"]["metrics"][NEW.key]["against_baseline"]
    assert (against["difference"], against["wins"]) == (37.5, 1)
    assert summary["statistics"]["higher_is_better"][NEW.key] is True
    assert NEW.key in csv_of(summary).splitlines()[0].split(",")
    assert "NSD, %" in table_of(summary).splitlines()[2]
    assert "| Ours | NSD, % | +37.5 |" in table_of(summary)


def test_a_new_metric_is_on_the_page_of_a_benchmark_and_in_the_terminal(tmp_path, capsys):
    summary = summary_of(*CASES)
    page = benchmark_page(tmp_path, summary, CASES)
    assert page.count("<h2>NSD (%) <small>") == page.count("<h2>NSD (%) against wall time, s") == 1
    assert page.count(f"{NEW.meaning}; higher is better") >= 2, "a column of the scores, and of the cases"
    assert f"<dd>{NEW.meaning}</dd>" in page
    _print_summary(summary)
    out = capsys.readouterr().out
    assert "NSD, %" in out
    assert "NSD +37.5 % against theirs, better on 1" in out
    assert _line(CASES[0]).endswith("NSD 87.5 %")


def test_a_new_metric_is_in_an_evaluation_and_a_batch(tmp_path, capsys):
    alike = dict.fromkeys(of_similarities(), 0.5)
    lengths = {"mean": 1.0, "p95": 2.0, "max": 3.0}
    result = MEASURED | {"transform": [], "mask": {"source": "all", "voxels": 1}, "notes": [], "jacobian": None}
    print_evaluation(result | {"displacement_mm": lengths, "similarity": {"before": alike, "after": alike}}, False)
    assert "normalised surface Dice (%) 87.5" in " ".join(capsys.readouterr().out.split())
    record = {"measures": MEASURED, "verdict": {"status": "pass", "reasons": []}}
    inputs = {role: {"path": role} for role in ("fixed", "moving")}
    row = row_of("p", record | {"inputs": inputs, "stages": [{"seconds": 1.0, "peak_mib": 5}]})
    assert row[NEW.key] == 87.5
    summary = {"about": {}, "counts": {"pass": 1}, "cases": [row]}
    assert NEW.key in batch_csv_of(summary).splitlines()[0].split(",")
    page = batch_page(tmp_path, summary)
    assert '<td data-name="NSD">87.5</td>' in page
    assert page.count("<h2>NSD (%) ") == 1


def test_nobody_wins_by_what_has_no_better_end(tmp_path):
    summary = summary_of(case("ours", 0.5), {**case("theirs", 0.5), "evaluation": {"std_log_jacobian": 0.2}})
    against = summary["methods"]["ours"]["metrics"]["std_log_jacobian"]["against_baseline"]
    assert (against["wins"], against["losses"], against["p_wilcoxon"]) == (None, None, 1.0)
    assert summary["statistics"]["higher_is_better"]["std_log_jacobian"] is None
    page = benchmark_page(tmp_path, summary, CASES)
    cell = page.split("+0.200", 1)
    assert "neither end is better" in cell[0].rsplit("<small", 1)[1]
    assert "None" not in page


@pytest.mark.parametrize("room", ["batch", "benchmark", "cli", "report"])
def test_nobody_else_keeps_a_list_of_metrics(room):
    """Of what is judged, that is: what a run costs is written where it is measured."""
    judged, lists = {key for key, metric in METRICS.items() if metric.family != "cost"}, []
    for path in (Path(stepwarp.__file__).parent / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
            keys = {item.value for item in items if isinstance(item, ast.Constant)} & judged
            if len(keys) > 2:
                lists.append(f"{path.name}:{node.lineno}: {sorted(keys)}")
    assert not lists


def test_the_table_is_sound():
    for key, metric in METRICS.items():
        assert key == metric.key
        assert metric.case or metric.record
        assert set(metric.shown) <= set(VIEWS)
    columns = [metric.column for metric in METRICS.values()]
    assert len(set(columns)) == len(columns)


@pytest.mark.parametrize(
    ("decimals", "value", "written"),
    [(2, 3.0, "3.00"), (None, 3.0, "3"), (None, 0.0, "0"), (None, 0.00123456, "0.00123"), (None, 12.34, "12.3")],
)
def test_how_a_value_is_written(decimals, value, written):
    metric = Metric("a", "a", None, "cost", "", decimals=decimals, case="a")
    assert metric.plain(value) == metric.text(value) == written
    assert metric.text(-1234.0, signed=True) == ("\N{MINUS SIGN}1,234.00" if decimals else "\N{MINUS SIGN}1,234")


def test_what_a_list_of_a_record_holds_is_put_together_and_a_case_is_left_as_it_is():
    stages = [{"seconds": 1.111, "peak_mib": 7}, {"seconds": 2.222}, {"peak_mib": 9}]
    assert [METRICS[key].in_record({"stages": stages}) for key in ("seconds", "peak_mib")] == [3.33, 9]
    assert METRICS["seconds"].in_case({"run": {"seconds": 1.2345}}) == 1.2345
    assert METRICS["seconds"].in_case({}) is METRICS["seconds"].in_record({"stages": []}) is None
    affine_only = {"measures": {"similarity_affine": {"lncc": 0.3}}}
    assert METRICS["lncc_after"].in_record(affine_only) == 0.3


def test_it_waits_for_nothing():
    code = "import stepwarp.evaluation.metrics, sys; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
