"""Pages of the site that stand elsewhere in the repository, and links to files that are no pages.

The README, for example, is the site's first page. Its links are written for the repository, and become links between
pages here; what they say of a file that is no page stays as its name.
"""

import re
from pathlib import PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "README.md": "index.md",
    "data/README.md": "data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files of the repository that are pages, and their names on the site."""
_PLACE_OF = {name: path for path, name in PAGES.items()}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    root = PurePosixPath(config.docs_dir).parent
    for path, name in PAGES.items():
        with open(root / path, encoding="utf-8") as file:
            files.append(File.generated(config, name, content=file.read()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages."""
    place = PurePosixPath(_PLACE_OF.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        path, sharp, anchor = target.partition("#")
        if "://" in target or not path:
            return found[0]
        inside = _resolved(place / path)
        name = PAGES.get(inside, inside.removeprefix("docs/"))
        if inside not in PAGES and (not inside.startswith("docs/") or files.get_file_from_path(name) is None):
            return f"`{inside}`"
        return f"{image}[{text}]({name}{sharp}{anchor})"

    return _LINK.sub(link, markdown)


def _resolved(path: PurePosixPath) -> str:
    """Return the path without `..`."""
    parts: list[str] = []
    for part in path.parts:
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)
