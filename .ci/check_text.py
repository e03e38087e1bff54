"""Says which text files end without a newline, have spaces at ends of lines, or are no TOML.

python .ci/check_text.py FILE ...
"""

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path


def faults(path: Path) -> Iterator[str]:
    """What is wrong with a file, a line each."""
    text = path.read_text(encoding="utf-8")
    if text and (not text.endswith("\n") or text.endswith("\n\n")):
        yield f"{path}: it does not end with one newline"
    for number, line in enumerate(text.split("\n"), start=1):
        if line != line.rstrip():
            yield f"{path}:{number}: spaces at the end of the line"
    if path.suffix == ".toml":
        try:
            tomllib.loads(text)
        except ValueError as error:
            yield f"{path}: {error}"


if __name__ == "__main__":
    found = [fault for name in sys.argv[1:] for fault in faults(Path(name))]
    sys.stdout.writelines(f"{fault}\n" for fault in found)
    sys.exit(bool(found))
