"""Links from the site to the rest of the repository, written as they work on GitHub.

Pages in docs/ may link to any file of the repository. Some files of its root are also pages of the
site, and so are the examples: the notebook with the outputs that are saved in it, and the scripts.
Other linked files are copied into the site, so links lead to the version that the page describes.
"""

import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]

PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "SECURITY.md": "security.md",
    "examples/both_stages.py": "both_stages.md",
    "examples/folder_to_onnx.ipynb": "notebook.md",
    "examples/plain.py": "plain.md",
}
"""Files outside docs/ that are pages, and their names in the site."""

# the target of [text](target#anchor), unless it has a scheme, or is within the page or absolute
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and other linked files there."""
    for source, name in PAGES.items():
        path = ROOT / source
        to_markdown = _MARKDOWN.get(path.suffix)
        given = {"content": to_markdown(path)} if to_markdown else {"abs_src_path": str(path)}
        files.append(File.generated(config, name, **given))
    for page in files.documentation_pages():
        for path in sorted(
            {_source(page, match[1]) for match in LINK.finditer(page.content_string)}
        ):
            name = _name(path)
            if (
                name is not None
                and files.get_file_from_path(name) is None
                and (ROOT / path).is_file()
            ):
                files.append(File.generated(config, name, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that work in the repository into links that work in the site."""
    del config

    def to_site(match: re.Match[str]) -> str:
        name = _name(_source(page.file, match[1]))
        if name is None or files.get_file_from_path(name) is None:
            return match[0]  # mkdocs reports it
        return posixpath.relpath(name, posixpath.dirname(page.file.src_uri) or ".") + (
            match[2] or ""
        )

    return LINK.sub(to_site, markdown)


def _of_script(script: Path) -> str:
    """Return a script as Markdown, under the title that its docstring begins with."""
    code = script.read_text(encoding="utf-8")
    title = code.removeprefix('"""').partition(":")[0]
    return f"# {title}\n\n```python\n{code}```\n"


def _of_notebook(notebook: Path) -> str:
    """Return a notebook as Markdown: its texts, its code, and what that printed and showed."""
    parts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                parts.append(
                    f"![output](data:image/png;base64,{''.join(data['image/png']).strip()})"
                )
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    return "\n\n".join(parts)


def _source(file: File, target: str) -> str:
    """Return the path in the repository of a link's target."""
    page = next(
        (source for source, name in PAGES.items() if name == file.src_uri), f"docs/{file.src_uri}"
    )
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), target))


def _name(path: str) -> str | None:
    """Return the path in the site of a file of the repository; None for another file."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return None if path.startswith("..") else PAGES.get(path, f"repository/{path}")


_MARKDOWN = {".ipynb": _of_notebook, ".py": _of_script}
