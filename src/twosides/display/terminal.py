"""Foreign text in a terminal: names of files, classes and metadata, with nothing hidden in them.

A terminal obeys control characters: a name can retitle the window, move the cursor over what was
said, or turn the reading direction. All that the commands print passes through `shown`.
"""

from __future__ import annotations


def shown(text: object) -> str:
    """The text with everything that is not printed as a sign of its own written as an escape.

    Escaped are control and format characters, among them those of direction, odd spaces, and bytes
    of file names that are no text. Ends of lines and tabs stay.

    >>> print(shown("a" + chr(27) + "]0;b" + chr(7) + chr(0x202E)))
    a\\x1b]0;b\\x07\\u202e
    """
    return "".join(
        sign if sign.isprintable() or sign in "\n\t" else sign.encode("unicode_escape").decode()
        for sign in str(text)
    )


def say(text: object, *, end: str = "\n") -> None:
    """Print a text on standard output as it is `shown`, at once."""
    print(shown(text), end=end, flush=True)


def complaint(text: object) -> str:
    """An error or a warning as it is `shown`, after the program's name, its further lines set in.

    So no line of a foreign name can pass for one that the program says.

    >>> complaint("no file a" + chr(10) + "twosides: all is well")
    'twosides: no file a\\n  twosides: all is well'
    """
    return f"twosides: {shown(text)}".replace("\n", "\n  ")
