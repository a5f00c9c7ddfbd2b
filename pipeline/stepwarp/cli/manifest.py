"""`stepwarp manifest check`, `make` and `list`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepwarp.cli.checks import check_out
from stepwarp.cli.command import EXIT_CODES, Command
from stepwarp.cli.options import (
    DataOption,
    ForceOption,
    JsonOption,
    ManifestArgument,
    SeedOption,
    VerboseOption,
    path_option,
)
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say, say_json
from stepwarp.errors import InputError
from stepwarp.printable import counted

if TYPE_CHECKING:
    from stepwarp.workflow.manifests import Inventory

_SHOWN = 20

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Lists of scans and pairs: check them, make them.")


@app.command(cls=Command, epilog=EXIT_CODES)
def check(
    manifest: ManifestArgument,
    data: DataOption = None,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Compare a manifest with the files on disk.

    Every file is read: is it there, is it the one of the checksum, can it be used, does a label map lie on the grid of
    its image and a landmark within it? The exit code is 3 if anything is wrong."""
    from stepwarp.data.manifest import data_root, read_manifest
    from stepwarp.workflow.manifests import check as check_files

    content = read_manifest(manifest)
    root = data_root(data, manifest)
    with shown_progress(silent=as_json) as progress:
        inventory = check_files(content, root, progress)
    if as_json:
        say_json(inventory.as_dict())
    else:
        _print_inventory(inventory)
    if not inventory.complete:
        raise typer.Exit(InputError.exit_code)


@app.command(cls=Command, epilog=EXIT_CODES)
def make(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="What to make it from; demo makes the demo's pair.")],
    out: Annotated[Path, path_option("--out", "-o", help="The manifest to write, .json.")],
    data: Annotated[
        Path | None,
        path_option("--data", metavar="FOLDER", show_default="the folder of SOURCE", help="The data root."),
    ] = None,
    name: Annotated[str | None, typer.Option(metavar="TEXT", show_default="the source's", help="Its name.")] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="NAME", show_default="none", help="The split of scans for which the source gives none."),
    ] = None,
    fixed: Annotated[
        str | None,
        typer.Option(metavar="ID", show_default="the source's pairs", help="Register all other scans to this one."),
    ] = None,
    checksums: Annotated[bool, typer.Option(help="Note the SHA-256 of every file that is there.")] = True,
    seed: SeedOption = 0,
    force: ForceOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Make a manifest from a list in another format.

    \b
      stepwarp manifest make OASIS_dataset.json -o oasis.json    Learn2Reg
      stepwarp manifest make datalist.json -o study.json         MONAI, Decathlon
      stepwarp manifest make derivatives/ -o study.json          BIDS derivatives
      stepwarp manifest make pairs.csv -o study.json             CSV
      stepwarp manifest make demo -o FOLDER/demo.json            no data needed

    A CSV has the columns fixed and moving, and perhaps id, split, and fixed_ and moving_ with labels, mask, landmarks
    or subject. Paths begin at the folder of the list if that is below the data root, else at the root; the manifest
    has them relative to the root."""
    check_out(out.parent, [out.name], overwrite=force)
    from stepwarp.workflow.manifests import make as make_manifest

    with shown_progress() as progress:
        made = make_manifest(
            source,
            out,
            data,
            name=name,
            split=split,
            fixed=fixed,
            checksums=checksums,
            seed=seed,
            overwrite=force,
            progress=progress,
        )
    pairs = sum(1 for _ in made.all_pairs())
    say(
        f"{out}: {counted(len(made.images), 'scan')}, {counted(pairs, 'pair')}. Look it through with: stepwarp "
        f"manifest check {out}"
    )


@app.command("list", cls=Command, epilog=EXIT_CODES)
def list_shipped(verbose: VerboseOption = False) -> None:
    """List the manifests that come with stepwarp."""
    from stepwarp.data.manifest import read_manifest, shipped

    for name in shipped():
        manifest = read_manifest(name)
        pairs = sum(1 for _ in manifest.all_pairs())
        say(f"{name:<16}{len(manifest.images):>5} scans {pairs:>5} pairs  {manifest.name}")


def _print_inventory(inventory: Inventory) -> None:
    splits = ", ".join(f"{count} {split or 'without a split'}" for split, count in inventory.splits.items())
    say(f"manifest   {inventory.manifest}")
    say(f"data root  {inventory.root}")
    say(f"scans      {inventory.scans}{f' ({splits})' if splits else ''}, {counted(inventory.pairs, 'pair')}")
    say(f"files      {inventory.present} of {inventory.files} there, checksums for {inventory.checksums}")
    say(f"wrong      {len(inventory.findings) or 'nothing'}")
    for finding in inventory.findings[:_SHOWN]:
        reason = finding.reason.partition(f"{finding.path}: ")[2] or finding.reason
        say(f"  {finding.kind:<10}{finding.scan} {finding.role}: {finding.path} {reason}")
    if len(inventory.findings) > _SHOWN:
        say(f"  and {len(inventory.findings) - _SHOWN} more (--json lists all)")
    if inventory.present < inventory.files or not inventory.files:
        say(f"to obtain  {inventory.obtain or 'the manifest does not say how'}")
