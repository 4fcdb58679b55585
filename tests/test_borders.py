"""The borders between the parts of ovd that import-linter cannot see."""

import ast
import builtins
import re
import symtable
from collections import defaultdict
from pathlib import Path

import pytest

OVD = Path(__file__).parents[1] / "ovd"
# alignment and tiny_clip are left out: two small trainings that read configs of their own.
BELOW_BUILD = (
    "selftrain", "evaluation", "engine", "experts", "inference.py", "text", "data", "model", "clip", "structures.py"
)  # fmt: skip
WHOLE_CONFIGS = {"TrainConfig", "AblationConfig", "AlignConfig", "PretrainConfig"}


def files_of(path: Path) -> list[Path]:
    """Return the file, or all Python files of a folder, which must not be empty."""
    files = [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))
    assert files, path
    return files


@pytest.mark.parametrize("part", BELOW_BUILD)
def test_nothing_below_build_reads_a_whole_config(part):
    for file in files_of(OVD / part):
        names = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert not names & WHOLE_CONFIGS, file


@pytest.mark.parametrize("part", ["model", "text", "data", "clip"])
def test_what_stands_below_config_does_not_import_it(part):
    for file in files_of(OVD / part):
        assert "ovd.config" not in file.read_text(), file


@pytest.mark.parametrize("part", ["ovd", "tools", "tests", "bench"])
def test_every_name_that_is_used_is_defined_or_imported(part):
    """Every name that is used is defined or imported; linters cannot check that here, since they take the letters of
    shapes in annotations for undefined names."""
    for file in files_of(OVD.parent / part):
        module = symtable.symtable(file.read_text(), str(file), "exec")
        known = {symbol.get_name() for symbol in module.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
        known |= {*dir(builtins), "__file__", "__name__", "__doc__"}
        scopes = [module]
        while scopes:
            scope = scopes.pop()
            scopes += scope.get_children()
            used = {
                symbol.get_name() for symbol in scope.get_symbols() if symbol.is_global() and symbol.is_referenced()
            }
            assert used <= known, f"{file}: {used - known} in {scope.get_name()}, line {scope.get_lineno()}"


def test_an_option_is_typed_once():
    """No dataclass repeats the fields of a config section: code that needs several of them takes the section."""
    sections, dataclasses = defaultdict(set), {}
    for file in sorted(OVD.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            fields = {
                item.target.id
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None
            }
            if file.parent.name == "config" or any("Section" in ast.unparse(base) for base in node.bases):
                sections[node.name] = fields
            elif any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
                dataclasses[f"{file.name}:{node.name}"] = fields
    assert sections["TrainSection"] >= {"batch_size", "seed"}
    for name, fields in dataclasses.items():
        for section, options in sections.items():
            shared = fields & options - {"kind"}
            assert len(shared) < 3, f"{name} repeats {sorted(shared)} of {section}"


def test_functions_are_short_and_take_few_parameters():
    for file in [*files_of(OVD), *files_of(OVD.parent / "tools")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and "triton.jit" not in map(ast.unparse, node.decorator_list):
                given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                parameters = [argument for argument in given if argument.arg not in ("self", "cls")]
                where = f"{file}:{node.lineno} {node.name}"
                assert len(parameters) <= 10, where
                assert (node.end_lineno or 0) - node.lineno < 80, where


HEADLESS = {"As", "By", "For", "From", "In", "Its", "None", "Of", "On", "That", "Those", "To", "What", "With"}
"""First words of phrases that say nothing without the name above them."""


@pytest.mark.parametrize("part", ["ovd", "tools", "bench"])
def test_docstrings_begin_with_what_they_describe(part):
    """A docstring is shown without its context by help() and editors."""
    for file in files_of(OVD.parent / part):
        for docstring in docstrings_of(ast.parse(file.read_text())):
            assert docstring.split()[0] not in HEADLESS, f"{file}: {docstring}"


def docstrings_of(tree):
    """Yield all docstrings, those of fields and constants included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else []:
            value = statement.value if isinstance(statement, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value.value


@pytest.mark.parametrize("part", ["ovd", "tools", "bench"])
def test_docstrings_describe_arguments_that_exist(part):
    for file in files_of(OVD.parent / part):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
                assert described_arguments(ast.get_docstring(node) or "") <= names, f"{file}: {node.name}"


def described_arguments(docstring):
    """Return the names before a colon in a docstring's section `Args`."""
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", docstring, re.MULTILINE)
    lines = re.findall(r"^    ([\w*, ]+): ", section[1], re.MULTILINE) if section else []
    return {name.strip(" *") for line in lines for name in line.split(",")}
