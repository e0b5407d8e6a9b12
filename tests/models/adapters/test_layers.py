"""Adapters against peft, the independent reference: equal A and B give equal outputs and gradients, in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from warmstart.errors import UserError
from warmstart.models.adapters.inject import inject, merged
from warmstart.models.adapters.layers import LoraAttention, LoraConv2d, LoraLinear, add_adapter, refusal
from warmstart.records import Block, Lora


class Net(nn.Module):
    """One layer of each kind that can have an adapter, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.bare = nn.Conv2d(8, 8, 1, bias=False)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(24, 8, bias=False)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bare(self.conv(x).relu()).flatten(2).transpose(1, 2)
        x = x + self.out(self.qkv(x).tanh())
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(x.mean(1))


LAYERS = ("conv", "bare", "qkv", "out")


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net().double()


def block(module: nn.Module) -> tuple[Block, ...]:
    names = tuple(name for name, _ in module.named_parameters() if not name.startswith("head."))
    return (
        Block("body", names, (), (), ()),
        Block("head", ("head.weight", "head.bias"), (), ("head",), ()),
    )


def adapted(lora: Lora, seed: int = 0) -> Net:
    """A net whose B are no longer zero."""
    module = net()
    inject(module, block(module), lora, seed, "head")
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    return module


def peft_of(module: Net, lora: Lora) -> Any:
    """The same net as peft adapts it, with the same A, B and magnitudes."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=list(lora.targets),
        use_rslora=lora.kind == "rslora",
        use_dora=lora.kind == "dora",
        lora_dropout=lora.dropout,
    )
    model = get_peft_model(net(), config)
    own = dict(module.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(own[own_name(name)])
    return model


def own_name(name: str) -> str:
    """Our name of a parameter of peft's."""
    name = name.removeprefix("base_model.model.").replace("base_layer.", "").replace(".default", "")
    return name.replace("lora_magnitude_vector.weight", "lora_magnitude")


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


CASES = [
    *(Lora(kind, 4, 8.0, 0.0, LAYERS) for kind in ("lora", "rslora", "dora")),
    *(Lora(kind, 2, 3.0, 0.0, ("attention",)) for kind in ("lora", "rslora")),
]


def without_out_proj(module: Net) -> Net:
    """peft (0.21) adds the update of an attention's out_proj twice, in forward and in merging: see the next test."""
    module.attention.out_proj.get_submodule("lora_B").weight.data.zero_()  # type: ignore[union-attr]
    return module


@pytest.mark.parametrize("lora", CASES, ids=lambda lora: f"{lora.kind}-{lora.targets[0]}")
def test_outputs_and_gradients_are_those_of_peft(lora: Lora) -> None:
    ours = adapted(lora) if lora.targets == LAYERS else without_out_proj(adapted(lora))
    theirs = peft_of(ours, lora)
    found = []
    for module in (ours, theirs):
        module.zero_grad()
        outputs = module(images())
        outputs.square().sum().backward()
        names = {own_name(name): p for name, p in module.named_parameters() if "lora_" in name}
        found.append((outputs, {name: p.grad for name, p in names.items()}))
    (outputs, gradients), (expected, reference) = found
    assert gradients.keys() == reference.keys()
    assert len(gradients) == (4 if lora.targets == ("attention",) else 12 if lora.kind == "dora" else 8)
    torch.testing.assert_close(outputs, expected, rtol=1e-12, atol=1e-12)
    for name, gradient in gradients.items():
        assert (gradient.abs().max() > 0) == (name != "attention.out_proj.lora_A.weight"), name
        torch.testing.assert_close(gradient, reference[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("lora", CASES, ids=lambda lora: f"{lora.kind}-{lora.targets[0]}")
def test_merged_is_unmerged_to_rounding_and_peft_merges_alike(lora: Lora) -> None:
    ours = adapted(lora) if lora.targets == LAYERS else without_out_proj(adapted(lora))
    theirs = peft_of(ours, lora).merge_and_unload()
    plain = net()
    plain.load_state_dict(merged(ours.state_dict(), lora))
    torch.testing.assert_close(plain(images()), ours(images()), rtol=1e-10, atol=1e-10)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name], rtol=1e-10, atol=1e-12)


