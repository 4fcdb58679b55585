"""The texts of image-text pairs as classes: every distinct text has an id, and its variants are in a label file."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from ovd.text.bank import TextBank, VariantRows, add_noise
from ovd.text.names import name_key


class PairTexts:
    """The distinct texts of many banks: a caption or phrase that occurs in several shards is one class.

    Texts that the text tower reads alike, such as those that differ only in case, count as one. They are compared by a
    64-bit hash; the texts themselves, possibly tens of millions, are not kept in memory.
    """

    def __init__(self, banks: Iterable[TextBank], pair_counts: Sequence[Int[np.ndarray, " Q"]], *, first_id: int):
        """
        Args:
            banks: banks of the shards' label files, all from the same text tower; iterated once, so a generator can
                open them one after another.
            pair_counts: for every bank, the number of pairs that each of its texts belongs to.
            first_id: id of the first text; lower ids belong to the training vocabulary.

        Raises:
            ValueError: the banks come from different text towers.
        """
        self._banks: list[VariantRows] = []
        self.first_id = first_id
        bank_hashes: list[Int64[np.ndarray, " Q"]] = []
        text_tower = None
        for bank in banks:
            text_tower = text_tower or bank.text_tower
            if bank.text_tower != text_tower:
                raise ValueError(f"{bank.path} and {self._banks[0].path} were made with different text towers")
            self._banks.append(bank.variants)
            bank_hashes.append(np.array([_hash(name_key(name)) for name in bank.names], np.int64))
        lengths = [len(hashes) for hashes in bank_hashes]
        _, first, inverse = np.unique(
            np.concatenate([np.arange(0), *bank_hashes]), return_index=True, return_inverse=True
        )
        counts = np.bincount(inverse, weights=np.concatenate([np.arange(0), *pair_counts]))
        self._ends = np.cumsum(counts**0.5)
        self._places = np.stack(
            [
                np.repeat(np.arange(len(lengths)), lengths),
                np.concatenate([np.arange(0), *map(np.arange, lengths)]),
            ]
        )[:, first]
        self._ids = np.split(first_id + inverse, np.cumsum(lengths)[:-1])

    def __len__(self) -> int:
        return self._places.shape[1]

    def ids(self, bank: int) -> Int64[np.ndarray, " Q"]:
        """Return the ids of a bank's texts, in the bank's order."""
        return self._ids[bank]

    def texts(self, ids: Sequence[int]) -> list[str]:
        """Read the texts of the given ids from their label files."""
        bank_numbers, rows = self._places[:, np.array(ids, np.int64) - self.first_id]
        names = {number: TextBank(self._banks[number].path).names for number in set(bank_numbers.tolist())}
        return [names[number][row] for number, row in zip(bank_numbers.tolist(), rows.tolist(), strict=True)]

    def draw(self, count: int, generator: torch.Generator) -> Int[Tensor, " K"]:
        """Draw the ids of at most `count` distinct texts, with probability proportional to (number of pairs) ** 0.5."""
        luck = torch.rand(count, generator=generator, dtype=torch.float64).numpy() * self._ends[-1:].sum()
        drawn = np.searchsorted(self._ends, luck, side="right").clip(max=max(0, len(self) - 1))
        return self.first_id + torch.from_numpy(np.unique(drawn[: count if len(self) else 0]))

    def sample(self, ids: Int[Tensor, " K"], *, generator: torch.Generator, noise: float = 0.0) -> Float[Tensor, "K D"]:
        """Draw one variant per text, as `TextBank.sample` does."""
        luck = torch.rand(len(ids), generator=generator).numpy()
        bank_numbers, rows = self._places[:, ids.cpu().numpy() - self.first_id]
        sampled = torch.empty(len(ids), self._banks[0].dim)
        for number in np.unique(bank_numbers).tolist():
            bank, here = self._banks[number], bank_numbers == number
            sampled[torch.from_numpy(here)] = bank.read(
                rows[here], (luck[here] * bank.num_variants).astype(np.int64).clip(max=bank.num_variants - 1)
            )
        return add_noise(sampled, noise, generator)


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest(), "little", signed=True
    )
