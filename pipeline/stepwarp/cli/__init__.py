"""The command line, one file per command. torch is imported when a command runs, so that help is instant."""

from stepwarp.cli.main import main

__all__ = ["main"]
