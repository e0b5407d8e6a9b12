"""CLIP and SigLIP: the logits of transformers' own models, through every head; and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import HELD_OUT, make_image_processor, make_model, make_tokenizer, pictures
from torch import nn

from warmstart.adapt.patterns import match_blocks
from warmstart.adapt.plan import make_plan
from warmstart.config.schema import AdaptConfig, ModelConfig, OptimConfig, TaskConfig, TextConfig
from warmstart.data.decode import cover
from warmstart.errors import UserError
from warmstart.inference.restore import restore
from warmstart.models.blocks import find_blocks
from warmstart.models.build import BuiltModel, build, metadata_for
from warmstart.models.hf_zoo import _CONFIGS
from warmstart.models.image_text.create import outline_module
from warmstart.models.image_text.prompts import Texts, class_prompts
from warmstart.models.zoo import create

CLASSES = ("red_circle", "blue_square", "green_ring")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that save_pretrained wrote, of random weights: both kinds whole, and the image tower of one alone."""
    transformers.utils.logging.disable_progress_bar()
    root = tmp_path_factory.mktemp("image-text")
    torch.manual_seed(3)
    tokenizer = make_tokenizer()
    clip = make_model(tokenizer)
    with torch.no_grad():  # random towers give all texts nearly the same embedding
        clip.text_model.embeddings.token_embedding.weight.normal_()
    clip.save_pretrained(root / "clip")
    processor = transformers.CLIPProcessor(image_processor=make_image_processor(), tokenizer=tokenizer)
    processor.save_pretrained(root / "clip")
    clip.vision_model.save_pretrained(root / "vision")
    make_image_processor().save_pretrained(root / "vision")
    siglip(root / "siglip")
    return {path.name: path for path in root.iterdir()}


