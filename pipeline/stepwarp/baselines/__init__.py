"""Other registration methods behind one signature: two images in, an Outcome out. An absent one says so (`missing`).

A file each, with its METHODS: each is called as the file, or as the file and a word after a hyphen. The first line of
what the file says is its help. None of them knows the registrar it is compared with, and none is imported before it
runs."""

from importlib import import_module

from stepwarp import catalogue
from stepwarp.baselines._method import Method, Outcome

#: What the command line calls a method -> the method.
BASELINES: dict[str, Method] = {
    method.name: method
    for file in catalogue.names("baselines")
    for method in import_module(f"stepwarp.baselines.{file}").METHODS
}

__all__ = ["BASELINES", "Method", "Outcome"]
