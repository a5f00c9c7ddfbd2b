import io
import sys

from stepwarp.cli.progress import _LineNowAndThen, shown_progress
from stepwarp.progress import ProgressReport


def test_lines_come_when_a_stage_begins_and_every_few_seconds(capsys):
    seconds = iter([0, 1, 4, 6, 7, 12, 13])
    show = _LineNowAndThen(clock=lambda: next(seconds))
    for done in range(6):
        show(ProgressReport("deformable 4 mm", done, 10, 0.5 - done / 100))
    show(ProgressReport("write", 0, 1))
    assert capsys.readouterr().err.splitlines() == [
        "deformable 4 mm",
        "  deformable 4 mm 3/10, loss 0.4700, about 14 s left",
        "  deformable 4 mm 5/10, loss 0.4500, about 12 s left",
        "write",
    ]


def test_end_of_a_stage_of_several_is_no_new_stage(capsys):
    with shown_progress() as show:
        for step in (
            ProgressReport("deformable", 0, 1),
            ProgressReport("deformable 4 mm", 0, 2),
            ProgressReport("deformable", 1, 1),
        ):
            show(step)
    assert capsys.readouterr().err.splitlines() == ["deformable", "deformable 4 mm"]


def test_silence(capsys):
    with shown_progress(silent=True) as show:
        show(ProgressReport("read", 0, 1))
    assert capsys.readouterr() == ("", "")


def test_bars_on_a_terminal(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with shown_progress() as show:
        for step in (
            ProgressReport("affine", 0, 4),
            ProgressReport("affine", 3, 4, 0.125),
            ProgressReport("write", 0, 1),
            ProgressReport("write", 1, 1),
        ):
            show(step)
    text = terminal.getvalue()
    assert "loss 0.1250" in text
    assert text.index("affine") < text.index("write")
    assert "100 %" in text
