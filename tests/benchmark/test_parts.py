import subprocess
from pathlib import Path

PARTS = Path(__file__).parents[2] / "benchmarks" / "parts.sh"


def test_parts_that_ended_are_left_out_and_those_that_failed_are_named_and_stop_no_other(tmp_path):
    script = tmp_path / "run.sh"
    parts = ("part first echo one", "part second cat missing", "part third echo three")
    script.write_text("\n".join(("set -uo pipefail", f". {PARTS} here", *parts, "conclude", "")))

    def run():
        return subprocess.run(["bash", script], cwd=tmp_path, capture_output=True, text=True, check=False)

    first = run()
    assert first.returncode == 1
    assert {"one", "three"} <= set(first.stdout.splitlines())
    assert first.stdout.splitlines()[-1] == "failed: second; see benchmarks/work/here"
    (tmp_path / "missing").write_text("two\n")
    again = run()
    assert again.returncode == 0
    assert "two" in again.stdout.splitlines()
    assert not {"one", "three"} & set(again.stdout.splitlines())
    assert (tmp_path / "benchmarks" / "work" / "here" / "second.log").read_text() == "two\n"
