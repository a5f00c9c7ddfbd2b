"""A finished run judged from its files: every method by the same labels, landmarks, mask and interpolation."""

from __future__ import annotations

import hashlib
import json
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepwarp.benchmark import child
from stepwarp.data.manifest import Pair, Scan
from stepwarp.version import __version__

if TYPE_CHECKING:
    from stepwarp.geometry import LabelMap

#: What of a scan is the truth that a transform is judged by.
_TRUTH = ("labels", "mask", "landmarks")


def standard(pair: Pair, digest: Callable[[Path], str]) -> dict[str, Any]:
    """What a pair's transforms are judged by, as a case's `judged` records it: two that differ judge differently.

    digest: the SHA-256 of a file."""
    scans = {"fixed": pair.fixed, "moving": pair.moving}
    paths = {f"{side}_{role}": getattr(scan, role) for side, scan in scans.items() for role in _TRUTH}
    names = json.dumps(sorted(pair.label_names.items())).encode()
    return {
        "files": {role: digest(path) for role, path in paths.items() if path is not None},
        "ignore_labels": list(pair.ignore_labels),
        "label_names": hashlib.sha256(names).hexdigest(),
        "unreliable_landmarks": sorted(_unreliable(pair)),
        "landmark_spaces": [_landmarks_are(scan) for scan in scans.values()],
        "stepwarp": __version__,
    }


def as_job(pair: Pair, method: str, title: str, out: Path, pictures: bool) -> dict[str, Any]:
    """The job of `main`, ready for JSON; paths are made absolute."""
    job = {"pair": asdict(pair), "method": method, "title": title, "out": str(out.absolute()), "pictures": pictures}
    return json.loads(json.dumps(job, default=_plain))


def main(job: dict[str, Any]) -> None:
    """Judge a run and write its case; the picture, if it is wanted, comes after that and may fail."""
    # Imported late: the process is watched over before it grows.
    from stepwarp.benchmark.places import RUN, BenchmarkPlaces
    from stepwarp.files import sha256
    from stepwarp.files.json import read_record, write_record

    pair, places = _pair(job["pair"]), BenchmarkPlaces(Path(job["out"]))
    judged = judge(pair, places.run(pair.id, job["method"]))
    case = {
        "pair": pair.id,
        "method": job["method"],
        "status": "done",
        "run": read_record(places.run(pair.id, job["method"]) / RUN),
        "judged": standard(pair, sha256),
        "evaluation": judged,
    }
    write_record(places.case(pair.id, job["method"]), case)
    if job["pictures"]:
        try:
            draw(pair, job["title"], places.run(pair.id, job["method"]), places.picture(pair.id, job["method"]))
        except Exception:  # the numbers are there; the log says why the picture is not
            traceback.print_exc()


def judge(pair: Pair, folder: Path) -> dict[str, Any]:
    """The evaluation of the transform in a folder, as `evaluate` returns it; InputError for unusable files."""
    from stepwarp.benchmark.results import read_result
    from stepwarp.evaluation.evaluate import evaluate
    from stepwarp.files import read_image, read_labels, read_landmarks

    transform, inverse = read_result(folder)
    fixed, moving = read_image(pair.fixed.image), read_image(pair.moving.image)
    truth: dict[str, Any] = {}
    for side, scan, image in (("fixed", pair.fixed, fixed), ("moving", pair.moving, moving)):
        if scan.labels:
            truth[f"{side}_labels"] = read_labels(scan.labels)
        if scan.landmarks:
            truth[f"{side}_landmarks"] = read_landmarks(
                scan.landmarks, scan.landmark_space, image.grid, scan.landmark_columns
            )
    for kind in ("labels", "landmarks"):
        if f"fixed_{kind}" not in truth or f"moving_{kind}" not in truth:
            truth.pop(f"fixed_{kind}", None), truth.pop(f"moving_{kind}", None)
    evaluation = evaluate(
        fixed,
        moving,
        transform,
        inverse=inverse,
        ignore_labels=pair.ignore_labels,
        label_names=pair.label_names,
        unreliable_landmarks=_unreliable(pair),
        mask=_mask(pair),
        **truth,
    )
    return evaluation | {"mask": child.without_folders(evaluation["mask"])}


def draw(pair: Pair, title: str, folder: Path, path: Path) -> None:
    """The picture of a case, from its files."""
    import torch

    from stepwarp.benchmark.results import read_result
    from stepwarp.evaluation.evaluate import measured_in
    from stepwarp.files import read_image, read_labels
    from stepwarp.report.benchmark import case_picture

    transform, _ = read_result(folder)
    fixed, moving = read_image(pair.fixed.image), read_image(pair.moving.image).surrounded()
    labels = [read_labels(scan.labels) if scan.labels else None for scan in (pair.fixed, pair.moving)]
    inside, _ = measured_in(fixed, _mask(pair))
    path.parent.mkdir(parents=True, exist_ok=True)
    case_picture(
        path,
        fixed,
        moving.warp(transform, fixed.grid),
        fixed_labels=labels[0],
        moved_labels=labels[1].warp(transform, fixed.grid) if labels[1] else None,
        jacobian=transform.jacobian_determinant(fixed.grid).where(inside, torch.nan),
        title=f"{pair.id}: {title}",
    )


def _mask(pair: Pair) -> LabelMap | None:
    from stepwarp.files import read_mask

    return read_mask(pair.fixed.mask) if pair.fixed.mask else None


def _landmarks_are(scan: Scan) -> str | list[str | None] | None:
    """How a scan's landmarks are read, as far as the manifest says it."""
    return [scan.landmark_space, scan.landmark_columns] if scan.landmark_columns else scan.landmark_space


def _unreliable(pair: Pair) -> frozenset[str]:
    return pair.fixed.unreliable_landmarks | pair.moving.unreliable_landmarks


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return sorted(value)  # what remains are sets of names


def _pair(content: dict[str, Any]) -> Pair:
    """The pair that `as_job` wrote down."""
    restored = {
        "fixed": _scan(content["fixed"]),
        "moving": _scan(content["moving"]),
        "ignore_labels": tuple(content["ignore_labels"]),
        "label_names": {int(label): name for label, name in content["label_names"].items()},
        "label_groups": {name: tuple(labels) for name, labels in content["label_groups"].items()},
        "transforms": {name: Path(path) for name, path in content["transforms"].items()},
    }
    return Pair(**content | restored)


def _scan(content: dict[str, Any]) -> Scan:
    paths = {role: Path(content[role]) for role in ("image", *_TRUTH) if content[role] is not None}
    return Scan(**content | paths | {"unreliable_landmarks": frozenset(content["unreliable_landmarks"])})


if __name__ == "__main__":
    child.report_errors(main)
