"""Paths that come from elsewhere, and whether they stay where they belong."""

from pathlib import PurePosixPath, PureWindowsPath


def stays_inside(path: str) -> bool:
    """Whether a relative path, joined to a folder, names something below it, on any system."""
    plain = path.replace("\\", "/")
    parts = PurePosixPath(plain).parts
    return bool(parts) and not plain.startswith("/") and not PureWindowsPath(path).drive and ".." not in parts
