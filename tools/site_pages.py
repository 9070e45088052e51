"""Hook of MkDocs: files outside docs/ that the documentation site also shows.

MkDocs reads docs/ only. The files below keep their places, where GitHub and the package show them.
Links between them and docs/ are paths in the repository, which this hook translates.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# file of the repository -> its place in the site
SHOWN = {
    "data_specs/README.md": "choices.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "data_specs/wikiart.toml": "specs/wikiart.toml",
    "data_specs/wikiart_lite.toml": "specs/wikiart_lite.toml",
    "data_specs/demo.toml": "specs/demo.toml",
    "examples/quickstart.ipynb": "examples/quickstart.ipynb",
    "examples/own_collection.ipynb": "examples/own_collection.ipynb",
}
ORIGINS = {place: name for name, place in SHOWN.items()}
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(?=[)#])")


def on_files(files: Any, config: Any) -> Any:
    """Add the files of SHOWN to the site."""
    for name, place in SHOWN.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Translate the links of a page from paths in the repository to paths in the site."""
    place = page.file.src_uri
    folder = posixpath.dirname(ORIGINS.get(place, f"docs/{place}"))

    def translated(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[1]))
        if target.startswith("docs/"):
            return target.removeprefix("docs/")
        return SHOWN.get(target, link[1])

    return LINK.sub(translated, markdown)
