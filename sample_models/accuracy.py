"""Compare answers before and after: python accuracy.py ORIGINAL.pth FILE.onnx [MORE.onnx ...].

Runs the original in PyTorch and each file in onnxruntime on the digits that training never saw.
Exits 1 unless all give the same answer on every image; with --points 1, unless each is right on as
many images as the original, but for one of a hundred.
"""

import argparse
import runpy
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print each accuracy, and on how many images the answers are the original's."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", metavar="ORIGINAL.pth")
    parser.add_argument("files", metavar="FILE.onnx", nargs="+")
    parser.add_argument("--model", default=str(HERE / "digits.py:AcNet"), help="file.py:Class")
    parser.add_argument("--points", type=float, help="accuracy that may be lost, in percent")
    arguments = parser.parse_args()
    try:
        import onnxruntime

        _, _, images, answers = runpy.run_path(str(HERE / "train.py"))["digits_split"]()
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is missing: pip install 'acfuse[samples]'", file=sys.stderr)
        return 2

    file, _, name = arguments.model.rpartition(":")
    model = runpy.run_path(file)[name]()
    checkpoint = torch.load(arguments.original, weights_only=True)
    model.load_state_dict(checkpoint.get("state_dict", checkpoint))
    with torch.no_grad():
        before = model.eval()(images).argmax(1)

    given = {arguments.original: before}
    for path in arguments.files:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        entry = session.get_inputs()[0].name
        scores = [session.run(None, {entry: image.numpy()})[0] for image in images.split(1)]
        given[path] = torch.cat([torch.from_numpy(score) for score in scores]).argmax(1)

    right = {path: int((after == answers).sum()) for path, after in given.items()}
    for path, after in given.items():
        same = int((after == before).sum())
        told = f"{path}: {right[path]} of {len(answers)} right, {right[path] / len(answers):.2%}"
        print(told if path == arguments.original else f"{told}, the same answer on {same}")
    if arguments.points is None:
        return 0 if all(torch.equal(after, before) for after in given.values()) else 1
    room = arguments.points / 100 * len(answers)
    return 0 if all(n >= right[arguments.original] - room for n in right.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