def siglip(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = ["<pad>", "</s>", "<unk>", "a", "photo", "of", ".", "drawing", "red", "blue", "green", "circle"]
    words += ["square", "ring"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "<unk>"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        model_input_names=["input_ids"],
    )  # fmt: skip
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.SiglipConfig(
        text_config={**tower, "vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 32},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
    )
    model = transformers.SiglipModel(config)
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
        model.logit_bias.fill_(-3.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)


def made(folder: Path, head: str = "auto", classes: tuple[str, ...] = CLASSES, **text: Any) -> BuiltModel:
    texts = Texts(TextConfig(head=head, **text))
    return build(ModelConfig(name=f"hf:{folder}"), {}, classes, seed=0, text=texts)


def reference(folder: Path, texts: list[str], images: torch.Tensor) -> torch.Tensor:
    """logits_per_image of transformers' whole model, in the precision of the images."""
    model = transformers.AutoModel.from_pretrained(folder).to(images.dtype).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    padding = (
        {"padding": "max_length", "max_length": 16} if "siglip" in str(folder.name) else {"padding": True}
    )
    with torch.no_grad():
        found: torch.Tensor = model(
            pixel_values=images, **tokenizer(texts, return_tensors="pt", **padding)
        ).logits_per_image
    return found


@pytest.mark.parametrize("head", ["zero-shot", "contrastive"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_those_of_transformers(kind: str, head: str, folders: dict[str, Path]) -> None:
    built = made(folders[kind], head)
    texts = ["a photo of a red circle.", "a photo of a blue square.", "a photo of a green ring."]
    images = torch.randn(5, 3, 32, 32)
    expected = reference(folders[kind], texts, images)
    assert expected.std(dim=1).min() > 1e-3, "texts that are all the same would prove nothing"
    with torch.no_grad():
        found = built.module.eval()(images)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)
        exact = reference(folders[kind], texts, images.double())
        if head == "contrastive":
            torch.testing.assert_close(
                built.module.double().eval()(images.double()), exact, rtol=1e-9, atol=1e-9
            )
    assert built.head_change.kind == "kept" and built.head_change.kept == CLASSES
    assert built.name == f"hf:{folders[kind]}#{head}"


@pytest.mark.parametrize("head", ["zero-shot", "contrastive"])
def test_several_prompts_are_averaged_by_direction(head: str, folders: dict[str, Path]) -> None:
    """Against Radford et al. 2021 in float64, from the embeddings of transformers."""
    templates = ("a photo of a {}.", "a drawing of a {}.", "{}")
    built = made(folders["clip"], head, prompts=templates)
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).double().eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folders["clip"])
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        rows = []
        for name in CLASSES:
            texts = [template.format(name.replace("_", " ")) for template in templates]
            found = model.get_text_features(
                **tokenizer(texts, padding=True, return_tensors="pt")
            ).pooler_output
            mean = (found / found.norm(dim=1, keepdim=True)).mean(dim=0)
            rows.append(mean / mean.norm())
        seen = model.get_image_features(images.double()).pooler_output
        expected = model.logit_scale.exp() * (seen / seen.norm(dim=1, keepdim=True)) @ torch.stack(rows).T
        torch.testing.assert_close(built.module.eval()(images).double(), expected, rtol=1e-4, atol=2e-4)
    described = json.loads(json.loads(metadata_for(built)["warmstart"])["hf_config"])["warmstart"]
    assert described["prompts"]["red_circle"] == [t.format("red circle") for t in templates]


def test_the_linear_head_takes_the_pooled_output(folders: dict[str, Path]) -> None:
    """The class token behind the last norm, and not the mean of the patches; whole folder and image tower alike."""
    theirs = transformers.CLIPVisionModel.from_pretrained(folders["vision"]).eval()
    images = torch.randn(2, 3, 32, 32)
    for kind in ("clip", "vision"):
        built = made(folders[kind])
        head = built.module.get_submodule("classifier")
        assert isinstance(head, nn.Linear)
        with torch.no_grad():
            expected = head(theirs(images).pooler_output)
            torch.testing.assert_close(built.module.eval()(images), expected)
        assert built.text is not None and "text tower is dropped" in str(built.text.dropped)
        assert not [name for name, _ in built.module.named_parameters() if name.startswith("text")]
        assert not [note for note in built.notes if "mean and std" in note]
        assert built.preprocessing.mean == pytest.approx(transformers.CLIPImageProcessor().image_mean)


def test_a_classifier_of_transformers_stays_what_it_is(folders: dict[str, Path], tmp_path: Path) -> None:
    config = transformers.CLIPConfig.from_pretrained(folders["clip"], num_labels=3)
    theirs = transformers.CLIPForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    built = build(ModelConfig(name=f"hf:{tmp_path}"), {}, CLASSES, seed=0)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(built.module.eval()(images), theirs(images).logits)
    with pytest.raises(UserError, match=r"has no text tower"):
        made(tmp_path, "zero-shot")
    with pytest.raises(UserError, match=r"comes without names of classes"):
        restore(f"hf:{tmp_path}", torch.device("cpu"))
    theirs.config.id2label = dict(enumerate(CLASSES))
    theirs.save_pretrained(tmp_path)
    restored = restore(f"hf:{tmp_path}", torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(restored.built.module(images), theirs(images).logits)
    assert restored.built.classes == CLASSES and restored.label == str(tmp_path)


def test_other_image_sizes_have_their_positions_resampled(folders: dict[str, Path]) -> None:
    built = build(ModelConfig(name=f"hf:{folders['clip']}"), {"image_size": (48, 40)}, CLASSES, seed=0)
    theirs = transformers.CLIPVisionModel.from_pretrained(folders["clip"]).eval()
    images = torch.randn(2, 3, 48, 40)
    with torch.no_grad():
        pooled = theirs(images, interpolate_pos_encoding=True).pooler_output
        expected = built.module.get_submodule("classifier")(pooled)
        torch.testing.assert_close(built.module.eval()(images), expected)


def test_the_real_configuration_has_the_published_numbers_of_parameters() -> None:
    config = {"model_type": "clip", **transformers.CLIPConfig(architectures=["CLIPModel"]).to_dict()}
    with torch.device("meta"):
        linear, both = (outline_module(f"nowhere{head}", config) for head in ("", "#contrastive"))
    tower = sum(p.numel() for name, p in linear.named_parameters() if name.startswith("vision_model."))
    assert tower == 87_456_000
    assert sum(p.numel() for p in both.parameters()) == 151_277_313
    assert linear.get_submodule("classifier").weight.shape[1] == 768


def test_blocks_and_rates_of_both_towers(folders: dict[str, Path]) -> None:
    module = made(folders["siglip"], "contrastive").module
    blocks = find_blocks(module, "classifier")
    names = [block.name for block in blocks]
    assert names[0] == "vision_model.embeddings" and names[-1] == "head"
    text = match_blocks("text", names, "--lrs")
    assert text[0] == "text_model.embeddings" and "text_model.encoder.layers.1" in text and len(text) == 4
    assert sorted(p for b in blocks for p in b.parameters) == sorted(dict(module.named_parameters()))
    sizes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    plan = make_plan(
        blocks, sizes, AdaptConfig(layer_decay=0.5, lrs="text_model.embeddings=1e-6"), OptimConfig(lr=1.0)
    )
    rates = {row.name: row.lr for row in plan.rows}
    # Above both are one layer, the tower's own head, and the head: 3 blocks each.
    assert rates["text_model.encoder.layers.0"] == rates["vision_model.encoder.layers.0"] == 0.125
    assert (rates["head"], rates["text_model.embeddings"]) == (1.0, 1e-6)


@pytest.mark.parametrize("head", ["linear", "zero-shot", "contrastive"])
@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_trained_model_needs_its_folder_no_more(
    kind: str, head: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / kind
    shutil.copytree(folders[kind], folder)
    built = made(folder, head)
    file = tmp_path / "m.safetensors"
    save_file(built.module.state_dict(), file, metadata=metadata_for(built))
    shutil.rmtree(folder)
    _CONFIGS.clear()
    again = build(ModelConfig(weights=str(file)), {}, None, seed=7)
    assert (again.name, again.classes, again.preprocessing) == (built.name, CLASSES, built.preprocessing)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.module.eval()(images), built.module.eval()(images))
    if head == "contrastive":
        with pytest.raises(UserError, match=r"has no tokenizer"):
            build(ModelConfig(weights=str(file)), {}, ("red_ring", "blue_ring"), seed=0)
        kept = Texts(processor=folders[kind])
        other = build(ModelConfig(weights=str(file)), {}, ("red_ring", "blue_ring"), seed=0, text=kept)
        with torch.no_grad():
            texts = ["a photo of a red ring.", "a photo of a blue ring."]
            expected = reference(folders[kind], texts, images)
            torch.testing.assert_close(other.module.eval()(images), expected, rtol=1e-4, atol=2e-4)


def test_embeddings_of_classes_are_computed_anew_when_weights_move(folders: dict[str, Path]) -> None:
    module = made(folders["clip"], "contrastive").module.eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = module(images)
        assert torch.equal(module(images), before)
        module.get_parameter("text_projection.weight").add_(torch.randn(32, 64))
        assert not torch.allclose(module(images), before), "in the same pass"
    module(images).sum().backward()
    assert module.get_parameter("text_projection.weight").grad is not None
    module.requires_grad_(False).get_parameter("visual_projection.weight").requires_grad_(True)
    module.train()
    with torch.inference_mode():
        module(images)
    module(images).sum().backward()  # what was kept in inference mode serves a backward pass


def test_the_processor_sees_what_warmstart_sees(folders: dict[str, Path]) -> None:
    """Resize of the shortest edge and centre crop; the filters differ by little (cv2's area and Pillow's bicubic)."""
    own = create(f"hf:{folders['clip']}").preprocessing
    assert (own.image_size, own.crop_pct) == ((32, 32), 1.0)
    large = np.asarray(Image.fromarray(pictures(["red_circle"], 1, 0)[0][0]).resize((90, 60)))
    theirs = transformers.AutoProcessor.from_pretrained(folders["clip"]).image_processor(
        Image.fromarray(large), return_tensors="pt"
    )["pixel_values"][0]
    ours = cover(large, own.image_size) / np.float32(255)
    ours = (ours - np.array(own.mean, np.float32)) / np.array(own.std, np.float32)
    assert np.abs(ours.transpose(2, 0, 1) - theirs.numpy()).mean() < 0.06


def test_prompts(tmp_path: Path) -> None:
    assert class_prompts((), ("red_ring",)) == {"red_ring": ("a photo of a red ring.",)}
    assert TextConfig(prompts="a {}, small;the {}").prompts == ("a {}, small", "the {}")
    file = tmp_path / "p.yaml"
    file.write_text("red_ring: [a ring that is red, 'the {}']\nb: one")
    found = class_prompts((str(file),), ("b", "red_ring"))
    assert found == {"b": ("one",), "red_ring": ("a ring that is red", "the red ring")}
    (tmp_path / "p.json").write_text('["the {}"]')
    assert class_prompts((str(tmp_path / "p.json"),), ("b",)) == {"b": ("the b",)}
    for classes, message in (
        (("b",), "prompts for 'red_ring', which the data have not"),
        (("b", "c", "red_ring"), "no prompts for 'c'"),
    ):
        with pytest.raises(UserError, match=message):
            class_prompts((str(file),), classes)
    file.write_text("3")
    with pytest.raises(UserError, match=r"has another form"):
        class_prompts((str(file),), ("b",))
    file.write_text("[a photo]")
    with pytest.raises(UserError, match=r"'a photo' has no {}"):
        class_prompts((str(file),), ("b",))
    with pytest.raises(ValueError, match=r"has no {} where"):
        TextConfig(prompts="a photo")


def test_what_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds an image tower alone .clip_vision_model."):
        made(folders["vision"], "zero-shot")
    with pytest.raises(UserError, match=r"prompts has no effect with the head linear"):
        made(folders["clip"], prompts="a {}")
    with pytest.raises(UserError, match=r"tower has no effect with the head zero-shot"):
        made(folders["clip"], "zero-shot", tower="frozen")
    with pytest.raises(UserError, match=r"builtin:fashion_cnn has no text tower"):
        build(
            ModelConfig(name="builtin:fashion_cnn", weights="none"), {}, CLASSES, 0,
            text=Texts(TextConfig(head="zero-shot")),
        )  # fmt: skip
    with pytest.raises(UserError, match=r"the head zero-shot classifies by texts already"):
        build(
            ModelConfig(name=f"hf:{folders['clip']}"), {}, CLASSES, 0, TaskConfig(margin_method="cosface"),
            text=Texts(TextConfig(head="zero-shot")),
        )  # fmt: skip
    with pytest.raises(UserError, match=r"needs the weights of both towers"):
        build(
            ModelConfig(name=f"hf:{folders['clip']}", weights="none"), {}, CLASSES, 0,
            text=Texts(TextConfig(head="contrastive")),
        )  # fmt: skip
    with pytest.raises(UserError, match=r"is longer than hf:.* reads"):
        made(folders["clip"], "zero-shot", prompts="a photo" + " of a photo" * 30 + " of a {}")
    with pytest.raises(UserError, match=r"so --dropout 0.2 would do nothing"):
        build(ModelConfig(name=f"hf:{folders['clip']}", dropout=0.2), {}, CLASSES, 0)
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folders["clip"] / name, bare)
    with pytest.raises(UserError, match=rf"hf:{bare}#zero-shot has no tokenizer"):
        made(bare, "zero-shot")
    (note,) = made(bare).notes
    assert "has no preprocessor_config.json" in note and "CLIP's mean and std" in note
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["siglip"] / name, bare)
    (bare / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"the tokenizer of hf:.* cannot be read"):
        made(bare, "zero-shot")


def test_offline_a_hub_name_says_how_to_name_a_folder() -> None:
    with pytest.raises(
        UserError, match=r"(?s)hf:openai/nothing-here are not in the cache.*--model hf:FOLDER"
    ):
        create("hf:openai/nothing-here")


def test_held_out_names_share_colours_and_shapes() -> None:
    colours, shapes = zip(*(name.split("_") for name in HELD_OUT), strict=True)
    assert {colours.count(colour) for colour in colours} == {shapes.count(shape) for shape in shapes} == {2}
