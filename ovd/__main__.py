"""The `ovd` command: `ovd COMMAND ...` runs `main` of the module of that name in `ovd/commands/`.

Only that module is imported, and it imports torch and other slow packages after parsing its options. So help and usage
errors appear at once, and only the commands that use an optional package need it. Under torchrun:
`torchrun --nproc-per-node 8 -m ovd train CONFIG`.
"""

import sys
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version

from ovd.cli import run_tool

COMMANDS = {
    "use a detector": {
        "detect": "detect classes of any name in images and videos",
        "label": "label your own images with a detector: COCO, YOLO, VOC, Label Studio",
        "serve": "serve a web page and an HTTP API",
        "experts": "list and check experts of a detector, show which one answers a query",
        "export": "export a detector to ONNX, to detect without torch",
    },
    "train": {
        "train": "train a detector from a config",
        "fine-tune": "fine-tune a detector on your own boxes, and keep its other classes",
        "label-pairs": "label image-text pairs with a detector, for self-training",
        "ensemble": "average the weights of two runs",
        "align-backbone": "align a backbone's dense feature with CLIP's crop embeddings, without labels",
        "text-bank": "encode the texts of many classes once, for later trainings",
        "replay-step": "repeat a training step whose loss was not finite",
        "cost": "predict the memory and time of a training",
    },
    "measure": {
        "eval": "evaluate a detector on a data set, or a results file",
        "check-backbone": "compare a backbone's dense feature with its pooled embedding",
        "label-quality": "measure precision and recall of labeled pairs whose true boxes are known",
    },
    "prepare data": {
        "check": "check a whole data set and list its faults",
        "import-boxes": "convert the export of an annotation tool to COCO JSON",
        "import-pairs": "convert a TSV file of image-text pairs to tar shards",
        "split": "split the images of an annotation file into two files",
    },
}
"""Help line of every command, by group."""


def help_text() -> str:
    """Return the text that `ovd --help` prints."""
    lines = ["usage: ovd COMMAND ...", "", "Open-vocabulary object detection: train, evaluate, detect.", ""]
    for group, commands in COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:<16}{text}" for name, text in commands.items()), ""]
    return "\n".join(
        [*lines, "`ovd COMMAND --help` explains a command and shows examples; `ovd --version` prints the version."]
    )


def run_command(arguments: list[str]) -> None:
    """Run a command, or print the help or the version.

    Args:
        arguments: name of the command and its arguments; or `--version`; or `-h`, `--help` or nothing for the help.

    Raises:
        ValueError: there is no such command.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return
    if arguments[0] == "--version":
        print(f"ovd {version('ovd')}")
        return
    name, names = arguments[0], [name for commands in COMMANDS.values() for name in commands]
    if name not in names:
        nearest = get_close_matches(name, names, 1)
        raise ValueError(
            f"ovd has no command {name!r}; {f'did you mean {nearest[0]}?' if nearest else 'ovd --help lists all'}"
        )
    sys.argv = [f"ovd {name}", *arguments[1:]]  # the name that help and usage errors print
    import_module(f"ovd.commands.{name.replace('-', '_')}").main()


def main() -> None:
    """Run the command line of `ovd` and `python -m ovd`."""
    run_tool(lambda: run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
