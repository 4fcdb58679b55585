"""Loading of CLIP models: the weights, names and folders that are accepted, and those refused with a one-line error."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.constants import HF_SAFE_WEIGHTS_NAME
from safetensors.torch import save_file

from ovd.clip.load import CONFIG, TINY_CLIP, build_on_meta, build_untrained_tiny_clip, load_clip
from ovd.clip.pretrained_settings import normalization_of

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
SMALL = "ViT-S-32-alt"
"""Name of open_clip's smallest model, which has no published weights."""
HALVES: dict = {"mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(open_clip.create_model(SMALL).state_dict(), path)
    return str(path)


def test_a_local_file_must_be_told_its_activation(weights_file):
    with pytest.raises(ValueError, match=r"model\.pt does not say which activation .* set clip\.activation=gelu"):
        load_clip(SMALL, weights_file, **HALVES)
    with pytest.raises(ValueError, match=r"was trained with QuickGELU, .* has GELU; open_clip has no such model"):
        load_clip(SMALL, weights_file, activation="quick_gelu", **HALVES)
    clip = load_clip(SMALL, weights_file, activation="gelu", **HALVES)
    stored = torch.load(weights_file)
    assert all(torch.equal(value, stored[name]) for name, value in clip.model.state_dict().items())


def test_a_local_files_normalization_is_that_of_its_name_or_given(weights_file, tmp_path):
    given = load_clip(SMALL, weights_file, activation="gelu", mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    assert (given.mean, given.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    with pytest.raises(ValueError, match="give both or neither"):
        load_clip(SMALL, weights_file, activation="gelu", mean=(0.1, 0.2, 0.3))
    of_255, halves = (123.675, 116.28, 103.53), (0.5, 0.5, 0.5)
    for mean, std in ((of_255, (58.395, 57.12, 57.375)), (halves, (0.5, 0.0, 0.5)), (of_255, halves), (halves, of_255)):
        with pytest.raises(ValueError, match="not of pixels from 0 to 1; divide those of 0 to 255 by 255"):
            load_clip(SMALL, weights_file, activation="gelu", mean=mean, std=std)
    elsewhere = str(tmp_path / "other.pt")
    (tmp_path / "other.pt").touch()
    for name, count in (("ViT-L-14", 2), (SMALL, 0), ("NFNet-F0", 0)):
        with pytest.raises(ValueError, match=f"weights of {name} have {count} normalizations.* set clip.mean"):
            load_clip(name, elsewhere, activation="gelu")
    assert normalization_of("ViT-B-32", elsewhere, None, None)["mean"] == OPENAI_MEAN
    assert normalization_of("ViT-B-16-SigLIP", elsewhere, None, None)["mean"] == (0.5, 0.5, 0.5)


def test_weights_of_another_model_are_refused(weights_file):
    with pytest.raises(ValueError, match=r"does not match clip\.name 'RN50'"):
        load_clip("RN50", weights_file, activation="gelu", **HALVES)


class Payload:
    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


def test_weights_with_more_than_tensors_in_them_are_refused_and_not_run(tmp_path):
    witness = tmp_path / "ran"
    torch.save({"weight": Payload(witness)}, tmp_path / "weights.pt")
    with pytest.raises(
        ValueError, match=r"clip\.weights '.*weights\.pt' cannot be loaded: .*more than a dict of tensors"
    ):
        load_clip(SMALL, str(tmp_path / "weights.pt"), activation="gelu", **HALVES)
    assert not witness.exists()
    torch.load(tmp_path / "weights.pt", weights_only=False)  # the payload does run where pickles are allowed
    assert witness.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.pt", b""), ("a.pt", b"PK\x03\x04abc"), ("a.pt", b"\x80\x02]q\x00."), ("a.safetensors", b"")],
)
def test_damaged_weights_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"clip\.weights '.*{name}' cannot be loaded: it is damaged"):
        load_clip(SMALL, str(tmp_path / name), activation="gelu", **HALVES)


def test_a_damaged_folder_of_a_model_is_refused(tmp_path):
    for file in TINY_CLIP.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (weights,) = tmp_path.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"the model in {tmp_path} cannot be loaded: it is damaged"):
        load_clip(str(tmp_path))


def test_a_folder_whose_weights_are_missing_is_refused(tmp_path):
    """A folder with a config but no weights is an error; open_clip itself would build a model with random weights."""
    (tmp_path / CONFIG).write_bytes((TINY_CLIP / CONFIG).read_bytes())
    (tmp_path / "epoch_32.pt").touch()
    with pytest.raises(
        ValueError, match=rf"{tmp_path} has a config but no weights.* \.safetensors, \.bin, \.pth files"
    ):
        load_clip(str(tmp_path))


