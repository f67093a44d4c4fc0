"""The site: python -m sphinx -W -c docs . build/docs, with the package installed (.ci/docs.sh).

Its source is the whole repository, so that a link of a page leads to the same file here and on the forge.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

from sphinx.application import Sphinx

import mxfp4moe

sys.path.insert(0, str(Path(__file__).parent))
from _project import ROOT, project_url, replace_links, web_address

project = "mxfp4moe"
author = "the mxfp4moe developers"
copyright = author
version = release = mxfp4moe.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/**.md", "bench/*.md", "tests/README.md", "tests/*/README.md", "*.md"]
exclude_patterns = [".*", "build", "src", "README.md"]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
autodoc_member_order = "groupwise"
autodoc_mock_imports = [] if find_spec("jax") else ["jax"]
autodoc_typehints = "none"  # docstrings say more: shapes and dtypes
numpydoc_show_class_members = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_static_path = ["_static"]
html_css_files = ["site.css"]
templates_path = ["_templates"]
html_additional_pages = {"index": "redirect.html"}
# Pages without others below them need no list of those.
html_sidebars = {
    page: []
    for page in (
        *("CONTRIBUTING", "CHANGELOG", "RELEASING", "SECURITY", "search", "genindex", "py-modindex"),
        *(f"docs/{page}" for page in ("install", "quickstart", "command-line", "numerics", "performance")),
    )
}
html_title = f"mxfp4moe {release}"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "mxfp4moe"},
    "icon_links": [{"name": "Repository", "url": project_url(), "icon": "fa-solid fa-code-branch"}],
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_context = {"default_mode": "auto"}


def link_to_files(app: Sphinx, page: str, source: list[str]) -> None:
    """Links to files that are no pages lead to the repository on the web."""

    def replacement(link: str) -> str:
        target = link.partition("#")[0]
        path = (ROOT / page).parent.joinpath(target).resolve().relative_to(ROOT).as_posix()
        is_page = path.removesuffix(".md") in app.project.docnames
        return link if is_page or path.endswith((".svg", ".png")) else web_address(path)

    source[0] = replace_links(source[0], replacement)


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("source-read", link_to_files)
