"""One HTML file: its head, its styles and scripts written into it, and the cards that its content stands in."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources


def document(title: str, content: str, *, styles: Sequence[str], scripts: Sequence[str], images: str = "data:") -> str:
    """A page around `content` (HTML) that brings its styles and scripts, files of this package, with it.

    The browser itself is told to load nothing else; `images` is the policy's list of where pictures may come from."""
    policy = f"default-src 'none'; img-src {images}; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)} · stepwarp</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>{_resources(styles)}</style></head><body><main>
{content}
</main><script>{_resources(scripts)}</script></body></html>
"""


def card(title: str, content: str) -> str:
    """A titled box; both are HTML."""
    return f'<section class="card"><h2>{title}</h2>{content}</section>'


def tiles(facts: dict[str, str | None]) -> str:
    """Facts for the head of a page as a definition list; those that are None are left out."""
    known = {name: value for name, value in facts.items() if value is not None}
    return f"<dl>{''.join(f'<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>' for n, v in known.items())}</dl>"


def _resources(names: Sequence[str]) -> str:
    return "\n".join(resources.files(__package__).joinpath(name).read_text(encoding="utf-8") for name in names)
