"""A grid of runs: which values of which keys, which seeds, which folders; what of it is there already."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import Config, difference, read_config, to_table
from .environment import Environment
from .errors import InputError
from .federated import FederatedData, federate
from .results import read_run
from .runfolder import CONFIG, CREATED
from .trackers import make_trackers
from .wrapper import make_strategy


@dataclass(frozen=True)
class Job:
    """One run of a grid."""

    name: str
    path: Path
    config: Config


@dataclass(frozen=True)
class Plan:
    """The runs of a grid: those to start, those to continue from a checkpoint, and how many are finished."""

    jobs: list[Job]
    finished: int
    varied: list[str]  # keys that have several values
    first: str | None  # the first strategy, where several are compared


def plan(configs: Sequence[Path], overrides: Sequence[str], vary: Sequence[str], seeds: str, out: Path) -> Plan:
    """Return the grid of all combinations of configs, values of the keys in `vary` (`key=value,value`) and seeds.

    Each combination is validated as `fedkd run` does before it loads images. Runs that are in `out` with the same
    config are kept or go on. Raises InputError for what is wrong with a config, a key, a value or a seed, for two runs
    of one name, and for a folder in `out` that holds another run.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: that is a file.")
    axes = [_axis(text) for text in vary]
    keys = [key for key, _ in axes]
    if twice := [key for key in keys if keys.count(key) > 1 or key == "seed"]:
        hint = "give its values once" if twice[0] != "seed" else "give seeds by --seeds"
        raise InputError(f"--vary {twice[0]}: {hint}.")
    jobs: list[Job] = []
    combinations = list(itertools.product(*(values for _, values in axes)))
    for config, values in itertools.product(configs, combinations):
        chosen = dict(zip(keys, values, strict=True))
        words = [config.stem] if len(configs) > 1 else []
        words += [f"{_short(key, keys)}={_word(value)}" for key, value in chosen.items()]
        parsed = _resolved(read_config(config, [*overrides, *(f"{key}={value}" for key, value in chosen.items())]))
        for seed in seeds_of(seeds):
            name = ",".join([*words, f"seed={seed}"])
            jobs.append(Job(name, out / name, parsed.model_copy(update={"seed": seed})))
    names = [job.name for job in jobs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"Two runs would be called {twice[0]!r}; give each config and each value once.")
    left = [job for job in jobs if not _is_finished(job)]
    varied = [key for key, values in axes if len(values) > 1]
    several = len({job.config.strategy.name for job in jobs}) > 1
    first = jobs[0].config.strategy.name if several else None
    return Plan(left, len(jobs) - len(left), varied, first)


def check(jobs: Sequence[Job]) -> None:
    """Refuse what `fedkd run` would: images that are missing, models, what strategies need; each config once.

    Data are loaded for one seed of each. Raises InputError naming the run.
    """
    unlike = {json.dumps({**to_table(job.config), "seed": 0}, sort_keys=True): job for job in reversed(jobs)}
    by_data = sorted(unlike.values(), key=lambda job: job.config.data.model_dump_json())
    for _, group in itertools.groupby(by_data, key=lambda job: job.config.data.model_dump_json()):
        data: FederatedData | None = None
        for job in group:
            try:
                data = data or federate(job.config.data, job.config.seed)
                Environment(job.config, data).check()
                make_trackers(job.config)
            except InputError as error:
                raise InputError(f"{job.name}: {error}") from error


def _resolved(config: Config) -> Config:
    """Return the config as a run folder keeps it. Raises InputError for wrong options of the strategy."""
    if config.data.sites is not None:
        raise InputError("data.sites: there are no images to simulate with; such a config is for `flwr run`.")
    return config.model_copy(update={"strategy": make_strategy(config.strategy)[1]})


def seeds_of(text: str) -> list[int]:
    """Return the seeds in a text such as `0..4` or `0,1,7`. Raises InputError where there are none."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        if match is None:
            raise InputError(f"--seeds {text!r}: write seeds as 0..4 or 0,1,7.")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"--seeds {text!r}: {part.strip()} holds no seed; the smaller one comes first.")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _axis(text: str) -> tuple[str, list[str]]:
    key, sign, rest = text.partition("=")
    values = [value.strip() for value in _split(rest)]
    if not sign or not all(key.split(".")) or not all(values):
        raise InputError(f"--vary {text!r}: write key=value,value, such as strategy=local,fedmd.")
    return key, values


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotation marks."""
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
    """Return the last part of a key, or all of it where another key ends so too."""
    last = key.rsplit(".", 1)[-1]
    return key if sum(other.rsplit(".", 1)[-1] == last for other in keys) > 1 else last


def _word(value: str) -> str:
    """Return a value as it can stand in a folder's name."""
    return re.sub(r"[^\w.+-]+", "-", value.rsplit("/", 1)[-1]).strip("-")


def _is_finished(job: Job) -> bool:
    """Return whether a job's run is there and has ended; make way for one that had not begun."""
    if not job.path.exists():
        return False
    if not (job.path / CONFIG).is_file():
        if not {path.name for path in job.path.iterdir()} <= CREATED:
            raise InputError(f"--out: {job.path} holds other files than a run's.")
        shutil.rmtree(job.path)  # cut off before it had a config
        return False
    run = read_run(job.path)
    if (other := difference(run.config, to_table(job.config), ("engine.",))) is not None:
        raise InputError(f"--out: {job.path} holds a run with another config: {other}; name a new folder.")
    return run.status == "completed"
