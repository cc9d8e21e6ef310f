"""Learnable prompts in both towers of a frozen CLIP, and the student's encoder; no Lightning.

Public names load on first use: a classifier needs no text tower.
"""

from typing import TYPE_CHECKING

from kdpl.runtime.optional import lazily

if TYPE_CHECKING:
    from kdpl.prompts.independent import IndependentPrompts
    from kdpl.prompts.method import MethodFactory, PromptMethod, prompt_method
    from kdpl.prompts.student_encoder import StudentEncoder, StudentPrompts
    from kdpl.prompts.text import TextPrompts
    from kdpl.prompts.vision import PromptConfig, VisionPrompts

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

__getattr__ = lazily(
    __name__,
    {
        "independent": ["IndependentPrompts"],
        "method": ["MethodFactory", "PromptMethod", "prompt_method"],
        "student_encoder": ["StudentEncoder", "StudentPrompts"],
        "text": ["TextPrompts"],
        "vision": ["PromptConfig", "VisionPrompts"],
    },
)
