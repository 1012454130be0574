"""The process that runs a student's functions; `runner` starts it. It needs only NumPy.

Standard input holds one pickle: the file, the limits, and the arguments of each call. Standard output gets one pickle
per report. What the student prints goes to standard error.
"""

from __future__ import annotations

import ast
import contextlib
import faulthandler
import io
import pickle
import sys
import traceback
from typing import Any

import numpy as np

#: A function that prints more characters than this gets an error.
PRINTED = 100_000
#: An array of more bytes than this is not sent.
LARGEST = 20_000_000


class UnfitError(Exception):
    """A function returned something that no exercise asks for."""


class Output(io.TextIOBase):
    """Standard error with a limit on what is written."""

    left = PRINTED

    def write(self, text: str) -> int:
        """Write a text, or raise if it is too much."""
        self.left -= len(text)
        if self.left < 0:
            raise RuntimeError(f"printed more than {PRINTED:,} characters")
        return sys.__stderr__.write(text)


def plain(value: Any) -> Any:
    """Return a result as arrays, None and lists of these."""
    if value is None:
        return None
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if not isinstance(value, (bool, int, float, complex, np.generic, np.ndarray)):
        raise UnfitError(f"a value of type {type(value).__name__}")
    a = np.asarray(value)
    if a.dtype.kind not in "biuf":
        raise UnfitError("complex numbers" if a.dtype.kind == "c" else f"an array of dtype {a.dtype}")
    if a.nbytes > LARGEST:
        raise UnfitError(f"an array of shape {a.shape}, which is too large")
    return a


def describe(error: BaseException, path: str) -> str:
    """Describe an error in one line, with the last line of the student's file that it passed through."""
    text, lines = str(error), [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        text, lines = error.msg, [error.lineno]
    text = " ".join(text.split())[:300]
    return f"{type(error).__name__}{': ' if text else ''}{text}" + (f" (line {lines[-1]})" if lines else "")


def blanks(text: str) -> set[str]:
    """Return the names of the functions whose body is still `...`."""
    def empty(node: ast.stmt) -> bool:
        return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    return {name for name, node in functions.items() if all(map(empty, node.body))}


def run(function: Any, calls: list[tuple[Any, ...]]) -> dict[str, Any]:
    """Call a function with each set of arguments; report its results, or which argument it changes."""
    results = []
    for call in calls:
        before = [pickle.dumps(argument) for argument in call]
        results.append(plain(function(*call)))
        for i, argument in enumerate(call):
            if pickle.dumps(argument) != before[i]:
                return {"changed": i}
    return {"results": results}


def main() -> None:
    """Load the file, then run one function after the other, each with its own time limit."""
    order = pickle.load(sys.stdin.buffer)
    with contextlib.suppress(ImportError, ValueError, OSError):         # Windows and macOS have no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (order["bytes"], order["bytes"]))
    path, text, module, blank = order["path"], order["text"], {"__name__": "answers"}, set()
    for name, calls in [("", []), *order["calls"].items()]:
        sys.stdout = sys.stderr = Output()
        # The end of the time ends the process, even within a call of NumPy, and prints where it was.
        faulthandler.dump_traceback_later(order["seconds"], exit=True, file=sys.__stderr__)
        try:
            if not name:
                exec(compile(text, path, "exec", dont_inherit=True), module)
                blank, report = blanks(text), {}
            elif name in blank:
                report = {"blank": True}
            elif not callable(module.get(name)):
                report = {"missing": True}
            else:
                report = run(module[name], calls)
        except NotImplementedError:
            report = {"blank": True}
        except UnfitError as error:
            report = {"unfit": str(error)}
        except (Exception, SystemExit) as error:
            report = {"raised": describe(error, path)}
        faulthandler.cancel_dump_traceback_later()
        sys.__stdout__.buffer.write(pickle.dumps((name, report)))
        sys.__stdout__.flush()


if __name__ == "__main__":
    main()
