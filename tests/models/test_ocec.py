"""The models of document 001: counts, names and numbers against the published ones, and their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

import fresh
from published_ocec import COUNTS, EYES, Published, checkpoint, lively, published_names
from warmstart.config.ocec import OcecShape, shape_of
from warmstart.config.schema import ModelConfig
from warmstart.data.batches import View
from warmstart.errors import UserError
from warmstart.models.blocks import find_blocks
from warmstart.models.build import BuiltModel, build, metadata_for
from warmstart.models.builtin import builtin, recognise
from warmstart.models.builtin.ocec import Ocec
from warmstart.models.created import shapes_of
from warmstart.models.zoo import canonical, create, outline, split_name
from warmstart.tasks.classification import Classification


def opened(file: Path, name: str | None = None, classes: tuple[str, ...] | None = None) -> BuiltModel:
    return build(ModelConfig(name=name, weights=str(file)), {}, classes, seed=0)


@pytest.mark.parametrize("name", COUNTS)
def test_counts_and_names(name: str) -> None:
    with torch.device("meta"):
        module = Ocec(shape_of(name))
    assert sum(p.numel() for p in module.parameters()) == COUNTS[name]
    assert list(module.state_dict()) == published_names(name)


@pytest.mark.parametrize("name", COUNTS)
def test_it_computes_what_is_published(name: str) -> None:
    module, images = lively(name), torch.rand(3, 3, 48, 48) * torch.tensor([0.05, 0.4, 1.0]).view(3, 1, 1, 1)
    with torch.no_grad():
        found = module.double()(images.double())
    wanted = Published(module.state_dict(), shape_of(name)).logits(images)
    torch.testing.assert_close(
        found, torch.stack([torch.zeros_like(wanted), wanted], 1), atol=1e-9, rtol=1e-9
    )
    assert wanted.std() > 1e-4, "the comparison could not fail"


def test_the_softmax_of_a_pair_is_the_sigmoid_and_trains_as_one_logit() -> None:
    module, images, targets = lively(), torch.rand(6, 3, 32, 64), torch.tensor([0, 1, 1, 0, 1, 1])
    logits = module(images)
    z = logits[:, 1]
    scores = Classification(EYES).scores(logits.detach().numpy())
    np.testing.assert_allclose(scores[:, 1], torch.sigmoid(z).detach().numpy(), atol=1e-6)
    total, weight = Classification(EYES).objective(logits, targets)
    wanted = F.binary_cross_entropy_with_logits(z, targets.float())
    torch.testing.assert_close(total / weight, wanted)
    assert Ocec(OcecShape(), num_classes=3)(images).shape == (6, 3)


@pytest.mark.parametrize(
    ("size", "wanted"), [((32, 64), (8, 16)), ((24, 40), (6, 10)), ((33, 47), (9, 12)), ((48, 48), (12, 12))]
)
def test_the_size_of_the_feature_map(size: tuple[int, int], wanted: tuple[int, int]) -> None:
    for variant in ("baseline", "inverted_se", "convnext"):
        shape = OcecShape(variant)
        x = torch.rand(1, 3, *size)
        module = Ocec(shape)
        assert module.features(module.stem(x)).shape[2:] == shape.feature_map(size)
    assert OcecShape().feature_map(size) == wanted
    assert OcecShape().channels == 64


def test_names_say_what_differs() -> None:
    assert canonical("ocec") == canonical("builtin:ocec-c32-b4-baseline-avg-g3x2") == "builtin:ocec"
    assert canonical("ocec-b6-c48-transformer-g3x2-convnext") == "builtin:ocec-convnext-c48-b6-g3x2"
    assert split_name("ocec-c32") == ("builtin", "ocec-c32")
    shape = shape_of("ocec-inverted_se-mlp_mixer-x2-r0-l3-arcface")
    assert (shape.expansion, shape.se_reduction, shape.token_mixer_layers, shape.margin) == (
        2,
        0,
        3,
        "arcface",
    )
    assert shape_of(shape.name) == shape
    for wrong, told in (
        ("ocec-inverted-se", "'inverted' means nothing.*inverted_se"),
        ("ocec-c0", "'c0' means nothing"),
        ("ocec-b99999", "more than 65,536 at the last"),
        ("ocec-c32-c48", "says base_channels twice: 32 and 48"),
        ("builtin:ocec-", "'' means nothing"),
        ("ocecs", "unknown model 'ocecs'"),
    ):
        with pytest.raises(UserError, match=f"(?s){told}"):
            split_name(wrong)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_says_what_it_is(tmp_path: Path, name: str, prefix: str) -> None:
    built = opened(checkpoint(tmp_path, name, prefix))
    assert (built.name, built.classes, built.names_known) == (f"builtin:{name}", EYES, True)
    assert built.head_change.kind == "kept" and built.preprocessing.image_size == (48, 48)
    assert f"its model_config is builtin:{name}" in built.notes
    images = torch.rand(2, 3, 48, 48)
    state = torch.load(tmp_path / "ocec_epoch_0001.pt")["model_state"]
    wanted = Published({key.removeprefix(prefix): t for key, t in state.items()}, shape_of(name)).logits(
        images
    )
    with torch.no_grad():
        found = built.module.eval()(images)[:, 1]
    torch.testing.assert_close(found.double(), wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [*COUNTS, "ocec-inverted_se-c16-b3-x2-r4", "ocec-inverted_se-x1-r0", "ocec-mlp_mixer-g1x5-l3"]
)
def test_bare_tensors_are_recognised(name: str) -> None:
    with torch.device("meta"):
        shapes = shapes_of(Ocec(shape_of(name)))
    assert recognise(shapes, shapes) == f"builtin:{name}"
    assert recognise(list(shapes)[1:], shapes) is None
    assert recognise(shapes, {**shapes, "stem.0.weight": (7, 3, 3, 3)}) is None
    assert recognise([*shapes, "more.weight"], {**shapes, "more.weight": (1,)}) is None


FRESH = """
import sys, torch
from warmstart.config.schema import ModelConfig
from warmstart.models.build import build
built = build(ModelConfig(weights=sys.argv[1]), {}, None, seed=0)
torch.manual_seed(1)
with torch.no_grad():
    outputs = built.module.eval()(torch.rand(2, 3, 48, 48))
