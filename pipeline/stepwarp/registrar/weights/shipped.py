"""The weights that come with stepwarp, by name: each a file of the package, checked before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from stepwarp.errors import InputError
from stepwarp.files import sha256
from stepwarp.recipes import nearest

#: name -> SHA-256 of `weights/NAME.safetensors` in the package.
SHIPPED: dict[str, str] = {
    "brain-t1": "f7b344c9e0990c48ae9441d831e43a7dd5fe2fc61859eb06cf65c2074c7461bd",
    "brain-t1-labels": "8f0c3e898819ed18859f35655801583d880d5905b74892f08043a28f20056d48",
}
#: The same for networks that do not register, but name the structures of one image: see `segment`.
SHIPPED_SEGMENTERS: dict[str, str] = {
    "brain-any": "016a1f4af508229bc9afb13d318ee1cba9a118ea3ba1952653aa24f915f552e1",
}


def weights_path(source: str | Path, shipped: Iterable[str] = SHIPPED) -> Path:
    """The file that holds the weights `source`: the name of shipped ones, or a path.

    shipped: the names to think of for what is neither. Raises InputError for that, and for a shipped file that is not
    the one that was released."""
    if isinstance(source, str) and source in SHIPPED | SHIPPED_SEGMENTERS:
        return _released(source)
    if not Path(source).exists():
        hint = nearest(str(source), shipped)
        raise InputError(f"{source}: is no file, and no weights of that name come with stepwarp: {hint}")
    if Path(source).is_dir():
        raise InputError(f"{source}: is a folder. Give the file of weights in it.")
    return Path(source)


def _released(name: str) -> Path:
    path = Path(str(resources.files("stepwarp"))) / "weights" / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(f"{path}: is missing, so '{name}' cannot be used. Install stepwarp again.")
    if sha256(path) != (SHIPPED | SHIPPED_SEGMENTERS)[name]:
        raise InputError(f"{path}: is not the file that was released as '{name}'. Install stepwarp again.")
    return path
