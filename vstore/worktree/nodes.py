"""Groups, arrays and plain values of a worktree: the base snapshot's, seen through the session's edits.

An edited path is in `drafts` (None: deleted), an edited value in `values` (None: deleted); `hidden` lists folders
whose base content was deleted as a whole, at no cost that grows with it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec

from vstore.blobs.cache import CACHE
from vstore.blobs.reader import BlobReader
from vstore.changes.documents import NodeSpec, parse_documents
from vstore.errors import CorruptionError
from vstore.format.node import (
    Node,
    decode_node,
    decode_value,
    node_key,
    path_of,
    subtree_bounds,
    value_key,
)
from vstore.format.page import Child
from vstore.ids import NodeId
from vstore.keys.zarr import iter_ancestors
from vstore.locks import ForkSafeLock
from vstore.tree import NameCursor
from vstore.tree import get as tree_get
from vstore.worktree.arrays import ArrayState
from vstore.worktree.contents import Content, ContentReader

if TYPE_CHECKING:
    from vstore.worktree.chunk_keys import ChunkKeys

_REMEMBERED_NODES = 4096
_REMEMBERED_ARRAYS = 4096
_SPEC_BYTES = 1000
"""About what a parsed node takes beside its documents."""


class NodeState(msgspec.Struct, frozen=True):
    """A node as it reads now: its documents' contents by name, what they say, and an array's chunk refs."""

    path: str
    node_id: NodeId
    documents: dict[str, Content]
    spec: NodeSpec
    array: ArrayState | None


class KnownArrays:
    """Arrays whose chunk keys need no routing, by path; another dict after each change of a node.

    An object of its own, so that what tells it of changes does not hold the table: a worktree that nobody uses any more
    must let go of its files at once, not when cycles are looked for.
    """

    __slots__ = ("by_path",)

    def __init__(self) -> None:
        self.by_path: dict[str, ChunkKeys] = {}

    def forget(self) -> None:
        # A new dict: a thread that routed a key by what was before puts it into the old one.
        self.by_path = {}


class Drafts(dict[str, NodeState | None]):
    """Edited nodes by path, which calls `changed` after each change and counts what lies below each path."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__()
        self._changed = changed
        self._below: Counter[str] = Counter()

    def __setitem__(self, path: str, state: NodeState | None) -> None:
        if path not in self:
            self._below.update(iter_ancestors(path))
        super().__setitem__(path, state)
        self._changed()

    def __delitem__(self, path: str) -> None:
        super().__delitem__(path)
        self._below.subtract(iter_ancestors(path))
        self._changed()

    def has_below(self, path: str) -> bool:
        """Tell whether any path below `path` is here."""
        return self._below[path] > 0

    def pop(self, path: str) -> NodeState | None:  # type: ignore[override]
        state = self[path]
        del self[path]
        return state

    # A dict's own would not call `changed`.
    clear = popitem = setdefault = update = __ior__ = None  # type: ignore[assignment]


class HiddenFolders(set[str]):
    """Folders, which calls `changed` after one is added."""

    def __init__(self, changed: Callable[[], None], folders: Iterable[str] = ()) -> None:
        super().__init__(folders)
        self._changed = changed

    def add(self, folder: str) -> None:
        super().add(folder)
        self._changed()

    # A set's own would not call `changed`.
    clear = discard = pop = remove = update = __ior__ = None  # type: ignore[assignment]


