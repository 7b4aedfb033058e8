"""The documentation site.

Sphinx, because it reads these Markdown pages (MyST), takes the reference from docstrings and from
the command line, and turns every broken link, name and reference into an error (`-n -W`).

Nothing is fetched while building or reading: equations are MathML, fonts are the reader's.
"""

from importlib import metadata
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

project = "refusal"
author = "the refusal authors"
release = metadata.version("refusal")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cyclopts.sphinx_ext"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links to headings are written as on a code host

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 88
napoleon_google_docstring, napoleon_numpy_docstring = True, False
napoleon_use_ivar = True  # attributes beside the class that has them, not once more as members

# Names of other packages are not links, since their indexes would have to be fetched.
nitpick_ignore_regex = [
    (
        "py:.*",
        r"(torch|transformers|pandas|pathlib|pydantic|collections|datetime|jaxtyping|typing)\..*",
    ),
    ("py:.*", r"(Path|Tensor|Float|Int|NoneType|ndarray)"),
    ("py:.*", r"'[\w* ]*(d_model|n)'"),  # jaxtyping's shapes
    (
        "py:.*",
        r"refusal\.model\.(base\.LoadedModel|hooks\.Call)",
    ),
]

html_theme = "furo"
html_title = f"refusal {release}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False  # the licence is in the repository
html_static_path = ["style"]
html_css_files = ["site.css"]
templates_path: list[str] = []
exclude_patterns = ["_build"]


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def _levels(*event: Any) -> None:
    """A caption in the sidebar says that it is a heading but not of which level, which screen
    readers need.
    """
    context = event[3]
    tree = context["furo_navigation_tree"]
    context["furo_navigation_tree"] = tree.replace(
        'role="heading"', 'role="heading" aria-level="2"'
    )


def _parseable(*event: Any) -> tuple[str | None, str | None]:
    """A dataclass's ``field(default_factory=...)`` has no text that is Python."""
    signature, returned = event[-2:]
    return (signature.replace("<factory>", "...") if signature else signature), returned


def setup(app: Sphinx) -> None:
    """Equations as MathML, which browsers draw by themselves: Sphinx's own renderers need a script
    or TeX.
    """
    app.connect("html-page-context", _levels, priority=900)  # after the theme has made the tree
    app.connect("autodoc-process-signature", _parseable)
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
