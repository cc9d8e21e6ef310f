"""What may be a class name: anything that can be read on one line, wherever it comes from."""

from kdpl.errors import visible

_LONGEST = 1000  # CLIP's text tower reads 77 tokens, which are a few hundred letters


def fault_of_name(name: object) -> str | None:
    """Say what is wrong with a class name, as the rest of a sentence that begins with it; None if nothing is.

    Names go into tables, pages, pictures and onto terminals. What has a meaning there is escaped there; what could not
    be seen or written at all is refused: line breaks, control characters, marks that turn the direction of a line, and
    halves of characters, which no file can hold.
    """
    if not isinstance(name, str):
        return f"is no text but of type {type(name).__name__}"
    if not name.strip():
        return "is empty"
    if len(name) > _LONGEST:
        return f"has {len(name)} characters, expected at most {_LONGEST} ('{visible(name[:40])}…')"
    if visible(name) != name:
        return f"has characters that cannot be shown ('{visible(name)[:80]}')"
    return None