def test_an_attention_computes_with_the_sums_of_its_weights_and_updates() -> None:
    """Both projections, against torch's own layer whose weights are these sums."""
    ours, plain = adapted(Lora("lora", 2, 3.0, 0.0, ("attention",))), net().attention
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    parts = dict(ours.attention.named_parameters())
    sums = dict(plain.named_parameters())
    for path, weight in (("", "in_proj_weight"), ("out_proj.", "out_proj.weight")):
        update = parts[f"{path}lora_B.weight"] @ parts[f"{path}lora_A.weight"]
        sums[weight] = sums[weight].detach() + 1.5 * update
    expected = torch.func.functional_call(plain, sums, (x, x, x))
    found = ours.attention(x, x, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    names = [name for name in parts if "lora_" in name]
    gradients = [
        torch.autograd.grad(outputs[0].square().sum(), [parts[name] for name in names])
        for outputs in (found, expected)
    ]
    assert len(names) == 4
    for name, own, reference in zip(names, *gradients, strict=True):
        assert own.abs().max() > 0, name
        torch.testing.assert_close(own, reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_in_front_of_a_and_off_in_evaluation(kind: str) -> None:
    """With peft's own random numbers: one draw of the input's shape per layer, in the order of computing."""
    lora = Lora(kind, 4, 8.0, 0.5, LAYERS)
    ours = adapted(lora)
    theirs = peft_of(ours, lora)
    outputs = []
    for module in (ours, theirs):
        torch.manual_seed(3)
        outputs.append(module.train()(images()))
    torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
    still = [module.eval()(images()) for module in (ours, theirs)]
    torch.testing.assert_close(*still, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(outputs[0], still[0])


def test_a_fresh_adapter_changes_nothing_and_keeps_every_name_and_object() -> None:
    plain = net()
    before = {name: id(p) for name, p in plain.named_parameters()}
    expected = plain(images())
    state = copy.deepcopy(plain.state_dict())
    lora = Lora("lora", 4, 8.0, 0.0, (*LAYERS, "attention"))
    (body, head) = inject(plain, block(plain), lora, 0, "head")
    assert torch.equal(plain(images()), expected)
    after = {name: id(p) for name, p in plain.named_parameters()}
    assert before.items() <= after.items()
    assert set(after) - set(before) == set(body.adapters) and not head.adapters
    assert len(body.adapters) == 12 and body.parameters[-12:] == body.adapters
    assert {"attention.lora_A.weight", "attention.out_proj.lora_B.weight", "conv.lora_A.weight"} <= set(after)
    assert all(torch.equal(plain.state_dict()[name], tensor) for name, tensor in state.items())
    kinds = [type(plain.get_submodule(path)) for path in lora.targets]
    assert kinds == [LoraConv2d, LoraConv2d, LoraLinear, LoraLinear, LoraAttention]


def test_the_first_numbers_follow_from_seed_and_path_alone() -> None:
    bound = 1 / 8**0.5

    def first(seed: int, targets: tuple[str, ...]) -> Tensor:
        module = net()
        torch.manual_seed(len(targets))  # whatever the global generator holds
        before = torch.get_rng_state()
        inject(module, block(module), Lora("lora", 4, 8.0, 0.0, targets), seed, "head")
        assert torch.equal(torch.get_rng_state(), before)
        return module.qkv.lora_A.weight.detach()  # type: ignore[union-attr]

    once = first(0, ("qkv",))
    assert torch.equal(once, first(0, LAYERS)) and not torch.equal(once, first(1, ("qkv",)))
    assert once.abs().max() <= bound and once.abs().max() > 0.8 * bound and once.std() > 0.4 * bound


@pytest.mark.parametrize("fast", [False, True])
def test_no_projection_of_an_attention_is_passed_by(fast: bool) -> None:
    """In training, in evaluation, on torch's fast path, and where an encoder layer reads the weights by itself."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    module = nn.ModuleDict({"layer": layer, "head": nn.Linear(8, 2)})
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    lora = Lora("lora", 2, 4.0, 0.0, ("layer.self_attn", "layer.linear1"))
    plain = copy.deepcopy(layer)
    inject(module, block(module), lora, 0, "head")
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    state = {f"layer.{name}": tensor for name, tensor in layer.state_dict().items()}
    plain.load_state_dict({name.removeprefix("layer."): t for name, t in merged(state, lora).items()})
    for part in (layer, plain):
        part.train(not fast)
    with torch.set_grad_enabled(not fast):
        torch.testing.assert_close(layer(x), plain(x), rtol=1e-10, atol=1e-10)
        first = layer.self_attn(x, x, x, need_weights=False)[0]
        torch.testing.assert_close(first, plain.self_attn(x, x, x)[0], rtol=1e-10, atol=1e-10)


def test_what_an_attention_cannot_have_is_refused_by_name() -> None:
    for lora in (Lora("dora", 2, 4.0, 0.0, ("attention",)), Lora("lora", 2, 4.0, 0.1, ("attention",))):
        with pytest.raises(UserError, match=r"attention is an nn\.MultiheadAttention") as error:
            add_adapter(net().attention, "attention", lora, 0)
        assert ("--lora.kind dora" if lora.kind == "dora" else "--lora.dropout") in str(error.value)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), "8 groups"),
        (nn.LayerNorm(4), "is a LayerNorm"),
        (nn.MultiheadAttention(8, 2).out_proj, "name the attention"),
        (nn.MultiheadAttention(8, 2, kdim=4), "another width"),
        (nn.Linear(2, 2), None),
    ],
)
def test_refusals(layer: nn.Module, reason: str | None) -> None:
    found = refusal(layer)
    assert found is None if reason is None else reason in str(found)


def test_adapters_can_be_compiled() -> None:
    """As --compile does it: what an attention computes with is put together in the compiled code too."""
    module = adapted(Lora("lora", 2, 3.0, 0.0, (*LAYERS, "attention")))
    compiled = torch.compile(module, backend="eager")
    torch.testing.assert_close(compiled(images()), module(images()), rtol=1e-12, atol=1e-12)
    torch.compiler.reset()
