"""What a file holds, told by its first bytes, or by names and types alone: adapters, quantised, a detector, ..."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from warmstart.config.distill_rules import ONNX
from warmstart.errors import UserError, listing

# Wrappers that stand in the middle of names: torch.compile, FSDP, activation checkpointing.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_QUANTISED = re.compile(
    r"(^|\.)(zero_point|_packed_params.*|absmax|nested_absmax|quant_map|quant_state.*|SCB|qweight|qzeros)$"
    r"|\.quant_state\.|weight_fake_quant|activation_post_process"
)
_LORA = re.compile(r"(^|[._])lora_(A|B|down|up|embedding_[AB])([._]|$)|\.(hada_w|lokr_w)")
_DETECTOR = re.compile(
    r"(^|\.)(rpn(_head)?|roi_heads?|bbox_(head|embed|predictor)|bbox_embed|anchor_generator|anchor_head|"
    r"backbone\.fpn|fpn|dfl|class_embed|query_embed)\."
)
_SEGMENTER = re.compile(
    r"(^|\.)(aux_classifier|decode_head|auxiliary_head|segmentation_head|mask_head|decoder)\."
)
_CLIP = re.compile(r"(^|\.)(logit_scale|token_embedding\.weight|text_projection.*|text_model\..*)$")
_TRANSFORMERS = re.compile(
    r"embeddings\.patch_embeddings\.projection\.|attention\.attention\.query\.|embedder\.embedder\.convolution\."
    r"|encoder\.stages\.\d+\.layers\.\d+\.(dwconv|layer)\."
)
_LFS_POINTER = b"version https://git-lfs"
_NUM_EXAMPLES = 5
_VIT_WIDTHS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}


@dataclass(frozen=True)
class Content:
    """What the tensors are, and the way out, as parts of an error message."""

    what: str
    expected: str
    fix: str


def look_at(file: Path) -> tuple[bytes, str]:
    """(its first bytes, the sha256 of all); UserError where these are no weights."""
    if file.suffix.lower() == ONNX:
        raise UserError(
            f"{file} is an ONNX graph, which gives answers and has no layers to train or change",
            "a run, or a file of weights",
            "name what it was exported from; `warmstart evaluate`, `predict` and --teacher read a graph",
        )
    with file.open("rb") as stream:
        start = stream.read(64)
        stream.seek(0)
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if not start:
        raise UserError(f"{file} is empty (0 bytes)", "a file of weights", "copy or download it again")
    if start.startswith(_LFS_POINTER):
        raise UserError(
            f"{file} is a git-lfs pointer, not the weights", "the file it points to", "run git lfs pull"
        )
    return start, sha256


def is_program(file: Path) -> bool:
    """Whether it is an archive of torch.export.save."""
    if not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith("/archive_format") for name in archive.namelist())


def plain(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The same tensors under the names they had without wrappers and pruning masks, in float32; and notes."""
    found, notes = dict(state), []
    wrapped = [key for key in found if _WRAPPERS.search(key)]
    if wrapped:
        found = {_WRAPPERS.sub(r"\1", key): tensor for key, tensor in found.items()}
        notes.append(f"took the wrapper {_WRAPPERS.search(wrapped[0])[2]!r} out of {len(wrapped)} names")  # type: ignore[index]
    masked = [key.removesuffix("_orig") for key in found if key.endswith("_orig")]
    masked = [key for key in masked if f"{key}_mask" in found]
    if masked:
        merged = {key: found[f"{key}_orig"] * found[f"{key}_mask"] for key in masked}
        parts = {f"{key}{part}" for key in masked for part in ("_orig", "_mask")}
        found = {key: tensor for key, tensor in found.items() if key not in parts} | merged
        zeros = sum(int((tensor == 0).sum()) for tensor in merged.values())
        share = zeros / max(1, sum(tensor.numel() for tensor in merged.values()))
        notes.append(
            f"pruned: multiplied {len(masked)} pruning masks into their weights ({share:.0%} are zero; "
            "training does not keep them zero)"
        )
    return _in_float32(found, notes), notes


