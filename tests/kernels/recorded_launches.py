"""Record the launches of Triton's kernels in its interpreter, and compile them for a GPU that need not be there.

    PYTHONPATH=tests/kernels LAUNCHES=FILE python -m pytest -p recorded_launches tests/kernels      # records
    python tests/kernels/recorded_launches.py FILE                                                  # compiles

The interpreter accepts what the compiler refuses, such as a value that changes its type in a loop. What is compiled is
the form of each launch: the types of its arguments, and its constants.
"""

import importlib
import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

HOPPER = ("cuda", 90, 32)
"""Target of the compiler: backend, compute capability, threads per warp."""
POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.bool: "*i1",
    torch.uint8: "*u8",
}
SCALARS = {bool: "i1", int: "i32", float: "fp32"}


def form_of(kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all that compiling a launch depends on: the names of module and kernel, argument types, and values of
    constants."""
    options = set(kwargs) - set(kernel.arg_names)  # options such as num_warps
    bound = inspect.signature(kernel.fn).bind(*args, **{name: kwargs[name] for name in kwargs if name not in options})
    constants = {name for name, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
    types = {
        name: "constexpr"
        if name in constants or _is_one(value)
        else POINTERS[value.dtype]
        if isinstance(value, torch.Tensor)
        else SCALARS[type(value)]
        for name, value in bound.arguments.items()
    }
    values = {name: value for name, value in bound.arguments.items() if name in constants or _is_one(value)}
    return {"module": kernel.fn.__module__, "kernel": kernel.fn.__name__, "types": types, "constants": values}


def _is_one(value: Any) -> bool:
    """Return whether a value is the integer 1, which Triton compiles as a constant without a tensor's methods."""
    return type(value) is int and value == 1


def pytest_configure() -> None:
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime.interpreter import InterpretedFunction

    run, recorded = InterpretedFunction.run, set()

    def recording(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        recorded.add(json.dumps(form_of(self, args, kwargs)))
        Path(os.environ["LAUNCHES"]).write_text("\n".join(sorted(recorded)))
        run(self, *args, grid=grid, warmup=warmup, **kwargs)

    InterpretedFunction.run = recording


def compile_for_hopper(launches: list[dict[str, Any]]) -> None:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for launch in launches:
        kernel = getattr(importlib.import_module(launch["module"]), launch["kernel"])
        source = ASTSource(fn=kernel, signature=launch["types"], constexprs=launch["constants"])
        triton.compile(source, target=GPUTarget(*HOPPER))
        print(launch["module"], launch["kernel"], launch["constants"])


if __name__ == "__main__":
    compile_for_hopper([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()])
