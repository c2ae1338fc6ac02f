"""Tokens of nir's text, each with its place, so that a ParseError can point at it."""

from __future__ import annotations

import json
import re

from nir.errors import ParseError
from nir.frozen import Frozen

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+|\#[^\n]*)
  | (?P<value>%(?:[A-Za-z0-9_][A-Za-z0-9_.']*|"(?:[^"\\\n]|\\.)*"))
  | (?P<graphname>@(?=[A-Za-z0-9_"])(?:[A-Za-z0-9_][A-Za-z0-9_.']*|"(?:[^"\\\n]|\\.)*")(?=\())
  | (?P<at>@)
  | (?P<symbol>\$"(?:[^"\\\n]|\\.)*")
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<bits>0x[0-9a-f]+)
  | (?P<float>[0-9]+(?:\.[0-9]*(?:e[+-]?[0-9]+)?|e[+-]?[0-9]+))
  | (?P<int>[0-9]+)
  | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
  | (?P<mark>->|//|[(){}\[\],:=+*^_-])
    """,
    re.VERBOSE,
)


class Token(Frozen):
    """``kind`` is a group of the grammar above; ``text`` what stands there."""

    kind: str
    text: str
    start: int
    end: int


def tokenize(text: str) -> list[Token]:
    """The tokens of ``text`` without spaces and comments, and an "end" token behind them."""
    tokens: list[Token] = []
    at = 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise parse_error(text, at, "a token", repr(text[at]))
        kind = match.lastgroup or ""
        if kind != "space":
            tokens.append(Token(kind, match.group(), at, match.end()))
        at = match.end()
        if kind == "at":
            at = _locations(text, at, tokens)
    tokens.append(Token("end", "", len(text), len(text)))
    return tokens


# Files are plain words of their own making: they are only looked for behind an "@".
_LOCATION = re.compile(
    r"""[ \t]*(?P<file>[A-Za-z0-9_./<>~+-]+|"(?:[^"\\\n]|\\.)*"):(?P<line>[0-9]+)'?"""
)
_DEVICE = re.compile(r"[a-z]+(?::[0-9]+)?")


def _locations(text: str, at: int, tokens: list[Token]) -> int:
    """Read the file:line list behind an "@", or a device where no space is between."""
    if tokens[-2:-1] and tokens[-2].end == tokens[-1].start:
        match = _DEVICE.match(text, at)
        if match is None:
            raise parse_error(text, at, "a device", _near(text, at))
        tokens.append(Token("device", match.group(), at, match.end()))
        return match.end()
    while True:
        match = _LOCATION.match(text, at)
        if match is None:
            raise parse_error(text, at, "a location such as model.py:16", _near(text, at))
        tokens.append(Token("location", match.group().strip(), match.start("file"), match.end()))
        at = match.end()
        if text[at : at + 1] != ",":
            return at
        at += 1


def unquote(token: Token, source: str, prefix: int = 0) -> str:
    """The text of a token that may be a quoted string, behind ``prefix`` characters."""
    text = token.text[prefix:]
    if not text.startswith('"'):
        return text
    try:
        return str(json.loads(text))
    except json.JSONDecodeError as error:
        raise parse_error(source, token.start, "a string", f"{text} ({error.msg})") from None


def parse_error(text: str, at: int, expected: str, got: str) -> ParseError:
    """What was expected at an offset of ``text``, and what came, with line, column and the line."""
    line = text.count("\n", 0, at) + 1
    start = text.rfind("\n", 0, at) + 1
    stop = text.find("\n", at)
    shown = text[start : stop if stop >= 0 else len(text)]
    pointer = " " * (at - start) + "^"
    message = f"line {line}, column {at - start + 1}: expected {expected}, got {got}"
    return ParseError(f"{message}\n  {shown}\n  {pointer}")


def _near(text: str, at: int) -> str:
    rest = text[at : at + 12].split("\n")[0].strip()
    return repr(rest) if rest else "the end of the line"
