"""Compile every Triton kernel for three GPUs at the sizes of the recipes, without one; prints JSON, a row for each.

Run as a process of its own: kernels that were imported for the interpreter cannot be compiled.
"""

import itertools
import json
import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from zfdist import noise_kernel
from zfdist.model.kernels import triton_kernels
from zfdist.model.kernels.lstm_cell import CLIP, GATES, SLOPE

SIZES = {"timit, mnist": (1024, 256, 512), "blizzard": (2048, 256, 1024), "imdb": (500, 64, 500)}  # hidden, z, mlp
TYPES = {"fp32": ("*fp32", "*fp32"), "bf16": ("*fp32", "*bf16"), "fp16": ("*fp32", "*fp16"), "fp64": ("*fp64", "*fp64")}
ARCHITECTURES = (80, 90, 100)


def compiled(
    kernel: Any, architecture: int, pointers: dict[str, str], whole: dict[str, int], constants: dict[str, Any]
):
    """Compile as a launch would: pointers and whole numbers that 16 divides are known to be so, unless told not to."""
    signature, attributes = {}, {}
    for i, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = pointers.get(name, "i32")
        if name in pointers or (whole.get(name, 1) % 16 == 0):
            attributes[(i,)] = [["tt.divisibility", 16]]
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature=signature, constexprs=values, attrs=attributes)
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})


def measured(binary: Any, architecture: int) -> dict[str, Any]:
    """Ask the assembler for registers and spills, and the listing for its loads."""
    name = "ptxas-blackwell" if architecture >= 100 else "ptxas"
    assembler = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    listing = binary.asm["ptx"]
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(listing)
        file.flush()
        target = f"--gpu-name=sm_{architecture}" + ("a" if architecture >= 90 else "")
        said = subprocess.run([assembler, "-v", target, file.name, "-o", "/dev/null"], capture_output=True, text=True)
    spilled = [int(count) for count in re.findall(r"(\d+) bytes spill", said.stderr + said.stdout)]
    return {
        "cubin_bytes": len(binary.asm["cubin"]),
        "registers": int(re.search(r"Used (\d+) registers", said.stderr + said.stdout)[1]),
        "spilled_bytes": sum(spilled) if spilled else None,
        "shared_bytes": binary.metadata.shared,
        "loads": len(re.findall(r"ld\.global", listing)),
        "vector_loads": len(re.findall(r"ld\.global(?:\.\w+)*\.v[24]", listing)),
        "approximate": sorted(set(re.findall(r"(?:sin|cos|lg2|sqrt)\.approx", listing))),
    }


def rows_of_the_loop(architecture: int):
    kernels = {n: k for n, k in vars(triton_kernels).items() if hasattr(k, "arg_names") and not n.startswith("_")}
    for (size, (hidden, z_dim, mlp_dim)), (operand, types) in itertools.product(SIZES.items(), TYPES.items()):
        if operand == "fp64" and size != "timit, mnist":
            continue
        gates = GATES * hidden
        sizes = {"gates": gates, "mlp_dim": mlp_dim, "z_dim": z_dim, "hidden": hidden}
        sizes |= {"p_stride": gates + mlp_dim, "d_stride": gates + mlp_dim}
        for name, kernel in kernels.items():
            whole = {n: sizes[n] for n in kernel.arg_names if n in sizes}
            constants = {"NARROW": types[0] != types[1], "BLOCK": 256, "SLOPE": SLOPE, "CLIP": CLIP, "BOUND": 8.0}
            constants |= {"GRAIN": math.gcd(16, *whole.values())}
            constants = {n: v for n, v in constants.items() if n in kernel.arg_names}
            pointers = {n: types[n.startswith("narrow_")] for n in kernel.arg_names if n[-1].isupper()}
            pointers = {n: t for n, t in pointers.items() if n not in constants}
            binary = compiled(kernel, architecture, pointers, whole, constants)
            yield {"kernel": name, "size": size, "operand": operand, **measured(binary, architecture)}


def main() -> None:
    rows = []
    for architecture in ARCHITECTURES:
        found = [*rows_of_the_loop(architecture)]
        pointers = {"out_TBD": "*fp32", "positions_B": "*i64"}
        binary = compiled(noise_kernel.kernel, architecture, pointers, {}, {"BLOCK": noise_kernel._BLOCK})
        found.append({"kernel": "noise", "size": "any", "operand": "fp32", **measured(binary, architecture)})
        rows += [{"architecture": architecture, **row} for row in found]
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
