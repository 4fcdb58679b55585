"""Reading and writing of an expert's folder, which cannot be used without the base detector that it refers to.

expert.safetensors   the expert's own parameters by their names in a detector; `expert.text` and `expert.base_text`,
                     text rows of its names and of the base detector's; `expert.answers`, rows learned in place of
                     `expert.text`, if there are any; with a calibration, `expert.trained_text`
expert.json          names, base detector, settings, calibration, metrics, and the sha256 of the other file
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from ovd.choices import ExpertPart
from ovd.experts.names import ExpertNames
from ovd.files import atomic_write, sha256_of, similar_folder, write_json

TENSORS = "expert.safetensors"
DESCRIPTION = "expert.json"
TEXT = "expert.text"
BASE_TEXT = "expert.base_text"
LEARNED_TEXT = "expert.answers"
TRAINED_TEXT = "expert.trained_text"


class ExpertError(ValueError):
    """Error raised for a folder without an intact expert, or with an expert of another base detector."""


@with_config(ConfigDict(strict=True, extra="forbid"))
@dataclass(frozen=True)
class ExpertDescription:
    """Everything that is stored about an expert except its tensors."""

    base_sha256: str
    """SHA-256 of the base detector's weights file."""
    base: str
    """Run folder of the base detector, for messages."""
    learn: ExpertPart
    """Part that the expert learned."""
    own_layers: int
    """Number of the backbone's last layers that the expert owns."""
    rank: int
    """Rank of the expert's adapters in the backbone; 0 for none."""
    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    """Synonyms of each name."""
    margin: float
    """Margin for near queries, see `ExpertNames`."""
    config: dict[str, Any]
    """Resolved config of the expert's training."""
    calibration: dict[str, Any] | None = None
    """Calibration in the form of `ScoreCalibration.to_json`; None if there is none."""
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    """Metrics of each evaluated set, 0 to 1."""
    sha256: str = ""
    """SHA-256 of the tensors' file; set by `write_description`."""

    @property
    def names_and_synonyms(self) -> tuple[str, ...]:
        """All names and synonyms."""
        return (*self.names, *(form for of_name in self.synonyms for form in of_name))


@dataclass(frozen=True, eq=False)
class StoredExpert:
    """An expert on disk. Its tensors are read on first use and kept."""

    path: Path
    """Path that was given, for messages: the expert's folder, or the run folder that it is in."""
    folder: Path
    """Folder with the expert's files."""
    description: ExpertDescription

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The expert's parameters by name, and the text rows.

        Raises:
            ExpertError: the file is missing or damaged, or its hash differs from the one in the description.
        """
        file = self.folder / TENSORS
        try:
            if sha256_of(file) != self.description.sha256:
                raise ExpertError(f"{file} does not match {DESCRIPTION}: its sha256 differs")
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise ExpertError(f"{file} cannot be read: {error}") from None

    @cached_property
    def names(self) -> ExpertNames:
        """The expert's names with their text rows.

        Raises:
            ExpertError: see `tensors`.
        """
        found, tensors = self.description, self.tensors
        return ExpertNames(found.names, tensors[TEXT], tensors[BASE_TEXT], found.margin, tensors.get(LEARNED_TEXT))

    def check_base(self, base_sha256: str, base: Path) -> None:
        """Check that the expert belongs to a base detector.

        Args:
            base_sha256: SHA-256 of `base`, the detector's weights file.

        Raises:
            ExpertError: the expert was trained on another detector; names both hashes.
        """
        found = self.description
        if found.base_sha256 != base_sha256:
            raise ExpertError(
                f"{self.path} is an expert of another detector: it was trained on {found.base} with weights of sha256 "
                f"{found.base_sha256}; those of {base} have {base_sha256}. Train the expert again on this detector, or "
                "use the other detector"
            )


def find_expert(path: Path) -> Path:
    """Find the expert's folder: `path` itself, or `expert` in a run folder.

    Raises:
        ExpertError: neither holds an expert.
    """
    for folder in (path, path / "expert"):
        if (folder / DESCRIPTION).is_file():
            return folder
    near = None if path.exists() else similar_folder(path)
    hint = "" if near is None else f"; did you mean {near}?"
    raise ExpertError(f"{path} has no expert: it contains neither {DESCRIPTION} nor expert/{DESCRIPTION}{hint}")


def write_expert(folder: Path, description: ExpertDescription, tensors: Mapping[str, Tensor]) -> None:
    """Write both files; the description last, so that a folder with one is complete.

    Args:
        folder: created if it is missing; an expert in it is replaced.
        tensors: parameters by name, and the text rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DESCRIPTION).unlink(missing_ok=True)
    with atomic_write(folder / TENSORS, "wb") as file:
        file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))
    write_description(folder, description)


def write_description(folder: Path, description: ExpertDescription) -> None:
    """Write the description beside the tensors."""
    content = asdict(description) | {"sha256": sha256_of(folder / TENSORS)}
    write_json(folder / DESCRIPTION, content)


def read_expert(path: Path) -> StoredExpert:
    """Read an expert's description; its tensors are read on first use.

    Args:
        path: the expert's folder or a run folder, as for `find_expert`.

    Raises:
        ExpertError: there is no expert, or its description is damaged.
    """
    folder = find_expert(path)
    file = folder / DESCRIPTION
    try:
        return StoredExpert(path, folder, TypeAdapter(ExpertDescription).validate_json(file.read_bytes()))
    except ValidationError as error:
        first = error.errors()[0]
        field_name = f"{'.'.join(map(str, first['loc']))}: " if first["loc"] else ""
        raise ExpertError(
            f"{file} is not an expert's description: {field_name}{first['msg']}; correct it, or train the expert again"
        ) from None
