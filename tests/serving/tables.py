"""Tables of the console's page, read back."""

from html.parser import HTMLParser


class Tables(HTMLParser):
    """Rows of text, and the attributes of each rect and line of them, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.shapes: list[list[dict[str, str]]] = []
        self.tags: list[str] = []
        self.text = ""
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
            self.shapes.append([])
        elif tag in {"th", "td"}:
            self.rows[-1].append("")
            self.inside = True
        elif tag in {"rect", "line"}:
            self.shapes[-1].append({name: value or "" for name, value in attributes})

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in {"th", "td"}

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.inside:
            self.rows[-1][-1] += data
