"""Predictions with rejection, sets or calibrated probabilities, and a fit that ends early."""

from lightning.pytorch import Callback

from kdpl.doubt import decision_rule


def predict(classifier, images, top_k=1, **wanted):
    return classifier.predict(images, top_k, rule=decision_rule(classifier, **wanted))


class Stop(Callback):
    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop = True
