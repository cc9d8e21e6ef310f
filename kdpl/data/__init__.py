"""The data of one domain: a few labelled images per class, unlabelled images, and test images."""
