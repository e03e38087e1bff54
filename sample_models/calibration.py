"""Write images of the training set, to calibrate 8 bits with: python calibration.py IMAGES.npz."""

import runpy
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
IMAGES = 128


def main() -> int:
    """Save the first training images under the name of the network's input."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        images, *_ = runpy.run_path(str(HERE / "train.py"))["digits_split"]()
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is missing: pip install 'acfuse[samples]'", file=sys.stderr)
        return 2
    np.savez(sys.argv[1], image=images[:IMAGES].numpy())
    print(f"{IMAGES} images -> {sys.argv[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
