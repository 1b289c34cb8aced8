"""Whether a folder lies on a file system of this machine, or on one that other machines may use, too.

A database can't be shared through memory with processes elsewhere. What is not known is taken as local: then it is tried.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

import msgspec

from streambatch.errors import ConfigError

VARIABLE = "STREAMBATCH_JOURNAL"
NETWORK = frozenset(
    [
        "nfs",
        "nfs3",
        "nfs4",
        "cifs",
        "smb2",
        "smb3",
        "smbfs",
        "9p",
        "afs",
        "afpfs",
        "coda",
        "ncpfs",
        "webdav",
        "davfs",
        "ceph",
        "lustre",
        "gpfs",
        "beegfs",
        "orangefs",
        "pvfs2",
        "glusterfs",
        "ocfs2",
        "gfs2",
        "vboxsf",
        "vmhgfs",
        "prl_fs",
        "virtiofs",
        "fuse",
        "osxfuse",
        "macfuse",
    ]
)
_ESCAPE = re.compile(r"\\([0-7]{3})")
_MAC_LINE = re.compile(r".* on (/.*) \(([^,)]+)[^()]*\)")


class Mount(msgspec.Struct, frozen=True):
    """A file system and where it begins."""

    point: str
    kind: str


def may_share(folder: str | os.PathLike[str], environ: Mapping[str, str]) -> bool:
    """Whether a journal in this folder may be read while it is written; the variable overrules. Raises ConfigError."""
    asked = environ.get(VARIABLE, "")
    if asked not in ("", "shared", "exclusive"):
        raise ConfigError(f"{VARIABLE} is {asked!r}; use shared, exclusive, or leave it out.")
    return asked == "shared" if asked else not is_network(kind_of(os.path.realpath(folder), _mounts()))


def is_network(kind: str) -> bool:
    """FUSE, too: behind it may be anything, sshfs for one."""
    return kind in NETWORK or kind.startswith("fuse.")


def kind_of(path: str, mounts: list[Mount]) -> str:
    """The kind of file system an absolute path lies on: the longest mount point above it, the newest of several; "": unknown."""
    best = Mount("", "")
    for mount in mounts:
        inside = path == mount.point or path.startswith(f"{mount.point.rstrip('/')}/")
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best.kind


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """Linux, proc(5): `36 35 98:0 /root /point options [optional ...] - kind source options`; odd characters are octal."""
    for line in text.split("\n"):
        before, dash, after = line.partition(" - ")
        fields = before.split(" ")
        if dash and len(fields) > 4:
            point = _ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
            yield Mount(point, after.split(" ")[0])


def parse_mount(text: str) -> Iterator[Mount]:
    """macOS, what `mount` prints: `source on /point (kind, options)`."""
    for line in text.split("\n"):
        match = _MAC_LINE.fullmatch(line)
        if match is not None:
            yield Mount(match[1], match[2])


def _mounts() -> list[Mount]:
    """As this process sees them; none where nobody tells."""
    try:
        if sys.platform == "darwin":
            told = subprocess.run(["/sbin/mount"], capture_output=True, timeout=10, check=False)
            return list(parse_mount(os.fsdecode(told.stdout)))
        with open("/proc/self/mountinfo", "rb") as file:
            return list(parse_mountinfo(os.fsdecode(file.read())))
    except (OSError, subprocess.SubprocessError):
        return []
