"""int8 as ONNX Runtime computes it: files beside a run, measured as its model is, on the CPU and in the same rounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from warmstart.analysis.paired import Scored, change_between
from warmstart.analysis.samples import task_and_targets
from warmstart.console import log
from warmstart.errors import UserError
from warmstart.inference.onnx_build import build_onnx
from warmstart.inference.onnx_model import open_onnx
from warmstart.methods.compress.cost import BATCHES, Cost, Latency, latencies
from warmstart.methods.compress.point import Point
from warmstart.methods.compress.rounds import metrics_of
from warmstart.methods.compress.static_int8 import FORMS, grids_text, quantise_static
from warmstart.methods.compress.subject import Subject
from warmstart.methods.export.export import write_graph
from warmstart.methods.export.parity import check_parity, make_probe
from warmstart.run import writer

INT8, GRIDS = "model-int8.onnx", "model-int8.json"
_COMPARED = 128  # images
_FLOATS = "fp32, ONNX Runtime"


def quantised_graphs(original: Subject, points: list[Point], folder: Path) -> tuple[list[Point], int, str]:
    """(the original, its graph in floats, and one in int8 for each form of weights; the number of the best, and why).

    Raises:
        UserError: no training images, a model that ONNX has no word for, or packages that are missing.
    """
    images = original.training_images()
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "float.onnx"
    write_graph(original.restored, source)
    open_onnx(source)  # a graph that ONNX Runtime does not run is told of before it calibrates
    files = {_FLOATS: source}
    for form, file in quantise_static(source, images, folder, FORMS):
        log.info("int8, %s: %.2f MB", form.name, file.stat().st_size / 1e6)
        files[f"int8, {form.name}"] = file
    found = [*points, *measure_graphs(original, points[0].cost, files)]
    first = len(found) - len(FORMS)
    values = np.nan_to_num([point.value for point in found[first:]], nan=-np.inf)
    return found, first + int(np.argmax(values)), f"the best of {len(FORMS)} forms of weights on val"


def trained_graph(original: Subject, points: list[Point], subject: Subject, folder: Path) -> list[Point]:
    """The points and the graph of a model of quantised layers, whose answers are compared with the model's own.

    Where ONNX has no word for the model, or its graph answers otherwise, there is a note of it and no graph: what was
    trained is good all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / INT8
    probe = make_probe(subject.restored, None, _COMPARED, subject.settings.workers)
    try:
        write_graph(subject.restored, file)
        parity = check_parity(subject.restored, probe, "onnx", file, {})
    except UserError as error:
        note = f"no graph in int8: {error.happened}"
        log.warning("%s", note)
        return [*points[:-1], replace(points[-1], notes=(*points[-1].notes, note))]
    (point,) = measure_graphs(original, points[-1].cost, {"int8, ONNX Runtime": file})
    return [*points, replace(point, notes=(f"against the model in torch: {parity.text()}",))]


def keep_graph(point: Point, folder: Path) -> tuple[str, ...]:
    """Copy the graph, and what its integers stand for, into a run; in words."""
    writer.write_whole(folder / INT8, Path(point.reference).read_bytes())
    writer.write_text(folder / GRIDS, grids_text(folder / INT8))
    return (f"{INT8}: the model in int8 for ONNX Runtime; {GRIDS}: its scales and zero points",)


def score_graph(original: Subject, file: str, split: str) -> Scored:
    return _graph(original, Path(file)).score(split)


def measure_graphs(original: Subject, cost: Cost, files: Mapping[str, Path]) -> list[Point]:
    """A point for each file; parameters and MACs are those of the model that it was made of, at `cost`."""
    before = original.score("val")
    subjects = {name: _graph(original, file) for name, file in files.items()}
    times = _latencies(original, {name: subject.built.module for name, subject in subjects.items()})
    _, targets = task_and_targets(original.splits["val"], original.restored)
    points = []
    for name, subject in subjects.items():
        found = subject.score("val")
        own = {batch: by_name[name] for batch, by_name in times.items()}
        others = {batch: by_name["original"] for batch, by_name in times.items()}
        paid = replace(cost, num_bytes=files[name].stat().st_size, latency=own, original=others)
        change = change_between(before, found, targets)
        reference = str(files[name])
        metrics = metrics_of(subject, found)
        points.append(Point(name, reference, 0.0, original.metric, metrics, change, paid))
    return points


def _graph(original: Subject, file: Path) -> Subject:
    """The same data, answered by a graph."""
    return replace(original, restored=replace(original.restored, built=build_onnx(file, {})))


def _latencies(original: Subject, graphs: Mapping[str, nn.Module]) -> dict[int, dict[str, Latency]]:
    modules = {"original": original.built.module.eval(), **graphs}
    found = {}
    for batch in BATCHES:
        images = original.example(batch)

        def call(module: nn.Module, x: torch.Tensor = images) -> Callable[[], object]:
            return lambda: module(x)

        wait = torch.cuda.synchronize if images.is_cuda else lambda: None
        with torch.inference_mode():
            found[batch] = latencies({name: call(module) for name, module in modules.items()}, wait)
    return found
