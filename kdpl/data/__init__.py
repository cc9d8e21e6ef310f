"""The data of one domain: a few labelled images per class, many without labels, and those to be tested on."""
