"""Predictions with rejection, sets or calibrated probabilities."""

from kdpl.doubt import decision_rule


def predict(classifier, images, top_k=1, **wanted):
    return classifier.predict(images, top_k, rule=decision_rule(classifier, **wanted))
