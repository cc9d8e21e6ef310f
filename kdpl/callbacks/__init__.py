"""What happens around training: averaging prompts, handing over to the next stage, measuring, drawing."""

from kdpl.callbacks.averaging import GaussianPromptAveraging
from kdpl.callbacks.choice import BestOnBaseTest
from kdpl.callbacks.handover import FreezeClassVectors, SaveClassifier
from kdpl.callbacks.throughput import Throughput

__all__ = ["BestOnBaseTest", "FreezeClassVectors", "GaussianPromptAveraging", "SaveClassifier", "Throughput"]
