"""4-bit weights against nf4 computed here in float64, and what an adapted layer makes of them."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.adapters import four_bit
from warmstart.models.adapters.four_bit import (
    check_four_bit,
    dequantised,
    facts_before,
    in_floats,
    in_four_bits,
    put_in_four_bits,
    quantisation_errors,
    quantised,
    sha256_of,
)
from warmstart.models.adapters.inject import inject, merged
from warmstart.models.blocks import find_blocks
from warmstart.records import Block, Lora

# Dettmers et al. 2023, appendix E.
NF4 = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ],
    dtype=torch.float64,
)


class Net(nn.Module):
    """Two large linear layers, and what is left in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 40, 4, stride=4)
        self.up = nn.Linear(40, 160)
        self.down = nn.Linear(160, 40, bias=False)
        self.small = nn.Linear(40, 40)
        self.odd = nn.Linear(40, 161)
        self.back = nn.Linear(161, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        x = self.small(self.down(self.up(x).relu()))
        return self.head(self.back(self.odd(x)).mean(1))


LORA = Lora("lora", 4, 8.0, 0.0, ("conv", "up", "down", "small", "back"), bits=4)
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def adapted(lora: Lora = LORA, seed: int = 0) -> tuple[Net, tuple[Block, ...], str]:
    torch.manual_seed(seed)
    module = Net()
    blocks = inject(module, find_blocks(module, "head"), lora, seed, "head")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return module, *put_in_four_bits(module, blocks, lora)


@pytest.mark.parametrize("shape", [(96, 64), (70, 90), (33, 128)])
def test_codes_are_the_nearest_of_nf4_and_scales_the_largest_of_their_run(shape: tuple[int, int]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 0.03
    stored = quantised(weight)
    flat = nn.functional.pad(weight.double().flatten(), (0, -weight.numel() % 64)).view(-1, 64)
    scales = flat.abs().amax(1, keepdim=True)
    nearest = (flat / scales).unsqueeze(-1).sub(NF4).abs().argmin(-1).flatten()[: weight.numel()]
    codes = stored[".weight_codes"].flatten().int()
    found = torch.stack([codes >> 4, codes & 15], dim=1).flatten()
    assert (found == nearest).double().mean() > 0.9995  # the rest lies in the middle between two, to rounding
    again = dequantised(stored).double().flatten()
    own = again / NF4[found].where(NF4[found] != 0, torch.nan)
    own_scales = nn.functional.pad(own, (0, -len(own) % 64), value=torch.nan).view(-1, 64)
    kept = own_scales.nanmedian(1).values
    torch.testing.assert_close(kept, scales.flatten(), rtol=0.03, atol=0)  # themselves in 8 bits
    assert own_scales.sub(kept[:, None]).abs().nan_to_num(0).max() < 1e-6
    single = (
        NF4[nearest] * scales.expand(-1, 64).flatten()[: weight.numel()] - weight.double().flatten()
    ).norm()
    assert float(stored[".weight_error"]) == pytest.approx(float(single / weight.double().norm()), rel=0.02)


def test_a_layer_computes_with_the_dequantised_weight_forward_and_backward() -> None:
    module, _, _ = adapted()
    plain = Net()
    plain.load_state_dict(in_floats({k: v for k, v in module.state_dict().items() if ".lora_" not in k}))
    inject(plain, find_blocks(plain, "head"), LORA, 0, "head")
    plain.load_state_dict(in_floats(module.state_dict()))
    reference = plain.double()
    images = IMAGES.clone().requires_grad_(True)
    wanted_images = IMAGES.double().requires_grad_(True)
    module(images).square().sum().backward()
    reference(wanted_images).square().sum().backward()
    torch.testing.assert_close(module(IMAGES).double(), reference(IMAGES.double()), rtol=1e-4, atol=1e-5)
    assert images.grad is not None and wanted_images.grad is not None
    torch.testing.assert_close(images.grad.double(), wanted_images.grad, rtol=1e-3, atol=1e-4)
    wanted = dict(reference.named_parameters())
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        torch.testing.assert_close(parameter.grad.double(), wanted[name].grad, rtol=1e-3, atol=1e-3)


def test_the_merged_state_computes_as_the_unmerged_model() -> None:
    for kind in ("lora", "rslora", "dora"):
        lora = Lora(kind, 4, 8.0, 0.0, LORA.targets, bits=4)
        module, _, _ = adapted(lora)
        plain = Net()
        plain.load_state_dict(merged(in_floats(module.state_dict()), lora))
        torch.testing.assert_close(plain(IMAGES), module(IMAGES), rtol=1e-4, atol=2e-5)


def test_no_dequantised_weight_waits_for_the_backward_pass() -> None:
    module, _, _ = adapted()
    module.requires_grad_(False)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    sizes = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() if tensor.is_floating_point() else 0)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        module.up(torch.randn(2, 40, requires_grad=True))
    assert sizes and max(sizes) < module.up.in_features * module.up.out_features / 4


def test_blocks_name_codes_as_buffers_and_small_or_odd_layers_stay() -> None:
    module, blocks, told = adapted()
    assert sorted(four_bit.four_bit_layers(module)) == ["down", "up"]
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    assert {name for block in blocks for name in block.parameters} == set(parameters)
    assert {name for block in blocks for name in block.buffers} == set(buffers)
    assert "up.weight" not in parameters and "up.weight_codes" in buffers
    assert (
        "2 layers in 4 bits" in told
        and "small has a weight of 40 x 40" in told
        and "back has a weight" in told
    )
    assert "conv is a Conv2d" in told
    error = quantisation_errors(module.state_dict())
    assert set(error) == {"up", "down"} and all(0.05 < value < 0.15 for value in error.values())


def test_a_state_travels_and_a_copy_is_the_same() -> None:
    module, _, _ = adapted(seed=3)
    other, _, _ = adapted(seed=4)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(IMAGES), module(IMAGES)) and torch.equal(
        copy.deepcopy(module)(IMAGES), module(IMAGES)
    )
    torch.manual_seed(3)
    weight = Net().up.weight
    assert facts_before(module.state_dict())["up.weight"] == ((160, 40), sha256_of(weight).hex())


