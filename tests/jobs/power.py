"""A disk that forgets what was not synced: records of power.c, played back up to the moment at which the power went.

The model is stricter than most file systems: a name is on disk when its folder was synced (that of a new file also when
the file itself was), bytes are when their file was; of all else anything may be there, or nothing.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

HEAD = struct.Struct("<iiiqq")
ACKS = "acks"


@dataclass(frozen=True)
class Act:
    """One act: c(reate), d (make a folder), w(rite), t(runcate), s(ync), u(nlink), r(ename). Paths are below the root."""

    kind: str
    path: PurePosixPath
    other: PurePosixPath
    at: int
    data: bytes


@dataclass
class Node:
    """A file or a folder, as it is on disk (`bytes`, `names`) and what was done to it since."""

    is_folder: bool
    bytes: bytearray = field(default_factory=bytearray)
    names: dict[str, Node] = field(default_factory=dict[str, "Node"])
    live: dict[str, Node] = field(default_factory=dict[str, "Node"])
    waiting: list[Act] = field(default_factory=list[Act])
    renamed: list[tuple[str, Node | None]] = field(default_factory=list[tuple[str, "Node | None"]])


def acts(log: Path, root: Path) -> Iterator[Act]:
    """The acts that a process was seen to do."""
    data, place = log.read_bytes(), 0
    while place < len(data):
        kind, first, second, at, size = HEAD.unpack_from(data, place)
        place += HEAD.size
        names = [data[place : place + first], data[place + first : place + first + second]]
        place += first + second
        paths = [PurePosixPath(name.decode()) for name in names]
        below = [path.relative_to(root) if path.is_absolute() else path for path in paths]
        yield Act(chr(kind), below[0], below[1], at, data[place : place + size])
        place += size


class Disk:
    """A folder on a disk that is told of every act."""

    def __init__(self) -> None:
        self.root = Node(True)

    def do(self, act: Act) -> None:
        """One more act."""
        match act.kind:
            case "c" | "d":
                self._name(act.path, Node(act.kind == "d"))
            case "u":
                self._name(act.path, None)
            case "r":
                node = self._find(act.path)
                self._name(act.path, None)
                self._name(act.other, node)
            case "s":
                self._sync(act.path)
            case _:
                self._find(act.path).waiting.append(act)

    def state(self, chance: random.Random | None = None) -> dict[PurePosixPath, bytes | None]:
        """What is there after the power has gone: files with their bytes, folders with None. With `chance` some of what
        was not synced, else nothing of it.
        """
        found: dict[PurePosixPath, bytes | None] = {}
        self._collect(self.root, PurePosixPath(), chance, found)
        return found

    def _collect(
        self, node: Node, place: PurePosixPath, chance: random.Random | None, found: dict[PurePosixPath, bytes | None]
    ) -> None:
        names = dict(node.names)
        # A journal keeps the order of names.
        for name, child in node.renamed[: chance.randint(0, len(node.renamed)) if chance else 0]:
            _set(names, name, child)
        for name, child in names.items():
            if child.is_folder:
                found[place / name] = None
                self._collect(child, place / name, chance, found)
            else:
                kept = [act for act in child.waiting if chance and chance.random() < 0.5]
                found[place / name] = bytes(_written(child.bytes, kept))

    def _find(self, path: PurePosixPath) -> Node:
        node = self.root
        for part in path.parts:
            node = node.live[part]
        return node

    def _name(self, path: PurePosixPath, node: Node | None) -> None:
        folder = self._find(path.parent)
        _set(folder.live, path.name, node)
        folder.renamed.append((path.name, node))

    def _sync(self, path: PurePosixPath) -> None:
        node = self._find(path)
        node.bytes, node.waiting = _written(node.bytes, node.waiting), []
        for name, child in node.renamed:
            _set(node.names, name, child)
        node.renamed = []
        if not node.is_folder:
            folder = self._find(path.parent)
            new = [pair for pair in folder.renamed if pair[1] is node]
            for name, child in new:
                _set(folder.names, name, child)
            folder.renamed = [pair for pair in folder.renamed if pair not in new]


def _set(names: dict[str, Node], name: str, node: Node | None) -> None:
    if node is None:
        names.pop(name, None)
    else:
        names[name] = node


def _written(content: bytearray, waiting: list[Act]) -> bytearray:
    content = bytearray(content)
    for act in waiting:
        if act.kind == "t":
            del content[act.at :]
        content.extend(bytes(max(0, act.at + len(act.data) - len(content))))
        content[act.at : act.at + len(act.data)] = act.data
    return content
