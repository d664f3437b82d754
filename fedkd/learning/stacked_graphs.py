"""A stacked step of fixed shapes, which a GPU records once as a CUDA graph and replays, and which torch can compile.

A replayed step costs the host one call instead of some hundred. All that it reads and writes has its place: each
training is copied into the tensors of the first one of its kind. All K clients are in each step; what a finished one
would change is put back. A form of the step: of whole batches or of filled ones, before or after a client has finished.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from .stacked_batches import StackedBatches, StepForm
from .stacked_models import refusing_loops
from .stacked_step import StackedStep, keep_where

Work = Callable[[], None]
Record = Callable[[Work], Work]  # takes work that only changes tensors in place; returns what does it again
_KEPT = 4  # kinds of training whose tensors are kept
_FORMS = 2**16  # of steps that torch may compile in a process; its own limit is for functions that vary by mistake
_WARM = 3  # times that work is done before it is recorded


def record_graph(work: Work) -> Work:
    """Return the replay of work that was recorded as a CUDA graph. The work is done some times before."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        work()
    replay: Work = graph.replay
    return replay


class StepGraphs:
    """The fixed steps of a process, the last few kinds. `note` gets a line about what cannot be recorded."""

    def __init__(self, note: Callable[[str], None], record: Record | None = None, backend: str | None = None) -> None:
        """Record steps by `record`, compile them by this backend of `torch.compile`; None: take them as they are."""
        self._note, self._record, self._backend = note, record, backend
        self._steps: OrderedDict[Hashable, FixedStep] = OrderedDict()

    def train(self, kind: Hashable, step: StackedStep, work: StackedBatches) -> Tensor:
        """Take all steps of a training; return the losses, K x steps. `kind`: what its steps have in common."""
        known = self._steps.pop(kind, None)
        fixed = known or FixedStep(step, work, self._backend)
        values = fixed.train(step, work, self._record if known else None, self._note)
        self._steps[kind] = fixed
        while len(self._steps) > _KEPT:
            self._steps.popitem(last=False)
        return values

    def clear(self) -> None:
        """Forget all, and free the memory."""
        self._steps.clear()


class FixedStep:
    """A step of K clients whose tensors keep their places. `step`: has them; none of it is what a training returns."""

    def __init__(self, like: StackedStep, work: StackedBatches, backend: str | None) -> None:
        """Take the shapes of a training."""
        self._step, self._images = like.copied(), work.images
        if backend is not None:
            self._step.compiled(backend)
        self._compile_next = backend is not None
        self._compiled: set[StepForm] = set()
        self._prepare, self._augmented = work.prepare, work.augmented
        clients, width = len(like.flat), like.settings.batch_size + 1  # a single image that is left joins a batch
        self._plan = torch.zeros(6, clients, width, dtype=torch.int64, device=like.device)
        self._targets = work.targets.new_zeros(clients, width, *work.targets.shape[1:])
        self._losses = torch.zeros(clients, dtype=like.flat.dtype, device=like.device)
        self._replays: dict[StepForm, Work] = {}
        self._tried: set[StepForm] = set()

    def train(
        self, step: StackedStep, work: StackedBatches, record: Record | None, note: Callable[[str], None]
    ) -> Tensor:
        """Take all steps of a training, which is changed; return the losses, K x steps.

        A form of the step that is not recorded yet is, if `record` can.
        """
        for mine, theirs in zip(self._step.tensors(), step.tensors(), strict=True):
            mine.copy_(theirs)
        if self._images is not work.images:  # images of this training only: a record would read those of another
            self._images, record = work.images, None
            self._replays.clear()
        plans, forms = work.packed(self._plan.shape[2])
        losses = self._losses.new_zeros(len(plans), len(self._losses))
        for number, (plan, form) in enumerate(zip(plans, forms, strict=True)):
            self._plan.copy_(plan)
            torch.index_select(work.targets, 0, self._plan[1].flatten(), out=self._targets.flatten(0, 1))
            if self._compile_next and form not in self._compiled:
                self._compile(form, note)
            if record is not None and form not in self._tried:
                self._record(form, record, note)
            with refusing_loops() if number == 0 and not self._tried else nullcontext():
                self._replays.get(form, partial(self._take, form))()
            losses[number].copy_(self._losses)
        for mine, theirs in zip(self._step.changing(), step.changing(), strict=True):
            theirs.copy_(mine)
        return losses.T

    def _take(self, form: StepForm) -> None:
        """Take the step of the current plan, in place."""
        width = self._plan.shape[2] if form.filled else self._plan.shape[2] - 1
        index, _, down, right, mirror, flags = self._plan[:, :, :width]
        draws = (torch.stack([down, right]), mirror.bool()) if self._augmented else (None, None)
        images = self._prepare(self._images, index, *draws)
        rows = (flags & 1).bool() if form.filled else None
        state = self._step.changing() if form.ended else []
        before = [tensor.clone() for tensor in state]
        self._losses.copy_(self._step.take(images, self._targets[:, :width], rows, {}))
        keep_where((flags[:, 0] & 2).bool(), state, before)

    def _record(self, form: StepForm, record: Record, note: Callable[[str], None]) -> None:
        """Record a form of the step."""
        self._tried.add(form)
        with self._undone():
            try:
                self._replays[form] = record(partial(self._take, form))
            except Exception as error:
                note(f"engine.cuda_graphs: a step is not recorded, and runs as before: {_first_line(error)}")

    def _compile(self, form: StepForm, note: Callable[[str], None]) -> None:
        """Compile a form of the step."""
        dynamo: Any = import_module("torch._dynamo.config")  # takes seconds, so not before it is needed
        self._compiled.add(form)
        with self._undone():
            try:
                with dynamo.patch(recompile_limit=_FORMS, accumulated_recompile_limit=_FORMS):
                    self._take(form)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                self._step.compute, self._compile_next = self._step.values, False
                note(f"engine.compile: a step is not compiled, and runs as before: {_first_line(error)}")

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Put back what is changed inside the `with` block."""
        before = [tensor.clone() for tensor in self._step.changing()]
        try:
            yield
        finally:
            for tensor, old in zip(self._step.changing(), before, strict=True):
                tensor.copy_(old)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
