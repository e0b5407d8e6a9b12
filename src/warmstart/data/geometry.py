"""Where a pixel comes from: the window of evaluation, random boxes, one matrix for all of the geometry; and masks.

Shapes: N samples, H x W an image before it is cropped, h x w what the model takes. Sizes and corners are
(down, right); boxes are (N, 4): top, left, height, width in pixels of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from warmstart.errors import UserError, listing

NUM_TRIES = 10  # boxes drawn until one fits, as in torchvision
BOX_DRAWS = 2 * NUM_TRIES + 2  # uniform numbers that `random_boxes` needs per sample
_CROP_RATIOS = (3 / 4, 4 / 3)  # width to height
_ERASE_RATIOS = (1 / 3.3, 1 / 0.3)
_ERASE_AREAS = (0.02, 1 / 3)


def evaluation_corner(
    sizes: np.ndarray, resize_size: tuple[int, int] | np.ndarray, out_size: tuple[int, int] | np.ndarray
) -> np.ndarray:
    """Top left corners (..., 2) of what evaluation sees of images of these sizes (..., 2).

    It is the centre of the centre: both crops round down, so their sum is not that of one crop.
    An image smaller than `resize_size` is taken as it is.
    """
    frame = np.minimum(sizes, resize_size)
    return (sizes - frame) // 2 + (frame - np.asarray(out_size)) // 2


def evaluation_crop(image: np.ndarray, resize_size: tuple[int, int], out_size: tuple[int, int]) -> np.ndarray:
    """What evaluation sees of one image (H, W, C), or of its mask (H, W): a view of h x w."""
    height, width = out_size
    assert image.shape[0] >= height and image.shape[1] >= width, f"cannot crop {out_size} of {image.shape}"
    top, left = evaluation_corner(np.array(image.shape[:2]), resize_size, out_size).tolist()
    return image[top : top + height, left : left + width]


def frame_centres(sizes: np.ndarray, resize_size: tuple[int, int]) -> np.ndarray:
    """The middle (N, 2) of each image's centre crop to `resize_size`, pixel centres at whole numbers."""
    frame = np.minimum(sizes, resize_size)
    return (sizes - frame) // 2 + (frame - 1) / 2


