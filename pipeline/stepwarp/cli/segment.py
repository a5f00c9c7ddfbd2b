"""`stepwarp segment`."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepwarp.cli.checks import check_files, check_out
from stepwarp.cli.options import (
    DeviceOption,
    ForceOption,
    JsonOption,
    OutOption,
    ThreadsOption,
    TrustOption,
    VerboseOption,
)
from stepwarp.cli.progress import shown_progress
from stepwarp.cli.terminal import say, say_json
from stepwarp.layout import SEGMENTED

if TYPE_CHECKING:
    from stepwarp.workflow.segment import SegmentedImage


def segment(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A head of any contrast, whole or skull-stripped.")],
    out: OutOption,
    weights: Annotated[
        str,
        typer.Option(
            "--weights", "-w", metavar="NAME|FILE", help="A segmenter that comes with stepwarp or that it trained."
        ),
    ] = "brain-any",
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    trust: TrustOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Find the structures of a head, and what of it is brain.

    \b
      stepwarp segment HEAD.nii.gz --out anatomy

    The image is 3D, of any contrast, spacing and position (.nii, .nii.gz, .mgz, .hdr/.img). The folder then holds, on
    the image's own grid:

    \b
      structures.nii.gz    17 structures and the fluid around the brain, by FreeSurfer's
                           ids; left and right have the id of the left one
      mask.nii.gz          the brain, in one piece: as a mask for register, for example
      volumes.csv          id, name and millilitres of each
      segmentation.json    what was used, how sure it is, seconds

    The network (brain-any) was trained on images painted from label maps, and sees voxels of 2 mm: small structures are
    rough, and the volumes no measurement for a diagnosis. The header has to say rightly which way is up and how large
    voxels are. An image that shows no head is refused, with the reason, and so is a label map."""
    check_files([image])
    check_out(out, SEGMENTED, overwrite=force, default="anatomy")
    from stepwarp.workflow.segment import claimed, segment_image

    with ExitStack() as stack:
        progress = stack.enter_context(shown_progress(silent=as_json))
        place = stack.enter_context(claimed(out, force))
        found = segment_image(
            image, weights=weights, device=device, threads=threads, trust=tuple(trust or ()), progress=progress
        )
        found.save(out, overwrite=force, progress=progress, place=place)
    if as_json:
        say_json(found.record)
    else:
        _print(found, out)


def _print(found: SegmentedImage, out: Path) -> None:
    for name, millilitres in found.record["volumes_ml"].items():
        say(f"{name:<28}{millilitres:>9.1f} ml")
    say(f"{'how certain':<28}{found.record['head']['certainty']:>9.2f}")
    say(f"{'seconds':<28}{sum(stage['seconds'] for stage in found.record['stages']):>9.1f}")
    say(f"written to {out}")
