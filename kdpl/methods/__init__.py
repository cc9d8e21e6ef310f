"""Published prompt methods beside PromptSRC's, and continued distillation; one file each."""
