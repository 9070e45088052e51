"""Search folders for image files, and count the skipped files."""

import collections
import os
from dataclasses import dataclass, field

from multitask.data.image_kinds import SUFFIXES
from multitask.errors import counted

SHOWN = 5  # suffixes that a message lists


@dataclass
class Skipped:
    """The files and folders that a search skipped.

    Attributes:
        suffixes: suffix of files of another type -> count; "" for names without a suffix.
        irregular: named pipes, sockets and devices with the suffix of an image.
        hidden: the number of files and folders whose name begins with a dot, e.g. `._1.jpg`.
        repeated: the number of links to folders that were already searched.
        dangling: broken links, except those with the suffix of an image.
        unlisted: folders whose content cannot be listed, and why.
    """

    suffixes: collections.Counter[str] = field(default_factory=collections.Counter)
    irregular: list[str] = field(default_factory=list)
    hidden: int = 0
    repeated: int = 0
    dangling: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)

    def reasons(self) -> str:
        """The counts and reasons in one line.

        Returns:
            `12 of another type (.txt, .psd), 2 not regular files (a.jpg, …)`; "" if nothing was
            skipped.
        """
        parts = []
        if others := self.suffixes.total():
            names = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))
            shown = [name or "no suffix" for name, _ in names[:SHOWN]]
            shown += ["…"] * (len(names) > SHOWN)
            parts.append(f"{others:,} of another type ({', '.join(shown)})")
        if irregular := len(self.irregular):
            what = counted(irregular, "not a regular file", "not regular files")
            more = ", …" * (irregular > 1)
            parts.append(f"{what} ({self.irregular[0]}{more})")
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden (names that begin with a dot)")
        if self.repeated:
            links = counted(self.repeated, "link")
            parts.append(f"{links} to a folder that was already read")
        if dangling := len(self.dangling):
            what = counted(dangling, "link that leads", "links that lead")
            more = ", …" * (dangling > 1)
            parts.append(f"{what} nowhere ({self.dangling[0]}{more})")
        return " ".join(", ".join(parts + self.unlisted).split())

    def line(self) -> str:
        """`Skipped 14 files: ` and the reasons; "" if nothing was skipped."""
        total = self.suffixes.total() + len(self.irregular) + self.hidden
        files = f" {total:,} {'file' if total == 1 else 'files'}" if total else ""
        return f"Skipped{files}: {reasons}" if (reasons := self.reasons()) else ""


class ImageSearch:
    """Finds image files in folders. A folder that is reached twice is searched once.

    Attributes:
        skipped: the files and folders that all searches so far skipped.
    """

    def __init__(self) -> None:
        self.skipped = Skipped()
        self._read: set[tuple[int, int]] = set()

    def has_read(self, folder: str) -> bool:
        """Whether the folder was searched before, under any name."""
        return identity(folder) in self._read

    def find(self, folder: str) -> list[str]:
        """The image files below a folder, sorted. Links are followed.

        Hidden files and folders are skipped, and so are named pipes, sockets and devices. A broken
        link with the suffix of an image is included, so that its reader reports name and reason.
        """
        files: list[str] = []
        links = [folder]
        while links:  # linked folders come last, so that files in real folders keep the real path
            links.sort(reverse=True)
            links += self._search(links.pop(), files)
        return sorted(files)

    def _search(self, top: str, files: list[str]) -> list[str]:
        """Add the image files below a folder to `files`; return the links to folders."""
        folders = [top]
        links: list[str] = []
        while folders:
            folder = folders.pop()
            try:
                if self.has_read(folder):
                    self.skipped.repeated += os.path.islink(folder)
                    continue
                self._read.add(identity(folder))
                with os.scandir(folder) as listed:
                    entries = sorted(listed, key=lambda entry: entry.name)
            except OSError as error:
                self.skipped.unlisted.append(f"{folder} cannot be listed ({error.strerror})")
                continue
            for entry in entries:
                suffix = os.path.splitext(entry.name)[1].lower()
                if entry.name.startswith("."):
                    self.skipped.hidden += 1
                elif os.path.isdir(entry.path):
                    (links if entry.is_symlink() else folders).append(entry.path)
                elif suffix not in SUFFIXES and not os.path.exists(entry.path):
                    self.skipped.dangling.append(entry.path)
                elif suffix not in SUFFIXES:
                    self.skipped.suffixes[suffix] += 1
                elif os.path.exists(entry.path) and not os.path.isfile(entry.path):
                    self.skipped.irregular.append(entry.path)
                else:
                    files.append(entry.path)
        return links


def identity(path: str) -> tuple[int, int]:
    """A key that all names and links of a file or folder share; may raise OSError."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
