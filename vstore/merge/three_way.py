"""The three-way merge of hierarchies: puts one side's changes since a base onto the other side.

`onto` is the side whose snapshot the result is built on, `incoming` the side whose changes are applied to it; the
rules treat them alike, and only a solver sees which of them is called ours. Nodes are followed by their ids, so that
a node that one side moved gets the other side's changes at its new place, and what one side put into a group that
the other moved goes along.

The merge works in rounds: it builds the result with what is decided so far (`decisions`), looks for what can't be
(`problems`), asks the solver, and builds anew. Chunks are merged last, tile by tile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from msgspec.structs import replace

from vstore.blobs.writer import BlobWriter
from vstore.changes.documents import parse_documents
from vstore.changes.metadata import MetadataClash, merge_documents
from vstore.errors import InternalError
from vstore.format.node import MAX_CONTENT_INLINE_BYTES
from vstore.ids import blake3_digest
from vstore.keys.zarr import join_key
from vstore.merge.chunks import ArrayMerge, ChunkMerger
from vstore.merge.conflicts import Conflict, ConflictType
from vstore.merge.decisions import first_decisions
from vstore.merge.grids import GridRules, Shapes, shape_of, with_shape
from vstore.merge.places import CycleError, Places
from vstore.merge.problems import Problems
from vstore.merge.questions import Questions
from vstore.merge.sides import NodeStates, Side, mean_the_same
from vstore.merge.solvers import Solver
from vstore.worktree.compare import carried_to, same_content
from vstore.worktree.contents import Content, OwnBlob
from vstore.worktree.copying import copy_node
from vstore.worktree.moving import lift_all, place_node
from vstore.worktree.nodes import NodeState
from vstore.worktree.tree import Worktree

_MAX_ROUNDS = 1000


class Merged(NamedTuple):
    """A merged worktree on `onto`, and the conflicts that the solver decided.

    `borrows` tells that it points at blobs that only the base or the incoming side holds.
    """

    tree: Worktree
    settled: tuple[Conflict, ...]
    borrows: bool


def merge_trees(
    base: Worktree,
    onto: Worktree,
    incoming: Worktree,
    solver: Solver,
    make_result: Callable[[], Worktree],
    *,
    incoming_is_ours: bool,
) -> Merged:
    """Return the changes from `base` to `incoming` put onto `onto`.

    `make_result` returns a worktree without edits on `onto`'s snapshot, each time a new one. Raises
    `MergeConflictError` with all conflicts that the solver does not decide; nothing is changed then.
    """
    questions = Questions(solver, incoming_is_ours=incoming_is_ours)
    return _Merge(base, onto, incoming, questions, make_result).run()


class _Merge:
    def __init__(
        self,
        base: Worktree,
        onto: Worktree,
        incoming: Worktree,
        questions: Questions,
        make_result: Callable[[], Worktree],
    ) -> None:
        self._base = base
        self._onto = Side(base, onto)
        self._incoming = Side(base, incoming)
        self._questions = questions
        self._grids = GridRules(self._onto, self._incoming, questions)
        self._make_result = make_result
        self._put: list[int] = []
        self._chunks: ChunkMerger | None = None

    # --- rounds ----------------------------------------------------------------------------------------------

    def run(self) -> Merged:
        try:
            return self._run()
        except BaseException:
            self._release_documents()
            if self._chunks is not None:
                self._chunks.abandon()
            raise

    def _run(self) -> Merged:
        self._todo = first_decisions(self._onto, self._incoming, self._questions)
        for _ in range(_MAX_ROUNDS):
            self._build()
            if not self._settle_problems():
                break
        else:
            raise InternalError(f"a merge did not come to an end in {_MAX_ROUNDS} rounds")
        trees = self._base, self._onto.tree, self._incoming.tree
        self._chunks = ChunkMerger(*trees, self._result, self._questions.decide_chunks)
        for task in self._tasks:
            self._chunks.merge(task)
        if self._questions.open:
            raise self._questions.error()
        return Merged(self._result, tuple(self._questions.settled), self._borrows)

    def _release_documents(self) -> None:
        """Let go of the blobs of merged documents that are not in the result."""
        for slot in self._put:
            self._result.writer.release(slot)
        self._put.clear()

    def _settle_problems(self) -> bool:
        """Ask the solver about the round's problems; return whether another round is due."""
        progress = False
        for problem in self._problems.found:
            key = (problem.conflict.conflict_type, problem.conflict.path)
            if self._questions.was_asked(key):
                # It was decided and came back, or it stands unresolved already.
                self._questions.reopen(key, problem.conflict)
                continue
            choice = self._questions.ask(key, problem.conflict)
            if choice is None:
                continue
            is_incoming = self._questions.is_incoming(choice)
            apply = problem.take_incoming if is_incoming else problem.take_onto
            if apply is None:
                # Decided, but that side can't hold here.
                self._questions.reopen(key, problem.conflict)
            else:
                apply()
                progress = True
        return progress

    # --- building --------------------------------------------------------------------------------------------

    def _build(self) -> None:
        """Make the result as far as is decided, and note what can't be."""
        self._release_documents()
        self._result = self._make_result()
        self._places = Places(self._onto, self._incoming, self._todo)
        self._tasks: list[ArrayMerge] = []
        self._problems = Problems(self._onto, self._incoming, self._todo, self._places, self._result)
        self._borrows = False
        with self._result.lock:
            try:
                self._delete_nodes()
                self._move_nodes()
                self._create_nodes()
                self._update_nodes()
                self._update_values()
                self._problems.check_parents()
                self._problems.check_keys()
            except CycleError as cycle:
                self._problems.only_cycle(cycle.nodes)

    def _delete_nodes(self) -> None:
        drafts = self._result.nodes.drafts
        for node in self._todo.delete | self._todo.drop_onto:
            drafts[self._places.on_onto(node)] = None

    def _move_nodes(self) -> None:
        # A node that stays where it is counts too: what is above it may go.
        pairs = [(source, self._places.of(node)) for source, node in sorted(self._places.moved.items())]
        if all(source == target for source, target in pairs):
            return
        for target, lifted in lift_all(self._result, pairs):
            for path, state in lifted.nodes.items():
                self._place(join_key(target, path) if path else target, state)
            for key, value in lifted.values.items():
                self._result.nodes.values[join_key(target, key)] = value

    def _place(self, path: str, state: NodeState) -> bool:
        """Put a node where it belongs, unless there is another one."""
        name = self._places.name
        existing = self._result.nodes.node(path)
        if existing is not None and name(existing.node_id) != name(state.node_id):
            self._problems.add_collision(path, name(state.node_id), name(existing.node_id))
            return False
        place_node(self._result, path, state)
        return True

    def _create_nodes(self) -> None:
        for node in sorted(self._incoming.created - self._todo.drop_incoming, key=self._incoming.path):
            state = self._incoming.after[node]
            path = self._places.of(node)
            existing = self._result.nodes.node(path)
            if node in self._onto.created:
                if existing is not None and self._places.name(existing.node_id) == node:
                    self._merge_shared(NodeStates(node, path, None, existing, state))
            elif existing is not None and self._are_twins(state, existing):
                self._places.add_twin(node, existing.node_id, path)
                self._merge_node(NodeStates(existing.node_id, path, None, existing, state))
            else:
                self._place(path, self._adopted(state))
        for node in sorted(self._todo.revive, key=lambda node: self._places.revived(node).path):
            if self._place(self._places.of(node), self._adopted(self._places.revived(node))):
                self._borrows = True

    def _are_twins(self, state: NodeState, existing: NodeState) -> bool:
        """Tell whether both sides created the same."""
        return existing.node_id in self._onto.created and mean_the_same(state, existing)

    def _merge_shared(self, states: NodeStates) -> None:
        """Merge a node that both sides got although the base has it not."""
        if mean_the_same(states.incoming, states.onto):
            self._merge_node(states)
        else:
            self._take_whole(states, take_incoming=self._grids.ask_whole(states))

    def _adopted(self, state: NodeState) -> NodeState:
        """Return a node of incoming's as a node of the result."""
        if state.array is not None and state.array.base is not None:
            self._borrows = True
        return copy_node(self._result, state)

    def _update_nodes(self) -> None:
        for node, state in sorted(self._incoming.after.items(), key=lambda item: item[1].path):
            if node in self._incoming.created or node in self._onto.deleted or node in self._todo.drop_onto:
                continue
            if self._incoming.documents_changed(node) or self._incoming.chunks_changed(node):
                path = self._places.of(node)
                current = self._result.nodes.node(path)
                if current is not None and self._places.name(current.node_id) == node:
                    before = self._incoming.before[node]
                    self._merge_node(NodeStates(node, path, before, current, state))

    def _merge_node(self, states: NodeStates) -> None:
        """Merge documents and note the chunks for later."""
        takes_incoming = self._grids.whole_from_incoming(states)
        if takes_incoming is not None:
            self._take_whole(states, take_incoming=takes_incoming)
            return
        path, base, onto, incoming = states.path, states.base, states.onto, states.incoming
        before = {} if base is None else self._base.documents(base)
        documents = self._result.documents(onto), self._incoming.tree.documents(incoming)

        def decide(clash: MetadataClash) -> Any:
            return self._questions.decide_metadata(path, clash)

        merged = merge_documents(before, *documents, decide)
        spec = parse_documents(merged)
        if spec is None or (spec.array is None) != (onto.array is None):
            conflict = Conflict(ConflictType.ZarrMetadataDoubleUpdate, f"/{path}")
            self._problems.add_open(conflict)
            return
        shapes = Shapes(*map(shape_of, (before, *documents, merged)))
        cut = self._grids.cut(states, spec.array, shapes)
        if cut is not None and cut.spec is not spec.array:
            merged = with_shape(merged, documents[0 if cut.keeps_onto else 1])
            spec = parse_documents(merged)
            if spec is None:
                raise InternalError(f"the merged documents of {path!r} make no node")
        contents = {
            name: self._content(name, data, (onto, documents[0]), (incoming, documents[1]))
            for name, data in merged.items()
        }
        state = replace(onto, documents=contents, spec=spec)
        self._result.nodes.drafts[path] = state
        if state.array is not None and spec.array is not None:
            state.array.take_spec(spec.array, self._result.dictionaries)
            self._tasks.append(ArrayMerge(path, base, incoming, state, merged, cut))

    def _take_whole(self, states: NodeStates, *, take_incoming: bool) -> None:
        """Let the node be what one side has, with all its chunks."""
        if take_incoming:
            self._borrows = True
            state = self._adopted(states.incoming)
            placed = replace(state, path=states.path, node_id=states.onto.node_id)
            self._result.nodes.drafts[states.path] = placed

    def _content(self, name: str, data: bytes, *sides: tuple[NodeState, dict[str, bytes]]) -> Content:
        """Return merged bytes as a document's content: a side's own where they are its."""
        for state, documents in sides:
            if documents.get(name) == data:
                content = state.documents[name]
                if state is sides[1][0] and not isinstance(content, (bytes, OwnBlob)):
                    self._borrows = True
                return content
        writer = self._result.own
        if len(data) <= MAX_CONTENT_INLINE_BYTES or not isinstance(writer, BlobWriter):
            return data
        digest = blake3_digest(data)
        slot = writer.put(data, digest)
        self._put.append(slot)
        return OwnBlob(slot, len(data), digest)

    # --- plain values ----------------------------------------------------------------------------------------

    def _update_values(self) -> None:
        for key, old, new in self._incoming_values():
            current = self._result.nodes.value(key)
            if same_content(current, new) or same_content(old, new):
                continue
            if not same_content(current, old):
                conflict = Conflict(ConflictType.ValueDoubleUpdate, f"/{key}")
                if not self._questions.is_incoming(self._questions.ask(("value", key), conflict)):
                    continue
            if new is not None and not isinstance(new, (bytes, OwnBlob)):
                self._borrows = True
            self._result.put_value(key, new)

    def _incoming_values(self) -> Iterator[tuple[str, Content | None, Content | None]]:
        """Yield the result's key, the base's content and incoming's of each value that incoming changed."""
        side = self._incoming
        back = {new: old for old, new in side.paths.items()}
        for key, (old, new) in side.values.items():
            if new is not None:
                origin = carried_to(key, back)
                base = self._base.nodes.value(origin) if origin != key else old
                if not (origin != key and same_content(base, new)):
                    yield self._places.from_incoming(key), base, new
            elif (
                carried_to(key, side.paths) == key
                or side.tree.nodes.value(carried_to(key, side.paths)) is None
            ):
                yield self._places.from_onto(carried_to(key, self._onto.paths)), old, None
