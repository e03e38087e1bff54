"""Exit codes: how a command ended, for scripts. Examples are for the folder sample_models/."""

from acfuse.codes.record import Code
from acfuse.errors import Exit

EXITS = (
    Code(
        Exit.DONE,
        "done, and every check passed",
        "What was asked for is done. A conversion has written its files, and each of its checks "
        "passed; blocks that were refused are listed, and are no failure.",
        "acfuse inspect model.pth",
        "5 blocks can be fused",
        "Nothing.",
    ),
    Code(
        Exit.NOT_EQUAL,
        "not equal",
        "A check failed: the fused form and the original differ by more than rounding. Nothing is "
        "left in place. `acfuse bench` ends so where the speed-up is less than --min-speedup, "
        "`acfuse quantize` where 8 bits are not as good as --min-sqnr and --min-agreement ask.",
        "acfuse convert model.pth --bn-eps 0.001 -o other.pth\nacfuse verify model.pth other.pth",
        "not equal",
        "The message names the first bad block and what it looks like: another eps, a missing "
        "arm, a dropped bias. Change that where the file was made. Of a file that acfuse itself "
        "has just made, it is a bug: please report it.",
    ),
    Code(
        Exit.USAGE,
        "wrong usage",
        "The command line or the configuration asks for something that cannot be: an unknown "
        "option, a setting that no command has, two options that exclude each other.",
        "acfuse convert model.pth --input-shape 0",
        "every size must be at least 1",
        "`acfuse COMMAND --help` lists what a command takes; `acfuse config show` tells where a "
        "setting comes from.",
    ),
    Code(
        Exit.BAD_INPUT,
        "the input cannot be used",
        "A file does not exist, is broken, is of another kind, does not fit the network's code, "
        "or is larger than a limit.",
        "acfuse convert missing.pth",
        "missing.pth does not exist",
        "The message says what was found and what was expected, and which option may help.",
    ),
    Code(
        Exit.UNSAFE,
        "refused as unsafe",
        "Reading this file would run what the file says: it is a pickle with more in it than "
        "tensors. It was not loaded.",
        "python -c \"import torch; torch.save(print, 'pickled.pth')\"\nacfuse inspect pickled.pth",
        "pickled.pth",
        "Save model.state_dict() instead of the model. If the classes in it are your own, name "
        "them with --allow-class MODULE:CLASS; --allow-package NAME is for those of a package.",
    ),
    Code(
        Exit.NOTHING,
        "nothing to fuse",
        "No block was found that can become one convolution. It may be fused already.",
        "acfuse convert model.pth -o once.pth\nacfuse convert once.pth",
        "nothing to fuse",
        "`acfuse inspect` lists each candidate with its reason. A bare state dict of an unknown "
        "family needs --model with its code. --allow-empty makes this code 0.",
    ),
    Code(
        Exit.BAD_OUTPUT,
        "an output cannot be written",
        "A folder does not exist or is full, a file exists, or another run is writing it now. "
        "Nothing was written.",
        "acfuse convert model.pth -o no/such/folder/net.pth",
        "is not a directory",
        "Give another --output, or --force to replace files that exist.",
    ),
    Code(
        Exit.BUG,
        "a bug of acfuse",
        "Something happened that acfuse does not expect. A traceback is shown.",
        "",
        "",
        "Please report it, with the traceback and what `acfuse doctor` prints.",
    ),
    Code(
        Exit.LOST,
        "a process of `acfuse batch` was lost",
        "The process that converted a checkpoint was killed, most often because memory ran out. "
        "The others went on.",
        "",
        "",
        "`acfuse batch --resume` does what is left; fewer processes (-j) take less memory.",
    ),
    Code(
        Exit.INTERRUPTED,
        "interrupted",
        "Ctrl-C, or SIGINT. What was half written is removed, and what was there before is there.",
        "",
        "",
        "Start it again: nothing has to be cleaned up.",
    ),
    Code(
        Exit.TERMINATED,
        "terminated",
        "SIGTERM, as a CI system or a scheduler sends it where a job takes too long. What was "
        "half written is removed, and what was there before is there.",
        "",
        "",
        "Start it again, with more time.",
    ),
)
