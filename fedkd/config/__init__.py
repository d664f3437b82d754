"""Run files: the tables that one may have, reading one, and writing the resolved form.

* `tables`: what all tables share: strictness, named tables, the types of values.
* `data`: `[data]`: images, partition, public set, real sites.
* `run`: `Config`, a whole run file.
* `distill`: `DistillConfig`, the file of `fedkd distill`.
* `reading`: `read_config`, `--set` overrides, errors that name the key.
"""

from .data import DataConfig, PartitionConfig, PublicConfig, RealSites, SetsConfig, ValidationConfig
from .distill import DistillConfig, ProbeConfig, SetConfig
from .reading import difference, flattened, overridden, parse_config, read_config, read_distill_config, to_table
from .run import Adam, CheckpointConfig, Config, EvaluateConfig, FaultsConfig, ModelConfig, Sgd, TrainConfig
from .tables import (
    GROUPS,
    KINDS,
    Architecture,
    Count,
    Fraction,
    Group,
    Kind,
    Limits,
    NamedTable,
    NotNegative,
    Positive,
    Probability,
    Whole,
)

__all__ = [
    "GROUPS",
    "KINDS",
    "Adam",
    "Architecture",
    "CheckpointConfig",
    "Config",
    "Count",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "FaultsConfig",
    "Fraction",
    "Group",
    "Kind",
    "Limits",
    "ModelConfig",
    "NamedTable",
    "NotNegative",
    "PartitionConfig",
    "Positive",
    "Probability",
    "ProbeConfig",
    "PublicConfig",
    "RealSites",
    "SetConfig",
    "SetsConfig",
    "Sgd",
    "TrainConfig",
    "ValidationConfig",
    "Whole",
    "difference",
    "flattened",
    "overridden",
    "parse_config",
    "read_config",
    "read_distill_config",
    "to_table",
]
