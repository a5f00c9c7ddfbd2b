"""The command line: one file per command. torch and the rest are imported when a command runs, so that help is instant."""

from stepwarp.cli.main import main

__all__ = ["main"]
