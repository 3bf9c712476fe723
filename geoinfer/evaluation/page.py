"""HTML documents that stand alone: no script, no request, nothing from outside. Knows elements, not what they say.

Text is escaped wherever it is not `Html` already, so that no attribute of a footprint, no file name and no note can become
markup; and should one ever, the policy in the head lets no script, no style but ours and no address be used.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral

import geoinfer

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#57606a;--line:#d0d7de;--page:#fff;--tint:#f6f8fa;--mark:#fff3cd;
--s0:#0b5cad;--s1:#b3430f;--s2:#1a7f4b}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8eb;--soft:#9aa4af;--line:#373e47;--page:#14171a;--tint:#1d2126;
--mark:#4a3c0c;--s0:#6cb2f5;--s1:#f0925f;--s2:#57c78a}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:54rem;background:var(--page);color:var(--ink);
font:16px/1.55 system-ui,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 .4rem}
h2{font-size:1.2rem;margin:2.6rem 0 .6rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.6rem 0 .4rem}
p{margin:.5rem 0}
.soft,figcaption,caption,.note{color:var(--soft)}
.note,figcaption{font-size:.86rem}
a{color:var(--s0)}
nav ul{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;list-style:none;padding:0;margin:1rem 0}
.label{background:var(--mark);border-left:4px solid var(--s1);padding:.6rem .9rem;margin:1rem 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(8.5rem,1fr));gap:.8rem;margin:1.2rem 0;padding:0}
.figures div{background:var(--tint);border:1px solid var(--line);border-radius:6px;padding:.6rem .8rem}
.figures dt{color:var(--soft);font-size:.84rem}
.figures dd{margin:0;font-size:1.5rem;font-variant-numeric:tabular-nums}
.figures dd.soft{font-size:.84rem}
.wide{overflow-x:auto;margin:.6rem 0}
table{border-collapse:collapse;width:100%;font-size:.88rem;font-variant-numeric:tabular-nums}
caption{text-align:left;padding:.2rem 0;font-size:.86rem}
th,td{text-align:left;padding:.32rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
thead th{border-bottom:2px solid var(--line);white-space:nowrap}
tbody th{font-weight:500;min-width:7.5rem}tr.group th{font-weight:600}
tbody td:last-child:not(.n){min-width:11rem}
td.n,th.n{text-align:right;white-space:nowrap}
ul.note{margin:.2rem 0 1.4rem;padding-left:1.1rem}
tr.small td,tr.small th{color:var(--soft);font-style:italic}
tr.group th{background:var(--tint)}
figure{margin:.4rem 0}
svg{display:block;width:100%;max-width:40rem;height:auto}
svg text{fill:var(--ink);font:12px system-ui,"Segoe UI",Roboto,Arial,sans-serif}
svg .tick{fill:var(--soft);font-size:11px}
svg .grid{stroke:var(--line);stroke-width:1}
svg .axis{stroke:var(--soft);stroke-width:1}
svg .ideal{stroke:var(--soft);stroke-dasharray:3 4}
svg .bar{fill:var(--s0);fill-opacity:.55}
svg .s0{stroke:var(--s0);fill:none;stroke-width:2}
svg .s1{stroke:var(--s1);fill:none;stroke-width:2;stroke-dasharray:7 3}
svg .s2{stroke:var(--s2);fill:none;stroke-width:2;stroke-dasharray:2 3}
svg .d0{fill:var(--s0)}svg .d1{fill:var(--s1)}svg .d2{fill:var(--s2)}
.chips{display:grid;grid-template-columns:repeat(auto-fill,minmax(11.5rem,1fr));gap:1rem;padding:0;margin:1rem 0}
.chips{list-style:none}
.chips img{display:block;width:100%;height:auto;border:1px solid var(--line)}
.chips figure{margin:0}.chips figcaption{margin-top:.3rem;line-height:1.4}
.chips strong{color:var(--ink);font-weight:600}
.key{display:inline-block;width:.8em;height:.8em;border:3px solid;margin-right:.35em;vertical-align:-.06em}
.key.fp{border-color:#ff453a}.key.fn{border-color:#409cff}.key.tp{border-color:#34dc6e}
.key.truth{border-color:#f5f5f5;outline:1px solid var(--soft)}
.keys{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;list-style:none;padding:0}
dl.pairs{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;font-size:.9rem}
dl.pairs dt{color:var(--soft)}dl.pairs dd{margin:0;overflow-wrap:anywhere}
details{margin:.4rem 0}summary{cursor:pointer;color:var(--soft);font-size:.86rem}
footer{margin-top:3rem;border-top:1px solid var(--line);padding-top:.6rem;color:var(--soft);font-size:.84rem}
@media print{body{max-width:none;padding:0;font-size:10.5pt}nav,details{display:none}h2,h3,caption{break-after:avoid}
.wide{overflow:visible}th,td{padding:.25rem .35rem}tbody th,tbody td:last-child:not(.n){min-width:0}
thead th{white-space:normal}
figure,tr,.chips li,.figures{break-inside:avoid}.chips{grid-template-columns:repeat(4,1fr)}}
"""
"""One column, light and dark, for the screen and for paper."""


