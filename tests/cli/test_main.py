import inspect
import subprocess
import sys

import pytest

import stepwarp


def test_help_lists_the_commands_and_the_exit_codes(run):
    result = run("--help")
    assert result.code == 0
    assert all(f"\n  {name}  " in result.out for name in ("register", "apply", "evaluate", "demo"))
    assert all(f"\n    {code} " in result.out for code in (0, 1, 2, 3, 4, 5, 6, 7, 8, 130))


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "register",
            "--fixed --moving --out --fixed-mask --moving-mask --preset --affine-only --transform --similarity "
            "--device --threads --time-budget --trust --force --json --verbose",
        ),
        (
            "apply",
            "--transform --input --output --from --to --inverse --reference --interpolation --labels --space --trust "
            "--force --json --verbose",
        ),
        (
            "evaluate",
            "--fixed --moving --transform --fixed-labels --moving-labels --label-names --ignore-labels "
            "--fixed-landmarks --moving-landmarks --unreliable-landmarks --landmark-space --mask --out --trust --force "
            "--all --json --verbose",
        ),
        ("demo", "--out --preset --seed --device --threads --force --verbose"),
    ],
)
def test_help_of_a_command_lists_its_options_and_the_exit_codes(run, command, options):
    result = run(command, "--help")
    assert result.code == 0
    assert all(f" {option} " in result.out.replace("\n", " \n") for option in options.split())
    assert "130  interrupted" in result.out


def test_version(run):
    assert run("--version").out == f"stepwarp {stepwarp.__version__}\n"


def test_help_does_not_wait_for_slow_imports():
    script = (
        "import sys; from stepwarp.cli import main; print([m for m in ('torch', 'numpy', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["register"],
        ["register", "--fixed", "a", "--moving", "b", "--out", "c", "--similarity", "superb"],
        ["register", "--fixed", "a", "--moving", "b", "--out", "c", "--threads", "0"],
        ["apply", "--from", "elsewhere"],
        ["demo", "--seed", "-1"],
    ],
)
def test_wrong_usage_is_2(run, arguments):
    result = run(*arguments)
    assert result.code == 2
    assert result.out == ""
    assert result.err.startswith("Usage: stepwarp")


def test_python_and_the_commands_have_the_same_options():
    """Every field of `RegisterOptions` is a keyword of `register`, with its default, and an option of both commands; of
    `batch`, whose cases are a pair of images each, not the one that several pairs want."""
    from stepwarp.cli.batch import batch
    from stepwarp.cli.register import register as command
    from stepwarp.options import RegisterOptions

    fields = {name: field.default for name, field in RegisterOptions.model_fields.items()}
    given = {name: each.default for name, each in inspect.signature(stepwarp.register).parameters.items()}
    theirs = {"fixed", "moving", "fixed_mask", "moving_mask", "progress", "network", "network_steps"}
    assert {name: () if name == "trust" else given[name] for name in given if name not in theirs} == fields
    for each in (batch, command):
        options = {name: one.default for name, one in inspect.signature(each).parameters.items()}
        assert fields.keys() - options.keys() == ({"trace", "pair_weight"} if each is batch else set())
        assert all(options[name] in (fields[name], None) for name in fields.keys() & options.keys() - {"trace"})


def test_choices_are_those_of_the_settings(run):
    from typing import get_args, get_type_hints

    from stepwarp.cli import apply as command
    from stepwarp.files import Trust
    from stepwarp.options import OptionHelp, RegisterOptions
    from stepwarp.workflow import apply

    (shown,) = (each for each in RegisterOptions.model_fields["trust"].metadata if isinstance(each, OptionHelp))
    assert shown.metavar == f"[FILE=]{'|'.join(get_args(Trust))}"
    assert get_type_hints(apply.apply)["source"] == command.Side | None
    listed = " ".join(run("register", "--help").out.split())
    for choice in ("fast (Above ANTs' SyNQuick in a few seconds)", "ncc (Correlation of the whole images)"):
        assert choice in listed
