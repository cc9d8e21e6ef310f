"""Pictures of what predictions rest on: image, heat maps, nearest labelled images."""

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from kdpl.classifier import Classifier
from kdpl.classifier.sources import Item
from kdpl.data.datamodule import DomainDataModule
from kdpl.data.sampling import spread
from kdpl.errors import ConfigError, reason
from kdpl.report.reasons.heat import heat_map, label_of
from kdpl.report.run_folder import Run, attempt
from kdpl.runtime.class_names import shorten
from kdpl.runtime.files import atomic_path
from kdpl.tasks import Predicted

NEAREST, MOST_MAPS, MOST_LABELLED = 4, 5, 2000
"""Largest numbers of labelled images shown, maps shown, and labelled images compared."""

_EDGE, _GAP, _LINE = 176, 8, 19
# from dark purple to light yellow: the brighter, the more speaks for the class
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])

Panels = list[tuple[Image.Image, str]]
"""Images with captions."""


def nearest_labelled(classifier: Classifier, data: DomainDataModule) -> Callable[[Tensor], Panels]:
    """Return a function from an embedding [D] to the most similar labelled images.

    At most 2,000 images are compared, by cosine similarity; a run without labels has none.
    """
    records = spread(data.labels.tuning("labeled"), MOST_LABELLED)
    opened = data.splits.open_image
    features = classifier.embed(opened(record.source) for record in records)

    def nearest(embedding: Tensor) -> Panels:
        top = (features @ embedding).topk(min(NEAREST, len(records)))
        panels: Panels = []
        for similarity, i in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            names = ", ".join(data.class_names[label] for label in records[i].labels)
            caption = f"labelled {names}\nsimilarity {similarity:.2f}"
            panels.append((opened(records[i].source), caption))
        return panels

    return nearest


def explainer(
    classifier: Classifier, folder: Path, out: Path, class_name: str | None
) -> Callable[[int, Item, Predicted], None]:
    """Return a function that writes an image's picture into ``out``."""
    # fail before the first image
    if class_name is not None:
        label_of(classifier, class_name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"--explain {out} cannot be made ({reason(error)}): give another folder"
        raise ConfigError(problem) from error
    # labelled images are shown if the run has them
    nearest, gap = attempt(
        lambda: nearest_labelled(classifier, Run.find(folder.resolve().parent).data)
    )
    if gap is not None:
        print(f"the nearest labelled images are left out: {gap}", file=sys.stderr)

    def write(number: int, item: Item, predicted: Predicted) -> None:
        captions: dict[str | None, str] = {
            # a node of a tree has no map: the most probable class stands for it
            name if name in classifier.class_names else None: (
                f"{name or 'rejected'}\n{100 * probability:.0f} %"
            )
            for name, probability in predicted.top[:MOST_MAPS]
        }
        if class_name is not None:
            captions = {class_name: class_name}
        near = [] if nearest is None else nearest(predicted.embedding)
        image = item.open(classifier.decoding)
        sheet = picture(classifier, image, captions or {None: "no class"}, near)
        # the number keeps names unique
        stem = re.sub(r"[^\w.-]+", "_", Path(item.name).stem)[:50]
        with atomic_path(out / f"{number:06d}_{stem}.png") as temporary:
            sheet.save(temporary)

    return write


def picture(
    classifier: Classifier, image: Image.Image, captions: Mapping[str | None, str], near: Panels
) -> Image.Image:
    """Draw an image as the classifier sees it, heat maps of classes, and more images, in a row."""
    panels: Panels = [(to_pil_image(classifier.prepare(image)), "")]
    panels += [(overlay(classifier, image, name), text) for name, text in captions.items()]
    panels += near
    # paste each, with its caption below
    step = _EDGE + _GAP
    sheet = Image.new("RGB", (step * len(panels), step + 2 * _LINE), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for number, (part, caption) in enumerate(panels):
        width, height = (max(1, _EDGE * edge // max(part.size)) for edge in part.size)
        sheet.paste(part.convert("RGB").resize((width, height)), (step * number, 0))
        for line, text in enumerate(caption.split("\n")):
            draw.text((step * number, _EDGE + _LINE * line), shorten(text, 22), "black", font)
    return sheet


def overlay(classifier: Classifier, image: Image.Image, name: str | None = None) -> Image.Image:
    """Lay a class's heat map over an image as the classifier sees it."""
    heat = heat_map(classifier, image, name).numpy()
    # interpolate between the colours
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(heat, stops, part) for part in _COLOURS.T], axis=2)
    grey = classifier.prepare(image).float().mean(dim=0)[:, :, None].numpy()
    return Image.fromarray((0.45 * grey + 0.55 * colours).astype(np.uint8))
