"""`ovd check-backbone`: the mean of the tiny CLIP's dense feature is its pooled feature."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

import ovd.__main__ as command


def test_dense_and_pooled_feature_agree_and_too_few_images_are_refused(tmp_path, monkeypatch, capsys):
    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["ovd", "check-backbone", "tiny", "--images", str(tmp_path), *options])
        command.main()
        return capsys.readouterr().out

    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(40, 60), (64, 64), (90, 50)]):
        pixels = np.kron(rng.integers(0, 256, (height // 10, width // 10, 3)), np.ones((10, 10, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    dense, pooled = r"mean dense .*cosine 1\.000 \(lowest 1\.000\)", r"pooled .*cosine (-?0\.\d{3})"
    found = re.fullmatch(rf"tiny, 3 images of 112 x 112 px\n{dense}\n{pooled}\n", out := run())
    assert found is not None, out
    assert abs(float(found[1])) < 0.99
    assert run("--count", "2").startswith("tiny, 2 images of ")
    for count in ("1", "-1"):
        with pytest.raises(SystemExit, match="2"):
            run("--count", count)
        assert f"--count {count}: two images are compared, so give at least 2" in capsys.readouterr().err
    for name in ("3.png", "4.png"):
        (tmp_path / name).write_bytes(b"no image")
    monkeypatch.setattr(sys, "argv", ["ovd", "check-backbone", "tiny", "--images", str(tmp_path)])
    command.main()
    printed = capsys.readouterr()
    assert printed.out == out
    assert f"2 of 5 images cannot be read and are left out; the first: {tmp_path / '3.png'}: " in printed.err
    for number in (1, 2):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="2"):
        run()
    assert f"only one image of {tmp_path} can be read" in capsys.readouterr().err
    (tmp_path / "0.png").rename(tmp_path / "first")
    with pytest.raises(SystemExit, match="2"):
        run()
    assert f"{tmp_path / '1.png'}: " in capsys.readouterr().err
    (tmp_path / "first").rename(tmp_path / "0.png")
    for number in range(1, 5):
        (tmp_path / f"{number}.png").unlink()
    with pytest.raises(SystemExit, match="2"):
        run()
    assert "has 1 image; give a folder with at least two" in capsys.readouterr().err
