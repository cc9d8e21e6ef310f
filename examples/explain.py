"""Draw which parts of an image speak for a class and which against it, by occlusion.

`pip install captum`, then `python examples/explain.py CLASSIFIER IMAGE PICTURE.png [CLASS]`, where
CLASS is the most probable one if it is left out. Of green parts, a blurred copy makes the class
less probable, and of red parts more probable. The other methods of captum.attr, such as
IntegratedGradients, take the same function of images.
"""

import sys

import torch
from captum.attr import Occlusion, visualization
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from kdpl import Classifier
from kdpl.data.decoding import open_image

WINDOW, STRIDE = 4, 16  # fractions of the image's edge


def log_odds(classifier: Classifier, images: Tensor) -> Tensor:
    """Return the log odds [B, C] of all classes for images [B, 3, S, S] in [0, 1]."""
    return classifier.task.probabilities(classifier(images)).logit(eps=1e-6)


def blur(image: Tensor) -> Tensor:
    """Blur an image [3, S, S] until its parts are not recognised."""
    edge = image.shape[-1]
    return gaussian_blur(image, 2 * (edge // 2) + 1, edge / 8)


@torch.no_grad()
def heat_map(classifier: Classifier, image: Tensor, label: int) -> Tensor:
    """Return by how much the log odds of a class fall where an image is blurred, [S, S]."""
    window, stride = (max(1, image.shape[-1] // part) for part in (WINDOW, STRIDE))
    attribution = Occlusion(lambda images: log_odds(classifier, images)).attribute(
        image[None],
        sliding_window_shapes=(3, window, window),
        strides=(3, stride, stride),
        baselines=blur(image)[None],
        target=label,
        perturbations_per_eval=32,
    )
    return attribution[0, 0]


def draw(folder: str, path: str, class_name: str | None = None) -> Figure:
    """Draw an image as the classifier sees it, and the heat map of a class."""
    classifier = Classifier.load(folder)
    image = classifier.prepare(open_image(path, decoding=classifier.decoding)) / 255
    if class_name is None:
        with torch.no_grad():
            label = int(classifier(image[None]).argmax())
    else:
        label = classifier.class_names.index(class_name)
    heat = heat_map(classifier, image, label)
    figure, _ = visualization.visualize_image_attr_multiple(
        heat[:, :, None].numpy(),
        image.permute(1, 2, 0).numpy(),
        methods=["original_image", "blended_heat_map"],
        signs=["all", "all"],
        titles=[path, classifier.class_names[label]],
        use_pyplot=False,
    )
    return figure


if __name__ == "__main__":
    if not 4 <= len(sys.argv) <= 5:
        sys.exit("usage: python examples/explain.py CLASSIFIER IMAGE PICTURE.png [CLASS]")
    classifier, image, picture, *class_name = sys.argv[1:]
    draw(classifier, image, *class_name).savefig(picture)
