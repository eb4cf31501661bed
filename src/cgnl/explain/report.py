"""Self-contained report pages: one HTML file, no outside request, works from ``file://``."""

import base64
import html
import io
from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure
from PIL import Image

# Okabe and Ito's palette, which the common colour blindnesses tell apart; markers tell the lines apart in print
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .8rem 0; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; background: #fff; }
figcaption, .dim { color: var(--dim); font-size: .9rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.5rem, 1fr)); gap: .8rem; }
.card { border: 1px solid var(--line); border-radius: .5rem; padding: .5rem; font-size: .85rem;
  overflow-wrap: anywhere; }
.card img { width: 100%; border-radius: .3rem; display: block; }
.right::before { content: "\\2713\\00a0"; color: #0a7d34; } .wrong::before { content: "\\2717\\00a0"; color: #c0341d; }
.scroll { overflow-x: auto; }
"""


def page(title: str, sections: Iterable[tuple[str, str]]) -> str:
    """Return a whole HTML page; each section is a heading (plain text; empty for none) and a body (HTML)."""
    body = "\n".join(
        (f"<h2>{html.escape(heading)}</h2>\n" if heading else "") + content for heading, content in sections
    )
    title = html.escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n{body}\n</body>\n</html>\n"
    )


def paragraph(text: str, *, dim: bool = False) -> str:
    """Return a paragraph of plain text."""
    return f"<p{' class=dim' if dim else ''}>{html.escape(text)}</p>"


def link(target: str, text: str) -> str:
    """Return a paragraph with a link to a file beside the page."""
    return f'<p><a href="{html.escape(target, quote=True)}">{html.escape(text)}</a></p>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()) -> str:
    """Return a table of plain texts; the columns in ``numbers`` (from 0) are set flush right."""

    def cells(row: Sequence[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=number' if k in numbers else ''}>{html.escape(cell)}</{tag}>" for k, cell in enumerate(row)
        )

    lines = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table>\n<tr>{cells(header, "th")}</tr>\n{lines}\n</table></div>'


def figure(drawn: Figure, caption: str) -> str:
    """Return a matplotlib figure as a picture inside the page, with its caption as the alternative text."""
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="png", dpi=144, bbox_inches="tight")
    return _picture("image/png", buffer.getvalue(), caption)


def photograph(image: Image.Image, caption: str) -> str:
    """Return an image as a picture inside the page, with its caption as the alternative text."""
    return _picture("image/jpeg", _jpeg(image), caption)


def _picture(kind: str, content: bytes, caption: str) -> str:
    text = html.escape(caption, quote=True)
    source = base64.b64encode(content).decode()
    return f'<figure><img src="data:{kind};base64,{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def cards(items: Iterable[tuple[Image.Image, str, Sequence[tuple[bool, str]]]]) -> str:
    """Return a grid of images with a heading and lines of text, each with whether it is right, which are marked so."""
    parts = []
    for image, heading, lines in items:
        source = base64.b64encode(_jpeg(image)).decode()
        marked = "".join(
            f'<div class="{"right" if right else "wrong"}"><span hidden>{"right: " if right else "wrong: "}</span>'
            f"{html.escape(text)}</div>"
            for right, text in lines
        )
        alt = html.escape(heading, quote=True)
        parts.append(
            f'<div class="card"><img src="data:image/jpeg;base64,{source}" alt="{alt}">'
            f"<strong>{html.escape(heading)}</strong>{marked}</div>"
        )
    return f'<div class="cards">{"".join(parts)}</div>'
