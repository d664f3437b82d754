"""A grid of runs: the values of its keys, its seeds, its folders, and the runs that exist already."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import Config, DistillConfig, difference, read_config, read_table, to_table
from ..core.setup import make_setup
from ..core.wrapper import make_strategy
from ..data.federated_data import FederatedData
from ..data.federation import federate
from ..errors import InputError, on_one_line
from ..masking import masked
from ..registry import find, options
from .origin import known_files, origin_of, refuse_changes
from .results import NO_RESULT, Run, read_run
from .run_folder import CONFIG, is_unborn
from .trackers import make_trackers

_LONGEST = 255  # the largest number of bytes of a folder's name

_MOST_SEEDS = 10_000
_DIGITS = 18  # of a seed: it must fit into 64 bits


@dataclass(frozen=True)
class Job:
    """One run of a grid."""

    name: str
    path: Path
    config: Config


@dataclass(frozen=True)
class Plan:
    """The runs of a grid: those to start, those to continue from a checkpoint (both `jobs`), and finished ones."""

    jobs: list[Job]
    done: list[Job]
    varied: list[str]  # keys that have several values
    first: str | None  # the first strategy, if others are compared with it


def plan(configs: Sequence[Path], overrides: Sequence[str], vary: Sequence[str], seeds: str, out: Path) -> Plan:
    """Return the grid of all combinations of configs, values of the keys in `vary` (`key=value,value`) and seeds.

    Each combination is checked as in `fedkd run` before images are loaded. Runs in `out` with the same config are kept
    or continued. Raises InputError for errors in a config, a key, a value or a seed, for two runs with the same name,
    and for a folder in `out` that contains another run.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: this is a file; name a folder.")
    axes = [_axis(text) for text in vary]
    keys = [key for key, _ in axes]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"--vary {twice[0]}: the key is given twice; give its values once.")
    if any(text.partition("=")[0] == "seed" for text in [*overrides, *vary]):
        raise InputError("seed: give seeds by --seeds, such as --seeds 0..4.")
    stems = [config.stem for config in configs]
    labels = [c.stem if stems.count(c.stem) == 1 else f"{c.resolve().parent.name}-{c.stem}" for c in configs]
    choices = [list(zip(values, _words(values), strict=True)) for _, values in axes]
    jobs: list[Job] = []
    for (config, label), chosen in itertools.product(
        zip(configs, labels, strict=True), list(itertools.product(*choices))
    ):
        words = [label] if len(configs) > 1 else []
        words += [f"{_short(key, keys)}={word}" for key, (_, word) in zip(keys, chosen, strict=True)]
        changes = [*overrides, *(f"{key}={value}" for key, (value, _) in zip(keys, chosen, strict=True))]
        changes.sort(key=lambda text: text.partition("=")[0].count("."))  # set a table before a key in it
        parsed = resolved(read_config(config, changes))
        for seed in seeds_of(seeds):
            name = ",".join([*words, f"seed={seed}"])
            if len(name.encode()) > _LONGEST:
                raise InputError(
                    f"{name[:60]}...: too long for a folder's name; put what all runs share into a config."
                )
            jobs.append(Job(name, out / name, parsed.model_copy(update={"seed": seed})))
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two runs would be called {twice[0]!r}; give each config and each value once.")
    varied = [key for key, values in axes if len(values) > 1]
    strategies = list({json.dumps(to_table(job.config)["strategy"]): job.config.strategy.name for job in jobs}.values())
    first = strategies[0] if len(strategies) > 1 and strategies.count(strategies[0]) == 1 else None
    return plan_of(jobs, varied, first)


def plan_of(jobs: Sequence[Job], varied: Sequence[str] = (), first: str | None = None) -> Plan:
    """Return a grid of jobs, of which some may have ended. Raises InputError for a folder with another run."""
    done = [job for job in jobs if is_finished(job)]
    return Plan([job for job in jobs if job not in done], done, list(varied), first)


