"""Published prompt methods beside PromptSRC's, one file each."""
