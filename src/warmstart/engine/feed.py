"""What the loop is fed with: pixels, or the features of a frozen prefix that are computed once and kept."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing, nullcontext
from dataclasses import replace
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
from torch import nn

from warmstart.data.batches import Batch, View, deliver, evaluation_batches, training_batches
from warmstart.data.cache_folder import FEATURES as FOLDER
from warmstart.data.cache_folder import cache_root
from warmstart.data.samples import Samples
from warmstart.data.unreadable import Unreadable
from warmstart.engine.clock import FEATURES, Clock
from warmstart.engine.episodes import episodes_of, episodic
from warmstart.engine.job import Job
from warmstart.engine.lessons.teachers import AnswerStore
from warmstart.engine.state import TrainState
from warmstart.inference.cut import Cut, Tail
from warmstart.inference.features import Computed, FeatureTable, Prefix, feature_batches, hash_of
from warmstart.inference.inputs import InputBuffer, Inputs
from warmstart.inference.memory import AtOnce
from warmstart.inference.predictor import predict_outputs
from warmstart.inference.separation import ClassSums
from warmstart.models.task_heads import called


class Feed:
    """Batches, and the part of the model that takes them, in the stage that was entered last."""

    def __init__(self, job: Job, clock: Clock, state: TrainState) -> None:
        self._job, self._clock, self._at_once = job, clock, state.evaluated_at_once
        built, num = job.built, len(job.dataset.training)
        self._unreadable = Unreadable(num, job.config.data.max_corrupt, state.unreadable)
        self._buffer = InputBuffer(built.preprocessing, job.device, built.channels_last)
        self._computed_at_once = state.computed_at_once
        self.enter(0)

    def enter(self, stage: int) -> None:
        """From here on the prefix is what is frozen in `stage`; features of a longer one are let go."""
        self._kept = self._job.kept_in(stage)
        cut, at_once = self._kept.cut, self._computed_at_once
        self._prefix = None if cut is None else _prefix(self._job, stage, cut, at_once)
        self._answers = _answers(self._job, at_once) if self._kept.answers else None
        self._tables: dict[tuple[str, bytes, int | None], FeatureTable] = {}
        self._views = self._job.views_in(stage)

    @property
    def inputs(self) -> Inputs:
        """Turns a batch's images (or features) into a tensor."""
        return self._buffer if self._prefix is None else self._prefix.to_tensor

    def part(self, module: nn.Module) -> nn.Module:
        """The model, or what is left of it behind the cut."""
        if self._kept.cut is None:
            return called(self._job.built, module)
        height, width, channels = self._job.train_view.shape
        return Tail(module, self._kept.cut, (channels, height, width))

    def training(self, windows: Iterable[list[np.ndarray]], epoch: int) -> Generator[Batch, None, None]:
        """The micro-batches of some windows of an epoch, one after the other."""
        job, samples, views = self._job, self._job.dataset.training, self._views
        view = epoch if views is None else epoch % views
        told = f", view {view + 1} of {views}"
        answers = None
        if self._answers is not None:
            answers = self._table(self._answers, samples, job.train_view, view, f"teacher's answers{told}")
        if self._prefix is not None:
            table = self._table(self._prefix, samples, job.train_view, view, f"features{told}")
            batches = feature_batches(table, samples, map(job.world.part, chain.from_iterable(windows)))
        else:
            lenient = replace(job.train_view, unreadable=self._unreadable)
            if views is not None:  # images that come again show the same view
                windows = [[places % len(samples) for places in window] for window in windows]
            batches = training_batches(samples, lenient, windows, view, job.workers, job.world.part)
        return batches if answers is None else _answered(batches, answers)

    def outputs(
        self,
        weights: nn.Module,
        samples: Samples,
        label: str,
        native: bool | None = None,
        watch: ClassSums | None = None,
    ) -> np.ndarray:
        """Outputs of all samples in their order. Each process computes a part, and none is computed twice.

        `native` is of the samples' data set where that is not --data. `watch` looks at what goes into the classifier of
        `weights` meanwhile; its sums are then those of all processes.
        """
        job = self._job
        if job.config.meta.is_on:
            return self._of_episodes(weights, samples, label)
        native = job.dataset.native if native is None else native
        rows = np.array_split(np.arange(len(samples)), job.world.size)[job.world.rank]
        if self._prefix is None:
            own = samples if job.world.size == 1 else samples.subset(rows)
            batches: Iterable[Batch] = evaluation_batches(
                own, job.built.preprocessing, native, job.eval_batch_size, job.workers
            )
        else:
            view = replace(job.train_view, augment=None, mixing=None, native=native)
            table = self._table(self._prefix, samples, view, None, f"features of {label}")
            starts = range(0, len(rows), job.eval_batch_size)
            batches = feature_batches(table, samples, (rows[s : s + job.eval_batch_size] for s in starts))
        with nullcontext() if watch is None else watch:
            outputs = predict_outputs(
                self.part(weights),
                batches,
                self.inputs,
                job.precision,
                statistics=job.task.statistics if watch is None else watch,
                at_once=self._at_once,
            )
        parts = job.world.gather(outputs)
        return parts[0] if len(parts) == 1 else np.concatenate([part for part in parts if len(part)])

    def _of_episodes(self, weights: nn.Module, samples: Samples, label: str) -> np.ndarray:
        """Query logits of the fixed episodes of a split, one after the other."""
        job, drawn = self._job, episodes_of(self._job, samples, label)
        view = View(job.built.preprocessing, job.dataset.native)
        if self._prefix is None:
            batches: Iterable[Batch] = deliver(samples, drawn, view, job.workers)
        else:
            table = self._table(self._prefix, samples, view, None, f"features of {label}")
            batches = feature_batches(table, samples, drawn)
        part = episodic(job, weights, self.part(weights))
        return predict_outputs(
            part, batches, self.inputs, job.precision, at_once=AtOnce(fewest=job.batch_size)
        )

    def unreadable(self) -> dict[str, str]:
        """The training images that were lost on the way in any process, by id with the reason; all ask alike.

        Raises:
            UserError: together they are more than `--max-corrupt` allows.
        """
        for found in self._job.world.gather(self._unreadable.so_far()):
            for name, reason in found.items():
                self._unreadable.add(name, reason)
        return self._unreadable.so_far()

    def _table(
        self, made: Computed, samples: Samples, view: View, epoch: int | None, label: str
    ) -> FeatureTable:
        key = label, samples.keys.tobytes(), epoch  # images of two data sets may have the same ids
        if key not in self._tables:
            world, limit = self._job.world, made.at_once.limit

            def compute() -> FeatureTable:
                return made.table(samples, view, epoch or 0, label)

            with self._clock.part(FEATURES):
                if made.folder is not None:  # the first process computes, the others find its files
                    made.at_once.limit = world.on_main(lambda: (compute(), made.at_once.limit)[1])
                table = compute()
            if made.at_once.limit != limit:  # a resume knows the new limit alone
                self._tables.clear()
            self._tables[key] = table
        return self._tables[key]


