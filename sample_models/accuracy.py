"""Compare answers before and after fusion: python accuracy.py ORIGINAL.pth FUSED.onnx.

Runs the original in PyTorch and the fused file in onnxruntime on the digits that training never
saw. Exits 1 unless both give the same answer on every image.
"""

import argparse
import runpy
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print both accuracies, and on how many images the answers are the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("original", metavar="ORIGINAL.pth")
    parser.add_argument("fused", metavar="FUSED.onnx")
    parser.add_argument("--model", default=str(HERE / "digits.py:AcNet"), help="file.py:Class")
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

    session = onnxruntime.InferenceSession(arguments.fused, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    scores = [session.run(None, {entry: image.numpy()})[0] for image in images.split(1)]
    after = torch.cat([torch.from_numpy(score) for score in scores]).argmax(1)

    for path, given in ((arguments.original, before), (arguments.fused, after)):
        right = int((given == answers).sum())
        print(f"{path}: {right} of {len(answers)} right, {right / len(answers):.2%}")
    same = int((before == after).sum())
    print(f"the same answer on {same} of {len(answers)} test images")
    return 0 if same == len(answers) else 1


if __name__ == "__main__":
    sys.exit(main())