torch.save({"name": built.name, "classes": built.classes, "outputs": outputs}, sys.argv[2])
"""


def test_saved_and_read_again_in_a_fresh_process(tmp_path: Path) -> None:
    built = opened(checkpoint(tmp_path, "ocec-inverted_se-c16"), classes=EYES)
    save_file(built.module.state_dict(), tmp_path / "mine.safetensors", metadata=metadata_for(built))
    done = fresh.run(tmp_path / "mine.safetensors", tmp_path / "result.pt", code=FRESH)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "result.pt")
    assert (found["name"], found["classes"]) == ("builtin:ocec-inverted_se-c16", EYES)
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(found["outputs"], built.module.eval()(torch.rand(2, 3, 48, 48)))


def test_a_margin_file_is_measured_by_its_cosines(tmp_path: Path) -> None:
    rows = torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    state = lively().state_dict() | {"margin_head.weight": rows}
    images = torch.rand(4, 3, 48, 48)
    pooled = Published(state, OcecShape()).features(images.double()).mean((2, 3))
    cosines = F.cosine_similarity(pooled[:, None], rows.double()[None], dim=2)
    for method, scale in (("cosface", 6.0), ("arcface", 4.0), (None, 6.0)):
        file = checkpoint(
            tmp_path, model_state=state, train_config={"margin_method": method} if method else {}
        )
        built = opened(file)
        assert (built.name, built.head, built.classes) == (
            f"builtin:ocec-{method or 'cosface'}",
            "margin_head",
            EYES,
        )
        with torch.no_grad():
            found = built.module.double().eval()(images.double())
        torch.testing.assert_close(found, scale * cosines)
        assert "left out 7 tensors" in " ".join(built.notes)
    plain = opened(checkpoint(tmp_path, model_state=state, train_config={"margin_method": "none"}))
    assert (plain.name, plain.head) == ("builtin:ocec", "head.2")
    assert sum(p.numel() for p in plain.module.parameters()) == COUNTS["ocec"]
    bare = tmp_path / "bare.pt"
    torch.save(state, bare)
    assert opened(bare).name == "builtin:ocec-cosface"


def test_what_is_asked_for_must_agree_with_the_file(tmp_path: Path) -> None:
    file = checkpoint(tmp_path, "ocec-inverted_se-c16")
    assert opened(file, "ocec").name == opened(file, "ocec-c16").name == "builtin:ocec-inverted_se-c16"
    with pytest.raises(UserError) as caught:
        opened(file, "builtin:ocec-baseline-c32-b4")
    assert "arch_variant is baseline by --model and inverted_se in the file" in str(caught.value)
    assert "base_channels is 32 by --model and 16 in the file" in str(caught.value)
    assert "num_blocks" not in str(caught.value)
    with pytest.raises(
        UserError, match=r"--model builtin:fashion_cnn, but .* holds weights of builtin:ocec-inv"
    ):
        opened(file, "builtin:fashion_cnn")


def test_a_model_config_that_its_tensors_contradict_is_explained(tmp_path: Path) -> None:
    content = torch.load(checkpoint(tmp_path))
    content["model_config"] |= {"base_channels": 64}
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match=r"does not fit builtin:ocec-c64"):
        opened(tmp_path / "other.pt")
    for wrong in (
        {"base_channels": "many"},
        {"token_mixer_grid": 3},
        {"num_blocks": 4000},
        {"head_variant": "gru"},
    ):
        torch.save(content | {"model_config": content["model_config"] | wrong}, tmp_path / "strange.pt")
        assert opened(tmp_path / "strange.pt").name == "builtin:ocec"  # by its tensors
    short = {key: t for key, t in content["model_state"].items() if not key.startswith("features.3.")}
    torch.save(short, tmp_path / "short.pt")
    with pytest.raises(UserError, match="num_blocks is 4 by --model and 3 in the file"):
        opened(tmp_path / "short.pt", "ocec-b4")


def test_dropout_0_numbers_the_layers_of_a_head_otherwise(tmp_path: Path) -> None:
    state = lively("ocec-avgmax_mlp").state_dict()
    moved = {key.replace("head.5.", "head.4."): tensor for key, tensor in state.items()}
    content = torch.load(checkpoint(tmp_path, "ocec-avgmax_mlp"))
    content |= {"model_state": moved, "model_config": content["model_config"] | {"dropout": 0.0}}
    torch.save(content, tmp_path / "undropped.pt")
    torch.save(moved, tmp_path / "bare.pt")
    images = torch.rand(2, 3, 48, 48)
    for file in ("undropped.pt", "bare.pt"):
        built = opened(tmp_path / file)
        assert (built.name, built.head) == ("builtin:ocec-avgmax_mlp-undropped", "head.4")
        wanted = Published(state, shape_of("ocec-avgmax_mlp")).logits(images)
        with torch.no_grad():
            torch.testing.assert_close(built.module.double().eval()(images.double())[:, 1], wanted)


def test_other_classes_and_another_order(tmp_path: Path) -> None:
    file, images = checkpoint(tmp_path), torch.rand(2, 3, 48, 48)
    with torch.no_grad():
        same, turned = (opened(file, classes=c).module.eval()(images) for c in (EYES, EYES[::-1]))
    torch.testing.assert_close(turned.softmax(1), same.softmax(1).flip(1))
    three = opened(file, classes=("closed", "half", "open"))
    assert three.head_change.kept == EYES and three.head_change.new == ("half",)
    with torch.no_grad():
        found = three.module.eval()(images)
    torch.testing.assert_close(found[:, 2] - found[:, 0], same[:, 1])
    save_file(three.module.state_dict(), tmp_path / "three.safetensors", metadata=metadata_for(three))
    back = opened(tmp_path / "three.safetensors", classes=EYES)
    assert back.module.get_submodule("head.2").weight.shape == (1, 64)  # type: ignore[union-attr]
    with torch.no_grad():
        torch.testing.assert_close(back.module.eval()(images), same)
    fresh = opened(file, classes=("cat", "dog"))
    assert (fresh.head_change.kind, fresh.head_change.kept) == ("new", ())
    assert sum(p.numel() for p in fresh.module.parameters()) == COUNTS["ocec"]
    half = opened(file, classes=("open", "shut"))  # of a row that is a difference, one end alone says nothing
    assert (half.head_change.kind, half.head_change.new) == ("new", ("open", "shut"))


def test_blocks_and_the_head_as_the_document_has_it() -> None:
    for name in COUNTS:
        made = create(f"builtin:{name}")
        blocks = find_blocks(made.module, made.head_block or made.head)
        assert [block.name for block in blocks] == ["stem", *(f"features.{i}" for i in range(4)), "head"]
        assert all(n.startswith("head.") for n in blocks[-1].parameters)
        assert not any(n.startswith("head") for block in blocks[:-1] for n in block.parameters)


def test_a_grid_that_does_not_fit_is_refused_with_sizes_that_do() -> None:
    """Reference 3E: the command of the program's own README crashes in its first step."""
    with pytest.raises(UserError) as caught:
        create("builtin:ocec-convnext-g3x2", image_size=(24, 40))
    told = str(caught.value)
    assert "a feature map of 3x5, which the token grid 3x2 of the head transformer does not divide" in told
    assert "--token-mixer-grid 3x1 fits" in told
    sizes = [
        tuple(map(int, word.split("x")))
        for word in told.split("--image-size ")[1].split("\n")[0].split(" or ")
    ]
    assert (24, 32) in sizes and (24, 48) in sizes
    for size in sizes:
        create("builtin:ocec-convnext-g3x2", image_size=size).module.eval()(torch.rand(1, 3, *size))
    create("builtin:ocec-convnext-g3x1", image_size=(24, 40))
    with pytest.raises(UserError, match="nothing is left of images of 4x40 pixels"):
        create("builtin:ocec-convnext-avg", image_size=(4, 40))


