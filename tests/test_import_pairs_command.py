"""`ovd import-pairs`: from a TSV file to shards and a report."""

import json
import sys

import pytest
from PIL import Image

import ovd.__main__ as command
from ovd.data.pairs.tar import PairShards


@pytest.mark.parametrize(("options", "num_shards"), [([], 1), (["--pairs-per-shard", "1"], 2)])
def test_every_line_is_a_pair_of_a_shard(options, num_shards, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.jpg")
    (tmp_path / "pairs.tsv").write_text("7\tan anchor\ta.jpg\n8\ttwo bells\tb.jpg\n")
    output = tmp_path / "shards"
    words = ["--columns", "_,caption,path", "--images", str(tmp_path), "--output", str(output), *options]
    monkeypatch.setattr(sys, "argv", ["ovd", "import-pairs", str(tmp_path / "pairs.tsv"), *words])
    command.main()
    assert f"2 pairs in {output}; left out: none" in capsys.readouterr().out
    assert len(list(output.glob("*.tar"))) == num_shards
    assert len(PairShards(output)) == 2
    assert json.loads((output / "data_report.json").read_text())["used"]["sample"] == 2
