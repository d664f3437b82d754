"""What the samples of a set are: `DataSpec` describes them as the user has them, `Form` as models get them."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple, get_args

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Kind = Literal["image", "table", "series", "tokens", "array"]
Task = Literal["classification", "multilabel", "regression"]
ANY_KIND: frozenset[Kind] = frozenset(get_args(Kind))
ANY_TASK: frozenset[Task] = frozenset(get_args(Task))
PAD, UNKNOWN, START, MASKED = range(4)  # the first ids of a vocabulary
LENGTHS = 8  # the length of padded texts is a whole multiple of it
_NOUNS = {
    "image": ("image", "images"), "table": ("row", "rows"), "series": ("series", "series"),
    "tokens": ("text", "texts"), "array": ("array", "arrays"),
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class Column(_Part):
    """A column of a table, or a channel of a series. Numeric without `categories`, which are in the order of codes."""

    name: str
    categories: tuple[str, ...] | None = None
    unit: str = ""


class DataSpec(_Part):
    """The description of raw samples, which travels with a set.

    `kind`, and `shape` of one sample: image: channels, height, width; table: columns; series: channels, most steps;
    tokens: most tokens; array: any. `columns`: of a table; of a series, its channels, if they have names. `largest`:
    the value of an image that becomes 1; None for images that are as they should be. `words`: of tokens, by id;
    `learned`: which of them models know, and under which id, is learned from the training texts. `task`: what is
    predicted: one class; several labels, each there or not; or numbers, the targets, in `units`.
    Raw samples are arrays: of a table, float64, numbers, codes of categories, NaN where a value is missing; of a
    series, float32, NaN behind its end; of tokens, int64, 0 behind the end.
    """

    kind: Kind
    shape: tuple[int, ...]
    columns: tuple[Column, ...] = ()
    largest: float | None = None
    words: tuple[str, ...] = ()
    learned: bool = False
    task: Task = "classification"
    units: tuple[str, ...] = ()

    def noun(self, count: int) -> str:
        """Return what `count` samples are called."""
        return _NOUNS[self.kind][count != 1]

    def numeric(self) -> list[int]:
        """Return the positions of a table's numeric columns."""
        return [place for place, column in enumerate(self.columns) if column.categories is None]

    def categorical(self) -> list[int]:
        """Return the positions of a table's categorical columns."""
        return [place for place, column in enumerate(self.columns) if column.categories is not None]

    def describe(self) -> str:
        """Return the description on one line."""
        size = "x".join(map(str, self.shape))
        if self.kind == "table":
            return f"rows of {len(self.numeric())} numbers and {len(self.categorical())} categories"
        if self.kind == "series":
            return f"series of {self.shape[0]} channels and up to {self.shape[1]} steps"
        if self.kind == "tokens":
            return f"texts of up to {self.shape[0]} tokens, {len(self.words)} words"
        return f"{self.noun(2)} of {size}"

    def canonical(self) -> str:
        """Return the description as JSON: equal descriptions give equal texts."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

    def without_values(self) -> DataSpec:
        """Return the description without what samples say: without the names of categories, and without words."""
        columns = tuple(
            column if column.categories is None else column.model_copy(update={"categories": ()})
            for column in self.columns
        )
        return self.model_copy(update={"columns": columns, "words": ()})

    def misfit(self, other: DataSpec) -> list[str]:
        """Return in what another set differs, a line each; nothing if both can be one federation."""
        if other.kind != self.kind:
            return [f"its samples are of kind {other.kind}, here they are of kind {self.kind}"]
        if self.kind == "table":
            return self._other_task(other) + self._other_columns(other)
        found = self._other_task(other)
        ends = self.kind in ("series", "tokens")  # lengths may differ
        if (self.shape[:-1] if ends else self.shape) != (other.shape[:-1] if ends else other.shape):
            found.append(f"its samples are {_sizes(other.shape)}, here they are {_sizes(self.shape)}")
        if self.largest != other.largest:
            found.append(f"its largest value is {other.largest}, here it is {self.largest}")
        if self.learned != other.learned:
            found.append(f"its vocabulary is {'words' if other.learned else 'given ids'}, here it is not")
        elif self.words != other.words and not self.learned:
            found.append(f"its vocabulary has {len(other.words)} words, here it has {len(self.words)} other ones")
        if self.kind == "series" and self.columns and other.columns:
            found += self._other_columns(other)
        return found

    def _other_task(self, other: DataSpec) -> list[str]:
        if other.task != self.task:
            return [f"its task is {other.task}, here it is {self.task}"]
        if self.units != other.units:
            return [f"its targets are in {_units(other.units)}, here in {_units(self.units)}"]
        return []

    def _other_columns(self, other: DataSpec) -> list[str]:
        mine, theirs = ({column.name: column for column in one.columns} for one in (self, other))
        found = [f"it has no column {name!r}" for name in mine if name not in theirs]
        found += [f"it has a column {name!r}, which is not known here" for name in theirs if name not in mine]
        for name in mine.keys() & theirs.keys():
            a, b = mine[name], theirs[name]
            if (a.categories is None) != (b.categories is None):
                kinds = ["numeric" if one.categories is None else "categorical" for one in (b, a)]
                found.append(f"its column {name!r} is {kinds[0]}, here it is {kinds[1]}")
            if a.unit != b.unit:
                found.append(f"its column {name!r} is in {b.unit or 'no unit'}, here in {a.unit or 'no unit'}")
        return found


def _units(units: tuple[str, ...]) -> str:
    return ", ".join(unit or "no unit" for unit in units) or "no unit"


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


class Form(NamedTuple):
    """The form of encoded samples, a batch of which is one tensor with B rows.

    image, array: float32, B x `shape`. table: float32, B x (numbers + categories): standardised numbers, then codes as
    whole numbers, 0 for an unknown or missing one; `cards`: the number of codes of each categorical column. series:
    float32, B x (channels + 1) x T; the last channel is the mask, 1 for a step, 0 behind the end, where all channels
    are 0. tokens: int64, B x L, ids below `vocabulary`, 0 behind the end.
    """

    kind: Kind
    shape: tuple[int, ...]
    cards: tuple[int, ...] = ()
    vocabulary: int = 0

    @property
    def numbers(self) -> int:
        """Return the number of numeric columns of a table."""
        return self.shape[0] - len(self.cards)

    def example(self, count: int) -> Tensor:
        """Return a valid batch: of zeros, a series of full length, a text of unknown words."""
        if self.kind == "tokens":
            return torch.full((count, *self.shape), UNKNOWN)
        batch = torch.zeros(count, *self.shape)
        if self.kind == "series":
            batch[:, -1] = 1
        return batch

    def shortened(self, batch: Tensor, length: int) -> Tensor:
        """Return a batch of series or texts of `length` steps or tokens, padded behind them."""
        batch = batch.clone()
        batch[..., length:] = PAD
        return batch

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """Return a valid batch of samples without meaning: normal numbers, any codes and ids, nothing missing."""
        if self.kind == "tokens":
            return torch.randint(UNKNOWN, self.vocabulary, (count, *self.shape), generator=generator)
        batch = torch.randn(count, *self.shape, generator=generator)
        if self.kind == "series":
            batch[:, -1] = 1
        for place, card in enumerate(self.cards, self.numbers):
            batch[:, place] = torch.randint(card, (count,), generator=generator).to(batch.dtype)
        return batch
