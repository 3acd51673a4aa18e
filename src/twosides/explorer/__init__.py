"""The explorer: a local web page on which every figure is a Python function of the library.

    figure.py     what a figure is: controls, a function that computes a view, and their limits
    figures/      the figures, one function each
    desk.py       one thread that computes, a bounded queue in front of it
    server.py     the page and the WebSocket, on 127.0.0.1
    export.py     the page with precomputed frames, as one file

Nothing here imports torch before a figure is computed, so that the page is served at once.
"""
