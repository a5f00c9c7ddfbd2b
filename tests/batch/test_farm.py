"""What a batch system gets to see, of which nothing is submitted; and the workers that are started here."""

import time

import pytest

from stepwarp.batch.farm import Farm, FarmSize, workers
from stepwarp.batch.places import BatchPlaces
from stepwarp.errors import InputError

SIZE = FarmSize(0, 4, 2000, None)


@pytest.mark.parametrize(
    ("system", "lines"),
    [
        ("slurm", ["#SBATCH -p long", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=3G", "#SBATCH -t 04:00:00"]),
        ("sge", ["#$ -q long", "#$ -l h_rt=04:00:00"]),
        ("pbs", ["#PBS -q long", "#PBS -l select=1:ncpus=4:mem=2600MB", "#PBS -l walltime=04:00:00"]),
    ],
)
def test_the_script_of_a_job(tmp_path, system, lines):
    options = {"queue": "long", "walltime": "04:00:00", "interface": "lo"}
    with workers(Farm(system=system, options=options), SIZE, BatchPlaces(tmp_path)) as crew:
        script = crew.client.cluster.job_script()
        assert crew.present() == 0
    assert [line for line in lines if line not in script] == []
    assert script.split("--nthreads ")[-1].startswith("1 ")  # one case at a time, whatever the threads
    assert "tls://" in script


def test_options_that_there_are_not(tmp_path):
    farm = Farm(system="slurm", options={"qeue": "long"})
    said = r"dask-jobqueue does not take it \(Got unexpected.*'qeue'\)"
    with pytest.raises(InputError, match=said), workers(farm, SIZE, BatchPlaces(tmp_path)):
        pass


def test_a_scheduler_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("stepwarp.batch.farm._CONNECT_SECONDS", 0.2)
    farm, said = Farm(scheduler="tcp://127.0.0.1:9"), r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there"
    with pytest.raises(InputError, match=said), workers(farm, SIZE, BatchPlaces(tmp_path)):
        pass


def test_workers_keep_no_call_stacks(tmp_path):
    """Those of an hour would grow for as long as a batch runs."""
    with workers(Farm(), FarmSize(1, 1, 2000, 8000), BatchPlaces(tmp_path)) as crew:
        crew.client.wait_for_workers(1, timeout=60)
        crew.client.submit(time.sleep, 3).result()
        assert crew.client.profile()["count"] == 0
