"""Learnable prompts in both towers of a frozen CLIP, and the student's encoder; no Lightning."""

from kdpl.prompts.independent import IndependentPrompts
from kdpl.prompts.method import MethodFactory, PromptConfig, PromptMethod, prompt_method
from kdpl.prompts.student_encoder import StudentEncoder, StudentPrompts
from kdpl.prompts.text import TextPrompts
from kdpl.prompts.vision import VisionPrompts

__all__ = [
    "IndependentPrompts",
    "MethodFactory",
    "PromptConfig",
    "PromptMethod",
    "StudentEncoder",
    "StudentPrompts",
    "TextPrompts",
    "VisionPrompts",
    "prompt_method",
]
