"""Prints docs/codes.md: `python -m acfuse.codes > docs/codes.md`."""

from acfuse.codes import EXITS, REASONS, Code

HEAD = """# Codes

What `acfuse explain CODE` tells, of each code. Each example is run by the tests, and prints what
stands below it. This page is made by `python -m acfuse.codes > docs/codes.md`.

A code ACF2xx says why a block was left as it is, or what to know of one that was fused. It is no
failure: whatever else could be fused, was. An exit code says how a command ended.
"""


def page() -> str:
    """The page as Markdown: a list of all, and then each of them."""
    parts = [HEAD, _listed(REASONS), _listed(EXITS)]
    return "\n".join([*parts, *map(_section, (*REASONS, *EXITS))]).rstrip("\n") + "\n"


def _listed(codes: tuple[Code, ...]) -> str:
    rows = [f"| [{code.name}](#{code.name.lower()}) | {code.title} |" for code in codes]
    return "\n".join(["| code | meaning |", "|---|---|", *rows, ""])


def _section(code: Code) -> str:
    lines = [f"## {code.name}", "", f"**{code.title}.** {code.meaning}", ""]
    if code.is_command:
        commands = [f"$ {line}" for line in code.example.splitlines()]
        lines += ["```", *commands, f"... {code.says} ...", "```", ""]
    elif code.example:
        lines += ["```python", code.example.rstrip("\n"), "```", "", "```", code.says, "```", ""]
    return "\n".join([*lines, code.cure, ""])


if __name__ == "__main__":
    print(page(), end="")
