"""What a call raises is told from the text of a file as Python itself tells it, or not at all."""

import contextlib
import re

import pytest

from acfuse.files.signatures import fault_of_call

HEAD = "import torch\nfrom torch import nn\n\n"
SIGNATURES = (
    "self",
    "self, channels",
    "self, channels, /, size=3",
    "self, channels, size=3, *, depth, wide=(1, 2)",
    "self, *rest, depth",
    "self, channels: 'nothing' = 1, **more",
    "self, a, b, c",
)
GIVEN = ({}, {"channels": 3}, {"depth": 1}, {"channels": 3, "depth": 1, "odd": 2}, {"self": 1})


def _text(call):
    try:
        call()
    except TypeError as error:
        return str(error)
    return None


@pytest.mark.parametrize("signature", SIGNATURES)
@pytest.mark.parametrize("given", GIVEN)
def test_the_words_are_those_of_python(tmp_path, signature, given):
    code = (
        f"class Net:\n    def __init__({signature}): pass\n\n"
        f"def make({signature.removeprefix('self').strip(', ')}): pass\n"
    )
    (tmp_path / "nets.py").write_text(HEAD + code.replace("Net:", "Net(nn.Module):"))
    own = {}
    exec(code, own)
    for name in ("Net", "make"):
        fault = fault_of_call(tmp_path / "nets.py", name, given)
        assert (fault and str(fault)) == _text(lambda name=name: own[name](**given))


NET = "class Net(nn.Module):\n    def __init__(self, channels):\n        super().__init__()\n"


def test_a_missing_argument_is_told(tmp_path):
    (tmp_path / "nets.py").write_text(HEAD + NET)
    assert "'channels'" in str(fault_of_call(tmp_path / "nets.py", "Net", {}))
    assert fault_of_call(tmp_path / "nets.py", "Net", {"channels": 3}) is None


@pytest.mark.parametrize(
    "code",
    [
        NET + "    __init__ = nn.Module.__init__\n",
        NET + "    def __new__(cls): return 3\n",
        NET + "Net.__init__ = nn.Module.__init__\n",
        NET + "change(Net)\n",
        NET + "Net = other(Net)\n",
        NET + "globals()['Net'] = int\n",
        NET + "from os import *\n",
        NET + "from os import path as Net\n",
        NET + "nn.Module = int\n",
        NET + "def Net(): pass\n",
        NET + "for Net in (int,): pass\n",
        NET + "def f():\n    global Net\n    Net = int\n",
        NET + "try: pass\nexcept OSError as Net: pass\n",
        NET.replace("    def", "    @other\n    def"),
        NET.replace("class", "@other\nclass"),
        NET.replace("nn.Module", "Own"),
        NET.replace("nn.Module", "nn.Module, Own"),
        NET.replace("nn.Module", "nn.Module, metaclass=Own"),
        NET.replace("nn.Module", "nn.Conv2d"),
        "import other as nn\n" + NET,
        "if True:\n" + re.sub("^", "    ", NET, flags=re.MULTILINE),
        "class Net(nn.Module): pass\n",
        "Net = nn.Identity\n",
        "async def Net(channels): pass\n",
    ],
)
def test_what_is_not_certain_is_not_told(tmp_path, code):
    (tmp_path / "nets.py").write_text(HEAD + code)
    assert fault_of_call(tmp_path / "nets.py", "Net", {}) is None


@pytest.mark.parametrize("data", [b"\xff\xfe", b"a = '\0'", b"(" * 5000])
def test_what_is_no_python_is_told_as_such_or_left_to_the_import(tmp_path, data):
    (tmp_path / "nets.py").write_bytes(data)
    with contextlib.suppress(SyntaxError):
        assert fault_of_call(tmp_path / "nets.py", "Net", {}) is None
