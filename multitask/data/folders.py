"""The image files of a folder, and what of it is skipped, and why."""

import collections
import os
from dataclasses import dataclass, field

# Those of JPEG are what browsers, scanners and Windows name it; compared without regard to case.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".pjpeg", ".pjp", ".png", ".webp")
SHOWN = 5  # suffixes in a message


@dataclass
class Skipped:
    """What a search of folders passed over.

    Attributes:
        suffixes: of files of another type -> how many; "" of names without one.
        irregular: image names that are named pipes, sockets or devices.
        hidden: files and folders whose name begins with a dot, such as `._1.jpg` of macOS.
        repeated: links to folders that are read already.
        dangling: links that lead nowhere, other than those named as images.
        unlisted: folders whose content cannot be listed, and why.
    """

    suffixes: collections.Counter[str] = field(default_factory=collections.Counter)
    irregular: list[str] = field(default_factory=list)
    hidden: int = 0
    repeated: int = 0
    dangling: list[str] = field(default_factory=list)
    unlisted: list[str] = field(default_factory=list)

    def reasons(self) -> str:
        """`12 of another type (.txt, .tif), 2 not regular files (a.jpg, …)`, in one line; "" where
        nothing was skipped."""
        parts = []
        if others := self.suffixes.total():
            names = sorted(self.suffixes.items(), key=lambda item: (-item[1], item[0]))
            shown = [name or "no suffix" for name, _ in names[:SHOWN]]
            shown += ["…"] * (len(names) > SHOWN)
            parts.append(f"{others:,} of another type ({', '.join(shown)})")
        if count := len(self.irregular):
            what = "not a regular file" if count == 1 else "not regular files"
            more = ", …" * (count > 1)
            parts.append(f"{count:,} {what} ({self.irregular[0]}{more})")
        if self.hidden:
            parts.append(f"{self.hidden:,} hidden (names that begin with a dot)")
        if self.repeated:
            links = "link" if self.repeated == 1 else "links"
            parts.append(f"{self.repeated:,} {links} to a folder that is read already")
        if links := len(self.dangling):
            what = "link that leads" if links == 1 else "links that lead"
            parts.append(f"{links:,} {what} nowhere ({self.dangling[0]}{', …' * (links > 1)})")
        return " ".join(", ".join(parts + self.unlisted).split())

    def line(self) -> str:
        """`Skipped 14 files: ` and the reasons; "" where nothing was skipped."""
        total = self.suffixes.total() + len(self.irregular) + self.hidden
        files = f" {total:,} {'file' if total == 1 else 'files'}" if total else ""
        return f"Skipped{files}: {reasons}" if (reasons := self.reasons()) else ""


class ImageSearch:
    """Finds image files in folders. A folder that is reached twice is read once.

    Attributes:
        skipped: in all the folders so far.
    """

    def __init__(self) -> None:
        self.skipped = Skipped()
        self._read: set[tuple[int, int]] = set()

    def has_read(self, folder: str) -> bool:
        """Whether it is read already, under whatever name."""
        return identity(folder) in self._read

    def find(self, folder: str) -> list[str]:
        """The image files below a folder, sorted. Links are followed.

        Hidden files and folders are skipped, and what is named as an image and is no regular file.
        A link that leads nowhere is found: whoever reads it tells its name and the reason.
        """
        found, links = [], [folder]
        while links:  # after the real folders, whose files keep their own path then
            links.sort(reverse=True)
            links += self._search(links.pop(), found)
        return sorted(found)

    def _search(self, top: str, found: list[str]) -> list[str]:
        """Adds the image files below a folder to `found`; returns the links to folders."""
        folders, links = [top], []
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
                    found.append(entry.path)
        return links


def identity(path: str) -> tuple[int, int]:
    """The same for all names of a file or folder, links included; OSError where there is none."""
    status = os.stat(path)
    return status.st_dev, status.st_ino
