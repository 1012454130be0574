"""Write the test vectors: ``python -m tests.vectors.make [folder [name ...]]``; the folder is kfac_ref/vectors/v1.

The same bytes come out every time. `write_all` writes the problems, `write_sums` the SHA-256 of every file beside them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from mpmath import mp, mpf

from .definitions import DIGITS
from .problems import CONVENTIONS, PROBLEMS, parameters
from .quantities import quantities

FOLDER = Path(__file__).resolve().parents[2] / "kfac_ref" / "vectors" / "v1"
SUMS = "SHA256SUMS"
# The relative tolerance of sums and products, and what a condition number is multiplied by, for each precision.
TOLERANCES = {"float64": (1e-12, 1e-15), "float32": (1e-5, 5e-7)}
NOTHING = mpf("1e-50")          # of a hundred digits, what cancels leaves less; it is zero


# From numbers to JSON


def number(value: Any) -> Any:
    """Return the float64 nearest to an mpf; integers, floats and None stay."""
    if not isinstance(value, mpf):
        return value
    return float(value) if abs(value) > NOTHING else 0.0


def array(nested: list) -> dict:
    """Return the shape of nested lists, and their entries row by row."""
    entries = nested
    while isinstance(entries[0], list):
        entries = [entry for part in entries for entry in part]
    return {"shape": measure(nested), "data": [number(entry) for entry in entries]}


def measure(nested: Any) -> list[int]:
    return [len(nested), *measure(nested[0])] if isinstance(nested, list) else []


def encode(value: Any) -> Any:
    """Return a list as an array, a tuple as a list with one array a layer, a number as itself."""
    if isinstance(value, tuple):
        return [array(layer) for layer in value]
    return array(value) if isinstance(value, list) else number(value)


def encode_inputs(problem: dict) -> dict:
    """Return the problem with its arrays encoded; the lists of names, sizes and rows stay lists."""
    out = {key: encode(value) if key not in ("network", "previous", "trajectory") else value
           for key, value in problem.items()}
    if "previous" in problem:
        out["previous"] = {key: encode(value) for key, value in problem["previous"].items()}
    if "trajectory" in problem:
        batches = [batch | {"targets": encode(batch["targets"])} for batch in problem["trajectory"]["batches"]]
        out["trajectory"] = problem["trajectory"] | {"batches": batches}
    return {"format": "kfac_ref problem", "version": 1, "name": out.pop("name"),
            "description": out.pop("description"), "conventions": CONVENTIONS, **out}


def tolerance(value: Any, amplification: Any, dtype: str) -> tuple[float, str]:
    """Return what a value may be off by: relative to its largest entry, unless an array of it is zero throughout."""
    base, unit = TOLERANCES[dtype]
    allowed = max(base, unit * float(amplification))
    arrays = value if isinstance(value, list) else [value]
    entries = [a["data"] if isinstance(a, dict) else [a] for a in arrays]
    sizes = [max(abs(entry) for entry in data if entry is not None) for data in entries]
    if all(sizes):
        return rounded(allowed), "relative"
    return rounded(allowed * min((size for size in sizes if size), default=1.0)), "absolute"


def rounded(value: float) -> float:
    return float(f"{value:.1e}")


def vector(problem: dict) -> dict:
    """Return the file's contents: the problem and what is expected."""
    with mp.workdps(DIGITS):
        found = quantities(problem)
    expected = {}
    for name, (value, amplification) in found.items():
        code = encode(value)
        allowed, kind = tolerance(code, amplification, problem["dtype"])
        expected[name] = {"value": code, "tolerance": allowed, "kind": kind}
    return encode_inputs(problem) | {"expected": expected}


def text(contents: dict) -> str:
    """Return JSON with one key a line, and one expected quantity a line."""
    lines = []
    for key, value in contents.items():
        if key == "expected":
            inner = ",\n".join(f"  {json.dumps(name)}: {json.dumps(entry, allow_nan=False)}"
                               for name, entry in value.items())
            lines.append(f"{json.dumps(key)}: {{\n{inner}\n }}")
        else:
            lines.append(f"{json.dumps(key)}: {json.dumps(value, allow_nan=False)}")
    return "{" + ",\n ".join(lines) + "}\n"


# Files


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def save(contents: dict, path: Path) -> None:
    path.write_text(text(contents), encoding="utf-8", newline="\n")


def write(problem: dict, folder: Path) -> None:
    """Write one vector and its line of the table; the flags of the file that it replaces stay."""
    start = time.perf_counter()
    path = folder / f"{problem['name']}.json"
    contents, before = vector(problem), None
    if path.exists():
        before = path.read_bytes()
        contents |= {key: value for key, value in read(path).items() if key == "flags"}
    save(contents, path)
    change = "new" if before is None else "same" if before == path.read_bytes() else "CHANGED"
    counts = f"{parameters(problem):10} {len(contents['expected']):10}"
    print(f"{path.stem:30} {counts} {time.perf_counter() - start:7.1f}  {change}", flush=True)


def write_all(folder: Path, names: Collection[str] = ()) -> None:
    """Write every vector (or those named) into a folder, and print a table of them."""
    print(f"{'name':30} {'parameters':>10} {'quantities':>10} {'seconds':>7}  bytes")
    for name in names or PROBLEMS:
        write(PROBLEMS[name](), folder)


def write_sums(folder: Path) -> None:
    """Write the SHA-256 of every other file of the folder, in the form that ``sha256sum -c`` reads."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != SUMS)
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / SUMS).write_text("".join(lines), encoding="ascii", newline="\n")


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    write_all(where, sys.argv[2:])
    write_sums(where)
