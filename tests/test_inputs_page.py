"""docs/inputs.md is what its command prints now."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_inputs_is_what_the_readers_say():
    spec = importlib.util.spec_from_file_location("inputs_table", ROOT / "tools" / "inputs_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.page() == (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
