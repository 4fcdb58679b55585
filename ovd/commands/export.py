"""Export a trained detector to ONNX, with the vocabulary as an input.

    ovd export runs/quickstart model.onnx
    ovd export runs/quickstart model_fp16.onnx --fp16
    ovd export runs/quickstart model_int8.onnx --int8 --images data/mine/images

Beside model.onnx lie model.text.onnx, the text tower, and model.text.json, the table of its tokenizer. With these three
files ovd.onnx.Predictor detects things of any name without torch; docs/deployment.md says how, and what the graph's
inputs and outputs are. --int8 needs images like those that will be detected in, without labels, for its scales.

Files of an earlier export to the same name are replaced once all of the new ones are complete.
"""

import argparse
from pathlib import Path

from ovd.files import refuse_missing_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder or checkpoint folder of a trained detector")
    parser.add_argument("model", type=Path, help="file to write, whose name ends in .onnx")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--fp16", action="store_true", help="weights and features of 16 bits, for GPUs")
    form.add_argument(
        "--int8", action="store_true", help="convolutions and linear layers of 8 bits, for CPUs; needs --images"
    )
    parser.add_argument("--images", type=Path, help="folder of images that --int8 finds the ranges of features on")
    parser.add_argument("--no-text", action="store_true", help="leave out the text tower")
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
        print(f"{path} of an earlier export is removed")
    for path in exported.written:
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")
