"""`stepwarp doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from stepwarp.cli.options import DataOption, JsonOption, VerboseOption
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import cell, console, say_json
from stepwarp.errors import InputError
from stepwarp.printable import counted

if TYPE_CHECKING:
    from stepwarp.doctor import DoctorReport, Examined

#: So many files are listed one by one, and so many findings.
_FILES, _FINDINGS = 12, 40
_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def doctor(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILE|FOLDER|MANIFEST...",
            help="Images, label maps, transforms, landmarks, weights; folders; manifests, also by name.",
            show_default="this machine",
        ),
    ] = None,
    machine: Annotated[bool, typer.Option("--machine", help="Look at the machine too.")] = False,
    data: DataOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Look for what is wrong, before any work.

    \b
      stepwarp doctor A.nii.gz B.nii.gz A_labels.nii.gz
      stepwarp doctor STUDY/                all images of a folder
      stepwarp doctor oasis --data FOLDER   all files of a manifest
      stepwarp doctor                       versions, GPU, memory, disk, a self-test

    Every file is read to its last byte. Looked at are, of each: whether it can be used as it is (damaged, not finite,
    constant, 4D, sheared, without a place), whether sform and qform agree (in mm and degrees), spacing, orientation
    and handedness, clipped or few intensities, size; roughly, from its shape and brightness, whether it shows a brain
    alone or a whole head, and a T1 (of the brain alone: in a whole head the contrast is not judged). Of all together:
    the same voxels twice, label maps on another grid than the image of the same name, brains beside whole heads.

    An error is what stepwarp would refuse. A warning may spoil a result; a note is good to know. The exit code is 3
    if there is an error."""
    from stepwarp.doctor import DoctorReport, examine, examine_machine

    report = DoctorReport()
    with shown_progress(silent=as_json) as progress:
        if sources:
            report = report.joined(examine(sources, data, progress))
        if machine or not sources:
            report = report.joined(examine_machine(progress))
    if as_json:
        say_json(report.as_dict())
    else:
        _print(report)
    if report.counts["error"]:
        raise typer.Exit(InputError.exit_code)


def _print(report: DoctorReport) -> None:
    from rich.table import Table

    screen = console(soft_wrap=True)
    if report.machine:
        for name, value in _machine_rows(report.machine):
            screen.print(f"{name:<20}{cell(value)}")
    for file in report.files[:_FILES]:
        screen.print(f"{file.kind:<10}{cell(file.path)}  {cell(_described(file))}")
    if len(report.files) > _FILES:
        screen.print(f"and {counted(len(report.files) - _FILES, 'more file')} (--json describes all)")
    findings = report.findings
    if findings:
        table = Table(show_lines=True)
        for column in ("", "file", "finding", "what to do"):
            table.add_column(column, overflow="fold")
        for finding in findings[:_FINDINGS]:
            kind = f"[{_COLOURS[finding.severity]}]{finding.severity}[/]"
            table.add_row(kind, cell(finding.file), cell(finding.text), cell(finding.remedy))
        console().print(table)
        if len(findings) > _FINDINGS:
            screen.print(f"and {counted(len(findings) - _FINDINGS, 'more finding')} (--json lists all)")
    counts = ", ".join(counted(count, severity) for severity, count in report.counts.items())
    screen.print(f"{counted(len(report.files), 'file')}: {counts}" if report.files else counts)


def _described(file: Examined) -> str:
    facts = file.facts
    if "orientation" not in facts:
        return ""
    parts = [" x ".join(map(str, facts["shape"])), " x ".join(f"{s:g}" for s in facts["spacing_mm"]) + " mm"]
    parts.append(f"{facts['orientation']} ({facts['handedness']}-handed)")
    if "labels" in facts:
        parts.append(counted(facts["labels"], "label"))
    subject = facts.get("subject")
    if subject:
        shows = {"brain": "brain alone", "head": "whole head"}.get(subject["shows"])
        parts.append(f"{f'likely {shows}, ' if shows else ''}{subject['millilitres']:.0f} ml")
    return ", ".join(parts)


def _machine_rows(machine: dict[str, Any]) -> list[tuple[str, str]]:
    gpu, test, kernels = machine["gpu"], machine["self_test"], machine["kernels"]
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    device = "no GPU that torch sees" if gpu is None else f"{gpu['name']}, {gpu['memory_free_mib']} MiB free"
    disk = ", ".join(f"{free} MiB for {place}" for place, free in machine["disk_free_mib"].items())
    result = test["error"] or f"a registration is {test['mean_error_mm']:.3f} mm from the truth"
    return [
        ("stepwarp", f"{machine['stepwarp']}, Python {machine['python']}, {machine['os']}"),
        ("packages", packages),
        ("processor", f"{machine['cpu']}, {counted(machine['cores'], 'core')}"),
        ("device", device),
        ("memory", f"{machine['memory_free_mib']} of {machine['memory_mib']} MiB free"),
        ("disk", disk),
        ("kernels", f"{kernels['folder'] or 'no folder'}, {'compiled' if kernels['compiled'] else 'not compiled yet'}"),
        ("self-test", f"{test['seconds']} s, {result}"),
    ]
