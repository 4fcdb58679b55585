"""The site of docs/: every page is in the navigation, and its links work."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from scripts import module_of
from small_run import small_config

from ovd.config.training import TrainConfig
from ovd.config_files import load_config

ROOT = Path(__file__).parents[1]


def navigation(entries: list[Any]) -> list[str]:
    pages: list[str] = []
    for entry in entries:
        (target,) = entry.values()
        pages += navigation(target) if isinstance(target, list) else [target]
    return pages


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    """Load docs/hooks.py even without mkdocs: the links need none of it, but signatures name its types."""
    modules = ["mkdocs", "mkdocs.config", "mkdocs.config.defaults"]
    modules += ["mkdocs.structure", "mkdocs.structure.files", "mkdocs.structure.pages"]
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("mkdocs") is None:
            for name in modules:
                patch.setitem(sys.modules, name, MagicMock())
        return module_of("docs/hooks.py")


def test_every_page_is_in_the_navigation():
    listed = navigation(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    elsewhere = {"index.md", "data.md", "contributing.md", "changelog.md"}
    assert sorted(listed) == sorted({path.name for path in (ROOT / "docs").glob("*.md")} | elsewhere)


def test_everything_that_the_api_page_names_is_there():
    names = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(), re.M)
    assert len(names) > 10
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


def test_the_training_loop_of_the_api_page_runs(tmp_path, miniature_world, monkeypatch, capsys):
    (loop,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "api.md").read_text(), re.M | re.DOTALL)

    def load(path: str, overrides: list[str], kind: type[TrainConfig]) -> TrainConfig:
        load_config(ROOT / path, overrides, kind)
        return small_config(tmp_path, miniature_world, train={"steps": 2, "warmup_steps": 0})

    monkeypatch.setattr("ovd.config_files.load_config", load)
    names: dict[str, Any] = {}
    exec(compile(loop, "api.md", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(" ", 1)[0] for line in printed if re.match(r"\d+ {'class'", line)] == ["0", "1"]
    assert 0 <= names["evaluator"].compute()["AP"] <= 1
    assert all(weight.requires_grad for weight in names["detector"].pyramid.parameters())


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("index.md", "[a](docs/method.md)", "[a](method.md)"),
        ("index.md", "[a](data/README.md#layouts)", "[a](data.md#layouts)"),
        ("index.md", "![a](docs/quickstart.png)", "![a](quickstart.png)"),
        ("index.md", "[a](ovd/config/training.py)", "`ovd/config/training.py`"),
        ("index.md", "[a](#results)", "[a](#results)"),
        ("method.md", "[a](../README.md)", "[a](index.md)"),
        ("method.md", "[a](results.md#x)", "[a](results.md#x)"),
        ("data.md", "[a](../docs/inputs.md)", "[a](inputs.md)"),
        ("method.md", "[a](https://example.org/b.md)", "[a](https://example.org/b.md)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(hooks, source, link, expected):
    known = {"method.md", "results.md", "inputs.md", "quickstart.png"}
    files = SimpleNamespace(get_file_from_path=lambda name: name if name in known else None)
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source))
    assert hooks.on_page_markdown(f"see {link}.", page, None, files) == f"see {expected}."


@pytest.mark.slow
def test_the_site_is_built_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs", reason="the extra docs is not installed")
    pytest.importorskip("mkdocstrings", reason="the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train.calibration" in (tmp_path / "site" / "api.html").read_text()
