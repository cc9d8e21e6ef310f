"""Try a classifier on a page in the browser.

`pip install gradio`, then `python examples/demo.py CLASSIFIER [IMAGE…]`, where the images are
examples to choose from. Only this machine can open the page, and nothing is sent elsewhere.
"""

import sys

import gradio as gr

from kdpl import Classifier

TOP_K = 5


def build(folder: str, *examples: str) -> gr.Interface:
    """Lay out the page of a classifier's folder."""
    classifier = Classifier.load(folder)

    def classify(image: str) -> dict[str | None, float]:
        """Return the probabilities of the most probable classes."""
        (predictions,) = classifier.predict([image], TOP_K, workers=1)
        return dict(predictions)

    return gr.Interface(
        classify,
        # the file itself, which predict opens as in training
        gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"]),
        gr.Label(num_top_classes=TOP_K, label="Prediction"),
        examples=[[image] for image in examples] or None,
        cache_examples=False,
        title="What is in this image?",
        description=f"One of {len(classifier.class_names)} classes, even if none of them fits."
        if not classifier.task.per_class
        else f"Any of {len(classifier.class_names)} classes, or none of them.",
        flagging_mode="never",
        analytics_enabled=False,
        delete_cache=(60, 300),  # uploads are deleted within six minutes
    )


if __name__ == "__main__":
    build(*sys.argv[1:]).launch(show_error=True)
