"""Grad-CAM against pytorch-grad-cam, in float64; against its definition; and the two sanity checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget, SemanticSegmentationTarget
from torch import nn

from tiny_families import images, made, side_of
from warmstart.analysis.explain.grad_cam import grad_cam, score_of
from warmstart.analysis.explain.layers import Layer, find_layer
from warmstart.analysis.explain.places import Layout
from warmstart.config.schema import ModelConfig
from warmstart.models.build import build
from warmstart.models.heads import PairLinear


class Unscaled(GradCAM):
    """As it computes a map before scaling it to [0, 1] in float32 and to the image's size."""

    def compute_cam_per_layer(self, *arguments: object) -> list[np.ndarray]:
        activations, grads = (
            [tensor.numpy() for tensor in tensors]
            for tensors in (self.activations_and_grads.activations, self.activations_and_grads.gradients)
        )
        cam = self.get_cam_image(None, None, None, activations[0], grads[0])
        return [np.maximum(cam, 0)[:, None]]

    def aggregate_multi_layers(self, cams: list[np.ndarray]) -> np.ndarray:
        return cams[0][:, 0]


def to_tokens(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:, 1:].reshape(len(tensor), 4, 4, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("family", "reshape"),
    [
        ("resnet", None),
        ("vit", to_tokens),
        ("torchvision vit", to_tokens),
        ("swin", lambda tensor: tensor.permute(0, 3, 1, 2)),
    ],
)
def test_it_is_that_of_pytorch_grad_cam(family: str, reshape: object) -> None:
    built, x = made(family), images(2, side_of(family)).double()
    built.module.double()
    layer = find_layer(built, x, score_of(built, 2))
    largest = 0.0
    for number in range(3):
        with Unscaled(built.module, [built.module.get_submodule(layer.path)], reshape) as reference:
            wanted = reference(x, [ClassifierOutputTarget(number)] * 2)
        found = grad_cam(built.module, layer, x, score_of(built, number))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9, atol=1e-15)
        largest = max(largest, float(found.max()))
    assert largest > 0


def test_of_masks_it_is_that_of_pytorch_grad_cam() -> None:
    built = build(
        ModelConfig(name="smp:Unet/resnet18", weights="none"), {"image_size": (64, 64)}, ("a", "b"), 0
    )
    built.module.double().eval()
    x = images(1).double()
    with torch.no_grad():
        region = built.module(x).argmax(dim=1) == 1
    layer = find_layer(built, x, score_of(built, 1))
    target = SemanticSegmentationTarget(1, region[0].numpy().astype(np.float64))
    with Unscaled(built.module, [built.module.get_submodule(layer.path)]) as reference:
        wanted = reference(x, [target])
    for pixels in (None, region):
        found = grad_cam(built.module, layer, x, score_of(built, 1, pixels))
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-9)


def test_by_hand() -> None:
    """One channel that speaks for class 0 and one that speaks against it, averaged over four places."""
    module = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        module[3].weight.copy_(torch.tensor([[1.0, -2.0], [0.0, 1.0]]))
    x = torch.tensor([[[[4.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 0.0]]]])
    layer = Layer("0", Layout("first", 2, 2))
    found = grad_cam(module, layer, x, lambda outputs: outputs[:, 0])
    # relu(A_0 x 1/4 - A_1 x 2/4)
    assert found.tolist() == [[[0.5, 0.0], [0.0, 0.25]]]


def test_a_classifier_with_one_row_explains_both_classes() -> None:
    built = made("resnet")
    built.module.fc = PairLinear(built.module.fc.in_features, 2)
    x = images(1)
    layer = find_layer(built, x, score_of(built, 0))
    both = [grad_cam(built.module, layer, x, score_of(built, number)) for number in (0, 1)]
    assert both[0].max() > 0 or both[1].max() > 0
    assert not torch.equal(*both), "what speaks for one class speaks against the other"


def correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Over all places of all images, each map in its own scale."""
    scaled = [x.flatten(1) / x.flatten(1).amax(dim=1, keepdim=True).clamp(min=1e-12) for x in (first, second)]
    return float(torch.corrcoef(torch.stack([x.flatten() for x in scaled]))[0, 1])


@pytest.mark.parametrize("family", ["resnet", "vit"])
def test_maps_change_when_the_weights_are_randomised(family: str) -> None:
    """Adebayo et al. 2018: a map that stays the same says nothing about the model."""
    built, x = made(family), images(16, side_of(family))

    def score(outputs: torch.Tensor) -> torch.Tensor:
        return outputs.max(dim=1).values

    layer = find_layer(built, x, score, "layer3" if family == "resnet" else None)
    before = grad_cam(built.module, layer, x, score)
    assert torch.equal(before, grad_cam(built.module, layer, x, score)) and before.max() > 0
    torch.manual_seed(7)
    for module in built.module.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.reset_parameters()
    after = grad_cam(built.module, layer, x, score)
    assert abs(correlation(before, after)) < 0.4
