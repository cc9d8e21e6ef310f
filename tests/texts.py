"""Texts that a person may use, of any language."""

from hypothesis import strategies as st

from kdpl.runtime.class_names import composed, fault_of_name

# what formats, shells, pages and spreadsheets take for something else
_MEANING = st.sampled_from([*"\"',;:=|{}[]<>&#%/\\$*?~`-_. \t", "://", "label", "null", "\ufeff"])


def text(without="", max_size=12):
    """Any text of characters that a file can hold; ``without`` these."""
    letters = st.characters(exclude_categories=["Cs"]) | st.characters(max_codepoint=126)
    pieces = (letters | _MEANING).map(lambda piece: "".join(c for c in piece if c not in without))
    return st.lists(pieces, max_size=max_size).map("".join)


def class_names(max_size=12):
    """Any text that may name a class, composed, and that nothing strips."""
    return (
        text(max_size=max_size)
        .map(str.strip)
        .map(composed)
        .filter(lambda name: fault_of_name(name) is None)
    )
