"""docs/faults.md names an existing test for every fault."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_fault_has_tests_that_exist():
    page = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (F\d+) \|[^|]+\|[^|]+\|([^|]+)\|$", page, re.M)
    assert [code for code, _ in rows] == [f"F{number}" for number in range(1, len(rows) + 1)]
    assert len(rows) >= 32
    for code, tests in rows:
        named = re.findall(r"`([^`]+)`", tests)
        assert named, code
        for test in named:
            file, _, name = test.partition("::")
            assert name in functions_of(file), (code, test)
