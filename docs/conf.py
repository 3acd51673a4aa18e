"""`make docs` builds these pages with Sphinx; they are written to be read as files, too."""

project = "twosides"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "twosides"
html_extra_path = ["../build/extra"]  # the explorer's exported page, which explorer.md embeds
myst_heading_anchors = 3
