"""Prompts of texts, examples, or both: their embeddings are those of CLIP's own encoders."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_export import unchecked
from small_trained import small_trained
from torch.nn import functional as F

from ovd.build.detector import load_original_clip
from ovd.build.prompts import EXAMPLE_VIEWS, Example, Prompt, PromptEncoder
from ovd.build.text import evaluation_text
from ovd.build.trained import TrainedDetector
from ovd.data.images.image_file import ImageError
from ovd.jobs.queries import Query, add_examples, parse_example
from ovd.model.crops import square_crops
from ovd.predictor import Predictor

RNG = np.random.default_rng(3)
THING = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
OTHER = np.kron(RNG.integers(0, 256, (8, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
SCENE = np.pad(THING, ((20, 30), (40, 10), (0, 0)), constant_values=90)
BOX = (40.0, 20.0, 104.0, 84.0)


@pytest.fixture(scope="module")
def trained(tiny_clip) -> TrainedDetector:
    return small_trained(tiny_clip, "anchor", detector={"freeze_backbone": True}, data={"size": 96})


@pytest.fixture(scope="module")
def encoder(trained) -> PromptEncoder:
    return PromptEncoder(trained)


def by_clip(trained: TrainedDetector, pixels: np.ndarray, box: tuple[float, ...]) -> torch.Tensor:
    """Compute the mean unit embedding of a box's views with open_clip's own image encoder."""
    clip = load_original_clip(trained.config)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
    image = ((torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std)[None]
    with torch.no_grad():
        rows = [
            F.normalize(clip.model.visual(square_crops(image, [torch.tensor([box])], 64, context=context)), dim=1)
            for context, _ in EXAMPLE_VIEWS
        ]
    return F.normalize(torch.stack(rows).mean(dim=0), dim=1)[0]


def test_a_name_is_the_row_of_its_text(trained, encoder):
    expected = evaluation_text(trained.config, trained.clip, ["anchor", "cat face"])
    assert torch.equal(encoder.rows(("anchor", "cat face")), expected)
    assert torch.allclose(encoder.rows((Prompt("x", ("cat face",)),))[0], expected[1], atol=1e-6)


def test_an_example_is_clips_embedding_of_the_crop(trained, encoder):
    (row,) = encoder.rows((Prompt("x", images=(Example(SCENE, BOX),)),))
    assert row @ by_clip(trained, SCENE, BOX) > 1 - 1e-5
    (whole,) = encoder.rows((Prompt("x", images=(Example(THING),)),))
    assert whole @ by_clip(trained, THING, (0.0, 0.0, 64.0, 64.0)) > 1 - 1e-5


def test_several_examples_and_texts_are_weighted_means(trained, encoder):
    examples = (Example(THING), Example(OTHER))
    one, other = (encoder.rows((Prompt("x", images=(example,)),))[0] for example in examples)
    (images,) = encoder.rows((Prompt("x", images=examples),))
    assert torch.allclose(images, F.normalize(one + other, dim=0), atol=1e-5)
    texts = F.normalize(encoder.rows(("anchor", "cat face")).mean(dim=0), dim=0)
    (both,) = encoder.rows((Prompt("x", ("anchor", "cat face"), examples, 0.25),))
    assert torch.allclose(both, F.normalize(0.75 * texts + 0.25 * images, dim=0), atol=1e-5)
    for share, alone in ((0.0, texts), (1.0, images)):
        (row,) = encoder.rows((Prompt("x", ("anchor", "cat face"), examples, share),))
        assert torch.allclose(row, alone, atol=1e-5)


def test_names_and_prompts_may_be_mixed_in_any_order(encoder):
    prompt = Prompt("thing", images=(Example(THING),))
    rows = encoder.rows(("anchor", prompt, "cat face"))
    assert torch.equal(rows[[0, 2]], encoder.rows(("anchor", "cat face")))
    assert torch.equal(rows[1:2], encoder.rows((prompt,)))
    assert torch.allclose(rows.norm(dim=1), torch.ones(3), atol=1e-6)


def test_the_predictor_takes_prompts_and_encodes_them_once(trained, monkeypatch):
    predictor = Predictor(trained)
    prompt = Prompt("thing", images=(Example(Image.fromarray(THING)),))
    found = predictor(SCENE, ["anchor", prompt])
    assert set(found.classes.tolist()) <= {0, 1}
    alone = predictor(SCENE, prompt)
    assert set(alone.classes.tolist()) == {0}
    monkeypatch.setattr("ovd.build.prompts.build_crop_encoder", None)
    assert torch.equal(predictor(SCENE, prompt).boxes, alone.boxes)
    with pytest.raises(ValueError, match="blank"):
        predictor(SCENE, ["anchor", " "])


def test_files_and_faults(encoder, tmp_path):
    Image.fromarray(SCENE).save(tmp_path / "scene.png")
    (of_file,) = encoder.rows((Prompt("x", images=(Example(tmp_path / "scene.png", BOX),)),))
    (of_pixels,) = encoder.rows((Prompt("x", images=(Example(SCENE, BOX),)),))
    assert torch.equal(of_file, of_pixels)
    with pytest.raises(ImageError, match="file is missing"):
        encoder.rows((Prompt("x", images=(Example(tmp_path / "none.png"),)),))
    for box in ((0.0, 0.0, 0.0, 9.0), (-1.0, 0.0, 9.0, 9.0), (0.0, 0.0, 115.0, 9.0), (9.0, 9.0, 5.0, 20.0)):
        with pytest.raises(ValueError, match=r"empty or not inside the image, which is 114 x 114"):
            encoder.rows((Prompt("x", images=(Example(SCENE, box),)),))


def test_prompts_that_ask_for_nothing():
    with pytest.raises(ValueError, match="neither a text nor an example"):
        Prompt("x")
    for name, texts in ((" ", ("a",)), ("x", ("a", ""))):
        with pytest.raises(ValueError, match="blank"):
            Prompt(name, texts)
    with pytest.raises(ValueError, match="must be from 0 to 1"):
        Prompt("x", ("a",), share_of_images=1.5)


def test_prompts_of_words_and_pictures_that_are_no_tuples():
    with unchecked():
        for texts in ("keyboard", (b"keyboard",)):
            with pytest.raises(ValueError, match="the prompt 'x': texts must be a tuple"):
                Prompt("x", texts)  # type: ignore[arg-type]
        for images in (Example("photo.jpg"), ("photo.jpg",)):
            with pytest.raises(ValueError, match="the prompt 'x': images must be a tuple of examples"):
                Prompt("x", images=images)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("word", "image", "box"),
    [
        ("my thing=photo.jpg", "photo.jpg", None),
        ("my thing=photo.jpg:10,20,30,40", "photo.jpg", (10, 20, 40, 60)),
        ("my thing=C:/a,b/photo.jpg", "C:/a,b/photo.jpg", None),
        ("my thing=a:b,c.jpg", "a:b,c.jpg", None),
        ("my thing=a:b.jpg:1.5,2,3,4", "a:b.jpg", (1.5, 2, 4.5, 6)),
    ],
)
def test_an_example_on_the_command_line(word, image, box):
    name, example = parse_example(word)
    assert (name, example.image, example.box) == ("my thing", image, box)


@pytest.mark.parametrize("word", ["photo.jpg", "=photo.jpg", "x=", "x=a.jpg:1,2,3,b", "x=a.jpg:1,2,3"])
def test_an_example_that_cannot_be_read(word):
    with pytest.raises(ValueError, match="--prompt"):
        parse_example(word)


def test_a_name_with_examples_is_asked_by_both():
    words = ["umbrella=a.jpg", "new=b.jpg", "new=c.jpg"]
    queries = add_examples([Query("anchor", 0.8), Query("umbrella")], words)
    prompts = [query.prompt for query in queries]
    assert prompts[0] == "anchor"
    assert isinstance(prompts[1], Prompt)
    assert isinstance(prompts[2], Prompt)
    assert (prompts[1].name, prompts[1].texts, len(prompts[1].images)) == ("umbrella", ("umbrella",), 1)
    assert (prompts[2].name, prompts[2].texts, len(prompts[2].images)) == ("new", (), 2)
    assert [query.min_score for query in queries] == [0.8, None, None]
    assert Path(str(prompts[2].images[1].image)) == Path("c.jpg")
