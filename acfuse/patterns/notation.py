"""Reads a block from text: the notation in which an expression is printed.

    sum      = chain { ("+" | "-") chain }
    chain    = "pad as" name ">" chain  |  part { ">" part }
    part     = "x" | layer | name "*" part | "average pool as" name
             | "[" sum "]" | "{" repeated "}" | "(" sum ")"
    layer    = name [ "(" size { "," ( "dilation" number | "depthwise" ) } ")" ]
    repeated = name { ">" name }, each with "*" for its number: as many as there are, added

`parse(str(block)) == block` for every block of the language.
"""

import re
from collections.abc import Callable

from acfuse.patterns.expr import (
    PLAIN_NAME,
    Expr,
    each,
    layer,
    maybe,
    padded,
    pool,
    scaled,
    seq,
    x,
)

LENGTH, DEPTH = 10_000, 32
TOKEN = re.compile(rf"\s*('(?:[^'\n]|'')*'|{PLAIN_NAME.pattern}|[-+>(),*\[\]{{}}])")
SIZE = re.compile(r"[1-9]\d{0,3}(x[1-9]\d{0,3}){1,2}")
OPERATORS = frozenset("-+>(),*[]{}")


class NotationError(ValueError):
    """A text that is no block, with what was expected, and where."""


def parse(text: str) -> Expr:
    """The block that a text stands for. Raises NotationError."""
    if len(text) > LENGTH:
        raise NotationError(f"it has {len(text):,} characters, at most {LENGTH:,} are read")
    reader = _Reader(text)
    block = reader.sum()
    if reader.token:
        raise reader.expected("an operator or the end")
    return block


class _Reader:
    """Goes through a text token by token; `token` is the one in front, "" at the end."""

    def __init__(self, text: str) -> None:
        self.text, self.place, self.end, self.depth = text, 0, 0, 0
        self.token = ""
        self.step()

    def step(self) -> str:
        """Takes the token in front."""
        taken, self.place = self.token, self.end
        if not self.text[self.end :].strip():
            self.token = ""
            return taken
        match = TOKEN.match(self.text, self.end)
        if match is None:
            rest = self.text[self.end :].lstrip()
            raise NotationError(f"{rest[:1]!r} stands in no block, at character {self._at()}")
        self.token, self.place, self.end = match[1], match.start(1), match.end()
        return taken

    def _at(self) -> int:
        rest = self.text[self.end :]
        return self.end + len(rest) - len(rest.lstrip()) + 1

    def expected(self, what: str) -> NotationError:
        """What is wrong with the token in front."""
        found = repr(self.token) if self.token else "the end"
        return NotationError(f"expected {what} at character {self.place + 1}, found {found}")

    def take(self, token: str) -> None:
        """Takes this token. Raises NotationError for another one."""
        if self.token != token:
            raise self.expected(repr(token))
        self.step()

    def next_is(self, word: str) -> bool:
        """Whether the token behind the one in front is this word."""
        match = TOKEN.match(self.text, self.end)
        return match is not None and match[1] == word

    def name(self, *, starred: bool = False) -> str:
        """The name in front."""
        token = self.token
        if not token or token in OPERATORS - {"*"} or (token == "*" and not starred):
            raise self.expected("a name")
        name = token[1:-1].replace("''", "'") if token.startswith("'") else token
        if ("*" in name.split(".")) != starred or not all(name.split(".")):
            raise self.expected("a name with one * for its number" if starred else "a name")
        self.step()
        return name

    def nested(self, read: Callable[[], Expr]) -> Expr:
        """What `read` reads, one level deeper. Raises NotationError where that is too deep."""
        self.depth += 1
        if self.depth > DEPTH:
            raise NotationError(f"it is nested more than {DEPTH} deep")
        inner = read()
        self.depth -= 1
        return inner

    def sum(self) -> Expr:
        """Chains that are added."""
        total = self.chain()
        while self.token in ("+", "-"):
            total = total + self.chain() if self.step() == "+" else total - self.chain()
        return total

    def chain(self) -> Expr:
        """One after the other."""
        if self.token == "pad" and self.next_is("as"):
            self.step()
            self.step()
            like = self.name()
            self.take(">")
            return padded(like, self.nested(self.chain))
        parts = [self.part()]
        while self.token == ">":
            self.step()
            parts.append(self.part())
        return seq(*parts)

    def part(self) -> Expr:
        """A layer, the input, or something in brackets."""
        for opening, closing in ("[]", "()"):
            if self.token == opening:
                self.step()
                inner = self.nested(self.sum)
                self.take(closing)
                return maybe(inner) if opening == "[" else inner
        if self.token == "{":
            return self.repeated()
        if self.token == "x":
            self.step()
            return x
        if self.token == "average" and self.next_is("pool"):
            self.step()
            self.step()
            self.take("as")
            return pool(self.name())
        name = self.name()
        if self.token == "*":
            self.step()
            return scaled(name, self.nested(self.part))
        return self.layer(name) if self.token == "(" else seq(name)

    def layer(self, name: str) -> Expr:
        """A layer with what is said of it."""
        self.take("(")
        size = SIZE.fullmatch(self.token)  # 3x3 is meant for every axis
        if size is None:
            raise self.expected("the size of a kernel, such as 3x3,")
        self.step()
        dilation, depthwise = 1, False
        while self.token == ",":
            self.step()
            word = self.name()
            if word == "depthwise" and not depthwise:
                depthwise = True
            elif word == "dilation" and dilation == 1 and re.fullmatch("[1-9][0-9]?", self.token):
                dilation = int(self.step())
            else:
                raise NotationError(f"{word!r} says nothing of {name}: dilation N or depthwise")
        self.take(")")
        return layer(name, tuple(map(int, size[0].split("x"))), dilation, depthwise=depthwise)

    def repeated(self) -> Expr:
        """Layers with a number in their names."""
        self.take("{")
        names = [self.name(starred=True)]
        while self.token == ">":
            self.step()
            names.append(self.name(starred=True))
        self.take("}")
        split = [name.split(".") for name in names]
        stars = {tuple(parts[: parts.index("*")]) for parts in split}
        if len(stars) > 1 or any(parts.count("*") > 1 for parts in split):
            raise NotationError(f"{' > '.join(names)} are not the layers of one numbered list")
        (prefix,) = stars
        return each(".".join(prefix), *(".".join(p[len(prefix) + 1 :]) for p in split))