def test_images_are_stretched_as_the_document_does_it() -> None:
    preprocessing = create("ocec", image_size=(32, 64)).preprocessing
    pixels = np.random.default_rng(0).integers(0, 256, (37, 51, 3), dtype=np.uint8)
    from torchvision.transforms import Resize

    wanted = np.asarray(Resize((32, 64))(Image.fromarray(pixels)))
    view = View(preprocessing)
    found = view.finish([view.resize(pixels)], np.zeros(1, np.uint64), 0)
    assert np.array_equal(found[0], wanted)
    assert outline("builtin:ocec").has_pair and builtin("ocec").preprocessing.stretch


def test_a_file_of_grey_images_is_spread_over_three_channels(tmp_path: Path) -> None:
    content = torch.load(checkpoint(tmp_path))
    stem = content["model_state"]["stem.0.weight"]
    content["model_state"]["stem.0.weight"] = stem.sum(dim=1, keepdim=True)
    torch.save(content, tmp_path / "grey.pt")
    built = opened(tmp_path / "grey.pt")
    assert "the stem 'stem.0': spread its 1 input channel over 3" in built.notes
    grey = torch.rand(2, 1, 48, 48).expand(2, 3, 48, 48)
    wanted = Published(torch.load(tmp_path / "ocec_epoch_0001.pt")["model_state"], OcecShape()).logits(grey)
    with torch.no_grad():
        torch.testing.assert_close(built.module.eval()(grey)[:, 1].double(), wanted, atol=2e-5, rtol=1e-4)
