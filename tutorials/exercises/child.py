"""The process in which a student's functions run; `check.py` starts it, and kills it if it must.

It reads one JSON object from its input (the file, what to run, arguments) and writes one line of JSON for each thing
that it starts or has done. What the student prints goes to standard error. Needs NumPy alone.
"""

from __future__ import annotations

import ast
import base64
import json
import os
import re
import sys
import traceback
from typing import Any

import numpy as np

#: A result of more bytes is not sent.
LARGEST = 20_000_000


class Unfit(Exception):
    """A value that no exercise returns."""


def encode(value: Any, depth: int = 0) -> Any:
    """Write numbers, arrays, None, and lists or tuples of those as JSON."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)) and depth < 4:
        if len(value) > 10_000:
            raise Unfit(f"a {type(value).__name__} of {len(value)} entries")
        return [encode(item, depth + 1) for item in value]
    if not isinstance(value, (bool, int, float, complex, np.generic, np.ndarray)):
        raise Unfit(f"a value of type {type(value).__name__}")
    a = np.asarray(value)
    if a.dtype.kind not in "biuf":
        raise Unfit("complex numbers" if a.dtype.kind == "c" else f"an array of dtype {a.dtype}")
    if a.nbytes > LARGEST:
        raise Unfit(f"an array of shape {a.shape}, which is too large")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53:
        return value
    a = np.ascontiguousarray(a).reshape(a.shape)
    return {"dtype": a.dtype.str, "shape": a.shape, "data": base64.b64encode(a.tobytes()).decode()}


def decode(value: Any) -> Any:
    """Undo `encode`; lists stay lists."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        a = np.frombuffer(base64.b64decode(value["data"]), np.dtype(value["dtype"])).reshape(value["shape"]).copy()
        return a if a.ndim else a[()]
    return value


def pieces(text: str) -> list[tuple[int, str]]:
    """Cut a file into top-level pieces (line, text): whole statements, or where it does not parse, what looks so."""
    lines = text.splitlines(keepends=True)
    try:
        starts = [min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
                  for node in ast.parse(text).body]
    except (SyntaxError, ValueError):
        starts = [n for n, line in enumerate(lines, 1) if re.match(r"(?!else|elif|except|finally)[^\s#)\]}]", line)]
    starts = sorted({1, *starts})
    ends = [*starts[1:], len(lines) + 1]
    return [(a, "".join(lines[a - 1:b - 1])) for a, b in zip(starts, ends, strict=True)]


def is_blank(piece: str) -> bool:
    """Return whether a function's body is still `...`, pass, or a NotImplementedError."""
    body = ast.parse(piece).body[0].body
    kept = [n for n in body if not (isinstance(n, ast.Pass) or (
        isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant)))]
    return not kept or (len(kept) == 1 and isinstance(kept[0], ast.Raise)
                        and "NotImplementedError" in ast.unparse(kept[0]))


def name_of(piece: str) -> str | None:
    """Return the name of the function that a piece defines, parsed or not."""
    for line in piece.splitlines():
        if line.startswith("def "):
            return line[4:].split("(")[0].strip()
    return None


def what_was_raised(error: BaseException, path: str) -> str:
    """Say in a line what was raised, and at which line of the student's file."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    try:
        text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())[:300]
    except BaseException:
        text = "(its message cannot be printed)"
    return f"{type(error).__name__}{': ' if text else ''}{text}" + (f" (line {lines[-1]})" if lines else "")


def main() -> None:
    """Read the order, load the file, run what is asked, one exercise after the other."""
    order = json.loads(sys.stdin.buffer.read())
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)                                           # print goes where errors go
    _limit_memory(order["bytes"])

    def say(**what: Any) -> None:
        channel.write(json.dumps(what) + "\n")
        channel.flush()

    path, module = order["path"], {"__name__": "answers", "__file__": order["path"]}
    broken, blank, whole = {}, set(), True
    try:
        ast.parse(order["text"])
    except (SyntaxError, ValueError) as error:
        whole = False
        say(outside=f"{type(error).__name__}: {error}")
    for line, piece in pieces(order["text"]):
        name = name_of(piece)
        if line in order["skip"]:
            continue
        say(loading=line)
        try:
            exec(compile("\n" * (line - 1) + piece, path, "exec", dont_inherit=True), module)
            if name is not None:
                broken.pop(name, None)
                (blank.add if is_blank(piece) else blank.discard)(name)
        except BaseException as error:
            if name is not None:
                broken[name] = what_was_raised(error, path)
            elif whole or not isinstance(error, SyntaxError):       # else the pieces may be cut in the wrong place
                say(outside=what_was_raised(error, path))
    for name, calls in order["run"]:
        say(start=name)
        say(name=name, **_run(name, calls, module, path, broken, blank))


def _run(name: str, calls: list[Any], module: dict[str, Any], path: str, broken: dict[str, str],
         blank: set[str]) -> dict[str, Any]:
    if name in broken:
        return {"raised": broken[name]}
    if name in blank:
        return {"blank": True}
    if not callable(module.get(name)):
        return {"missing": True}
    results = []
    for call in calls:
        arguments = decode(call)
        try:
            result = module[name](*arguments)
            results.append(encode(result))
        except NotImplementedError:
            return {"blank": True}
        except Unfit as error:
            return {"unfit": str(error)}
        except BaseException as error:
            return {"raised": what_was_raised(error, path)}
        changed = [i for i, (a, b) in enumerate(zip(arguments, decode(call), strict=True)) if not _same(a, b)]
        if changed:
            return {"mutated": changed}
    return {"results": results}


def _same(a: Any, b: Any) -> bool:
    if isinstance(b, list):
        return isinstance(a, list) and len(a) == len(b) and all(map(_same, a, b))
    if isinstance(b, np.ndarray):
        return isinstance(a, np.ndarray) and a.shape == b.shape and a.tobytes() == b.tobytes()
    return True


def _limit_memory(size: int) -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))
    except (ImportError, ValueError, OSError):              # no such limit on this system
        pass


if __name__ == "__main__":
    main()