def crop_boxes(uniform: np.ndarray, sizes: np.ndarray, smallest: float) -> np.ndarray:
    """Boxes of torchvision's RandomResizedCrop(scale=(smallest, 1), ratio=(3/4, 4/3)), its fallback too."""
    boxes = random_boxes(uniform, sizes, (smallest, 1.0), _CROP_RATIOS, sizes)
    failed = boxes[:, 2] == 0
    height, width = sizes[failed].T
    low, high = _CROP_RATIOS
    extents = np.column_stack(
        (
            np.where(width / height < low, np.rint(width / low), height),
            np.where(width / height > high, np.rint(height * high), width),
        )
    )
    boxes[failed] = np.hstack(((sizes[failed] - extents) // 2, extents))
    return boxes


def erase_boxes(uniform: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Boxes of torchvision's RandomErasing with its default ranges; of height 0 where none fits."""
    return random_boxes(uniform, sizes, _ERASE_AREAS, _ERASE_RATIOS, sizes - 1)


def random_boxes(
    uniform: np.ndarray,
    sizes: np.ndarray,
    areas: tuple[float, float],
    ratios: tuple[float, float],
    most: np.ndarray,
) -> np.ndarray:
    """Boxes in whole pixels: the share of the area is uniform, the logarithm of width / height too.

    The first of the tries that is not larger than `most` (N, 2) is placed uniformly; where none is, the
    height is 0. `uniform` is (N, BOX_DRAWS) in [0, 1).
    """
    tries = uniform[:, :-2].reshape(len(uniform), NUM_TRIES, 2)
    area = sizes.prod(axis=1)[:, None] * (areas[0] + tries[..., 0] * (areas[1] - areas[0]))
    low, high = np.log(ratios)
    ratio = np.exp(low + tries[..., 1] * (high - low))
    extents = np.rint(np.sqrt(np.stack((area / ratio, area * ratio), axis=-1)))
    fits = ((extents > 0) & (extents <= most[:, None])).all(axis=-1)
    chosen = extents[np.arange(len(uniform)), fits.argmax(axis=1)]
    chosen[~fits.any(axis=1)] = 0
    return np.hstack((np.floor(uniform[:, -2:] * (sizes - chosen + 1)), chosen))


def rotate_and_shear(degrees: np.ndarray, shear: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """(N, 2, 2) from output (x, y) to source (x, y), about a common centre.

    As if the image were sheared down by shear[:, 0] and right by shear[:, 1] (tangents), then rotated
    counter-clockwise and enlarged.
    """
    cos, sin = np.cos(np.radians(degrees)) / scale, np.sin(np.radians(degrees)) / scale
    turn = np.stack((np.stack((cos, -sin), axis=-1), np.stack((sin, cos), axis=-1)), axis=1)
    down, right = shear.T
    one = np.ones_like(down)
    back = np.stack((np.stack((one, -right), axis=-1), np.stack((-down, 1 + down * right), axis=-1)), axis=1)
    return np.asarray(back @ turn)


def output_to_source(
    linear: np.ndarray,
    boxes: np.ndarray,
    shift: np.ndarray,
    flipped: np.ndarray,
    centres: np.ndarray,
    out_size: tuple[int, int],
) -> np.ndarray:
    """(N, 2, 3) from output (x, y, 1) to source (x, y), pixel centres at whole numbers.

    As if `linear` (N, 2, 2) had acted on the image about its centre, then the box, shifted by so many
    output pixels (N, 2), had been cut out and resized to h x w, then mirrored where flipped.
    """
    step = boxes[:, 2:] / out_size  # source pixels per output pixel
    start = boxes[:, :2] + (shift + 0.5) * step - 0.5
    start[:, 1] += np.where(flipped, step[:, 1] * (out_size[1] - 1), 0.0)
    step[:, 1] *= np.where(flipped, -1.0, 1.0)
    step, start, middle = step[:, ::-1], start[:, ::-1], centres[:, ::-1]  # (y, x) -> (x, y)
    offset = np.einsum("nij,nj->ni", linear, start - middle) + middle
    return np.concatenate((linear * step[:, None], offset[..., None]), axis=2)


def lies_inside(matrices: np.ndarray, sizes: np.ndarray, out_size: tuple[int, int]) -> np.ndarray:
    """bool (N,): every output pixel comes from within its image, up to the outer edge of the edge pixels."""
    height, width = out_size
    corners = np.array([(x, y, 1) for x in (-0.5, width - 0.5) for y in (-0.5, height - 0.5)])
    points = np.einsum("nij,cj->nci", matrices, corners)
    slack = 1e-6
    return np.asarray(
        ((points > -0.5 - slack) & (points < sizes[:, None, ::-1] - 0.5 + slack)).all(axis=(1, 2))
    )


class Motion(NamedTuple):
    """How a batch is moved, for its images and for their masks; the arrays have a row per sample."""

    matrices: np.ndarray  # (N, 2, 3), see output_to_source
    inside: np.ndarray  # bool (N,), see lies_inside; these are clamped to their edge pixels
    flipped: np.ndarray  # bool (N,)
    erased: np.ndarray  # (N, 4) box in the output; of height 0 for none
    out_size: tuple[int, int]

    @property
    def borders(self) -> list[int]:
        """OpenCV's word for what lies outside each image."""
        return np.where(self.inside, cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT).tolist()


@dataclass(frozen=True)
class MaskRules:
    """What geometry must know about ids: `ignore` stands for no class, `flip_pairs` swap in a mirror image.

    Raises UserError for pairs that do not say clearly what becomes of an id.
    """

    ignore: int = 255
    flip_pairs: tuple[tuple[int, int], ...] = ()  # a left and a right eye

    def __post_init__(self) -> None:
        named = [number for pair in self.flip_pairs for number in pair]
        unclear = {
            number for number in named if number < 0 or number == self.ignore or named.count(number) > 1
        }
        if unclear:
            raise UserError(
                f"flip pairs {listing(self.flip_pairs)}: {listing(sorted(unclear))} cannot be swapped",
                f"pairs of two ids, each named once, none of them negative or the ignored id {self.ignore}",
            )

    def mirrored(self, num: int) -> np.ndarray:
        """int64 (num,): what each id below `num`, pairs among them, is in a mirror image; the order of its scores."""
        ids = np.arange(num)
        for left, right in self.flip_pairs:
            ids[[left, right]] = right, left
        return ids


def move_masks(masks: Sequence[np.ndarray], motion: Motion, rules: MaskRules) -> np.ndarray:
    """uint8 or uint16 N of (H_i, W_i), at least one -> (N, h, w): where the images go, the nearest pixel's id.

    What lies outside an image, or is erased, is `rules.ignore`.
    """
    kind = masks[0].dtype
    assert kind in (np.uint8, np.uint16), kind
    limit = np.iinfo(kind).max + 1
    assert max(rules.ignore, *map(max, rules.flip_pairs), 0) < limit, f"{rules}, and masks of {kind}"
    swapped = rules.mirrored(limit).astype(kind) if rules.flip_pairs else None
    flags = cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    borders, erased = motion.borders, motion.erased.astype(int).tolist()
    result = np.empty((len(masks), *motion.out_size), dtype=kind)
    for row, mask in enumerate(masks):
        moved = cv2.warpAffine(
            mask,
            motion.matrices[row],
            motion.out_size[::-1],
            flags=flags,
            borderMode=borders[row],
            borderValue=rules.ignore,
        )
        result[row] = swapped[moved] if swapped is not None and motion.flipped[row] else moved
        top, left, height, width = erased[row]
        result[row, top : top + height, left : left + width] = rules.ignore
    return result
