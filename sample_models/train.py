"""Train both networks of digits.py on scikit-learn's handwritten digits: python train.py.

Takes under a minute on one CPU core, and writes ``model.pth`` (AcNet, with its epoch and accuracy)
and ``repvgg.pth`` (RepVgg, a plain state dict) beside this file. Everything random is seeded.
"""

import runpy
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

HERE = Path(__file__).resolve().parent
TEST_IMAGES = 360
EPOCHS = 30
BATCH = 64


def digits_split() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Load the digits, the same 360 of 1,797 always kept for the test.

    Returns images and labels to train on, then images and labels to test with; the images are
    [count, 1, 8, 8], from 0 to 1. Needs scikit-learn, which brings the images with it.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
    answers = torch.tensor(labels)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    return images[train], answers[train], images[test], answers[test]


def shifted(images: Tensor) -> Tensor:
    """Move a batch by up to one pixel in each direction, which makes few digits into more."""
    down, right = torch.randint(-1, 2, (2,)).tolist()
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return padded[:, :, 1 + down : 9 + down, 1 + right : 9 + right]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, answers: Tensor) -> float:
    """Tell the share of right answers."""
    return (model.eval()(images).argmax(1) == answers).double().mean().item()


def train(model: nn.Module, images: Tensor, answers: Tensor) -> None:
    """Fit a model in place, with shifted images and one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005, weight_decay=0.01)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            scores = model(shifted(images[batch]))
            loss = nn.functional.cross_entropy(scores, answers[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def main() -> int:
    """Train, print and save both networks."""
    torch.set_num_threads(1)  # on images this small, more threads only wait for each other
    try:
        images, answers, test_images, test_answers = digits_split()
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is missing: pip install 'acfuse[samples]'", file=sys.stderr)
        return 2
    networks = runpy.run_path(str(HERE / "digits.py"))
    for name, file in {"AcNet": "model.pth", "RepVgg": "repvgg.pth"}.items():
        torch.manual_seed(0)
        model = networks[name]()
        train(model, images, answers)
        right = accuracy(model, test_images, test_answers)
        tensors = model.state_dict()
        nested = {"state_dict": tensors, "epoch": EPOCHS, "accuracy": right}
        torch.save(nested if name == "AcNet" else tensors, HERE / file)
        print(f"{name}: {right:.2%} of {len(test_images)} test images right -> {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
