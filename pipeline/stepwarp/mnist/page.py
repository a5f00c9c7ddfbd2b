"""`mnist.html`: the experiment and what was found about it, in one file that needs nothing else; and `table.md`."""

from __future__ import annotations

import base64
import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from stepwarp.files import write_text
from stepwarp.mnist import store
from stepwarp.mnist.answers.common import percent
from stepwarp.mnist.charts import draw_charts
from stepwarp.mnist.figures import draw_registrations
from stepwarp.mnist.models import STRANGE, TIED, TRAINED
from stepwarp.mnist.study import MnistStudy
from stepwarp.mnist.summary import summarise
from stepwarp.report.document import card, document, tiles

_TITLE = "MNIST, stepped"
_STYLES = ("page.css", "mnist.css")
_HEADS = ("question", "answer", "what was found", "how sure", "what would change the mind")


def write_report(study: MnistStudy) -> dict[str, Any]:
    """The summary, the table, the figures and the page of all that is there. Returns the summary."""
    summary = summarise(study)
    store.write_json(study.out / store.SUMMARY, summary)
    write_text(study.out / store.TABLE, table(summary), overwrite=True)
    drawn = draw_registrations(study, summary) if TIED in summary["networks"] else []
    drawn += draw_charts(study, summary)
    pictures = {name: study.out / store.FIGURES / name for name in drawn}
    write_text(study.out / store.PAGE, page(summary, pictures), overwrite=True)
    return summary


def table(summary: dict[str, Any]) -> str:
    """The questions and the networks as Markdown."""
    lines = [f"Digits: {summary['digits']}. {_size(summary)}", ""]
    if summary["networks"]:
        lines += ["| network | SSD less on 5s | on 7s | folds % | training s | CPU s |", "|---|---|---|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in _network_rows(summary)]
        lines.append("")
    if summary["answers"]:
        lines += [f"| {' | '.join(_HEADS)} |", "|---|---|---|---|---|"]
        lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in _answer_rows(summary)]
    return "\n".join(lines) + "\n"


def page(summary: dict[str, Any], pictures: dict[str, Path]) -> str:
    """The page; pictures: name -> the file that goes into it."""
    parts = [_head(summary), _setup(summary)]
    if summary["networks"]:
        parts += [_result(summary, pictures), _settings(summary, pictures)]
    if summary["answers"]:
        parts.append(_answers(summary))
        parts += [_probe(letter, each, pictures) for letter, each in summary["answers"].items()]
        parts.append(_judge(summary))
    return document(_TITLE, "\n".join(parts), styles=_STYLES, scripts=())


def _head(summary: dict[str, Any]) -> str:
    networks = summary["networks"].get(TIED)
    facts = {
        "digits": summary["digits"],
        "seeds": str(summary["scale"]["seeds"]),
        "held-out pairs": str(summary["scale"]["pairs"]),
        "SSD less on held-out 5s": percent(networks["reduction"][str(TRAINED)]) if networks else None,
        "on 7s, never seen": percent(networks["reduction"][str(STRANGE)]) if networks else None,
        "training": f"{_mean(networks['seconds']):.0f} s, {_mean(networks['cpu_seconds']):.0f} s of CPU"
        if networks
        else None,
    }
    return f"<header><div><h1>{_TITLE} <span>{_size(summary)}</span></h1></div>{tiles(facts)}</header>"


def _size(summary: dict[str, Any]) -> str:
    scale = summary["scale"]
    whole = scale["share"] == 1
    return f"{scale['seeds']} seeds, {scale['pairs']} held-out pairs" + ("" if whole else ", shortened: no result")


def _setup(summary: dict[str, Any]) -> str:
    settings = summary["settings"]
    training = settings["training"]
    widths = " and ".join(str(width) for width in settings["hidden"])
    said = (
        f"Both digits, 1568 pixels in a row, go through layers of {widths} with ReLU to a displacement of every pixel;"
        f" the last layer begins at 0. The same network steps {settings['steps']} times, each time on the moving digit"
        f" as it was warped so far. Loss: icon_registration's 2 SSD + {settings['diffusion']:g} x diffusion, with which"
        " it agrees to 1e-5 on the same weights; all losses below are half of that, SSD and the rest. Batches of"
        f" {training['batch']} random pairs of different 5s, {training['iterations']:,} iterations of Adam from"
        f" {training['optimiser']['lr']:g}, falling along a cosine; the running mean of the weights is kept. The"
        " original's learning rate and length are not published: these were chosen, and what hangs on them is below. A"
        " displacement is in pixels; images are 0 to 1."
    )
    return card("The experiment", f'<p id="methods">{escape(said)}</p>')


def _result(summary: dict[str, Any], pictures: dict[str, Path]) -> str:
    heads = ("network", "SSD less on 5s", "on 7s", "folds %", "training s", "CPU s")
    content = _table(heads, _network_rows(summary))
    note = "Means over the seeds, on digits of the test set. " + " ".join(
        f"{name}: {each['about']}." for name, each in summary["networks"].items()
    )
    content += f'<p class="note">{escape(note)}</p>'
    for name in ("training.png", "pairs.png", "strip_5.png", "strip_7.png", "steps.gif"):
        content += _image(pictures, name)
    return card("Registering digits", content)


