"""Networks that --model names by a package and a name in it: `timm:repvgg_a0`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from acfuse.errors import UsageError

Arguments = Mapping[str, Any]


def _timm(package: Any, name: str, arguments: Arguments) -> Any:
    return package.create_model(name, **{"pretrained": False, **arguments})


def _torchvision(package: Any, name: str, arguments: Arguments) -> Any:
    return package.models.get_model(name, **{"weights": None, **arguments})


def _transformers(package: Any, name: str, arguments: Arguments) -> Any:
    """A model as its config.json describes it: of a folder, or of the hub's client.

    Only classes of the package itself are taken: no code that stands beside a config.
    """
    from torch import nn

    place = name if not Path(name).is_file() else str(Path(name).parent)
    config = package.AutoConfig.from_pretrained(place, trust_remote_code=False, **arguments)
    classes = [getattr(package, n, None) for n in config.architectures or ()]
    known = [c for c in classes if isinstance(c, type) and issubclass(c, nn.Module)]
    if not known:
        named = ", ".join(config.architectures or ()) or "none"
        raise UsageError(
            f"--model transformers:{name}: its config.json names the architecture {named}; expected"
            " a class of transformers. Give it by hand: --model transformers.models.NAME:CLASS."
        )
    return known[0](config)


def _ultralytics(package: Any, name: str, arguments: Arguments) -> Any:
    if arguments:
        raise UsageError(f"--model ultralytics:{name} takes no --model-args: its file says all.")
    if not name.endswith((".yaml", ".yml")):
        raise UsageError(
            f"--model ultralytics:{name}: expected the name of a .yaml file, as yolov10n.yaml."
        )
    return package.YOLO(name).model


MAKERS: Mapping[str, Callable[[Any, str, Arguments], Any]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "transformers": _transformers,
    "ultralytics": _ultralytics,
}
"""How each package makes a network of a name, with random weights. Its module is given."""
