"""Boxes, arrows and labels as an SVG file; the documentation's pictures are drawn with it.

Text stays text, so that it can be searched, read aloud and scaled. Its width depends on the reader's font: boxes leave
room for a wide one.
"""

from html import escape
from pathlib import Path

STATIC = Path(__file__).parent.parent / "_static"

INK, MUTED, PAPER = "#1f2933", "#52606d", "#ffffff"
# Okabe and Ito's colours, which colour-blind readers can tell apart, and a tint of each to write on.
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#b34700", "#00785a", "#8f4a78"
TINTS = {BLUE: "#e3f1f9", ORANGE: "#fcebdd", GREEN: "#dff3ec", PURPLE: "#f5e8f0", MUTED: "#eef1f4"}


class Diagram:
    """A drawing of fixed size on white paper, so that it can be read on a dark page too.

    Parameters
    ----------
    width, height : float
        In pixels of the wide page; narrow ones scale it down.
    title, description : str
        For readers who do not see it.
    """

    def __init__(self, width, height, title, description):
        self.width, self.height = width, height
        self.title, self.description = title, description
        self._parts = []
        self._heads = []

    def box(self, x, y, width, height, colour, *, radius=8):
        """Draw a tinted rectangle with a border."""
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="{radius}" fill="{TINTS[colour]}" '
            f'stroke="{colour}" stroke-width="1.5"/>'
        )

    def text(self, x, y, words, *, size=16, colour=INK, weight=400, anchor="start", turned=False, family="sans-serif"):
        """Write one line; ``turned`` runs from top to bottom."""
        turn = f' transform="rotate(90 {x} {y})"' if turned else ""
        self._parts.append(
            f'<text x="{x}" y="{y}" font-family="{family}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
            f'text-anchor="{anchor}"{turn}>{escape(words)}</text>'
        )

    def arrow(self, points, colour=MUTED, *, dashed=False):
        """Draw a line through points with a head at the last one."""
        if colour not in self._heads:
            self._heads.append(colour)
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        self._parts.append(
            f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash} '
            f'marker-end="url(#head{self._heads.index(colour)})"/>'
        )

    def line(self, points, colour, width, *, dots=False):
        """Draw a line through points, with a dot on each if wanted."""
        path = "M" + " L".join(f"{x} {y}" for x, y in points)
        self._parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>')
        if dots:
            self._parts.extend(f'<circle cx="{x}" cy="{y}" r="{width + 1}" fill="{colour}"/>' for x, y in points)

    def svg(self):
        """Return the file's content."""
        heads = "".join(
            f'<marker id="head{i}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="6" markerHeight="6" '
            f'orient="auto-start-reverse"><path d="M0 0 L10 5 L0 10 z" fill="{colour}"/></marker>'
            for i, colour in enumerate(self._heads)
        )
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                f'width="{self.width}" height="{self.height}" role="img" aria-labelledby="title description">',
                f'<title id="title">{escape(self.title)}</title>',
                f'<desc id="description">{escape(self.description)}</desc>',
                f"<defs>{heads}</defs>",
                f'<rect width="{self.width}" height="{self.height}" rx="10" fill="{PAPER}"/>',
                *self._parts,
                "</svg>",
                "",
            ]
        )

    def save(self, name):
        """Write the file among those that the pages show."""
        STATIC.mkdir(exist_ok=True)
        (STATIC / name).write_text(self.svg(), encoding="utf-8")
