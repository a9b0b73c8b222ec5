"""The C++ of this folder as a library: compiled once per source, compiler and processor, and kept.

Nothing but a C++ compiler is needed, no headers of torch. The threads are those of OpenMP, which torch has loaded
already, so that both share one pool.
"""

import ctypes
import functools
import hashlib
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch  # also: its OpenMP is the one to be loaded first
from torch import Tensor

from zfdist import atomic_io
from zfdist.claim import held
from zfdist.container import cache_home
from zfdist.errors import ZfdistError

SOURCES = tuple(sorted(path for path in (Path(__file__).parent / "cpp").iterdir() if path.suffix in (".cpp", ".hpp")))
COMPILERS = ("c++", "g++", "clang++")
FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC"),
)
_NAMES = {torch.float32: "f32", torch.float64: "f64"}

PER_THREAD = 2**23
"""Multiplications that a further thread should have to do: less are done before it is awake."""


class BuildError(ZfdistError):
    """There is no library; the message says why."""


@functools.cache
def library() -> ctypes.CDLL:
    """Return the library, compiled if this machine has not done it before; workers that come at once wait for one.

    Raises:
        BuildError: without a compiler, or where it fails or cannot write.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BuildError(f"no C++ compiler found ({', '.join(COMPILERS)})")
    try:
        folder = cache_home() / "zfdist"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / f"model-{_fingerprint(compiler)}.so"
        with held(target.with_suffix(".lock")):
            if not target.exists():
                _compile(compiler, target)
        return ctypes.CDLL(str(target))
    except subprocess.CalledProcessError as error:
        raise BuildError(f"{compiler} failed: {error.stderr.strip().splitlines()[:1]}") from None
    except OSError as error:
        raise BuildError(str(error)) from None


def unsupported_reason(device: torch.device, wide: torch.dtype, operand: torch.dtype) -> str:
    """Return why the library cannot serve tensors and operands of products of these types, or nothing.

    Builds it at the first call.
    """
    if device.type != "cpu" or wide not in _NAMES or operand != wide:
        return f"is for float32 and float64 on a CPU, not for {str(operand).removeprefix('torch.')} on {device.type}"
    try:
        library()
    except BuildError as error:
        return str(error)
    return ""


def call(name: str, settings: ctypes.Structure, arrays: Sequence[Tensor]) -> None:
    """Call the function `name` of the library with arrays in the order it knows, of the first one's type.

    What comes from outside is to be checked and made dense before (zfdist.model.kernels.arguments).

    Raises:
        TypeError: on another device than a CPU, or another type than float32 and float64.
    """
    kind = arrays[0].dtype
    if kind not in _NAMES or not arrays[0].is_cpu:
        raise TypeError(f"C++ is for float32 and float64 on a CPU, not for {kind} on {arrays[0].device}")
    pointers = (ctypes.c_void_p * len(arrays))(*[array.data_ptr() for array in arrays])
    getattr(library(), f"{name}_{_NAMES[kind]}")(ctypes.byref(settings), pointers)


def threads_for(multiplications: int) -> int:
    """Return how many of torch's threads a call with so much work should use."""
    return max(1, min(torch.get_num_threads(), multiplications // PER_THREAD))


def _compile(compiler: str, target: Path) -> None:
    wide = platform.machine() in ("x86_64", "AMD64") and "clang" not in compiler  # only there is there such a flag
    flags = [flag for flag in FLAGS if wide or not flag.startswith("-mprefer")]
    sources = [str(source) for source in SOURCES if source.suffix == ".cpp"]
    with atomic_io.replacing(target) as fresh:
        subprocess.run([compiler, *flags, "-o", str(fresh), *sources], check=True, capture_output=True, text=True)


def _fingerprint(compiler: str) -> str:
    """Return what the library depends on: a home may be shared by machines with other processors."""
    version = subprocess.run([compiler, "--version"], check=True, capture_output=True, text=True).stdout
    parts = (*(source.read_text() for source in SOURCES), version, " ".join(FLAGS), platform.machine(), _processor())
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _processor() -> str:
    """Return the processor's instruction sets where the system tells them, else its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
