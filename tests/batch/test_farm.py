"""What a batch system gets to see; nothing is submitted."""

import pytest

from stepwarp.batch.farm import Farm, Size, workers
from stepwarp.batch.places import Places
from stepwarp.errors import InputError

SIZE = Size(0, 4, 2000, None)


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
    with workers(Farm(system=system, options=options), SIZE, Places(tmp_path)) as crew:
        script = crew.client.cluster.job_script()
        assert crew.present() == 0
    assert [line for line in lines if line not in script] == []
    assert script.split("--nthreads ")[-1].startswith("1 ")  # one case at a time, whatever the threads
    assert "tls://" in script


def test_options_that_there_are_not(tmp_path):
    farm = Farm(system="slurm", options={"qeue": "long"})
    said = r"dask-jobqueue does not take it \(Got unexpected.*'qeue'\)"
    with pytest.raises(InputError, match=said), workers(farm, SIZE, Places(tmp_path)):
        pass


def test_a_scheduler_that_does_not_answer(tmp_path, monkeypatch):
    monkeypatch.setattr("stepwarp.batch.farm._CONNECT_SECONDS", 0.2)
    farm, said = Farm(scheduler="tcp://127.0.0.1:9"), r"tcp://127\.0\.0\.1:9: no Dask scheduler answers there"
    with pytest.raises(InputError, match=said), workers(farm, SIZE, Places(tmp_path)):
        pass