def _in_float32(state: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    if quantised(state) is not None:
        return state
    for kind in (torch.float16, torch.bfloat16, torch.float64):
        cast = [key for key, tensor in state.items() if tensor.dtype == kind]
        if cast:
            state = state | {key: state[key].float() for key in cast}
            notes.append(f"{len(cast)} tensors are {str(kind).removeprefix('torch.')}: converted to float32")
    return state


def check_numbers(state: Mapping[str, Tensor], file: Path) -> None:
    """UserError unless all tensors are dense and real."""
    kinds = {
        key: tensor.dtype if tensor.layout == torch.strided else tensor.layout
        for key, tensor in state.items()
        if tensor.layout != torch.strided or tensor.is_complex()
    }
    if kinds:
        listed = listing((f"{key} ({kind})" for key, kind in kinds.items()), _NUM_EXAMPLES)
        raise UserError(
            f"{file} holds tensors that are no plain numbers: {listed}",
            "dense tensors of real numbers",
            "save them with .to_dense(), or as two real tensors where the model has two",
        )


def not_finite(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A note that names the tensors with NaN or infinite values."""
    real = {key: t for key, t in state.items() if t.is_floating_point() and t.itemsize > 1}
    found = [key for key, tensor in real.items() if not tensor.isfinite().all()]
    return (f"{len(found)} tensors hold NaN or infinite values: {listing(found, 3)}",) if found else ()


def unusable(state: Mapping[str, Tensor]) -> Content | None:
    """What keeps the numbers themselves from being weights, whatever the model."""
    return adapters(state) or quantised(state)


def describe(state: Mapping[str, Tensor]) -> Content | None:
    """Another task or library than those of the zoos, if the names tell."""
    return _other_task(state) or _transformers(state)


def is_segmenter(names: Iterable[str]) -> bool:
    return _first(_SEGMENTER, names) is not None


def adapters(state: Mapping[str, Tensor]) -> Content | None:
    found = [key for key in state if _LORA.search(key)]
    if not found:
        return None
    merge = "model = model.merge_and_unload(); torch.save(model.state_dict(), 'weights.pt')"
    if len(found) * 2 > len(state):
        return Content(
            f"it holds only a LoRA adapter ({len(found)} low-rank tensors) and not the weights it belongs to",
            "the whole model with the adapter merged in, or the folder as peft saved it, with adapter_config.json",
            f"`warmstart merge FOLDER --base FILE`; or with peft: {merge}",
        )
    return Content(
        f"its LoRA adapters are not merged: {len(found)} of {len(state)} tensors are low-rank factors",
        "the weights with the adapters merged in",
        f"with peft: {merge}",
    )


def quantised(state: Mapping[str, Tensor]) -> Content | None:
    whole = (torch.int8, torch.uint8, torch.int16, torch.int32)
    packed = [key for key, t in state.items() if t.is_quantized or (t.dtype in whole and t.ndim >= 2)]
    if not packed and _first(_QUANTISED, state) is None:
        return None
    kinds = ", ".join(sorted({str(state[key].dtype).removeprefix("torch.") for key in packed}))
    count = f" ({len(packed)} tensors of {kinds})" if packed else ""
    return Content(
        f"it is quantised{count}: its numbers mean nothing without their scales, and cannot be trained",
        "the float weights from before quantisation",
        "save those; or turn them back where they were made (bitsandbytes, transformers: model.dequantize()) and "
        "save the state_dict",
    )


def _other_task(state: Mapping[str, Tensor]) -> Content | None:
    if any(_CLIP.search(key) for key in state):
        return Content(
            "it is a CLIP-like model of images and text",
            "the weights of an image classifier",
            "take its image tower from the zoo (--model timm:vit_base_patch32_clip_224 and its relatives), or pass "
            "the tower as an nn.Module: warmstart.finetune(module, data)",
        )
    for pattern, what in ((_DETECTOR, "detection"), (_SEGMENTER, "segmentation")):
        if found := _first(pattern, state):
            own = (
                "--model of the segmentation model it was saved from (builtin:microsegformer, "
                "torchvision:deeplabv3_resnet50, smp:Unet/resnet34, hf:FOLDER of a SegFormer, ...), "
            )
            return Content(
                f"it is a {what} checkpoint (it has {found!r})",
                "the weights of an image classifier"
                + (", or its own --model" if what == "segmentation" else ""),
                f"{own if what == 'segmentation' else ''}--model NAME of its backbone alone, or pass the backbone "
                "with a linear head as an nn.Module: warmstart.finetune(module, data)",
            )
    return None


def _transformers(state: Mapping[str, Tensor]) -> Content | None:
    if _first(_TRANSFORMERS, state) is None:
        return None
    key = next((k for k in state if k.endswith("patch_embeddings.projection.weight")), None)
    same = ""
    if key is not None and state[key].ndim == 4 and (size := _VIT_WIDTHS.get(state[key].shape[0])):
        same = f"--model timm:vit_{size}_patch{state[key].shape[-1]}_224 is the same architecture in the zoo; or "
    return Content(
        "its names are those of Hugging Face transformers",
        "the names of timm or torchvision",
        f"{same}--model hf:FOLDER, where it lies beside its config.json; or pass the model as an nn.Module whose "
        "forward returns its logits: warmstart.finetune(module, data)",
    )


def _first(pattern: re.Pattern[str], names: Iterable[str]) -> str | None:
    return next((name for name in names if pattern.search(name)), None)
