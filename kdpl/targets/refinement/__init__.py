"""Predictions corrected by the shape of the unlabelled images, as a target of students.

The way of an image to its target, before the first step of a fit:

1. ``Refined.gather`` (``target.py``): features of several views by both towers, from the feature
   store, the teacher's predictions, and the labels of the labelled images.
2. ``assign`` (``experts.py``): folds of the labels weigh the opinions of an image, the teacher's
   and those of probes.
3. ``refine`` (``refine.py``): similar images and Gaussians over the pool correct them; labelled
   images keep their labels.
4. ``Refined.compute`` decides whether the result is better than the teacher's predictions, and
   ``PoolTargets`` (``pool_targets.py``) keeps it in the teacher's folder and the run's.
5. ``Refined.load`` reads it back; a training step finds the row of an image by its index.
"""
