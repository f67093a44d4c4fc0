"""The C library by ctypes, with the structures that its header declares."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np

import mxfp4moe as mx
from mxfp4moe._embedding import library_dir

HEADER = Path(mx.get_include()) / "mxfp4moe.h"
_TEXT = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
_TYPES: dict[str, Any] = {
    "size_t": ctypes.c_size_t,
    "int32_t": ctypes.c_int32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
    "double": ctypes.c_double,
}


def _read_structures() -> dict[str, Any]:
    structures: dict[str, Any] = {}
    for name, body in re.findall(r"typedef struct (\w+) \{(.*?)\} \w+;", _TEXT, re.DOTALL):
        fields = []
        for declaration in body.split(";")[:-1]:
            words = declaration.replace("const ", "").split(maxsplit=1)
            for field in words[1].split(","):
                is_pointer = "*" in declaration or words[0] == "mxfp4moe_parallel_for"
                kind = ctypes.c_void_p if is_pointer else (_TYPES | structures)[words[0]]
                fields.append((field.strip(" *"), kind))
        structures[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return structures


STRUCTURES = _read_structures()
CONSTANTS = {
    name: int(value.strip("()"))
    for name, value in re.findall(r"\b(?:MXFP4MOE_)(\w+)(?: = | )(\(?-?\d+\)?)", _TEXT)
}
FUNCTIONS = re.findall(r"MXFP4MOE_API [\w ]+?\*? ?(mxfp4moe_\w+)\(", _TEXT)
LIBRARY = ctypes.CDLL(f"{library_dir()}/libmxfp4moe.so")
LIBRARY.mxfp4moe_last_error.restype = LIBRARY.mxfp4moe_version.restype = ctypes.c_char_p
LIBRARY.mxfp4moe_activation_name.restype = ctypes.c_char_p

DTYPES = {
    np.dtype(dtype).name: CONSTANTS[f"DTYPE_{name}"]
    for name, dtype in {
        "FLOAT32": "float32", "FLOAT16": "float16", "BFLOAT16": "bfloat16", "FLOAT64": "float64",
        "UINT8": "uint8", "INT8": "int8", "FLOAT8_E4M3": "float8_e4m3fn", "FLOAT8_E5M2": "float8_e5m2",
        "FLOAT8_E8M0": "float8_e8m0fnu", "INT32": "int32",
    }.items()
}  # fmt: skip
FORMATS = {
    name.removeprefix("FORMAT_").lower(): n for name, n in CONSTANTS.items() if name.startswith("FORMAT_")
}
ISAS = {name.removeprefix("ISA_").lower(): n for name, n in CONSTANTS.items() if name.startswith("ISA_")}


class CError(Exception):
    """A call that returned another status than MXFP4MOE_OK."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def make(name: str, **fields: Any) -> Any:
    """A structure with its size; arrays among the fields are their addresses, or arrays of the header."""
    structure = STRUCTURES[f"mxfp4moe_{name}"]
    result = structure()
    types = dict(structure._fields_)
    if "struct_size" in types:
        result.struct_size = ctypes.sizeof(structure)
    for field, value in fields.items():
        if isinstance(value, np.ndarray):
            value = value.ctypes.data if types[field] is ctypes.c_void_p else array(value, types[field])
        if value is not None:
            setattr(result, field, value)
    result._keep = fields
    return result


def array(values: np.ndarray, structure: Any = None) -> Any:
    """An array of the header, or a buffer."""
    structure = structure or STRUCTURES["mxfp4moe_array"]
    dtype = [DTYPES[values.dtype.name]] if structure is STRUCTURES["mxfp4moe_array"] else []
    return structure(values.ctypes.data, values.nbytes, *dtype)


def call(name: str, *arguments: Any) -> None:
    """Call a function that returns a status; structures are passed by reference."""
    by_value = (STRUCTURES["mxfp4moe_array"], STRUCTURES["mxfp4moe_buffer"])
    passed = [
        ctypes.byref(each) if isinstance(each, ctypes.Structure) and not isinstance(each, by_value) else each
        for each in arguments
    ]
    status = getattr(LIBRARY, f"mxfp4moe_{name}")(*passed)
    if status:
        raise CError(status, LIBRARY.mxfp4moe_last_error().decode())


class Handle:
    """A handle that is closed with this object."""

    def __init__(self, kind: str, function: str, *arguments: Any) -> None:
        self._kind = kind
        self.pointer = ctypes.c_void_p()
        call(function, *arguments, ctypes.byref(self.pointer))

    @classmethod
    def open(cls, kind: str, path: Path, verify: bool = True, options: Any = None) -> Handle:
        return cls(kind, f"open_{kind}", str(path).encode(), int(verify), options)

    def __del__(self) -> None:
        getattr(LIBRARY, f"mxfp4moe_close_{self._kind}")(self.pointer)


def rows(name: str, values: np.ndarray) -> dict[str, Any]:
    """The fields of a structure that describe rows of tokens."""
    return {name: values, f"{name}_dtype": DTYPES[values.dtype.name]}
