"""Check the objects of a build tree: no instruction set may reach code that runs on CPUs without it.

A kernel object exports its table and nothing else, so that the linker can share none of its functions, and
has no initializers, which would run when the library is loaded, on any CPU. Objects hold only the registers
and instructions of their own instruction set. The library that they are linked into and the extension are
hardened and export nothing but their interfaces; the extension finds the library beside itself.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

X86_64 = platform.machine() in ("x86_64", "AMD64")

VECTOR = r"%[yz]mm\d|\sv[a-z0-9]+\s.*%xmm"  # anything beyond SSE
AVX512 = r"%zmm\d|%k[0-7]\b|%[xy]mm(?:1[6-9]|2\d|3[01])\b"
BF16 = r"\s(?:vdpbf16ps|vcvtne2?ps2?bf16)"
BYTE_DOTS = r"\svpdpbusd"
TILES = r"\s(?:tile|ldtilecfg|sttilecfg|tdp)|%tmm"

# By kernel table: what its object must not hold.
FORBIDDEN = {
    "portable": [VECTOR, TILES],
    "amx_model": [VECTOR, TILES],
    "avx2": [AVX512, BYTE_DOTS, TILES],
    "avxvnni": [AVX512, TILES],
    "avx512": [BF16, BYTE_DOTS, TILES],
    "avx512vnni": [BF16, TILES],
    "avx512bf16": [TILES],
    "amx": [BF16],
    "amx_model_avx512": [BF16, TILES],
}

# By the kind of an object: what it exports.
EXPORTED = {
    "kernels": "kKernels",
    "attention": "kAttention",
    "activation": "kActivation",
    "int8": "kInt8",
}


def output_of(*command: str | Path) -> str:
    """What `command` prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def problems_of(path: Path, kind: str | None, table: str | None) -> list[str]:
    """What is wrong with one object; `table` is None for all that runs on any CPU."""
    problems = []
    if kind is not None:
        symbols = [
            line.split()[-1] for line in output_of("nm", "-g", "-C", "--defined-only", path).splitlines()
        ]
        if symbols != [f"mxfp4moe::{EXPORTED[kind]}_{table}"]:
            problems.append(f"exports {symbols}")
        if re.search(r"\.(?:init_array|ctors)", output_of("objdump", "-h", path)):
            problems.append("has initializers")
    if X86_64:
        if not re.search(r"x86 feature: IBT, SHSTK", output_of("readelf", "-W", "-n", path)):
            problems.append("has no notes of CET")
        code = output_of("objdump", "-d", "--no-show-raw-insn", path)
        for pattern in [VECTOR, TILES] if table is None else FORBIDDEN[table]:
            lines = [line for line in code.splitlines() if re.search(pattern, line)]
            if lines:
                problems.append(f"{len(lines)} instructions like: {' '.join(lines[0].split())}")
    return problems


# What `readelf -W` says of a hardened binary: with which options, what is meant, what must be seen.
HARDENING = [
    ("-l", "read-only relocations", r"GNU_RELRO"),
    ("-d", "all symbols bound at the start", r"\bNOW\b"),
    ("-l", "no executable stack", r"GNU_STACK\s.*\sRW\s"),
    ("--dyn-syms", "stack protector", r"\b__stack_chk_fail\b"),
]
if platform.libc_ver()[0] == "glibc":
    HARDENING.append(("--dyn-syms", "checked C functions", r"\b__(?!stack_)\w+_chk\b"))
SHADOW_STACKS = ("-n", "a note that it keeps to shadow stacks", r"x86 feature: .*SHSTK")


# What the two binaries of an installation export, and where they look for libraries.
EXPORTS = {"_core": r"PyInit__core", "libmxfp4moe": r"mxfp4moe_\w+"}
PATHS = {"_core": ["$ORIGIN/lib"], "libmxfp4moe": []}


def missing_of(binary: Path) -> list[str]:
    """What an extension or a library lacks of its hardening, and what it has that is not of its interface."""
    x86 = "X86-64" in output_of("readelf", "-h", binary)
    problems = [
        f"lacks: {what}"
        for option, what, pattern in [*HARDENING, *([SHADOW_STACKS] if x86 else [])]
        if not re.search(pattern, output_of("readelf", "-W", option, binary))
    ]
    kind = binary.name.split(".")[0]
    exported = [line.split()[-1] for line in output_of("nm", "-D", "--defined-only", binary).splitlines()]
    problems += [f"exports {name}" for name in exported if not re.fullmatch(EXPORTS[kind], name)]
    paths = re.findall(r"\(R(?:UN)?PATH\).*\[(.*)\]", output_of("readelf", "-W", "-d", binary))
    if paths != PATHS[kind]:
        problems.append(f"looks for libraries in {paths}, expected {PATHS[kind]}")
    return problems


def main() -> int:
    """Check every object, the extension and the library under the folder that is given."""
    objects = sorted(Path(sys.argv[1]).rglob("*.o"))
    tree = Path(sys.argv[1])
    binaries = [*tree.glob("_core*.so"), *tree.glob("src/cpp/libmxfp4moe.so")]
    tables = 0
    failed = False
    for path in objects:
        match = re.search(rf"/({'|'.join(EXPORTED)})_(\w+)\.dir/", str(path))
        tables += match is not None and match[1] == "kernels"
        problems = problems_of(path, *(match.groups() if match else (None, None)))
        failed |= bool(problems)
        name = " ".join(match.groups()) if match else path.stem
        print(f"{name:24} {'; '.join(problems) or 'ok'}")
    for binary in binaries:
        missing = missing_of(binary)
        failed |= bool(missing)
        print(f"{binary.name:24} {'; '.join(missing) or 'ok'}")
    if len(binaries) != 2:
        print(f"expected an extension and a library in {sys.argv[1]}, got {len(binaries)}")
        failed = True
    if tables < 2 or tables == len(objects):
        print(f"expected kernel tables and other objects in {sys.argv[1]}, got {tables} of {len(objects)}")
        failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