class NodeTable:
    """Finds and edits nodes and values. The worktree's lock covers all edits."""

    def __init__(
        self, blobs: BlobReader, contents: ContentReader, root: Child | None, lock: ForkSafeLock
    ) -> None:
        self._blobs = blobs
        self._lock = lock
        self._contents = contents
        self.root = root
        self._known_arrays = KnownArrays()
        self.drafts = Drafts(self._known_arrays.forget)
        self.values: dict[str, Content | None] = {}
        self._hidden = HiddenFolders(self._known_arrays.forget)
        self.moved: set[NodeId] = set()
        """Nodes of the base that a move put elsewhere: what is made where they were is another node."""
        self._known: OrderedDict[str, NodeState | None] = OrderedDict()

    @property
    def arrays(self) -> dict[str, ChunkKeys]:
        """The arrays whose chunk keys need no routing, by path; another dict after each change of a node.

        Whoever looks at nodes to put something here must have taken the dict before it looked.
        """
        return self._known_arrays.by_path

    @property
    def hidden(self) -> set[str]:
        """The folders whose base content was deleted as a whole."""
        return self._hidden

    @hidden.setter
    def hidden(self, folders: Iterable[str]) -> None:
        self._hidden = HiddenFolders(self._known_arrays.forget, folders)
        self._known_arrays.forget()

    def remember_array(self, arrays: dict[str, ChunkKeys], keys: ChunkKeys) -> None:
        """Keep an array in `arrays`, if no node lies below it."""
        path = keys.node.path
        if self.drafts.has_below(path) or self._has_base_nodes(path):
            return
        if len(arrays) >= _REMEMBERED_ARRAYS:
            arrays.clear()
        arrays[path] = keys

    def _has_base_nodes(self, path: str) -> bool:
        """Tell whether the base snapshot has any node below `path`, hidden or not."""
        start, stop = subtree_bounds(node_key(path))
        found = NameCursor(self._blobs, self.root).first_at_or_after(start)
        return found is not None and found[0] < stop

    # --- finding ---------------------------------------------------------------------------------------------

    def node(self, path: str) -> NodeState | None:
        """Return the node at `path` as it reads now."""
        if path in self.drafts:
            return self.drafts[path]
        if self.is_hidden(path):
            return None
        return self._base_state(path)

    def _base_state(self, path: str) -> NodeState | None:
        if path in self._known:
            return self._known[path]
        node = self.base_node(path)
        state = None if node is None else self._state_of(path, node)
        self._known[path] = state
        while len(self._known) > _REMEMBERED_NODES:
            self._known.popitem(last=False)
        return state

    def base_node(self, path: str) -> Node | None:
        """Return the base snapshot's node at `path`, hidden or not."""
        entry = tree_get(self._blobs, self.root, node_key(path))
        return None if entry is None else decode_node(entry.value)

    def _state_of(self, path: str, node: Node) -> NodeState:
        documents: dict[str, Content] = dict(node.documents)
        spec = _parsed(self._read_documents(path, documents))
        if (
            spec is None
            or (spec.array is None) != (node.tiles is None)
            or (spec.array and node.tiles and spec.array.ndim != len(node.tiles.extents))
        ):
            raise CorruptionError(
                f"the metadata documents of {path!r} do not describe the node that the snapshot has there. "
                "repo.fsck() names all that is damaged."
            )
        array = None
        if spec.array is not None and node.tiles is not None:
            extents = node.tiles.extents
            array = ArrayState(self._blobs, node.node_id, spec.array, extents, node.tiles, self._lock)
        return NodeState(path, node.node_id, documents, spec, array)

    def _read_documents(self, path: str, documents: dict[str, Content]) -> dict[str, bytes]:
        return {
            name: self._contents.read_content(content, f"document {name} of {path!r}")
            for name, content in documents.items()
        }

    def value(self, key: str) -> Content | None:
        """Return the content of a plain value as it reads now."""
        if key in self.values:
            return self.values[key]
        if self.is_value_hidden(key):
            return None
        return self.base_value(key)

    def base_value(self, key: str) -> Content | None:
        """Return the base snapshot's plain value, hidden or not."""
        entry = tree_get(self._blobs, self.root, value_key(key))
        return None if entry is None else decode_value(entry.value)

    def is_hidden(self, path: str) -> bool:
        """Tell whether the base's node at `path` lies in a folder that was deleted."""
        if not self.hidden:
            return False
        return path in self.hidden or any(above in self.hidden for above in iter_ancestors(path))

    def is_value_hidden(self, key: str) -> bool:
        return bool(self.hidden) and any(above in self.hidden for above in iter_ancestors(key))

    def iter_owners(self, key: str) -> Iterator[NodeState]:
        """Yield the arrays above `key`, nearest first, whose chunk it may name; there is hardly ever a second."""
        for path in iter_ancestors(key):
            state = self.node(path)
            if state is not None and state.array is not None:
                yield state

    def owner(self, key: str) -> NodeState | None:
        """Return the nearest array above `key`."""
        return next(self.iter_owners(key), None)

    # --- listing ---------------------------------------------------------------------------------------------

    def iter_nodes(self, prefix: str = "") -> Iterator[str]:
        """Yield the paths of the nodes whose paths start with `prefix` (not only whole parts); edited ones last."""
        drafts = {path: state for path, state in dict(self.drafts).items() if path.startswith(prefix)}
        for path in self.iter_base_nodes(prefix):
            if path not in drafts and not self.is_hidden(path):
                yield path
        yield from (path for path, state in drafts.items() if state is not None)

    def iter_values(self, prefix: str = "") -> Iterator[str]:
        """Yield the plain values whose keys start with `prefix` (not only whole parts); edited ones last."""
        edits = {key: content for key, content in dict(self.values).items() if key.startswith(prefix)}
        for key in self.iter_base_values(prefix):
            if key not in edits and not self.is_value_hidden(key):
                yield key
        yield from (key for key, content in edits.items() if content is not None)

    def iter_base_nodes(self, prefix: str) -> Iterator[str]:
        """Yield the paths of the base snapshot's nodes that start with `prefix`, hidden or not."""
        return self._iter_base(b"n", prefix)

    def iter_base_values(self, prefix: str) -> Iterator[str]:
        """Yield the keys of the base snapshot's plain values that start with `prefix`, hidden or not."""
        return self._iter_base(b"v", prefix)

    def _iter_base(self, space: bytes, prefix: str) -> Iterator[str]:
        start, stop = _bounds(space, prefix)
        for key, _ in NameCursor(self._blobs, self.root).iter_names(start, stop):
            yield path_of(key)

    def has_base_values(self, prefix: str) -> bool:
        """Tell quickly whether the base snapshot has any plain value whose key starts with `prefix`."""
        start, stop = _bounds(b"v", prefix)
        found = NameCursor(self._blobs, self.root).first_at_or_after(start)
        return found is not None and found[0] < stop

    def child_names(self, folder: str) -> set[str]:
        """Return the first parts of what lies below `folder`: nodes and plain values, not chunks."""
        prefix = f"{folder}/" if folder else ""
        drafts, values = dict(self.drafts), dict(self.values)
        names = {path[len(prefix) :].partition("/")[0] for path in drafts if _is_there(drafts, path, prefix)}
        names |= {key[len(prefix) :].partition("/")[0] for key in values if _is_there(values, key, prefix)}
        names |= self._base_children(b"n", prefix, drafts, self.is_hidden)
        names |= self._base_children(b"v", prefix, values, self.is_value_hidden)
        # The root lies in itself, and a key may end in a slash.
        return names - {""}

    def _base_children(
        self, space: bytes, prefix: str, edits: Mapping[str, object], is_hidden: Callable[[str], bool]
    ) -> set[str]:
        """Return the first parts of what the base has below `prefix`, and the edits neither replace nor hide."""
        start, stop = _bounds(space, prefix)
        head = start if prefix else space + b"\0"
        has_edits = bool(self.hidden) or any(path.startswith(prefix) for path in edits)
        found: set[bytes] = set()
        cursor = NameCursor(self._blobs, self.root)
        at: bytes | None = start
        while at is not None:
            pages, at = cursor.iter_keys(at, stop), None
            for keys in pages:
                shown = keys
                if has_edits:
                    shown = [
                        key for key in keys if (path := path_of(key)) not in edits and not is_hidden(path)
                    ]
                found.update([key[len(head) :].partition(b"\0")[0] for key in shown])
                child, below, _ = keys[-1][len(head) :].partition(b"\0") if keys else (b"", b"", b"")
                if below and child in found:
                    # The page ends in the midst of a child that was found, which may be large: go on behind it.
                    at = head + child + b"\1"
                    break
        return {path_of(space + b"\0" + name) for name in found}


def _is_there(edits: Mapping[str, object], path: str, prefix: str) -> bool:
    return edits[path] is not None and path.startswith(prefix)


def _parsed(documents: dict[str, bytes]) -> NodeSpec | None:
    """Return what documents say; sessions that follow each other on a branch read the same ones."""
    key = ("documents", *sorted(documents.items()))
    spec: NodeSpec | None = CACHE.get(key)
    if spec is None:
        spec = parse_documents(documents)
        if spec is not None:
            CACHE.put(key, spec, sum(map(len, documents.values())) + _SPEC_BYTES)
    return spec


def _bounds(space: bytes, prefix: str) -> tuple[bytes, bytes]:
    """Return [start, stop) of the node tree's keys whose paths start with `prefix`."""
    if not prefix:
        return space, bytes((space[0] + 1,))
    start = space + b"\0" + prefix.encode().replace(b"/", b"\0")
    # No byte of UTF-8 is 0xff.
    return start, start + b"\xff"
