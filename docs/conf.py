"""How Sphinx builds these pages: ``sphinx-build -W -n docs build/html``."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import echo

project = "echo"
version = release = echo.__version__
copyright = "the authors of echo"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["echo.css"]
html_title = f"echo {release}"
html_show_sourcelink = False
html_copy_source = False

nitpick_ignore_regex = [  # types in signatures: other projects', which an offline build cannot link, and private ones
    ("py:class", r"(logging|socket|socketserver|ssl)\.\w+"),
    ("py:class", r"echo\.\w+\..*|ServerOptions"),
]


def setup(app):
    """Show the class itself where a method returns an object of its own class."""

    def own_class(app, what, name, obj, options, signature, returns):
        return signature, returns and returns.replace("_Self", name.split(".")[-2])

    app.connect("autodoc-process-signature", own_class)
