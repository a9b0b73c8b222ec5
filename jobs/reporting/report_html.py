"""The report as one HTML file that opens offline: the Markdown page, with all that it links to inside.

It is made from the text of the Markdown page alone, whatever that says, so that a new section needs nothing here.
"""

import base64
import functools
import itertools
import mimetypes
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from urllib.parse import unquote

import jinja2
from markdown_it import MarkdownIt
from markdown_it.token import Token

_ANCHOR = re.compile(r'^<a id="([\w-]+)"></a>')
_NUMBER = re.compile(r"^[-+\u2212]?\.?\d")
_SOUNDS = (".wav", ".mp3", ".flac", ".ogg")


def page(markdown: str, folder: Path, live_version: int | None = None) -> str:
    """Return the HTML of a Markdown page whose relative links lead to files in `folder`.

    Pictures and sounds are inside it, and it asks for nothing else. A table whose rows are sounds shows a player beside
    each picture; the others sort by a click on a column's name.

    Args:
        markdown: the page, as GitHub would show it; HTML in it is shown as text.
        folder: where its links begin.
        live_version: its number among those that a server shows; the page loads itself anew once `version`, beside it,
            is another. None for a file.
    """
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(markdown)
    _name_headings(tokens)
    for table in _tables(tokens):
        _describe(table)
    for token in tokens:
        token.children = list(_with_files(token.children, folder)) if token.children else token.children
    has_contents = any(str(child.attrs.get("href", "")).startswith("#") for t in tokens for child in t.children or ())
    return _template().render(
        title=next((_text(tokens[i + 1]) for i, token in enumerate(tokens) if token.tag == "h1"), "zfdist"),
        sections=[
            (token.attrs["id"], _text(tokens[i + 1]))
            for i, token in enumerate(tokens)
            if token.type == "heading_open" and token.tag == "h2" and not has_contents
        ],
        body=parser.renderer.render(tokens, parser.options, {}),
        live_version=live_version,
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template("report.html.jinja")


def _name_headings(tokens: Sequence[Token]) -> None:
    """Give each heading the id that is written before its text, or one made of its text, and no two the same."""
    taken: set[str] = set()
    for opening, inline in itertools.pairwise(tokens):
        if opening.type != "heading_open":
            continue
        first = inline.children[0] if inline.children else None
        if first is not None and (written := _ANCHOR.match(first.content)):
            name, first.content = written[1], first.content[written.end() :]
        else:
            words = re.sub(r"[^\w]+", "-", _text(inline).lower()).strip("-")
            name = next(n for i in range(len(tokens)) if (n := f"{words}-{i}" if i else words) not in taken)
        taken.add(name)
        opening.attrSet("id", name)


def _tables(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """Yield the tokens of each table."""
    start = 0
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            start = i
        elif token.type == "table_close":
            yield list(tokens[start : i + 1])


def _describe(table: Sequence[Token]) -> None:
    """Say what a table is: of sounds, of facts (without names of columns), or one to sort; and which columns count."""
    cells = [(opening, table[i + 1]) for i, opening in enumerate(table) if opening.type in ("th_open", "td_open")]
    head = [inline for opening, inline in cells if opening.type == "th_open"]
    body = [pair for pair in cells if pair[0].type == "td_open"]
    kind = "sorts"
    if any(_is_sound(child) for _, inline in body for child in inline.children or ()):
        kind = "sounds"
    elif not any(inline.content for inline in head):
        kind = "facts"
    table[0].attrSet("class", kind)
    for column, name in enumerate(head):
        own = body[column :: len(head)]
        for opening, _ in own:
            opening.attrSet("data-name", _text(name))
        if kind == "sorts" and all(_NUMBER.match(_text(inline) or "0") for _, inline in own):
            for opening in [pair[0] for pair in cells[column :: len(head)]]:
                opening.attrSet("class", "number")


def _with_files(children: Sequence[Token], folder: Path) -> Iterator[Token]:
    """Yield what is in a line, with all files inside the page: pictures, a player after each sound's name, others."""
    sound = ""
    for token in children:
        if token.type == "image":
            token.attrSet("src", _inside(str(token.attrs["src"]), folder))
        elif _is_sound(token):
            sound = _inside(str(token.attrs["href"]), folder)
            continue
        elif token.type == "link_close" and sound:
            token = Token("html_inline", "", 0)
            token.content = f'<audio controls preload="metadata" src="{escape(sound)}"></audio>'
            sound = ""
        elif token.type == "link_open":
            link = str(token.attrs["href"])
            token.attrSet("href", _inside(link, folder))
            if token.attrs["href"] != link:
                token.attrSet("download", Path(unquote(link)).name)
        yield token


def _is_sound(token: Token) -> bool:
    return token.type == "link_open" and str(token.attrs["href"]).lower().endswith(_SOUNDS)


def _inside(link: str, folder: Path) -> str:
    """Return a file that a page links to as text that stands in its place; another link, or no file, as it is."""
    path = folder / unquote(link)
    if ":" in link or link.startswith("#") or not path.is_file():
        return link
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _text(inline: Token) -> str:
    """Return a line's words without its marks."""
    return "".join(child.content for child in inline.children or () if child.type in ("text", "code_inline")).strip()
