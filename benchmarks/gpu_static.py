"""What the Triton kernels cost a GPU, counted without one: they are compiled and disassembled.

    python benchmarks/gpu_static.py --output results/bench/static.csv

One line a variant: instructions and MUFU (exp2, log2, reciprocal) an element, registers, bytes of stack, and shuffles
and barriers inside loops, which would keep loads from overlapping. An H200 issues 60 instructions and 7.5 MUFU in the
time of reading and writing a float32 once, 30 and 3.7 for a bfloat16. The assembler comes with the `triton` package.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import csv_lines

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
TRITON_TYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
FORMS = {"2": 2, "3": 3, "4": 4, "inf": -1, "plain": 1, "series": 0}
KERNELS = ("long_rows", "short_rows", "sum_parts", "write_parts", "scale_gradient")
# Options that are off by default, each compiled alone and with the others.
EXTRAS = ("z_loss", "softcap", "statistics", "all")
BYTES_LOADED = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1}


@dataclass(frozen=True)
class Variant:
    """A kernel as the compiler sees it: rows of `classes` logits of `dtype`, the form of beta, options of rows."""

    kernel: str
    dtype: str
    form: str = "2"
    prior: bool = False
    of_rows: bool = False
    classes: int = 32768
    capability: int = 90
    extra: str = ""


def variants(capability: int = 90, *, quick: bool = False) -> Iterator[Variant]:
    """Every kernel in every form; `quick` leaves out what differs in a load alone."""
    # With a prior, 2, 3 and 4 are plain.
    forms = [(form, prior) for form in FORMS for prior in (False, True) if not prior or FORMS[form] < 2]
    for kernel, dtype, (form, prior) in product(KERNELS[:-1], ITEM_BYTES, forms):
        classes = 1000 if kernel == "short_rows" else 32768
        if quick and (dtype == "float16" or (dtype == "bfloat16" and (prior or kernel.endswith("parts")))):
            continue
        yield Variant(kernel, dtype, form, prior, form == "series", classes, capability)
        if dtype == "float32" and (form == "2" or (form == "plain" and prior and not quick)):
            for extra in ("all",) if quick else EXTRAS:
                yield Variant(kernel, dtype, form, prior, False, classes, capability, extra)
    if not quick:
        for dtype in ("float32", "bfloat16"):
            yield Variant("long_rows", dtype, classes=50257, capability=capability)  # rows that are not aligned
            for classes in (10, 100, 4096):
                yield Variant("short_rows", dtype, classes=classes, capability=capability)
    for dtype in ITEM_BYTES:
        yield Variant("scale_gradient", dtype, capability=capability)


def compiled(variant: Variant) -> tuple[Any, dict[str, Any]]:
    """(the compiled kernel, its compile-time constants)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from labo.kernels import triton as implementation
    from labo.kernels import triton_kernels
    from labo.kernels.triton_shapes import power_of_2, shape_of, tile_of

    kernel = getattr(triton_kernels, variant.kernel)
    item = ITEM_BYTES[variant.dtype]
    shape = shape_of(variant.classes, item)
    unit = 16 // item
    while variant.classes % unit:
        unit //= 2
    unit = unit if unit > 2 else 1
    groups, lanes = tile_of(shape, unit, item)
    pointer = f"*{TRITON_TYPES[variant.dtype]}"
    known: dict[str, Any] = {
        "class_stride": 1,
        "contiguous": True,
        "alpha_of_rows": variant.of_rows,
        "beta_of_rows": variant.of_rows,
        "form": FORMS[variant.form],
        "unit": unit,
        "groups": groups,
        "lanes": lanes,
        "together": shape.rows,
        "block": power_of_2(variant.classes) if shape.rows else implementation.SCALE_BLOCK,
        "places": 16,
    }
    types = {
        "logits": pointer,
        "grads": pointer,
        "grad_logits": pointer,
        "targets": "*i64",
        "row_weights": "*fp32",
        "losses": "*fp32",
        "sums": "*fp32",
        "factor": "*fp32",
        "alpha": "*fp32" if variant.of_rows else "fp32",
        "beta": "*fp32" if variant.of_rows else "fp32",
    }
    if variant.prior:
        types["prior"] = "*fp32"
    else:
        known["prior"] = None
    for name, kind in (("z_loss", "fp32"), ("softcap", "fp32"), ("statistics", "*fp32")):
        if variant.extra in (name, "all"):
            types[name] = kind
        else:
            known[name] = None
    names = kernel.arg_names
    constants = {name: value for name, value in known.items() if name in names}
    signature = {name: "constexpr" if name in constants else types.get(name, "i32") for name in names}
    aligned = [name for name in names if signature[name].startswith("*")]
    aligned += [name for name in ("row_units", "grad_units", "class_units") if variant.classes // unit % 16 == 0]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name in names}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    warps = 8 if variant.kernel == "scale_gradient" else shape.warps
    options = {"num_warps": warps, **implementation.COMPILE_OPTIONS}
    target = GPUTarget("cuda", variant.capability, 32)
    return triton.compile(source, target=target, options=options), {**known, "warps": warps, "rows": shape.rows}


def disassembled(kernel: Any) -> tuple[list[str], list[tuple[int, int]], str]:
    """Instructions, loops as (first, last) and the line on resources."""
    import triton

    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(kernel.asm["cubin"])
        text, usage = (
            subprocess.run([str(tools / tool), option, str(path)], capture_output=True, text=True, check=True).stdout
            for tool, option in (("nvdisasm", "-c"), ("cuobjdump", "-res-usage"))
        )
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for index, instruction in enumerate(instructions):
        branch = re.search(r"BRA.*`\((\.L_\w+)\)", instruction)
        # A branch to itself is what follows the end of a program.
        if branch and labels.get(branch[1], index) < index:
            loops.append((labels[branch[1]], index))
    return instructions, loops, usage


def measured(variant: Variant) -> dict[str, Any]:
    """What one variant costs, as a line of the table."""
    kernel, known = compiled(variant)
    instructions, loops, usage = disassembled(kernel)
    item = ITEM_BYTES[variant.dtype]
    sweeps = {}
    shuffles = barriers = 0
    for first, last in loops:
        body = instructions[first : last + 1]
        counts = Counter(_name(instruction) for instruction in body)
        shuffles, barriers = shuffles + counts["SHFL"], barriers + counts["BAR"]
        elements = _bytes_loaded(body) / (item + 4 * variant.prior)
        sweep = "write" if counts["STG"] else "sum"
        # Unrolled and not: the one that most iterations go through.
        if elements and elements > sweeps.get(sweep, (0, 0, 0))[0]:
            sweeps[sweep] = elements, len(body) / elements, counts["MUFU"] / elements
    if known["rows"] and variant.kernel == "short_rows":
        held = known["together"] * known["block"] / 32 / known["warps"]
        counts = Counter(_name(instruction) for instruction in instructions)
        sweeps["held"] = held, len(instructions) / held, counts["MUFU"] / held
    total = [round(sum(sweep[part] for sweep in sweeps.values()), 2) for part in (1, 2)]
    return {
        "kernel": variant.kernel,
        "dtype": variant.dtype,
        "beta": variant.form,
        "prior": int(variant.prior),
        "of_rows": int(variant.of_rows),
        "extra": variant.extra,
        "classes": variant.classes,
        "capability": variant.capability,
        "warps": known["warps"],
        "instructions": total[0],
        "mufu": total[1],
        "sum": round(sweeps["sum"][1], 2) if "sum" in sweeps else "",
        "write": round(sweeps["write"][1], 2) if "write" in sweeps else "",
        "registers": _usage("REG", usage),
        "stack": _usage("STACK", usage),
        "local": _usage("LOCAL", usage),
        "shuffles_in_loops": shuffles,
        "barriers_in_loops": barriers,
        "size": len(instructions),
    }


def _name(instruction: str) -> str:
    return re.sub(r"^@!?U?P\w+\s+", "", instruction).split()[0].split(".")[0]


def _bytes_loaded(body: list[str]) -> int:
    total = 0
    for instruction in body:
        if found := re.search(r"\bLDG\.(\S+)", instruction):
            total += next((BYTES_LOADED[part] for part in found[1].split(".") if part in BYTES_LOADED), 4)
    return total


def _usage(name: str, usage: str) -> int:
    found = re.search(rf"\b{name}:(\d+)", usage)
    return int(found[1]) if found else 0


def main() -> None:
    """Print the table, and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="a .csv file to write")
    parser.add_argument("--capabilities", default="90", help="compute capabilities, separated by commas (80,90,100)")
    parser.add_argument("--kernels", default=",".join(KERNELS), help="kernels, separated by commas")
    parser.add_argument("--quick", action="store_true", help="leave out variants that differ in a load alone")
    options = parser.parse_args()
    lines, failed = [], 0
    for capability in map(int, options.capabilities.split(",")):
        for variant in variants(capability, quick=options.quick):
            if variant.kernel not in options.kernels.split(","):
                continue
            try:
                line = measured(variant)
            except Exception as error:  # a compiler's errors have many types; the others are worth counting
                failed += 1
                print(f"FAILED {variant}: {str(error).splitlines()[-1] if str(error) else error!r}", flush=True)
                continue
            lines.append(line)
            print("  ".join(f"{key} {value}" for key, value in line.items() if value != ""), flush=True)
    if options.output:
        csv_lines.write(options.output, lines)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("Triton compiles nothing with TRITON_INTERPRET=1: unset it.")
    main()