def check(grid: Plan, *, accept_changes: bool = False) -> None:
    """Check each config as `fedkd run` does: missing images, models, the needs of strategies; each config once.

    Data are loaded for one seed of each config. Runs that exist must have begun with the same images, files and
    versions, unless `accept_changes`. Raises InputError, which names the run.
    """
    groups: dict[str, list[Job]] = {}
    for job in sorted([*grid.jobs, *grid.done], key=lambda job: job.config.data.model_dump_json()):
        groups.setdefault(json.dumps({**to_table(job.config), "seed": 0}, sort_keys=True), []).append(job)
    loaded: tuple[str, FederatedData] | None = None
    for jobs in groups.values():
        job, text = jobs[0], jobs[0].config.data.model_dump_json()
        try:
            engine = find("engines", job.config.engine.name, "engine.name")
            options(engine, job.config.engine.options, "engine")
            if loaded is None or loaded[0] != text:
                loaded = (text, federate(job.config.data, job.config.seed))
            make_setup(job.config, loaded[1]).check()
            make_trackers(job.config)
        except InputError as error:
            raise InputError(f"{job.name}: {error}") from error
        if not accept_changes:
            for one in jobs:
                if (one.path / CONFIG).is_file():
                    known = known_files(one.path)
                    refuse_changes(one.path, origin_of(job.config, loaded[1].images_fingerprint, known=known))


def resolved(config: Config) -> Config:
    """Return the config as in a run folder. Raises InputError for wrong options of the strategy."""
    if config.data.sites is not None:
        raise InputError("data.sites: there are no images to simulate with; such a config is for `flwr run`.")
    return config.model_copy(update={"strategy": make_strategy(config.strategy)[1]})


def seeds_of(text: str) -> list[int]:
    """Return the seeds in a text such as `0..4` or `0,1,7`. Raises InputError if there are none."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]+)(?:\.\.([0-9]+))?\s*", part)
        if match is None:
            raise InputError(f"--seeds {text!r}: write seeds as 0..4 or 0,1,7.")
        if max(len(match[1]), len(match[2] or "")) > _DIGITS:
            raise InputError(f"--seeds {on_one_line(text, 60)!r}: a seed has at most {_DIGITS} digits.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"--seeds {text!r}: {part.strip()} has no seeds; write the smaller one first.")
        if len(seeds) + last - first >= _MOST_SEEDS:
            raise InputError(f"--seeds {text!r}: more than {_MOST_SEEDS} seeds.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _axis(text: str) -> tuple[str, list[str]]:
    key, sign, rest = text.partition("=")
    values = [value.strip() for value in split_values(rest)]
    if not sign or not all(key.split(".")) or not all(values):
        raise InputError(f"--vary {text!r}: write key=value,value, such as strategy=local,fedmd.")
    return key, values


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotation marks."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        else:
            depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def _short(key: str, keys: Sequence[str]) -> str:
    """Return the last part of a key, or the whole key if another key has the same last part."""
    last = key.rsplit(".", 1)[-1]
    return key if sum(other.rsplit(".", 1)[-1] == last for other in keys) > 1 else last


def _words(values: Sequence[str]) -> list[str]:
    """Return values in a form for a folder's name: files without their folders, if they are still different."""
    short = [_word(value.rsplit("/", 1)[-1]) for value in values]
    return short if len(set(short)) == len(short) else [_word(value) for value in values]


def _word(value: str) -> str:
    plain = re.sub(r"[^\w.+-]+", "-", value)
    return plain.strip("-") if value[:1] in "[{\"'" else plain  # but a minus sign stays


def is_finished(job: Job) -> bool:
    """Return whether a job's run exists and has ended. Raises InputError for a folder with another run."""
    return has_ended(job.path, job.config, read_run)


def has_ended(path: Path, config: Config | DistillConfig, read: Callable[[Path], Run]) -> bool:
    """Return whether a folder has a run with this config that has ended; `read` reads the run.

    Raises InputError for a folder with another run.
    """
    if not path.exists():
        return False
    if not path.is_dir():
        raise InputError(f"--out: {path} is a file.")
    if is_unborn(path):
        return False
    if not (path / CONFIG).is_file():
        raise InputError(f"--out: {path} contains other files than a run's.")
    try:
        other = difference(masked(read_table(path / CONFIG, path)), masked(to_table(config)), NO_RESULT)
        if other is None:
            return read(path).status == "completed"
    except InputError:
        return False  # continuing repairs it, or reports the error for this run only
    raise InputError(f"--out: {path} contains a run with another config: {other}; name a new folder.")
