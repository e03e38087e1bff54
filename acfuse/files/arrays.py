"""Real inputs, as `numpy.savez` writes them; never objects, which only a pickle could hold."""

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acfuse.errors import InputError
from acfuse.files.opened_file import check_given
from acfuse.system.escape import one_line
from acfuse.system.limits import LIMITS, Limits


def read_arrays(path: Path, limits: Limits = LIMITS, flag: str = "--inputs") -> dict[str, Tensor]:
    """The arrays of an .npz file, or of an .npy file the one, by name.

    Raises UsageError where there is no such file, InputError for one that cannot be read.
    """
    check_given(path, flag)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                limits.check("memory", sum(i.file_size for i in archive.infolist()), path.name)
        loaded = np.load(path, allow_pickle=False)
        arrays = {"arr_0": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        tensors = {name: tensor_of(array) for name, array in arrays.items()}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        why = "it holds objects" if "pickle" in str(error) else one_line(error, 160)
        raise InputError(
            f"{flag}: {path.name} cannot be read ({why}); expected arrays of numbers, as "
            "numpy.savez writes them."
        ) from error
    if not tensors:
        raise InputError(f"{flag}: {path.name} holds no array.")
    return tensors


def tensor_of(array: object) -> Tensor:
    """A copy of an array of numbers, in whichever order its bytes are.

    Raises TypeError or ValueError where it is none.
    """
    own = np.array(array)
    return torch.from_numpy(own.astype(own.dtype.newbyteorder("="), copy=False))
