"""The pieces of a report: tables, pictures, sections, the page. Everything is inside the one file."""

import base64
import html
import pathlib
from collections.abc import Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 0 1rem 3rem; max-width: 64rem; }
h1 { font-size: 1.5rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; text-align: left; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { position: sticky; left: 0; background: Canvas; }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; background: white; }
h3 { font-size: 1rem; margin: 1.5rem 0 0; } summary { cursor: pointer; }
figure { margin: 1rem 0; } figcaption { font-size: 0.85rem; opacity: 0.8; }
.grid { display: grid; gap: 0.6rem; grid-template-columns: repeat(auto-fill, minmax(6.5rem, 1fr)); }
.grid figure { margin: 0; line-height: 1.3; } .grid img { width: 100%; }
code { overflow-wrap: anywhere; }
.worse { color: #c33; } .better { color: #292; }
"""


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls sideways if it is wider than the screen."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, float | int) and not isinstance(value, bool):
        return (
            f'<td class="number">{value:.2f}</td>'
            if isinstance(value, float)
            else f'<td class="number">{value:,}</td>'
        )
    mark = f' class="{value}"' if value in ("worse", "better") else ""
    return f"<td{mark}>{html.escape(str(value))}</td>"


def picture(data: bytes | pathlib.Path, caption: str) -> str:
    """A picture embedded in the page, from a file or the bytes of a JPEG."""
    kind = "jpeg" if isinstance(data, bytes) else data.suffix[1:].replace("svg", "svg+xml")
    encoded = base64.b64encode(data if isinstance(data, bytes) else data.read_bytes()).decode()
    words = html.escape(caption)
    return (
        f'<figure><img src="data:image/{kind};base64,{encoded}" alt="{words}">'
        f"<figcaption>{words}</figcaption></figure>"
    )


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def details(title: str, content: str) -> str:
    """A part that a click opens."""
    return f"<details><summary>{html.escape(title)}</summary>{content}</details>"


def section(title: str, *parts: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{''.join(parts)}</section>"


def page(title: str, parts: Sequence[str]) -> str:
    """The HTML of the page."""
    words = html.escape(title)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{words}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{words}</h1>{''.join(parts)}</body></html>\n"
    )
