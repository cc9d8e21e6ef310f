"""Survey of a user's images: sizes and bad files."""

from collections.abc import Sequence
from dataclasses import replace

from kdpl.data.decoding import Decoding, opened
from kdpl.data.parallel import in_parallel
from kdpl.data.sampling import held_out_of
from kdpl.data.sources import content_of, digest_of_content
from kdpl.data.survey.found import FoundImage
from kdpl.data.survey.views import is_drawn
from kdpl.errors import DataError, visible


def inspect_images(images: Sequence[FoundImage], workers: int | None = None) -> list[FoundImage]:
    """Decode images on all cores with a progress bar; fill in size, digest and fault."""
    return list(in_parallel(_inspect, images, "looking", workers))


def set_aside(
    images: list[FoundImage], split: str, share: float, least: int = 2
) -> list[FoundImage]:
    """Move a share of each class's labelled training images to a split, always the same images.

    Only classes with at least ``least`` images take part, or all with several labels an image.

    At least one image moves, and one stays; a group moves as a whole, see ``held_out_of``.
    """
    train = [image for image in images if image.label and image.split == "train"]
    sets = any(image.separator is not None for image in train)
    labels = ((image.path, image.classes if sets else image.label) for image in train)
    groups = {image.path: image.group for image in train if image.group}
    chosen = held_out_of(labels, share, groups, 1 if sets else least)
    return [replace(image, split=split) if image.path in chosen else image for image in images]


def _inspect(image: FoundImage) -> FoundImage:
    try:
        image.path.encode()  # as the table needs it
        content = content_of(image.path)
        with opened(image.path, content) as picture:
            rgb = Decoding().to_rgb(picture, f"image {image.path}")
        image = replace(image, size=rgb.size, drawn=is_drawn(rgb))
    except DataError as error:
        return replace(image, fault=str(error))
    except UnicodeEncodeError:
        return replace(
            image, fault=f"image {visible(image.path)} has a path that is not UTF-8: rename it"
        )
    return replace(image, digest=digest_of_content(content))
