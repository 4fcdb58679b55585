"""docs/inputs.md equals the current output of its command."""

from pathlib import Path

from scripts import module_of

ROOT = Path(__file__).parents[1]


def test_the_page_of_inputs_is_what_the_readers_say():
    assert module_of("tools/inputs_table.py").page() == (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
