"""Folders of results: claimed by one run, and complete or not there.

Everything is written in a hidden folder, beside the target or within it, and moved to its place at the end, the record
last: a folder that holds the record is complete, and a run that fails leaves nothing behind."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stepwarp import files
from stepwarp.errors import OutputError
from stepwarp.files.atomic import flush_folder
from stepwarp.files.lock import refuse_links
from stepwarp.files.workspace import KeptError, move, workspace


@dataclass(frozen=True)
class ResultFolder:
    """What a kind of run leaves in a folder.

    kind: of what runs, "registration". names: of all files that it may write, the record among them. record: JSON whose
    `outputs` says which of them were written."""

    kind: str
    names: tuple[str, ...]
    record: str

    def check(self, out: Path, overwrite: bool) -> None:
        """Raises OutputError if `out` is a file, holds any of the results and may not be overwritten, or files of their
        names that no run is known to have written there."""
        if os.path.lexists(out) and not out.is_dir():
            raise OutputError(f"{out}: is a file; the results need a folder. Choose another name.")
        present = [name for name in self.names if os.path.lexists(out / name)]
        if present and not overwrite:
            raise OutputError(f"{out}: holds {present[0]} already. Choose another folder, or replace it with --force.")
        for name in present:
            refuse_links(out / name)
        foreign = sorted(set(present) - self.written(out))
        if foreign:
            raise OutputError(
                f"{out / foreign[0]}: is there already, and no {self.record} beside it says that stepwarp wrote it. "
                "Choose another folder, or move it away."
            )

    @contextmanager
    def claimed(self, out: Path, overwrite: bool) -> Iterator[Path]:
        """Lend a folder to work in for the results of `out`, to which nobody else can write as long as the block lasts.

        Raises OutputError as `check`, if another run has claimed it, and if it cannot be written to."""
        self.check(out, overwrite)
        with workspace(out, self.kind) as place:
            self.check(out, overwrite)  # another run may have ended in the meantime
            yield place

    def written(self, folder: Path) -> set[str]:
        """The files that a record there says it has written, itself among them. Whatever else it lists, such as a path
        out of the folder, is nobody's to remove."""
        try:
            outputs = json.loads((folder / self.record).read_text(encoding="utf-8"))["outputs"]
            return {self.record} | set(self.names).intersection(outputs)
        except (OSError, ValueError, KeyError, TypeError):
            return set()

    def publish(self, partial: Path, out: Path, overwrite: bool) -> None:
        """Give finished files their place; where that takes them no more, they stay where they are, and it says
        where."""
        try:
            self.check(out, overwrite)
            self._move_into_place(partial, out)
        except (OutputError, OSError) as error:
            text = f"{error} The result is complete, in {partial}: move it away before the next run."
            raise KeptError(text) from error

    def _move_into_place(self, partial: Path, out: Path) -> None:
        """A new folder appears at once. In an existing one, a record that is none says what is ours while files are
        moved, and the new record comes last."""
        if not out.exists():
            partial.replace(out)
            flush_folder(out.parent)
            return
        old = sorted(self.written(out) - {self.record})
        if old:
            names = {*old, *(path.name for path in partial.iterdir())} - {self.record}
            text = json.dumps({"being_replaced": True, "outputs": dict.fromkeys(sorted(names), "")})
            files.write_text(out / self.record, text + "\n", overwrite=True)
        for name in old:
            if not (partial / name).exists():
                (out / name).unlink(missing_ok=True)
        for path in sorted(partial.iterdir()):
            if path.name != self.record:
                move(path, out / path.name)
        flush_folder(out)  # a disk may learn of names in another order than they were given in
        move(partial / self.record, out / self.record)
        flush_folder(out)
