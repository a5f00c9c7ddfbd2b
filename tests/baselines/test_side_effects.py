"""What a method must not leave behind: imports, files, output."""

import subprocess
import sys

import pytest

from stepwarp.baselines import BASELINES

PEERS = {"ants", "SimpleITK", "fireants", "convexAdam", "stepwarp.registrar", "stepwarp.workflow"}


def test_reading_files_and_listing_the_methods_load_none_of_them():
    code = (
        "import sys, stepwarp.files, stepwarp.baselines as b; [m.missing() for m in b.BASELINES.values()]; "
        f"sys.exit(str({PEERS} & set(sys.modules)) if {PEERS} & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["ants-affine", "ants-syn", "simpleitk-affine", "convexadam"])
def test_no_file_and_no_output_stays(name, pair, tmp_path, monkeypatch, capfd):
    if BASELINES[name].missing():
        pytest.skip(BASELINES[name].missing())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    BASELINES[name](pair.fixed, pair.moving, threads=1, seed=1)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []
