"""What the commands print: plain text, at most 80 columns wide where it is a screen."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 80
MAX_LIMIT = 1000  # of the arguments that are numbers of rows
PICKLED = "(pickled)"
_UNITS = ("day", 86400), ("hour", 3600), ("minute", 60)


def printable(text: str) -> str:
    """A text in which what may control a terminal is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def fitted(text: str, width: int) -> str:
    """A text that is printable, padded or cut to a width."""
    text = printable(text)
    return text.ljust(width) if len(text) <= width else f"{text[: width - 3]}..."


def age(seconds: int) -> str:
    """An age in its largest unit: "3 days"."""
    for unit, size in _UNITS:
        if seconds >= size:
            return counted(seconds // size, unit)
    return counted(max(seconds, 0), "second")


def counted(number: int, noun: str) -> str:
    """A number with its noun: "1 message", "2 messages"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def shortened(shown: int, number: int, noun: str) -> str:
    """The line below a list that ends at its limit: "2 of 3 messages"."""
    advice = "; --limit shows more" if shown < MAX_LIMIT else ""
    return f"{shown:,} of {counted(number, noun)}{advice}"


def pairs(rows: Sequence[tuple[str, object]]) -> str:
    """Names and values, one below the other."""
    width = max(len(name) for name, _ in rows) + 2
    texts = (f"{value:,}" if isinstance(value, int) else str(value) for _, value in rows)
    return "\n".join(f"{name:{width}}{text}" for (name, _), text in zip(rows, texts, strict=True))
