"""An image tower with a linear classifier, or with the text tower beside it.

Names of parameters are those of transformers' CLIPModel and SiglipModel (`vision_model.`, `visual_projection.`,
`text_model.`, `text_projection.`), and `classifier.` for what gives the logits.
Shapes: N images, K classes, P prompts of all classes, L tokens, D numbers of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from warmstart.models.image_text.processor import Tokens


class ImageTower(nn.Module):
    """What both models share: (N, C, H, W) -> embeddings (N, D). `description` is their config as JSON."""

    def __init__(self, vision_model: Any, visual_projection: nn.Module | None, description: str) -> None:
        super().__init__()
        self.vision_model, self.visual_projection = vision_model, visual_projection
        self.description = description

    def image_embeddings(self, images: Tensor) -> Tensor:
        """The pooled output (CLIP: the class token behind the last norm), projected where there is a projection.

        Images of another size than the model's have its position embeddings resampled, as transformers does it.
        """
        side = self.vision_model.config.image_size
        is_other = tuple(images.shape[-2:]) != (side, side)
        pooled: Tensor = self.vision_model(images, interpolate_pos_encoding=is_other).pooler_output
        return pooled if self.visual_projection is None else self.visual_projection(pooled)


class ImageClassifier(ImageTower):
    """(N, C, H, W) -> logits (N, K), linear in the pooled output, or (`normalises`) in its projection of length 1.

    With rows exp(logit_scale) x text embedding and the logit bias, the second is zero-shot classification by these
    texts (Radford et al. 2021, section 3.1; as a layer in Wortsman et al. 2022, WiSE-FT).
    """

    def __init__(
        self, vision_model: Any, visual_projection: nn.Module | None, classifier: nn.Linear, normalises: bool
    ) -> None:
        super().__init__(vision_model, visual_projection, "")
        self.classifier, self.normalises = classifier, normalises

    def forward(self, images: Tensor) -> Tensor:
        embeddings = self.image_embeddings(images)
        if not self.normalises:
            return self.classifier(embeddings)
        # bfloat16 has three digits, and these logits are 100 times a cosine.
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.classifier(F.normalize(embeddings.to(self.classifier.weight.dtype), dim=-1))


class TextClassifier(nn.Module):
    """Logits of image embeddings (N, D) by those of classes (K, D): exp(logit_scale) x cosine + logit_bias.

    It holds the tokens of the prompts, as buffers that no file has: the metadata state them.
    """

    token_ids: Tensor
    token_mask: Tensor | None
    owners: Tensor

    def __init__(self, logit_scale: Tensor, logit_bias: Tensor | None) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(logit_scale.detach().clone())
        self.logit_bias = None if logit_bias is None else nn.Parameter(logit_bias.detach().clone())
        self.num_classes = 0

    def set_prompts(self, tokens: Tokens, owners: list[int]) -> None:
        """`owners` is the number of the class of each prompt."""
        mask = None if tokens.mask is None else torch.tensor(tokens.mask)
        self.register_buffer("token_ids", torch.tensor(tokens.ids), persistent=False)
        self.register_buffer("token_mask", mask, persistent=False)
        self.register_buffer("owners", torch.tensor(owners), persistent=False)
        self.num_classes = max(owners) + 1

    def averaged(self, embeddings: Tensor) -> Tensor:
        """(P, D) of the prompts -> (K, D) of the classes: see `class_means`."""
        return class_means(embeddings, self.owners, self.num_classes)

    def forward(self, images: Tensor, classes: Tensor) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            dtype = self.logit_scale.dtype
            cosines = F.linear(F.normalize(images.to(dtype), dim=-1), classes.to(dtype))
            logits = self.logit_scale.exp() * cosines
            return logits if self.logit_bias is None else logits + self.logit_bias


class ContrastiveModel(ImageTower):
    """Both towers: (N, C, H, W) -> logits (N, K) by the class prompts, as the text tower embeds them now.

    With `texts`, the tokens of a caption of each image and their mask, it is the similarities (N, N) to these instead.
    """

    def __init__(
        self,
        vision_model: Any,
        visual_projection: nn.Module | None,
        text_model: Any,
        text_projection: nn.Module | None,
        classifier: TextClassifier,
    ) -> None:
        super().__init__(vision_model, visual_projection, "")
        self.text_model, self.text_projection, self.classifier = text_model, text_projection, classifier
        self._kept: tuple[object, Tensor] | None = None

    def forward(self, images: Tensor, texts: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        embeddings = self.image_embeddings(images)
        if texts is None:
            return self.classifier(embeddings, self.class_embeddings())
        captions = embed_texts(self.text_model, self.text_projection, *texts)
        with torch.autocast(embeddings.device.type, enabled=False):
            captions = F.normalize(captions.to(self.classifier.logit_scale.dtype), dim=-1)
        return self.classifier(embeddings, captions)

    def train(self, mode: bool = True) -> ContrastiveModel:
        self._kept = None  # between passes the weights may have moved
        super().train(mode)
        return self

    def class_embeddings(self) -> Tensor:
        """(K, D) of length 1. Where nothing of the text tower learns, it runs once for all batches of a pass."""
        parameters = [*self.text_model.parameters()]
        if self.text_projection is not None:
            parameters += self.text_projection.parameters()
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return self._embedded()
        device = parameters[0].device
        precision = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        now = (device, precision, tuple(parameter._version for parameter in parameters))
        if self._kept is None or self._kept[0] != now:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = now, self._embedded()
        return self._kept[1]

    def _embedded(self) -> Tensor:
        mask = self.classifier.token_mask
        embeddings = embed_texts(self.text_model, self.text_projection, self.classifier.token_ids, mask)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.classifier.averaged(embeddings.to(self.classifier.logit_scale.dtype))


def with_fixed_texts(model: ContrastiveModel) -> ImageClassifier:
    """The same answers from the image tower alone, with the texts' embeddings as they are now as rows."""
    head = model.classifier
    with torch.no_grad():
        rows = head.logit_scale.exp() * model.class_embeddings().to(head.logit_scale.dtype)
        linear = nn.Linear(rows.shape[1], len(rows), bias=head.logit_bias is not None).to(rows.device)
        linear.weight.copy_(rows)
        if head.logit_bias is not None:
            linear.bias.copy_(head.logit_bias.expand(len(rows)))
    return ImageClassifier(model.vision_model, model.visual_projection, linear, normalises=True)


def embed_texts(text_model: Any, projection: nn.Module | None, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Tokens (P, L) -> embeddings (P, D) in the space of the images."""
    pooled: Tensor = text_model(input_ids=ids, attention_mask=mask).pooler_output
    return pooled if projection is None else projection(pooled)


def class_means(embeddings: Tensor, owners: Tensor, num_classes: int) -> Tensor:
    """(P, D) -> (K, D): of each class's prompts, normalised, the mean, normalised (Radford et al. 2021, 3.1.4)."""
    lengths_of_one = F.normalize(embeddings, dim=-1)
    belongs = F.one_hot(owners, num_classes).T.to(
        embeddings.dtype
    )  # a sum by index is in no fixed order on CUDA
    return F.normalize(belongs @ lengths_of_one, dim=-1)
