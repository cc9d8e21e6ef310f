"""Pictures of what predictions rest on: the image, heat maps, the nearest labelled images."""

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
from kdpl.data.splits import labels_of
from kdpl.errors import ConfigError, KdplError, reason
from kdpl.report.names import shorten
from kdpl.report.reasons.heat import heat_map, label_of
from kdpl.report.run_folder import Run
from kdpl.runtime.files import atomic_path
from kdpl.runtime.predictions import spread
from kdpl.tasks import Predicted

NEAREST, MOST_MAPS, MOST_LABELLED = 4, 5, 2000
"""Numbers of labelled images and of maps that are shown, and of labelled images compared."""

_EDGE, _GAP, _LINE = 176, 8, 19
# from dark purple to light yellow: the brighter, the more speaks for the class
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])

Panels = list[tuple[Image.Image, str]]
"""Images with captions."""


def nearest_labelled(classifier: Classifier, data: DomainDataModule) -> Callable[[Tensor], Panels]:
    """Return what finds the labelled images of the highest cosine similarity to an embedding [D].

    Of a run that saw no labels there are none; of more than 2,000, so many are compared.
    """
    records = spread(data.labels.tuning("labeled"), MOST_LABELLED)
    opened = data.splits.open_image
    features = classifier.embed(opened(record.source) for record in records)

    def nearest(embedding: Tensor) -> Panels:
        similarities, places = (features @ embedding).topk(min(NEAREST, len(records)))
        panels: Panels = []
        for similarity, place in zip(similarities.tolist(), places.tolist(), strict=True):
            names = ", ".join(data.class_names[label] for label in labels_of(records[place]))
            caption = f"labelled {names}\nsimilarity {similarity:.2f}"
            panels.append((opened(records[place].source), caption))
        return panels

    return nearest


def explainer(
    classifier: Classifier, folder: Path, out: Path, class_name: str | None
) -> Callable[[int, Item, Predicted], None]:
    """Return what writes an image's picture into ``out``; a ConfigError for a bad class or folder.

    A line on standard error says why the run that the classifier's folder lies in has no images.
    """
    if class_name is not None:
        label_of(classifier, class_name)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = f"--explain {out} cannot be made ({reason(error)}): give another folder"
        raise ConfigError(problem) from error
    nearest: Callable[[Tensor], Panels] = lambda _: []  # noqa: E731
    try:
        nearest = nearest_labelled(classifier, Run.find(folder.resolve().parent).data)
    except (KdplError, OSError) as error:
        print(f"the nearest labelled images are left out: {error}", file=sys.stderr)

    def write(number: int, item: Item, predicted: Predicted) -> None:
        captions: dict[str | None, str] = {}
        for each in predicted.top[:MOST_MAPS]:
            # the node of a tree has no map: that of the most probable class stands for it
            shown = each.class_name if each.class_name in classifier.class_names else None
            captions[shown] = f"{each.class_name or 'rejected'}\n{100 * each.probability:.0f} %"
        if class_name is not None:
            captions = {class_name: class_name}
        near = nearest(predicted.embedding)
        image = item.open(classifier.decoding)
        sheet = picture(classifier, image, captions or {None: "no class"}, near)
        name = re.sub(r"[^\w.-]+", "_", Path(item.name).stem)[:50]
        with atomic_path(out / f"{number:06d}_{name}.png") as temporary:
            sheet.save(temporary)

    return write


def picture(
    classifier: Classifier, image: Image.Image, captions: Mapping[str | None, str], near: Panels
) -> Image.Image:
    """Draw what is seen of an image, heat maps of classes with captions, and more images."""
    panels: Panels = [(to_pil_image(classifier.prepare(image)), "")]
    panels += [(overlay(classifier, image, name), text) for name, text in captions.items()]
    panels += near
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
    """Lay a class's heat map over what is seen of an image; entry point of ``kdpl.demo``."""
    heat = heat_map(classifier, image, name).numpy()
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(heat, stops, part) for part in _COLOURS.T], axis=2)
    grey = classifier.prepare(image).float().mean(dim=0)[:, :, None].numpy()
    return Image.fromarray((0.45 * grey + 0.55 * colours).astype(np.uint8))
