"""A compressed model as a run directory like any other: weights with their recipe, record, plan, splits."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from warmstart.config.io import from_dict, to_yaml
from warmstart.config.schema import LoraConfig, ModelConfig, OutputConfig
from warmstart.models.build import BuiltModel, build, metadata_for
from warmstart.models.macs import macs_per_image
from warmstart.models.tensor_file import TensorFile
from warmstart.run import layout, writer
from warmstart.run.lineage import reference_of
from warmstart.run.reader import Run

_COPIED = (layout.SPLITS, layout.QUARANTINE)


def write_run(folder: Path, source: Run, step: int | None, built: BuiltModel, record: dict[str, Any]) -> None:
    """Write the model as a run that was not trained, on the data of the run `source` at `step`; `record` joins
    resolved.json as `compress`. What stands there already is written again.

    Raises:
        UserError: the disk is full.
    """
    for name in (layout.CHECKPOINTS, layout.PREDICTIONS):
        (folder / name).mkdir(parents=True, exist_ok=True)
    own = {"output": OutputConfig(), "lora": LoraConfig()}  # adapters were merged
    writer.write_text(folder / layout.CONFIG, to_yaml(from_dict(source.config).model_copy(update=own), {}))
    for name in _COPIED:
        if (source.path / name).exists():
            writer.write_whole(folder / name, (source.path / name).read_bytes())
    if (source.path / layout.PROCESSOR).is_dir():
        shutil.copytree(source.path / layout.PROCESSOR, folder / layout.PROCESSOR, dirs_exist_ok=True)
    state = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in built.module.state_dict().items()
    }
    checkpoint = writer.write_checkpoint(folder, 0, {layout.MODEL: TensorFile(state, metadata_for(built))})
    writer.mark_best(folder, 0)
    again = _read_back(built, checkpoint / layout.MODEL)
    writer.write_json(folder / layout.PLAN, {"rows": _rows(again), "stages": [], "notes": []})
    writer.write_json(folder / layout.RESOLVED, _resolved(source, step, built, record))


def _read_back(built: BuiltModel, file: Path) -> BuiltModel:
    """The model that the file makes, which computes the same as the one that was written."""
    again = build(ModelConfig(weights=str(file)), {}, None, 0)
    again.move_to(next(built.module.parameters()).device)
    preprocessing = built.preprocessing
    shape = (2, preprocessing.num_channels, *preprocessing.image_size)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    images = images.to(next(built.module.parameters()).device)
    with torch.no_grad():
        wanted, found = built.module.eval()(images), again.module.eval()(images)
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max())), (
        f"{file} makes another model than was written"
    )
    return again


def _rows(built: BuiltModel) -> list[dict[str, Any]]:
    """Of plan.json: no block was trained."""
    sizes = {name: p.numel() for name, p in built.module.named_parameters()}
    untrained = {"mode": "compress", "lr": 0.0, "has_own_rate": False, "weight_decay": 0.0, "norms": "held"}
    untrained |= {"rates": [], "trainable": [], "from_stage": 0, "from_step": 0, "num_trainable": 0}
    return [
        {
            **untrained,
            "name": block.name,
            "norms": "held" if block.norms else "-",
            "num_parameters": sum(sizes[name] for name in block.parameters),
            "held": list(block.parameters),
        }
        for block in built.blocks
    ]


def _resolved(source: Run, step: int | None, built: BuiltModel, record: dict[str, Any]) -> dict[str, Any]:
    old = source.resolved
    lineage = {"run": str(source.path), "step": step, "lr": old["lr"]}
    made = {"kind": "compress", "path": reference_of(lineage), "sha256": None}
    return {
        **old,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "parent": lineage,
        "model": {**old["model"], "source": made, "lora": None, "macs": macs_per_image(built)},
        "pace": {**old["pace"], "total_steps": 0, "first_step": 0},
        "sources": [],
        "teachers": [],
        "compress": record,
    }
