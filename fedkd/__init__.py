"""fedkd: federated knowledge distillation. This is the public surface: all that a strategy needs, under one name.

`from fedkd import Strategy, Client, Payload, ...`. Names are loaded when first used, so that `import fedkd` and the
command line's help stay fast. The rooms, lowest first; each has a map of its files in its `__init__.py`:

* `config`, `errors`, `files`, `registry`, `stopping`, `streams`: what everything may import.
* `messages`: what crosses between server and nodes: payload, the check on arrival, the byte ledger, merging.
* `data`: data sets, partitions, the public set.
* `models`: the model zoo, the adapter to other people's models.
* `learning`: batches, training, evaluation, losses, optimisers, probes, views.
* `distillation`: dataset distillers, generators, matching losses.
* `core`: the contract of a method: strategy, client, round, round loop, sampling, wrapper, state.
* `methods`: what several methods share, and only they.
* `runs`: a run, its folder, checkpoints, metrics, progress, sweep.
* `reports`: compare, tables, charts, the report page, watch.
* `exports`: a model out of its run: other formats, predictions, scores.
* `deployment`: real sites, provisioning, what runs on site.
* `api`, `cli`, `testing`: the Python interface; the command line; the checks of a strategy.

Beside them: `fedkd.strategies`, a file for each method, and `fedkd.simulations`, the engines.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import Run as Run
    from .api import compare as compare
    from .api import make_config as make_config
    from .api import resume as resume
    from .api import rounds as rounds
    from .api import run as run
    from .config import GROUPS as GROUPS
    from .config import Adam as Adam
    from .config import AnyGroup as AnyGroup
    from .config import AnyOptimizer as AnyOptimizer
    from .config import Architecture as Architecture
    from .config import Config as Config
    from .config import Count as Count
    from .config import Fraction as Fraction
    from .config import Group as Group
    from .config import NamedTable as NamedTable
    from .config import NotNegative as NotNegative
    from .config import Positive as Positive
    from .config import Sgd as Sgd
    from .config import TorchOptimizer as TorchOptimizer
    from .config import TrainConfig as TrainConfig
    from .config import Whole as Whole
    from .core.client import Client as Client
    from .core.client import GlobalModelClient as GlobalModelClient
    from .core.environment import Environment as Environment
    from .core.round import Reply as Reply
    from .core.round import Round as Round
    from .core.strategy import Strategy as Strategy
    from .core.wrapper import Wrapper as Wrapper
    from .data.federated_data import FederatedData as FederatedData
    from .data.samples import PIXEL_MAX as PIXEL_MAX
    from .data.samples import Dataset as Dataset
    from .data.samples import Samples as Samples
    from .data.spec import ANY_KIND as ANY_KIND
    from .data.spec import ANY_TASK as ANY_TASK
    from .data.spec import Column as Column
    from .data.spec import DataSpec as DataSpec
    from .data.spec import Form as Form
    from .data.spec import Kind as Kind
    from .data.spec import Task as Task
    from .data.splits import Pool as Pool
    from .data.splits import Split as Split
    from .distillation.distillers import DM as DM
    from .distillation.distillers import FGM as FGM
    from .distillation.distillers import IDM as IDM
    from .distillation.distillers import Distiller as Distiller
    from .distillation.generators import FeatureGenerator as FeatureGenerator
    from .distillation.generators import ImageGenerator as ImageGenerator
    from .distillation.matching import Distance as Distance
    from .distillation.matching import matched_parameters as matched_parameters
    from .distillation.sample_generators import as_codes as as_codes
    from .distillation.sample_generators import generator_of as generator_of
    from .distillation.sample_generators import takes_probabilities as takes_probabilities
    from .distillation.siamese_kinds import groups_of as groups_of
    from .distillation.virtual_images import RealImages as RealImages
    from .distillation.virtual_images import Virtual as Virtual
    from .distillation.virtual_images import class_statistics as class_statistics
    from .distillation.virtual_images import normal_images as normal_images
    from .distillation.virtual_images import normal_samples as normal_samples
    from .distillation.virtual_images import real_images as real_images
    from .distillation.virtual_kinds import statistics_width as statistics_width
    from .errors import InputError as InputError
    from .errors import RunError as RunError
    from .exports.evaluating import evaluate as evaluate
    from .exports.formats import write_model as write_model
    from .exports.loading import read_model as read_model
    from .exports.trained import TrainedModel as TrainedModel
    from .learning.batches import Preprocess as Preprocess
    from .learning.batches import batches as batches
    from .learning.batches import shuffled as shuffled
    from .learning.contrast import ENCODER as ENCODER
    from .learning.contrast import AfterStep as AfterStep
    from .learning.contrast import Batch as Batch
    from .learning.contrast import ContrastiveLoss as ContrastiveLoss
    from .learning.contrast import Kept as Kept
    from .learning.evaluation import features as features
    from .learning.evaluation import predict as predict
    from .learning.kd_losses import KDLoss as KDLoss
    from .learning.losses import Metric as Metric
    from .learning.losses import diversity_loss as diversity_loss
    from .learning.losses import entropy as entropy
    from .learning.losses import kl_divergence as kl_divergence
    from .learning.losses import kl_from_probabilities as kl_from_probabilities
    from .learning.losses import normalised as normalised
    from .learning.losses import nt_xent as nt_xent
    from .learning.losses import soft as soft
    from .learning.losses import supervised_contrast as supervised_contrast
    from .learning.optimizers import make_optimizer as make_optimizer
    from .learning.probes import linear_probe as linear_probe
    from .learning.probes import mean_angle as mean_angle
    from .learning.probes import nearest_neighbours as nearest_neighbours
    from .learning.training import BatchLoss as BatchLoss
    from .learning.training import Loss as Loss
    from .learning.training import ModelLoss as ModelLoss
    from .learning.training import OfOutputs as OfOutputs
    from .learning.training import Outputs as Outputs
    from .learning.training import Own as Own
    from .learning.training import chances_of as chances_of
    from .learning.training import cross_entropy as cross_entropy
    from .learning.training import label_loss as label_loss
    from .learning.training import label_weights as label_weights
    from .learning.training import of_labels as of_labels
    from .learning.training import train as train
    from .learning.training import train_as as train_as
    from .learning.views import Augmentation as Augmentation
    from .learning.views import View as View
    from .learning.views import views_of as views_of
    from .messages.arrays import Tensors as Tensors
    from .messages.arrays import copied as copied
    from .messages.arrays import on_cpu as on_cpu
    from .messages.arrays import parts_of as parts_of
    from .messages.arrays import split_off as split_off
    from .messages.arrays import under as under
    from .messages.merging import mean_weighted_by as mean_weighted_by
    from .messages.merging import uniform_mean as uniform_mean
    from .messages.merging import weighted_mean as weighted_mean
    from .messages.payload import ANY_NUMBER as ANY_NUMBER
    from .messages.payload import IMAGES as IMAGES
    from .messages.payload import LOSS as LOSS
    from .messages.payload import UNWEIGHTED as UNWEIGHTED
    from .messages.payload import ArraySpec as ArraySpec
    from .messages.payload import Expected as Expected
    from .messages.payload import Payload as Payload
    from .messages.payload import expected_model as expected_model
    from .messages.payload import like as like
    from .methods.class_means import ClassMeans as ClassMeans
    from .methods.class_means import expected_means as expected_means
    from .methods.class_means import mean_over_nodes as mean_over_nodes
    from .methods.distillation_loss import Sends as Sends
    from .methods.distillation_loss import check_loss as check_loss
    from .methods.distillation_loss import loss_towards as loss_towards
    from .methods.distillation_loss import read_loss as read_loss
    from .methods.distillation_loss import value_towards as value_towards
    from .methods.distillation_loss import with_labels as with_labels
    from .methods.image_shares import SharesClient as SharesClient
    from .methods.image_shares import mean_images as mean_images
    from .methods.image_shares import share_numbers as share_numbers
    from .methods.knowledge_fusion import fuse as fuse
    from .methods.knowledge_fusion import log_weights as log_weights
    from .methods.label_logits import LabelLogits as LabelLogits
    from .methods.label_logits import LabelLogitsClient as LabelLogitsClient
    from .methods.node_cache import ask_cached as ask_cached
    from .methods.public_distillation import Pretraining as Pretraining
    from .methods.public_distillation import PublicSetClient as PublicSetClient
    from .methods.public_distillation import PublicSetStrategy as PublicSetStrategy
    from .methods.relay import RelayClient as RelayClient
    from .methods.relay import RelayStrategy as RelayStrategy
    from .methods.relay import distillation_of as distillation_of
    from .methods.self_supervised import Contrast as Contrast
    from .methods.self_supervised import Encoder as Encoder
    from .methods.self_supervised import SelfSupervised as SelfSupervised
    from .methods.self_supervised import SelfSupervisedClient as SelfSupervisedClient
    from .methods.self_supervised import move_towards as move_towards
    from .methods.self_supervised import whole_batches as whole_batches
    from .methods.shared_parts import SharedPart as SharedPart
    from .methods.shared_parts import SharedPartClient as SharedPartClient
    from .methods.shared_parts import layers_of as layers_of
    from .methods.teachers import Teachers as Teachers
    from .methods.virtual_images import NO_GRADIENT as NO_GRADIENT
    from .methods.virtual_images import VIRTUAL_KINDS as VIRTUAL_KINDS
    from .methods.virtual_images import VirtualImages as VirtualImages
    from .methods.virtual_images import VirtualImagesClient as VirtualImagesClient
    from .methods.virtual_images import show_by_class as show_by_class
    from .models.tables import one_hot as one_hot
    from .models.zoo import Classifier as Classifier
    from .models.zoo import Shape as Shape
    from .runs.trackers import Tracker as Tracker
    from .streams import default_stream as default_stream
    from .streams import numpy_stream as numpy_stream
    from .streams import stream_seed as stream_seed
    from .streams import torch_stream as torch_stream

_HOMES = {
    "KDLoss": "learning.kd_losses",
    "Run": "api",
    "Sends": "methods.distillation_loss",
    "check_loss": "methods.distillation_loss",
    "compare": "api",
    "loss_towards": "methods.distillation_loss",
    "make_config": "api",
    "TrainedModel": "exports.trained",
    "evaluate": "exports.evaluating",
    "read_loss": "methods.distillation_loss",
    "read_model": "exports.loading",
    "value_towards": "methods.distillation_loss",
    "with_labels": "methods.distillation_loss",
    "write_model": "exports.formats",
    "resume": "api",
    "rounds": "api",
    "run": "api",
    "ANY_NUMBER": "messages.payload",
    "LOSS": "messages.payload",
    "Adam": "config",
    "Architecture": "config",
    "ArraySpec": "messages.payload",
    "AfterStep": "learning.contrast",
    "Augmentation": "learning.views",
    "Batch": "learning.contrast",
    "BatchLoss": "learning.training",
    "ClassMeans": "methods.class_means",
    "Classifier": "models.zoo",
    "Client": "core.client",
    "Contrast": "methods.self_supervised",
    "ContrastiveLoss": "learning.contrast",
    "Config": "config",
    "Count": "config",
    "DM": "distillation.distillers",
    "ANY_KIND": "data.spec",
    "AnyGroup": "config",
    "AnyOptimizer": "config",
    "as_codes": "distillation.sample_generators",
    "generator_of": "distillation.sample_generators",
    "groups_of": "distillation.siamese_kinds",
    "takes_probabilities": "distillation.sample_generators",
    "Column": "data.spec",
    "DataSpec": "data.spec",
    "Form": "data.spec",
    "Kind": "data.spec",
    "Samples": "data.samples",
    "Dataset": "data.samples",
    "Distance": "distillation.matching",
    "Distiller": "distillation.distillers",
    "ENCODER": "learning.contrast",
    "Encoder": "methods.self_supervised",
    "Environment": "core.environment",
    "Expected": "messages.payload",
    "FGM": "distillation.distillers",
    "FeatureGenerator": "distillation.generators",
    "FederatedData": "data.federated_data",
    "Fraction": "config",
    "GROUPS": "config",
    "GlobalModelClient": "core.client",
    "Group": "config",
    "IDM": "distillation.distillers",
    "IMAGES": "messages.payload",
    "ImageGenerator": "distillation.generators",
    "InputError": "errors",
    "Kept": "learning.contrast",
    "LabelLogits": "methods.label_logits",
    "LabelLogitsClient": "methods.label_logits",
    "Loss": "learning.training",
    "ModelLoss": "learning.training",
    "Outputs": "learning.training",
    "Own": "learning.training",
    "distillation_of": "methods.relay",
    "soft": "learning.losses",
    "of_labels": "learning.training",
    "label_weights": "learning.training",
    "label_loss": "learning.training",
    "chances_of": "learning.training",
    "OfOutputs": "learning.training",
    "Task": "data.spec",
    "ANY_TASK": "data.spec",
    "Metric": "learning.losses",
    "NamedTable": "config",
    "NO_GRADIENT": "methods.virtual_images",
    "NotNegative": "config",
    "PIXEL_MAX": "data.samples",
    "Payload": "messages.payload",
    "Pool": "data.splits",
    "Positive": "config",
    "Preprocess": "learning.batches",
    "Pretraining": "methods.public_distillation",
    "PublicSetClient": "methods.public_distillation",
    "PublicSetStrategy": "methods.public_distillation",
    "RealImages": "distillation.virtual_images",
    "RelayClient": "methods.relay",
    "RelayStrategy": "methods.relay",
    "Reply": "core.round",
    "Round": "core.round",
    "RunError": "errors",
    "SelfSupervised": "methods.self_supervised",
    "SelfSupervisedClient": "methods.self_supervised",
    "Sgd": "config",
    "Shape": "models.zoo",
    "SharedPart": "methods.shared_parts",
    "SharedPartClient": "methods.shared_parts",
    "SharesClient": "methods.image_shares",
    "Split": "data.splits",
    "Strategy": "core.strategy",
    "Teachers": "methods.teachers",
    "Tensors": "messages.arrays",
    "Tracker": "runs.trackers",
    "TorchOptimizer": "config",
    "TrainConfig": "config",
    "UNWEIGHTED": "messages.payload",
    "View": "learning.views",
    "VIRTUAL_KINDS": "methods.virtual_images",
    "Virtual": "distillation.virtual_images",
    "VirtualImages": "methods.virtual_images",
    "VirtualImagesClient": "methods.virtual_images",
    "Whole": "config",
    "Wrapper": "core.wrapper",
    "ask_cached": "methods.node_cache",
    "batches": "learning.batches",
    "class_statistics": "distillation.virtual_images",
    "copied": "messages.arrays",
    "cross_entropy": "learning.training",
    "default_stream": "streams",
    "diversity_loss": "learning.losses",
    "entropy": "learning.losses",
    "expected_means": "methods.class_means",
    "expected_model": "messages.payload",
    "features": "learning.evaluation",
    "fuse": "methods.knowledge_fusion",
    "kl_divergence": "learning.losses",
    "kl_from_probabilities": "learning.losses",
    "layers_of": "methods.shared_parts",
    "like": "messages.payload",
    "linear_probe": "learning.probes",
    "log_weights": "methods.knowledge_fusion",
    "make_optimizer": "learning.optimizers",
    "matched_parameters": "distillation.matching",
    "mean_angle": "learning.probes",
    "mean_images": "methods.image_shares",
    "mean_over_nodes": "methods.class_means",
    "mean_weighted_by": "messages.merging",
    "move_towards": "methods.self_supervised",
    "nearest_neighbours": "learning.probes",
    "normal_images": "distillation.virtual_images",
    "normal_samples": "distillation.virtual_images",
    "normalised": "learning.losses",
    "nt_xent": "learning.losses",
    "numpy_stream": "streams",
    "on_cpu": "messages.arrays",
    "one_hot": "models.tables",
    "parts_of": "messages.arrays",
    "split_off": "messages.arrays",
    "statistics_width": "distillation.virtual_kinds",
    "predict": "learning.evaluation",
    "real_images": "distillation.virtual_images",
    "share_numbers": "methods.image_shares",
    "show_by_class": "methods.virtual_images",
    "shuffled": "learning.batches",
    "stream_seed": "streams",
    "supervised_contrast": "learning.losses",
    "torch_stream": "streams",
    "train": "learning.training",
    "train_as": "learning.training",
    "under": "messages.arrays",
    "uniform_mean": "messages.merging",
    "views_of": "learning.views",
    "weighted_mean": "messages.merging",
    "whole_batches": "methods.self_supervised",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fedkd' has no attribute {name!r}")
    return getattr(import_module(f"fedkd.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