def test_a_torchscript_archive_is_called_one(tmp_path):
    with warnings.catch_warnings(action="ignore"):  # torch has deprecated the functions that write one
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "RN50.pt"))
    with pytest.raises(ValueError, match=r"is a TorchScript archive; docs/backbones\.md shows how to convert it"):
        load_clip(SMALL, str(tmp_path / "RN50.pt"), activation="gelu", **HALVES)


def test_a_file_that_is_not_there_is_named_whatever_is_said_of_it(tmp_path):
    with pytest.raises(ValueError, match=r"nope\.pt' is neither a file"):
        load_clip(SMALL, str(tmp_path / "nope.pt"), **HALVES)


def test_loading_leaves_the_root_logger_to_the_program():
    code = (
        "import logging\nfrom ovd.clip.load import load_clip\nload_clip('tiny')\n"
        "print(logging.getLogger().handlers, end='')"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]"


@pytest.fixture
def offline(no_network, tmp_path, monkeypatch) -> Path:
    """Switch the network off and use an empty cache folder, as HF_HOME would."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, SMALL, {"tag": {"hf_hub": "nobody/small/"}})
    return tmp_path


def test_weights_that_are_not_cached_are_named_with_the_variable_that_forbids_to_fetch_them(offline):
    with pytest.raises(ValueError, match=r"'tag' of ViT-S-32-alt is not in the cache .*nobody/small.* HF_HUB_OFFLINE"):
        load_clip(SMALL, "tag")


def test_cached_weights_need_no_hub(offline, weights_file):
    stored = torch.load(weights_file)
    snapshot = offline / "models--nobody--small" / "snapshots" / "0" / HF_SAFE_WEIGHTS_NAME
    main = offline / "models--nobody--small" / "refs" / "main"
    snapshot.parent.mkdir(parents=True)
    main.parent.mkdir()
    main.write_text("0")
    save_file({name: tensor.clone() for name, tensor in stored.items()}, snapshot)
    clip = load_clip(SMALL, "tag")
    assert all(torch.equal(value, stored[name]) for name, value in clip.model.state_dict().items())


def test_a_tokenizer_that_is_not_cached_is_named(offline):
    with pytest.raises(ValueError, match=r"the tokenizer of ViT-B-16-SigLIP is not in the cache .*HF_HUB_OFFLINE"):
        load_clip("ViT-B-16-SigLIP", "random")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("ViT-B-32", "openai", r"'openai' was trained with QuickGELU, ViT-B-32 has GELU; use .*ViT-B-32-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", r"was trained with GELU, .* use clip\.name=ViT-B-32$"),
        (
            "RN50-quickgelu",
            "/x/typo.pt",
            r"'/x/typo\.pt' is neither a file, nor `random`, nor one of the tags of RN50",
        ),
        (
            "ViT-B-32",
            None,
            r"clip\.weights is not set for ViT-B-32; set it to a local file, `random`, or one of: openai",
        ),
        ("ViT-B-33", "openai", "neither a folder nor a name in open_clip"),
        ("tiny", "openai", r"includes its own weights; set clip\.weights=null"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_downloaded(name, weights, message):
    with pytest.raises(ValueError, match=message):
        load_clip(name, weights)


@pytest.mark.parametrize("said", [{"activation": "gelu"}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}])
@pytest.mark.parametrize(("name", "weights"), [("tiny", None), ("ViT-B-32", "openai"), (SMALL, "random")])
def test_nothing_is_said_of_weights_that_bring_it_themselves(name, weights, said):
    with pytest.raises(ValueError, match="are for local weights files only"):
        load_clip(name, weights, **said)


@pytest.mark.parametrize("load", [load_clip, build_on_meta])
def test_a_folder_without_a_model_is_named(load, tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is not the folder of a CLIP model: it has no {CONFIG}"):
        load(str(tmp_path))


def test_weights_that_are_left_out_on_purpose_are_not_warned_of(caplog):
    root = logging.getLogger()
    before = (root.level, list(root.filters))
    for name in ("tiny", SMALL):
        build_on_meta(name)
    build_untrained_tiny_clip()
    load_clip(SMALL, "random")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert (root.level, list(root.filters)) == before
    open_clip.create_model(SMALL)
    assert "No pretrained weights loaded" in caplog.text