def _answered(batches: Generator[Batch, None, None], answers: FeatureTable) -> Generator[Batch, None, None]:
    with closing(batches):
        for batch in batches:
            yield replace(batch, answers=answers.take(batch.indices))


def _answers(job: Job, at_once: AtOnce) -> AnswerStore:
    assert job.teachers is not None, "answers are kept of teachers"
    return AnswerStore(
        job.teachers, _versions(), job.device, job.precision, job.workers, _folder(job), at_once
    )


def _prefix(job: Job, stage: int, cut: Cut, at_once: AtOnce) -> Prefix:
    built = job.built
    tensors = {**dict(built.module.named_parameters()), **dict(built.module.named_buffers())}
    frozen = [block for block in built.blocks if not job.plan.row(block.name).trains_in(stage)]
    names = [name for block in frozen for name in (*block.parameters, *block.buffers)]
    return Prefix(
        built.module,
        cut,
        (built.name, *_versions(), hash_of((name, tensors[name]) for name in names)),
        built.channels_last,
        job.device,
        job.precision,
        job.workers,
        _folder(job),
        at_once,
    )


def _folder(job: Job) -> Path | None:
    return cache_root(job.config.data.cache_dir) / FOLDER if keeps_files(job) else None


def keeps_files(job: Job) -> bool:
    """Whether features may outlive the run: the code of a Python object has no name that files could bear."""
    return job.config.data.cache in ("auto", "disk") and not job.built.name.startswith("object:")


def _versions() -> tuple[str, ...]:
    """Other code may compute something else from the same weights."""
    return tuple(version(package) for package in ("warmstart", "torch", "torchvision", "timm"))
