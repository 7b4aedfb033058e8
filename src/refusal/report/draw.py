"""A figure as SVG on the page, and as a file; PNG and PDF files are made from the same drawing."""

import re
from collections.abc import Iterable
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from markupsafe import Markup

from refusal.core.errors import ConfigError
from refusal.core.storage import write_blocks, write_text
from refusal.report import plots, svg
from refusal.report.kinds import Figure, Grid, Intervals, Lines, Points

FORMATS = ("svg", "png", "pdf")
TITLE = 24  # height of the title above a figure
FONT = "svg text { font-family: Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif; }"


def draw(figure: Figure) -> Markup:
    """Draw a figure; the numbers of a grid's cells show where the pointer is."""
    match figure:
        case Grid():
            return svg.grid(figure, _values(figure), tips=True)
        case Lines():
            return plots.lines(figure)
        case Points():
            return plots.points(figure)
        case Intervals():
            return plots.intervals(figure)


def captioned(figures: Iterable[Grid | Lines | Points]) -> tuple[tuple[str, str, Markup], ...]:
    """Title, caption and drawing of each, as templates take them."""
    return tuple((figure.title, figure.caption, draw(figure)) for figure in figures)


def _values(figure: Grid) -> list[list[str]]:
    """What a cell's tip says: where it is and its value or sign."""
    tips = []
    for i, row in enumerate(figure.rows):
        line = []
        for j, layer in enumerate(figure.columns):
            value = figure.values[i][j]
            said = figure.letters[i][j] if figure.letters else "no value"
            said = said if value is None else svg.short_number(value)
            line.append(f"{row}, layer {layer}: {said}")
        tips.append(line)
    return tips


def check_formats(formats: Iterable[str]) -> None:
    """Raise ConfigError where a format needs a package that is not installed."""
    wanted = [form for form in FORMATS[1:] if form in formats]
    if wanted and find_spec("vl_convert") is None:
        raise ConfigError(
            f"Figures as {' and '.join(wanted)} need a package that is not installed. Install it "
            "with: pip install 'refusal[figures]', or write SVG files only: --figures svg."
        )


def write_figure(figure: Figure, path: Path) -> None:
    """Write one figure, black on white, in the format that the path's ending names."""
    drawn = figure_file(figure)
    if path.suffix == ".svg":
        write_text(path, drawn)
        return
    import vl_convert

    if path.suffix == ".pdf":
        write_blocks(path, [vl_convert.svg_to_pdf(drawn)])
    else:
        write_blocks(path, [vl_convert.svg_to_png(drawn, scale=2)])


def figure_file(figure: Figure) -> str:
    """Return a figure as an SVG document with its title, which needs no other file."""
    drawn = draw(figure)
    size = re.search(r'width="([\d.]+)" height="([\d.]+)"', drawn)
    assert size is not None
    width, height = (float(value) for value in size.groups())
    parts = (
        Markup("<style>{}</style>").format(Markup(_style())),
        svg.element("rect", width=width, height=height + TITLE, fill="#fff"),
        svg.text(figure.title, 4, 16, class_="name"),
        svg.element("g", drawn, transform=f"translate(0 {TITLE})"),
    )
    image = svg.image(parts, width, height + TITLE, xmlns="http://www.w3.org/2000/svg")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{image}\n'


def _style() -> str:
    """The page's style of figures in its light colours, as a document of its own needs it."""
    folder = resources.files("refusal.report")
    page, style = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in ("style.css", "figure.css")
    )
    colours = dict(re.findall(r"(--[\w-]+): ([^;]+);", page.partition("}")[0]))
    plain = re.sub(r"var\((--[\w-]+)\)", lambda name: colours[name[1]], style)
    return plain.replace("font-family: inherit; ", "") + FONT