def _network_rows(summary: dict[str, Any]) -> list[list[str]]:
    return [
        [
            name,
            *(
                f"{percent(each['reduction'][d])} ({', '.join(percent(s['reduction']) for s in each['held_out'][d])})"
                for d in (str(TRAINED), str(STRANGE))
            ),
            f"{each['folds'][str(TRAINED)]:.3f}",
            f"{_mean(each['seconds']):.0f}",
            f"{_mean(each['cpu_seconds']):.0f}",
        ]
        for name, each in summary["networks"].items()
    ]


def _settings(summary: dict[str, Any], pictures: dict[str, Path]) -> str:
    if not summary["sensitivity"] and not summary["stability"]:
        return ""
    base = summary["networks"][TIED]["held_out"][str(TRAINED)][0]
    rows = [["as chosen", percent(base["reduction"]), f"{base['folds']:.3f}", "", ""]]
    for kind in ("sensitivity", "stability"):
        rows += [_varied(name, each) for name, each in summary[kind].items()]
    content = _table(("training", "SSD less on held-out 5s", "folds %", "largest surprise", "broke down"), rows)
    content += f'<p class="note">{escape(_stability_text(summary))}</p>' + _image(pictures, "stability.png")
    return card("What hangs on the settings", content)


def _varied(name: str, each: dict[str, Any]) -> list[str]:
    judged = each["held_out"]
    ends = ", ".join(percent(end) for end in judged["ci95"])
    largest = max(_until_lowest(each["curve"]))
    broken = f"after iteration {each['at_iteration']:.0f}" if each["broke_down"] else "no"
    return [name, f"{percent(judged['reduction'])} ({ends})", f"{judged['folds']:.3f}", f"{largest:.2f}", broken]


#: What the figure's third column and sentences are about.
_SURPRISE = (
    "Surprise is how many times larger a gradient is than Adam's second moment remembers (root mean square over the "
    "layer where it is largest). Updates are scaled by that memory."
)


def _stability_text(summary: dict[str, Any]) -> str:
    runs = summary["stability"]
    broken = [name for name, each in runs.items() if each["broke_down"]]
    lasting = [name for name in runs if name not in broken]
    if not runs:
        return ""
    parts = [f"Broke down: {'; '.join(broken) or 'none'}. Lasted: {'; '.join(lasting) or 'none'}."]
    for name, each in runs.items():
        course = _until_lowest(each["curve"])
        tenth = max(1, len(course) // 10)
        typical, last = statistics.median(course), max(course[-tenth:])
        parts.append(f"Surprise in '{name}': {typical:.1f} as a rule, at most {last:.1f} in the last tenth.")
    return " ".join([_SURPRISE, *parts])


def _until_lowest(curve: dict[str, list[Any]]) -> list[float]:
    """The surprise of the updates until the loss was lowest: before a breakdown, where there is one."""
    losses = curve["loss"]
    return curve["surprise"][: losses.index(min(losses)) + 1]


def _answers(summary: dict[str, Any]) -> str:
    note = (
        "Every sentence is computed from the numbers. In brackets: 95 % interval over seeds and pairs, both drawn anew."
        " What a probe is, its control and its null were written down before it was run, in stepwarp.probes and"
        " stepwarp.mnist."
    )
    rows = [[escape(cell) for cell in row] for row in _answer_rows(summary)]
    return card("What was asked, and found", _table(_HEADS, rows, raw=True) + f'<p class="note">{note}</p>')


def _answer_rows(summary: dict[str, Any]) -> list[list[str]]:
    return [
        [f"{letter}. {each['question']}", each["verdict"], each["found"], each["sure"], each["mind"]]
        for letter, each in summary["answers"].items()
    ]


def _probe(letter: str, each: dict[str, Any], pictures: dict[str, Path]) -> str:
    name = f"{letter}.png"
    if name not in pictures:
        return ""
    title = f"{letter}. {escape(each['question'])} <small>{escape(each['verdict'])}</small>"
    return card(title, _image(pictures, name))


def _judge(summary: dict[str, Any]) -> str:
    rows = [
        [
            f"{row['warp']:g}",
            f"{row['blur']:g}",
            *(percent(row[key]) for key in ("accuracy", "of_fives", "false_fives")),
        ]
        for row in summary["classifier"]
    ]
    heads = ("warp, pixels", "blur, pixels", "all digits right", "5s right", "others taken for a 5")
    return card("The classifier on warped and blurred test digits", _table(heads, rows))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], raw: bool = False) -> str:
    def cell(text: str) -> str:
        return text if raw else escape(text)

    head = "".join(f"<td>{escape(each)}</td>" for each in heads)
    body = "".join(
        f"<tr><th>{cell(row[0])}</th>{''.join(f'<td>{cell(each)}</td>' for each in row[1:])}</tr>" for row in rows
    )
    return f'<table class="{"texts" if raw else "numbers"}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _image(pictures: dict[str, Path], name: str) -> str:
    if name not in pictures:
        return ""
    path = pictures[name]
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<p><img src="data:image/{path.suffix[1:]};base64,{data}" alt="{escape(path.stem)}" class="figure"></p>'


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
