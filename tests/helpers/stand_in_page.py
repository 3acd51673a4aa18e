"""A page of three assets that stands in for the explorer's own in tests of its server."""

from twosides.explorer.page import Page

TOKEN = "a-token-for-tests"
PAGE = Page(
    '<!doctype html><head><link rel="stylesheet" href="/assets/app-1.css">'
    '<script type="module" src="/assets/app-2.js"></script></head><body></body>',
    {
        "assets/app-1.css": b"@font-face{src:url(/assets/f-3.woff2) format('woff2')}",
        "assets/app-2.js": b"const end = '</script>';",
        "assets/f-3.woff2": b"font",
    },
    "assets/app-2.js",
    "assets/app-1.css",
    ("assets/f-3.woff2",),
)
