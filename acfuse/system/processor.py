"""Which processor this is, as far as the system tells."""

import platform
from pathlib import Path

FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "neon", "asimd")
CPUINFO = Path("/proc/cpuinfo")


def flags() -> list[str]:
    """What the processor can do beyond the usual, as far as the system tells."""
    known = _told(("flags", "Features")).split()
    return [flag for flag in FLAGS if flag in known]


def processor() -> str:
    """The processor in words, with what matters to sums of 8 bits."""
    name = _told(("model name",)) or platform.processor() or platform.machine()
    found = flags()
    if any("vnni" in flag for flag in found):
        return f"{name} (with VNNI)"
    return f"{name} (without VNNI)" if "avx2" in found else name


def _told(starts: tuple[str, ...]) -> str:
    try:
        text = CPUINFO.read_text(encoding="utf-8")
    except OSError:
        return ""
    line = next((line for line in text.splitlines() if line.startswith(starts)), "")
    return line.partition(":")[2].strip()