def test_codes_that_are_given_are_taken() -> None:
    module, _, _ = adapted(seed=3)
    torch.manual_seed(8)
    other = Net()
    blocks = inject(other, find_blocks(other, "head"), LORA, 0, "head")
    put_in_four_bits(other, blocks, LORA, module.state_dict())
    assert torch.equal(other.up.weight, module.up.weight)
    assert torch.equal(other.up.weight_codes, module.up.weight_codes)


def test_a_plain_state_goes_into_4_bits_and_back() -> None:
    state = Net().state_dict()
    stored = in_four_bits(state, ["up", "down"])
    again = in_floats(stored)
    assert set(again) == set(state) and torch.equal(again["small.weight"], state["small.weight"])
    for path, error in quantisation_errors(stored).items():
        found = four_bit.relative_error(again[f"{path}.weight"], state[f"{path}.weight"])
        assert found == pytest.approx(error, rel=1e-5)
    sizes = [sum(tensor.nbytes for tensor in each.values()) for each in (stored, state)]
    assert sizes[0] < 0.65 * sizes[1]  # the two layers are 43 % of it


def test_targets_that_quantise_nothing_are_refused() -> None:
    module = Net()
    lora = Lora("lora", 4, 8.0, 0.0, ("conv", "small"), bits=4)
    blocks = inject(module, find_blocks(module, "head"), lora, 0, "head")
    with pytest.raises(
        UserError, match=r"no adapted layer can be kept in 4 bits: conv is a Conv2d, small has a weight"
    ):
        put_in_four_bits(module, blocks, lora)


def test_it_can_be_compiled() -> None:
    module, _, _ = adapted()
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(IMAGES), module(IMAGES))
    torch.compiler.reset()


def test_autocast_is_obeyed() -> None:
    module, _, _ = adapted()
    wanted = module(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        assert module.up(torch.randn(1, 40)).dtype == torch.bfloat16
        torch.testing.assert_close(module(IMAGES).float(), wanted, rtol=0.1, atol=0.1)


def test_a_machine_that_cannot_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    check_four_bit(torch.device("cpu"))
    with pytest.raises(UserError, match=r"--lora\.bits 4 on mps"):
        check_four_bit(torch.device("mps"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="4-bit weights need bitsandbytes") as raised:
        check_four_bit(torch.device("cpu"))
    assert "bitsandbytes" in str(raised.value)
