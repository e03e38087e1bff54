"""Files with anything changed in them: an answer or a refusal, never a crash."""

import io
import json
import random
import tempfile
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.trust.forked import Server
from tests.trust.rows import Row
from tests.trust.sample import converted

SECONDS = 900
CODES = {0, 1, 2, 3, 4, 5}
Change = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice([1, 1, 3, 20])):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def swap(data: bytearray, chance: random.Random) -> None:
    size = chance.randrange(1, max(len(data) // 4, 2))
    a, b = (chance.randrange(len(data) - size + 1) for _ in range(2))
    data[a : a + size], data[b : b + size] = data[b : b + size], data[a : a + size]


def drop(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    del data[start : start + chance.choice([1, 4, 64])]


def repeat(data: bytearray, chance: random.Random) -> None:
    start = chance.randrange(len(data))
    data[start:start] = data[start : start + chance.choice([1, 8, 200])]


def fill(data: bytearray, chance: random.Random) -> None:
    start, size = chance.randrange(len(data)), chance.choice([1, 2, 4, 8, 64])
    data[start : start + size] = bytes([chance.choice([0, 255, 0x80, 0x28, 0x2E])]) * size


def edit(data: bytearray, chance: random.Random) -> None:
    """Another number, or another word, in what is text."""
    places = [i for i, byte in enumerate(data) if 0x30 <= byte <= 0x7D]
    for place in chance.sample(places, min(3, len(places))):
        data[place] = chance.choice(b'0123456789-"[]{}(),:.ew')


OWN = """[[pattern]]
name = "house"
block = "main > main_bn + side > side_bn + [skip_bn]"
fused = "deploy"
ignore = ["act"]
bn_eps = 1e-5
source = "our networks since 2024"
"""
CHANGES: tuple[Change, ...] = (flip, cut, swap, drop, repeat, fill, edit)


def whole_again(data: bytearray, chance: random.Random) -> None:
    """Records that are changed, or each other's, in a zip file that is whole and has checksums.

    Without that, hardly a change in a zip file comes further than its checksum.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(i.filename, bytearray(archive.read(i))) for i in archive.infolist()]
    kind = chance.choice(
        ["change", "change", "change", "change", "swap", "lose", "rename", "order"]
    )
    place = chance.randrange(len(records))
    name, content = records[place]
    if kind == "change" and content:
        # Mostly what is small: names and shapes, not the numbers of weights.
        name, content = min(chance.choices(records, k=2), key=lambda record: len(record[1]))
        if content:
            chance.choice(CHANGES)(content, chance)
    elif kind == "swap":
        other = chance.randrange(len(records))
        other_name, other_content = records[other]
        records[place], records[other] = (name, other_content), (other_name, content)
    elif kind == "lose":
        del records[place]
    elif kind == "rename":
        changed = bytearray(name.encode())
        edit(changed, chance)
        records[place] = changed.decode(), content
    elif kind == "order":
        chance.shuffle(records)
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # a name may be there twice
        for name, content in records:
            archive.writestr(name, bytes(content))
    data[:] = buffer.getvalue()


IMAGE = torch.zeros(1, 3, 8, 6)


class Arms(nn.Module):
    """A block, for the program of torch.export."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.one(x) + self.two(x)).relu()


def originals(forks: Server, folder: Path) -> dict[str, list[str]]:
    """A small file of each kind, and how `acfuse` is asked about it."""
    converted(forks, folder, seed=1, onnx=True)
    torch.manual_seed(0)
    block = {}
    for name, kernel in (("square", (3, 3)), ("ver", (3, 1)), ("hor", (1, 3))):
        block[f"a.{name}_conv.weight"] = torch.randn(4, 3, *kernel)
        for key, tensor in nn.BatchNorm2d(4).state_dict().items():
            block[f"a.{name}_bn.{key}"] = tensor + torch.rand(4) if tensor.ndim else tensor
    torch.save(block, folder / "zip.pth")
    torch.save(block, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    save_file(block, folder / "plain.safetensors")
    ended = forks.run("export-onnx", "model.pth", "-o", "graph.onnx", folder=folder)
    assert ended.exit == 0, ended.stderr
    names = ", ".join(f'"{key}": "plain.safetensors"' for key in block)
    (folder / "m.safetensors.index.json").write_text(f'{{"weight_map": {{{names}}}}}')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(Arms().eval(), (IMAGE,)), folder / "p.pt2")
    with h5py.File(folder / "block.hdf5", "w") as file:
        for key, tensor in block.items():
            file.create_dataset(key, data=tensor.numpy())
    (folder / "own.toml").write_text(OWN)
    (folder / "acfuse.toml").unlink()  # these are files without their code
    given = ["zip.pth", "legacy.pth", "plain.safetensors", "graph.onnx", "p.pt2", "block.hdf5",
             "m.safetensors.index.json"]  # fmt: skip
    asked = {name: ["inspect", name] for name in given}
    return {
        **asked,
        "zip.pth again": ["convert", "zip.pth", "--dry-run"],
        "graph.onnx again": ["convert", "graph.onnx", "--dry-run"],
        "p.pt2 again": ["convert", "p.pt2", "--dry-run", "--no-onnx", "--input-shape", "1,3,8,6"],
        "own.toml": ["inspect", "zip.pth", "--patterns", "own.toml"],
        "model.fused.acfuse.json": ["verify"],
    }


def measure(forks: Server, scale: float) -> Row:
    """Changes files in every way, and asks about them."""
    count = max(int(10_000 * scale), 7)
    chance = random.Random(0)
    fates: Counter[str] = Counter()
    first = ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = originals(forks, folder)
        data = {name: (folder / name.split()[0]).read_bytes() for name in every}
        for file, args in every.items():  # a change can only break what works
            ended = forks.run(*args, folder=folder)
            assert ended.exit == 0, (file, ended.stderr)
        for n in range(count):
            case = list(every)[n % len(every)]
            path = folder / case.split()[0]
            changed = bytearray(data[case])
            if changed.startswith(b"PK") and chance.random() < 0.7:
                whole_again(changed, chance)
            else:
                for _ in range(chance.choice([1, 1, 2])):
                    if changed:
                        chance.choice(CHANGES)(changed, chance)
            path.write_bytes(changed)
            ended = forks.run(*every[case], folder=folder)
            path.write_bytes(data[case])
            fate = (
                "signals" if ended.exit < 0 and not ended.hung
                else "hangs" if ended.hung
                else "tracebacks" if not ended.is_clean
                else "odd exits" if ended.exit not in CODES or ended.touched
                else "refused" if ended.exit
                else "read"
            )  # fmt: skip
            fates[fate] += 1
            if fate not in ("refused", "read"):
                first = first or f"{case} #{n}: {ended.exit} {ended.stderr[-200:]!r}"
    bad = {k: fates[k] for k in ("signals", "tracebacks", "hangs", "odd exits")}
    return Row(
        "mutated files (flips, truncation, record swaps, metadata edits)",
        "10,000 with 0 signals, 0 tracebacks, 0 hangs over 10 s",
        f"{count:,}: {fates['refused']:,} refused, {fates['read']:,} read; "
        + ", ".join(f"{n} {k}" for k, n in bad.items())
        + (f" ({first})" if first else ""),
        not any(bad.values()),
    )


def test_changed_files_never_crash_it(forks):
    row = measure(forks, 0.006)
    assert row.holds, row.measured
    assert " 0 refused" not in row.measured


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["source"].pop("sha256"),
        lambda data: data["source"].update(file=["a"]),
        lambda data: data["source"].update(file="a\0b"),
        lambda data: data.update(source="model.pth"),
        lambda data: data.update(outputs=[]),
        lambda data: data.update(outputs={"a": 1}),
        lambda data: data["outputs"].append(3),
        lambda data: data.update(shards=7),
    ],
)
def test_a_manifest_that_names_no_files_is_refused(forks, tmp_path, change):
    converted(forks, tmp_path, seed=1, onnx=False)
    manifest = tmp_path / "model.fused.acfuse.json"
    data = json.loads(manifest.read_text())
    change(data)
    manifest.write_text(json.dumps(data))
    ended = forks.run("verify", folder=tmp_path)
    assert (ended.exit, ended.is_one_line, ended.is_clean) == (3, True, True), ended.stderr
