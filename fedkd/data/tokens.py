"""Texts as tokens: words, or bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..config import SetsConfig
from ..errors import InputError, on_one_line
from .samples import SOURCE, first_places
from .spec import LENGTHS, UNKNOWN, DataSpec

SPECIAL = ("<pad>", "<unknown>", "<start>", "<mask>")
_WORD = re.compile(r"\w+|[^\w\s]")
_LENGTH = 128  # tokens of a text, by default


def words_of(text: str) -> list[str]:
    """Return the words and signs of a text, in lower case."""
    return _WORD.findall(text.lower())


def texts_as_tokens(texts: Iterable[Any], config: SetsConfig, notes: list[str]) -> tuple[np.ndarray, DataSpec]:
    """Return texts as ids, N x L, 0 behind the end, and what they are. Adds to `notes` what was cut or is empty.

    Words: each different one of the set has an id; which of them models know, the training texts say (`fit`). Bytes:
    UTF-8, byte + 4. Raises InputError for what is no text, and for texts that are too long, if `data.longer` refuses.
    """
    every = list(texts)
    odd = np.array([not isinstance(one, str) and one == one and one is not None for one in every], bool)
    if odd.any():
        example = on_one_line(repr(every[int(odd.argmax())]), 40)
        raise InputError(
            f"data.text = {config.text!r}: {int(odd.sum())} values are no texts, such as {example}{first_places(odd)}."
        )
    given = [one if isinstance(one, str) else "" for one in every]
    if config.tokenizer == "bytes":
        rows = [[byte + len(SPECIAL) for byte in one.encode("utf-8", "replace")] for one in given]
        words = (*SPECIAL, *(f"<byte {byte}>" for byte in range(256)))
    else:
        split = [words_of(one) for one in given]
        words = (*SPECIAL, *sorted({word for one in split for word in one}))
        place = {word: number for number, word in enumerate(words)}
        rows = [[place[word] for word in one] for one in split]
    if empty := sum(not row for row in rows):
        notes.append(f"{empty} texts are empty; each becomes one unknown token")
    most = config.length or _LENGTH
    if longer := sum(len(row) > most for row in rows):
        if config.longer == "refuse":
            raise InputError(f"data.length = {most}: {longer} texts have more tokens; set data.longer = 'cut'.")
        notes.append(f"{longer} texts have more than {most} tokens and are cut at the end")
    rows = [(row or [UNKNOWN])[:most] for row in rows]
    width = -(-max(map(len, rows), default=1) // LENGTHS) * LENGTHS
    tokens = np.zeros((len(rows), width), np.int64)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
    return tokens, DataSpec(kind="tokens", shape=(width,), words=words, learned=config.tokenizer == "words")


def ids_as_tokens(
    parts: Sequence[np.ndarray],
    lengths: Sequence[np.ndarray | None],
    words: Sequence[str] | None,
    config: SetsConfig,
    where: str,
    notes: list[str],
) -> tuple[list[np.ndarray], DataSpec]:
    """Return training and test texts that are ids already, N x L, as int64, 0 behind the end, and what they are.

    Ids mean what the set says, but 0 is behind the end. `lengths`: the tokens of each text; without them a text ends
    with its last id that is not 0. `words`: by id; without them the vocabulary has all ids up to the largest one of
    training. Raises InputError for ids that are no whole numbers, are outside the vocabulary, or are 0 in a text.
    """
    ids, ends = [], []
    for part, given, length in zip(("train", "test"), parts, lengths, strict=True):
        name = f"x_{part} in {where}"
        if given.ndim != 2 or given.dtype.kind not in "iu" or given.shape[1] == 0:
            shape = " x ".join(map(str, given.shape))
            raise InputError(f"{SOURCE}: {name} is {given.dtype}, {shape}; ids of tokens are whole numbers, N x L.")
        steps = np.arange(given.shape[1])
        last = np.where(given != 0, steps + 1, 0).max(1)
        if length is not None:
            if length.shape != (len(given),) or length.dtype.kind not in "iu":
                raise InputError(f"{SOURCE}: length_{part} in {where} must have a whole number for each text.")
            if (odd := (length < 0) | (length > given.shape[1])).any():
                raise InputError(
                    f"{SOURCE}: length_{part} in {where} has {int(odd.sum())} values that are not 0 to {given.shape[1]}"
                    f"{first_places(odd)}."
                )
            last = length.astype(np.int64)
        if (gaps := (given == 0) & (steps < last[:, None])).any():
            raise InputError(
                f"{SOURCE}: {name} has {int(gaps.sum())} ids 0 before the end of a text{first_places(gaps)}; 0 is only "
                "behind the end."
            )
        ids.append(np.where(steps < last[:, None], given, 0).astype(np.int64))
        ends.append(last)
    known = tuple(words) if words is not None else tuple(map(str, range(max(int(ids[0].max()), UNKNOWN) + 1)))
    for part, one in zip(("train", "test"), ids, strict=True):
        if (odd := (one < 0) | (one >= len(known))).any():
            fix = "" if words is not None else "; name all words in an array `words`"
            raise InputError(
                f"{SOURCE}: x_{part} in {where} has {int(odd.sum())} ids that are not 0 to {len(known) - 1}, such as "
                f"{one[odd][0]}{first_places(odd)}{fix}."
            )
    most = config.length or _LENGTH
    found = []
    for one, last in zip(ids, ends, strict=True):
        cut = one[:, :most].copy()
        if empty := int((last == 0).sum()):
            notes.append(f"{empty} texts are empty; each becomes one unknown token")
            cut[last == 0, 0] = UNKNOWN
        if longer := int((last > most).sum()):
            if config.longer == "refuse":
                raise InputError(f"data.length = {most}: {longer} texts have more tokens; set data.longer = 'cut'.")
            notes.append(f"{longer} texts have more than {most} tokens and are cut at the end")
        found.append(cut)
    longest = max(min(int(last.max(initial=1)), most) for last in ends)
    width = -(-longest // LENGTHS) * LENGTHS
    padded = [np.zeros((len(one), width), np.int64) for one in found]
    for target, one in zip(padded, found, strict=True):
        target[:, : one.shape[1]] = one[:, :width]
    return padded, DataSpec(kind="tokens", shape=(width,), words=known)