class Html(str):
    """Markup: text that needs no escaping any more."""

    __slots__ = ()


def escape(content: object) -> Html:
    """Anything as text within markup or within a quoted attribute; markup stays what it is."""
    return content if isinstance(content, Html) else Html(html.escape(str(content), quote=True))


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element; `class_` is the attribute class, `_` within a name is `-`, an attribute that is None is left out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items() if value is not None
    )
    return Html(f"<{name}{words}>{join(content)}</{name}>")


def void(name: str, /, **attributes: object) -> Html:
    """An element that has no content, such as an image."""
    return Html(tag(name, **attributes).removesuffix(f"</{name}>"))


def join(parts: Iterable[object]) -> Html:
    """Some content after the other; text among it is escaped."""
    return Html("".join(map(escape, parts)))


Section = tuple[str, str, Html]
"""Anchor, heading, content."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    is_number: bool = True


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table; its first cell is its header."""

    cells: Sequence[object]
    kind: str | None = None
    """`small`: of too few samples; `group`: a heading between rows."""


def table(caption: str, columns: Sequence[Column], rows: Iterable[Row]) -> Html:
    """A table with a caption and a header for each column and row, which scrolls on its own where it is too wide."""
    head = [tag("th", column.title, scope="col", class_="n" if column.is_number else None) for column in columns]
    body = []
    for row in rows:
        if row.kind == "group":
            body.append(tag("tr", tag("th", row.cells[0], colspan=len(columns), scope="rowgroup"), class_="group"))
            continue
        cells = [
            tag("td", text_of(cell), class_="n" if column.is_number else None)
            for cell, column in zip(row.cells[1:], columns[1:], strict=True)
        ]
        body.append(tag("tr", tag("th", text_of(row.cells[0]), scope="row"), *cells, class_=row.kind))
    whole = tag("table", tag("caption", caption), tag("thead", tag("tr", *head)), tag("tbody", *body))
    return tag("div", whole, class_="wide", tabindex="0", role="region", aria_label=caption)


def pairs(values: Iterable[tuple[str, object]]) -> Html:
    """Names and values."""
    return tag("dl", *(join((tag("dt", name), tag("dd", text_of(value)))) for name, value in values), class_="pairs")


def figures(values: Iterable[tuple[str, object, str]]) -> Html:
    """What to see first: name, value, and what belongs to it, in large type."""
    boxes = [
        tag("div", tag("dt", name), tag("dd", text_of(value)), tag("dd", more, class_="soft"))
        for name, value, more in values
    ]
    return tag("dl", *boxes, class_="figures")


def text_of(value: object) -> str:
    """A value as a person reads it: four digits, a dash for what is not known, words for truth."""
    if value is None or value != value:  # the second is NaN
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, float):
        return number(value)
    return value if isinstance(value, str) else str(value)


def number(value: float) -> str:
    """Four significant digits, and no more than a person can use: 0.8231, 12.35, 4,812."""
    if value == 0:
        return "0"
    size = abs(value)
    text = f"{size:,.0f}" if size >= 1000 else f"{size:.{3 if size < 10 else 2 if size < 100 else 1}f}"
    return ("−" if value < 0 else "") + (text if size >= 0.001 else f"{size:.1g}")


def document(title: str, lead: Html, sections: Sequence[Section]) -> str:
    """A whole page.

    Args:
        title: Heading and title.
        lead: What stands below it.
        sections: Its parts.
    """
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    head = tag(
        "head",
        void("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="referrer", content="no-referrer"),
        void("link", rel="icon", href="data:,"),  # else a browser asks the server of the page for one
        tag("title", title),
        tag("style", Html(STYLE)),
    )
    links = [tag("li", tag("a", heading, href=f"#{anchor}")) for anchor, heading, _ in sections]
    parts = [tag("section", tag("h2", heading, id=anchor), content) for anchor, heading, content in sections]
    body = tag(
        "body",
        tag("header", tag("h1", title), lead),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", *parts),
        tag("footer", f"geoinfer {geoinfer.__version__}. This page is complete in itself and asks no server."),
    )
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"
