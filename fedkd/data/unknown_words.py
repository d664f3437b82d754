"""Words of texts that models do not know: how many there are, and the refusal of texts that mostly have such words."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .codec import MOST_UNSEEN, Codec
from .federated_data import Ragged
from .samples import Dataset
from .spec import MASKED, UNKNOWN


class _Words(NamedTuple):
    unknown: np.ndarray  # of each text
    all: np.ndarray


def _words(codec: Codec, raw: np.ndarray, fitted: np.ndarray) -> _Words:
    """Return how many words of each text become the unknown token, of how many. An empty text has no word.

    `fitted`: the texts in the vocabulary of the codec.
    """
    unknown = (codec.codes[0][fitted] == UNKNOWN).sum(1) - (raw == UNKNOWN).sum(1)
    return _Words(unknown, (raw > MASKED).sum(1))


def unknown_at_nodes(
    codec: Codec, train: np.ndarray, train_parts: Ragged, test: np.ndarray, test_parts: Ragged, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Return how many words are unknown, a note. Raises InputError for a node that does not know most of its words."""
    if not codec.spec.learned:
        return ()
    pools, every = (_words(codec, train, train), _words(codec, test, test)), (train_parts, test_parts)
    for node in range(len(train_parts)):
        unknown, count = (
            sum(int(one[parts[node]].sum()) for one, parts in zip(kind, every, strict=True))
            for kind in zip(*pools, strict=True)
        )
        if unknown > MOST_UNSEEN * count:
            raise InputError(
                f"data.text: {unknown} of {count} words of node {names[node] if names else node} are rarer than "
                "data.min_count in the training texts of all nodes; are they in another language, or another column? "
                "Else lower data.min_count, or set data.tokenizer = 'bytes'."
            )
    unknown, count = (int(sum(one.sum() for one in kind)) for kind in zip(*pools, strict=True))
    said = f"{unknown} of {count} words are rarer than data.min_count in the training texts"
    return (f"{said}; each becomes the unknown token",) if unknown else ()


def unknown_at_site(codec: Codec, own: Dataset, fitted: Dataset) -> tuple[str, ...]:
    """Return how many words of a site the codec does not know, a note.

    Raises InputError if these are most of its words; it says no word and no count, as the server gets it.
    """
    if not codec.spec.learned:
        return ()
    pairs = ((own.train, fitted.train), (own.test, fitted.test))
    found = [_words(codec, raw.inputs, other.inputs) for raw, other in pairs]
    unknown, count = (int(sum(one.sum() for one in kind)) for kind in zip(*found, strict=True))
    if unknown > MOST_UNSEEN * count:
        raise InputError(
            "most of its words are not in data.sites.spec; are its texts in another language, or in another column?"
        )
    return (
        (f"{unknown} of {count} words are not in data.sites.spec; each becomes the unknown token",) if unknown else ()
    )
