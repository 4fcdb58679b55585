"""Fixtures for all tests, and the run-time check of the shapes and types declared in ovd's signatures."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from cores import THREADS
from kept_images import keep_images
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]

# This must come before ovd is imported. It leaves out kernels/, whose functions Triton compiles. By PEP 484's numeric
# tower, an int passes where a float is declared.
jaxtyping.install_import_hook(
    [f"ovd.{path.stem}" for path in sorted((ROOT / "ovd").iterdir()) if path.stem not in ("__init__", "kernels")],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

# These must be set before albumentations and matplotlib are imported.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

torch.set_num_threads(THREADS)
if torch.cuda.is_available():
    # torch reads this once, at the first product in the process, and tests that train ask for deterministic results.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
else:
    os.environ["TRITON_INTERPRET"] = "1"  # set before the import of Triton, so kernels run on the CPU


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "pictures: a test of pictures, for which matplotlib's figures are drawn")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the test files that train first, so that no process is left with one of them while the others are idle."""
    train = {item.path for item in items if "miniature_world" in getattr(item, "fixturenames", ())}
    train |= {ROOT / "tests" / name for name in ("test_readme.py", "test_self_training.py")}
    items.sort(key=lambda item: item.path not in train)


class Figures:
    """Switch for drawing matplotlib's figures when they are saved."""

    are_drawn = False


@pytest.fixture(scope="session", autouse=True)
def figures() -> Iterator[type[Figures]]:
    """Save figures blank except in tests of pictures, since drawing one takes longer than a few training steps."""
    from matplotlib.figure import Figure

    draw = Figure.savefig

    def savefig(figure: Figure, file: Any, **options: Any) -> None:
        if Figures.are_drawn:
            draw(figure, file, **options)
        else:
            Image.new("RGB", (1, 1)).save(file, "PNG")

    Figure.savefig = savefig  # type: ignore[method-assign,assignment]
    yield Figures
    Figure.savefig = draw  # type: ignore[method-assign]


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_this_user(tmp_path_factory) -> None:
    os.environ["OVD_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    """Restore the number of threads, since a job sets it for the whole process."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)


@pytest.fixture(scope="session", autouse=True)
def _naming_of_few_images() -> Iterator[None]:
    """Let whole jobs measure naming in a few images only."""
    from ovd.jobs import evaluate

    before, evaluate.NAMING_IMAGES = evaluate.NAMING_IMAGES, 4
    yield
    evaluate.NAMING_IMAGES = before


@pytest.fixture(autouse=True)
def _drawn(request: pytest.FixtureRequest, figures: type[Figures]) -> Iterator[None]:
    """Draw figures in tests that are marked `pictures`."""
    figures.are_drawn = request.node.get_closest_marker("pictures") is not None
    yield
    figures.are_drawn = False


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Samples of the real data sets (LVIS and COCO annotations), kept beside the checkout."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no samples of real data sets at {folder}")
    return folder


@pytest.fixture
def no_network(monkeypatch) -> None:
    """Set what HF_HUB_OFFLINE=1 sets, which is only read at import, and fail a test that still reaches for the
    network."""

    def refuse(*_, **__):
        raise AssertionError("a test reached for the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def untrained_clip():
    """The tiny CLIP's architecture with random weights and batch-norm statistics."""
    from ovd.clip.load import build_untrained_tiny_clip

    torch.manual_seed(0)
    clip = build_untrained_tiny_clip()
    for module in clip.model.visual.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                assert tensor is not None
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            assert module.running_mean is not None
            torch.nn.init.normal_(module.running_mean, std=0.2)
    return clip


@pytest.fixture(scope="session")
def tiny_clip():
    """The committed tiny CLIP; tests must not change it."""
    from ovd.clip.load import load_clip

    return load_clip("tiny")


@pytest.fixture(scope="session")
def miniature_world(tmp_path_factory) -> Path:
    """A few dozen scenes of the world in LVIS format, 24 of them for evaluation, with a frequency for every class."""
    import json

    from ovd.data.world.build import build_world
    from ovd.data.world.settings import Settings

    settings = Settings(max_images_per_class=1, val_boxes_per_class=1)
    world = build_world(tmp_path_factory.mktemp("miniature"), ("train", "val"), settings)
    for name in ("lvis_train", "lvis_val", "hidden_val"):
        path = world / "annotations" / f"{name}.json"
        content = json.loads(path.read_text())
        for category in content["categories"]:  # with one image per class, all classes would be rare
            category["frequency"] = "rcf"[category["id"] % 3]
        if name.endswith("val"):
            keep_images(content, range(1, NUM_VAL_IMAGES + 1))
        path.write_text(json.dumps(content))
    for image in sorted((world / "images" / "val").iterdir())[NUM_VAL_IMAGES:]:
        image.unlink()
    return world


@pytest.fixture(scope="session")
def plain_run(tmp_path_factory, miniature_world) -> Path:
    """The finished run of `small_config` without changes and without an evaluation; tests must not change it."""
    from small_run import small_config

    from ovd.jobs.train import train_from_config

    run = tmp_path_factory.mktemp("plain") / "run"
    train_from_config(small_config(run, miniature_world), evaluate=False)
    return run


NUM_VAL_IMAGES = 24
"""Number of validation images; they hold about a hundred boxes, and their evaluation takes about a second."""
