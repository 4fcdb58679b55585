"""Export a trained detector to ONNX, with the vocabulary as an input.

    ovd export runs/quickstart model.onnx
    ovd export runs/quickstart model_fp16.onnx --fp16
    ovd export runs/quickstart model_int8.onnx --int8 --images data/mine/images

The text tower, model.text.onnx, and the table of its tokenizer, model.text.json, are written beside model.onnx. With
these three files ovd.onnx.Predictor detects classes of any name without torch; docs/deployment.md describes this, and
the graph's inputs and outputs. --int8 measures its scales on images without labels; they should be like those that will
be detected in.

Files of an earlier export to the same name are replaced once all new files are complete.
"""

import argparse
from pathlib import Path

from ovd.files import refuse_missing_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder or checkpoint folder of a trained detector")
    parser.add_argument("model", type=Path, help="file to write, whose name ends in .onnx")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--fp16", action="store_true", help="16-bit weights and features, for GPUs")
    form.add_argument(
        "--int8", action="store_true", help="8-bit convolutions and linear layers, for CPUs; needs --images"
    )
    parser.add_argument("--images", type=Path, help="folder of images on which --int8 measures the ranges of features")
    parser.add_argument("--no-text", action="store_true", help="do not export the text tower")
    parser.add_argument(
        "--plain",
        action="store_true",
        help="leave out eval.second_look and eval.ensemble, which changes scores",
    )
    arguments = parser.parse_args()
    if arguments.int8 and arguments.images is None:
        raise ValueError("--int8 needs --images FOLDER")
    if arguments.images is not None and not arguments.int8:
        raise ValueError("--images needs --int8")
    refuse_missing_run(arguments.run)

    from ovd.jobs.export import export_run  # here, since importing torch takes seconds

    exported = export_run(
        arguments.run,
        arguments.model,
        to_fp16=arguments.fp16,
        int8_images=arguments.images,
        with_text=not arguments.no_text,
        plain=arguments.plain,
    )
    for path in exported.removed:
        print(f"removed {path} of an earlier export")
    for path in exported.written:
        print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
