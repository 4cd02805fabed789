"""Protection, undo and restore of branches and tags, on every kind of storage and catalog."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import vstore
from tests.repositories import HandClock, Place, commit, contents, drop, write
from vstore.catalog.base import Transaction
from vstore.format.record import OperationKind
from vstore.handle import require_unprotected
from vstore.refs import operations, undo

State = dict[str, str]


@pytest.fixture
def repository(place: Place) -> Iterator[vstore.Repository]:
    with place.create(clock=HandClock(), author="ada") as repository:
        yield repository


def state(repository: vstore.Repository) -> State:
    """Return all branches and tags with what they hold."""
    branches = {f"branch {name}": repository.lookup_branch(name) for name in repository.list_branches()}
    return branches | {f"tag {name}": repository.lookup_tag(name) for name in repository.list_tags()}


def newest(repository: vstore.Repository) -> vstore.OperationInfo:
    return next(repository.ops_log())


def head(repository: vstore.Repository, branch: str = "main") -> str:
    return repository.lookup_branch(branch)


def amend(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"y": b"amended"})
    session.amend("amended")


def flush(repository: vstore.Repository) -> None:
    session = repository.writable_session("main")
    write(session, {"z": b"aside"})
    session.flush("aside")


Act = Callable[[vstore.Repository], object]
MOVES: dict[str, Act] = {
    "commit": lambda repository: commit(repository, {"x": b"new"}),
    "amend": amend,
    "create-branch": lambda repository: repository.create_branch("new", head(repository)),
    "delete-branch": lambda repository: repository.delete_branch("other"),
    "reset-branch": lambda repository: repository.reset_branch("main", head(repository, "other")),
    "create-tag": lambda repository: repository.create_tag("new", head(repository)),
    "delete-tag": lambda repository: repository.delete_tag("v1"),
}


@pytest.fixture
def furnished(repository: vstore.Repository) -> vstore.Repository:
    """A repository with two branches and a tag, which differ."""
    repository.create_branch("other", head(repository))
    repository.create_tag("v1", commit(repository, {"x": b"1"}))
    commit(repository, {"x": b"2"})
    return repository


# --- undo ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", MOVES)
def test_undo_puts_back_what_an_operation_moved_and_again_redoes_it(
    place: Place, furnished: vstore.Repository, move: str
) -> None:
    before = state(furnished)
    MOVES[move](furnished)
    after, done = state(furnished), newest(furnished)
    assert after != before
    assert done.kind == move
    undone = furnished.undo()
    assert state(furnished) == state(place.open()) == before
    assert (undone.kind, undone.details, undone.author) == ("undo", {"undone": done.sequence}, "ada")
    assert undone == newest(furnished)
    swapped = tuple((kind, name, now, then) for kind, name, then, now in done.changes)
    assert undone.changes == swapped
    furnished.undo(expected=undone.sequence)
    assert state(furnished) == after


def test_undo_of_a_commit_shows_what_was_there_before_it(furnished: vstore.Repository) -> None:
    lost = commit(furnished, {"x": b"3"})
    furnished.undo()
    assert contents(furnished.readonly_session("main")) == {"x": b"2"}
    assert contents(furnished.readonly_session(snapshot_id=lost)) == {"x": b"3"}
    commit(furnished, {"x": b"4"})
    assert [info.message for info in furnished.ancestry(branch="main")].count("a commit") == 3


@pytest.mark.parametrize(
    "between",
    [
        lambda repository: repository.set_metadata({"a": 1}),
        lambda repository: repository.save_config(),
        lambda repository: repository.protect_branch("release/*"),
        flush,
        lambda repository: repository.reset_branch("main", head(repository)),
    ],
    ids=["metadata", "config", "protection", "flush", "reset to where it is"],
)
def test_undo_passes_over_operations_that_moved_nothing(furnished: vstore.Repository, between: Act) -> None:
    before = state(furnished)
    commit(furnished, {"x": b"3"})
    done = newest(furnished)
    for _ in range(3):
        between(furnished)
    assert furnished.undo(expected=done.sequence).details == {"undone": done.sequence}
    assert state(furnished) == before


def test_the_creation_of_a_repository_can_not_be_undone(repository: vstore.Repository) -> None:
    repository.set_metadata({"a": 1})
    count = len(list(repository.ops_log()))
    for expected in (None, 0):
        with pytest.raises(vstore.SessionStateError, match="creation"):
            repository.undo(expected=expected)
    assert len(list(repository.ops_log())) == count


def test_undo_of_another_operation_than_expected_is_a_conflict(furnished: vstore.Repository) -> None:
    before, done = state(furnished), newest(furnished)
    for wrong in (done.sequence - 1, done.sequence + 1, -1):
        with pytest.raises(vstore.ConflictError, match=rf"{done.sequence} \(commit\), not {wrong}"):
            furnished.undo(expected=wrong)
    assert (state(furnished), newest(furnished)) == (before, done)


@pytest.mark.parametrize("expected", ["3", 3.0, True])
def test_undo_expects_a_number(furnished: vstore.Repository, expected: Any) -> None:
    with pytest.raises(vstore.InvalidInputError, match="ops_log"):
        furnished.undo(expected=expected)


def just_before_update(repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch, act: Act) -> None:
    """Let somebody else act once, between the decision on the next change and its transaction."""
    catalog = repository.handle.catalog
    really = catalog.update

    def update(transaction: Transaction) -> Any:
        monkeypatch.setattr(catalog, "update", really)
        act(repository)
        return really(transaction)

    monkeypatch.setattr(catalog, "update", update)


@pytest.mark.parametrize("move", ["commit", "delete-branch", "create-tag", "delete-tag"])
def test_undo_when_its_ref_moves_meanwhile_is_a_conflict(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    overtaking: dict[str, Act] = {
        "commit": lambda repository: commit(repository, {"x": b"newer"}),
        "delete-branch": lambda repository: repository.create_branch("other", head(repository)),
        "create-tag": lambda repository: repository.delete_tag("new"),
        "delete-tag": lambda repository: repository.create_tag("v1", head(repository), force=True),
    }
    MOVES[move](furnished)
    just_before_update(furnished, monkeypatch, overtaking[move])
    with pytest.raises(vstore.ConflictError, match=r"(branch|tag) '(main|other|new|v1)' holds"):
        furnished.undo()
    assert "undo" not in {entry.kind for entry in furnished.ops_log()}


def test_a_tag_whose_making_was_undone_keeps_its_name_taken(furnished: vstore.Repository) -> None:
    furnished.create_tag("new", head(furnished))
    furnished.undo()
    with pytest.raises(vstore.RefExistsError, match="force=True"):
        furnished.create_tag("new", head(furnished, "other"))


def test_a_read_only_repository_undoes_and_restores_nothing(furnished: vstore.Repository) -> None:
    before = state(furnished)
    furnished.set_status("read_only")
    for call in (
        furnished.undo,
        lambda: furnished.restore(0),
        lambda: furnished.protect_branch("main"),
    ):
        with pytest.raises(vstore.ReadOnlyError):
            call()
    assert state(furnished) == before


# --- restore -------------------------------------------------------------------------------------------------


def test_restore_goes_to_the_state_after_any_operation(place: Place, repository: vstore.Repository) -> None:
    states = {newest(repository).sequence: state(repository)}

    def act(move: Act) -> None:
        move(repository)
        states[newest(repository).sequence] = state(repository)

    act(lambda it: it.create_branch("other", head(it)))
    act(lambda it: commit(it, {"x": b"1"}))
    act(lambda it: it.create_tag("v1", head(it)))
    act(lambda it: commit(it, {"x": b"2"}))
    act(lambda it: it.set_metadata({"a": 1}))
    for name in (
        "commit",
        "amend",
        "create-branch",
        "reset-branch",
        "delete-branch",
        "create-tag",
        "delete-tag",
    ):
        act(MOVES[name])
    act(lambda it: it.create_branch("other", head(it)))
    act(lambda it: it.create_tag("v1", head(it), force=True))
    act(lambda it: it.undo())
    act(lambda it: it.delete_branch("new"))
    recorded = list(states)
    for sequence in [*recorded, *reversed(recorded)]:
        before = newest(repository).sequence
        restored = repository.restore(sequence)
        assert state(repository) == state(place.open()) == states[sequence]
        if restored.sequence > before:
            assert (restored.kind, restored.details) == ("restore", {"restored": sequence})


def test_restore_takes_an_entry_of_the_log_and_can_be_undone(furnished: vstore.Repository) -> None:
    wanted, entry = state(furnished), newest(furnished)
    for move in ("commit", "delete-tag", "delete-branch", "create-branch"):
        MOVES[move](furnished)
    after = state(furnished)
    furnished.restore(entry)
    assert state(furnished) == wanted
    furnished.undo()
    assert state(furnished) == after


def test_a_deleted_branch_is_recovered(furnished: vstore.Repository) -> None:
    session = furnished.writable_session("other")
    write(session, {"x": b"other"})
    session.commit("on other")
    entry = newest(furnished)
    furnished.delete_branch("other")
    furnished.set_metadata({"a": 1})
    furnished.restore(entry)
    assert contents(furnished.readonly_session("other")) == {"x": b"other"}
    assert furnished.metadata == {"a": 1}


def test_restore_of_what_is_already_so_writes_nothing(furnished: vstore.Repository) -> None:
    furnished.set_metadata({"a": 1})
    before = newest(furnished)
    assert furnished.restore(before) == furnished.restore(before.sequence - 1) == before
    commit(furnished, {"x": b"3"})
    furnished.undo()
    assert furnished.restore(before).kind == "undo"


@pytest.mark.parametrize("operation", [-1, 1000, "1", 1.0, None, True])
def test_restore_of_an_unknown_operation_is_refused(furnished: vstore.Repository, operation: Any) -> None:
    before = newest(furnished)
    with pytest.raises(vstore.InvalidInputError, match=f"from 0 to {before.sequence}"):
        furnished.restore(operation)
    assert newest(furnished) == before


def test_a_tag_that_restore_deletes_keeps_its_name_taken(furnished: vstore.Repository) -> None:
    before = newest(furnished)
    furnished.create_tag("new", head(furnished))
    furnished.restore(before)
    assert furnished.list_tags() == {"v1"}
    with pytest.raises(vstore.RefExistsError, match="force=True"):
        furnished.create_tag("new", head(furnished))


@pytest.mark.parametrize("move", ["commit", "delete-branch"])
def test_restore_when_a_ref_moves_meanwhile_is_a_conflict(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch, move: str
) -> None:
    # Branch "other" would stay where it is, and is expected there all the same: a restore is of all refs or of none.
    entry = newest(furnished)
    commit(furnished, {"x": b"3"})
    just_before_update(furnished, monkeypatch, MOVES[move])
    with pytest.raises(vstore.ConflictError, match=r"branch '(main|other)' holds"):
        furnished.restore(entry)
    assert newest(furnished).kind == move


def test_restore_does_not_overwrite_a_branch_that_is_made_meanwhile(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = newest(furnished)
    furnished.delete_branch("other")
    made = head(furnished)
    just_before_update(furnished, monkeypatch, lambda repository: repository.create_branch("other", made))
    with pytest.raises(vstore.ConflictError, match="branch 'other' holds"):
        furnished.restore(entry)
    assert head(furnished, "other") == made


def test_restore_sees_what_happens_while_it_reads_the_log(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, entry = state(furnished), newest(furnished)
    commit(furnished, {"x": b"3"})
    really = undo._before

    def slow(*arguments: Any) -> Any:
        monkeypatch.setattr(undo, "_before", really)
        found = really(*arguments)
        commit(furnished, {"x": b"4"})
        furnished.delete_tag("v1")
        return found

    monkeypatch.setattr(undo, "_before", slow)
    furnished.restore(entry)
    assert state(furnished) == wanted


def test_restore_and_the_log_across_several_batches(
    repository: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "_BATCH", 3)
    wanted = {}
    for number in range(10):
        repository.create_branch(f"b{number}", head(repository))
        wanted[newest(repository).sequence] = state(repository)
        commit(repository, {"x": b"%d" % number})
    log = list(repository.ops_log())
    assert [entry.sequence for entry in log] == list(range(21))[::-1]
    for sequence in (1, 19, 7):
        repository.restore(sequence)
        assert state(repository) == wanted[sequence]


# --- expired snapshots ---------------------------------------------------------------------------------------


def test_what_has_expired_is_not_put_back(furnished: vstore.Repository) -> None:
    lost, entry = head(furnished), newest(furnished)
    amend(furnished)
    drop(furnished, lost)
    after, done = state(furnished), newest(furnished)
    for call in (furnished.undo, lambda: furnished.restore(entry)):
        with pytest.raises(vstore.SnapshotExpiredError, match=rf"branch 'main'.*{lost}"):
            call()
    assert (state(furnished), newest(furnished)) == (after, done)


def test_what_expires_meanwhile_is_not_put_back(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = head(furnished)
    amend(furnished)
    after = state(furnished)
    just_before_update(furnished, monkeypatch, lambda it: drop(it, lost))
    with pytest.raises(vstore.SnapshotExpiredError, match=lost):
        furnished.undo()
    assert state(furnished) == after


# --- protected branches --------------------------------------------------------------------------------------


def test_a_protected_branch_takes_commits_and_is_not_reset_or_deleted(
    place: Place, furnished: vstore.Repository
) -> None:
    furnished.protect_branch("other")
    furnished.protect_branch("main")
    before = state(furnished)
    with place.open() as opened:
        assert opened.list_protected_branches() == {"main", "other"}
        for call in (
            lambda: opened.delete_branch("other"),
            lambda: opened.reset_branch("other", head(opened)),
            lambda: opened.reset_branch("main", head(opened, "other")),
            opened.undo,
            lambda: opened.restore(0),
        ):
            with pytest.raises(vstore.ProtectedBranchError, match=r"unprotect_branch\('(main|other)'\)"):
                call()
    assert state(furnished) == before
    made = commit(furnished, {"x": b"3"})
    assert head(furnished) == made
    furnished.unprotect_branch("other")
    furnished.delete_branch("other")


def test_a_glob_protects_branches_that_are_not_there_yet(furnished: vstore.Repository) -> None:
    for pattern in ("release/*", "v?.[0-9]"):
        furnished.protect_branch(pattern)
    for branch in ("release/2026/11", "release", "v1.0", "v1.x", "Release/1"):
        furnished.create_branch(branch, head(furnished))
    for branch in ("release/2026/11", "v1.0"):
        with pytest.raises(vstore.ProtectedBranchError, match=r"by '(release/\*|v\?.\[0-9\])'"):
            furnished.delete_branch(branch)
    for branch in ("release", "v1.x", "Release/1"):
        furnished.delete_branch(branch)
    furnished.delete_tag("v1")
    assert furnished.list_branches() == {"main", "other", "release/2026/11", "v1.0"}


def test_protection_is_in_the_log_and_protecting_again_does_nothing(repository: vstore.Repository) -> None:
    assert repository.list_protected_branches() == set()
    for _ in range(2):
        repository.protect_branch("b/*")
    repository.unprotect_branch("b/*")
    log = [(entry.kind, entry.details, entry.author) for entry in repository.ops_log()]
    assert log[:-1] == [
        ("unprotect-branch", {"pattern": "b/*"}, "ada"),
        ("protect-branch", {"pattern": "b/*"}, "ada"),
    ]


def test_what_is_not_protected_can_not_be_unprotected(repository: vstore.Repository) -> None:
    with pytest.raises(vstore.InvalidInputError, match="nothing is"):
        repository.unprotect_branch("main")
    repository.protect_branch("m*")
    with pytest.raises(vstore.InvalidInputError, match=r"'m\*' is"):
        repository.unprotect_branch("main")
    assert repository.list_protected_branches() == {"m*"}


@pytest.mark.parametrize("pattern", ["", "a b", "[", "a[", "a//*", "*..*", "-*", "x" * 201, 7, None])
def test_what_no_branch_could_be_called_is_not_protected(repository: vstore.Repository, pattern: Any) -> None:
    with pytest.raises(vstore.InvalidInputError, match="glob"):
        repository.protect_branch(pattern)
    assert repository.list_protected_branches() == set()


@pytest.mark.parametrize("call", ["delete", "reset", "undo", "restore", "amend"])
def test_a_branch_that_is_protected_meanwhile_is_not_moved(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    furnished.reset_branch("other", head(furnished))
    calls: dict[str, Act] = {
        "delete": lambda repository: repository.delete_branch("other"),
        "reset": lambda repository: repository.reset_branch("other", furnished.lookup_tag("v1")),
        "undo": lambda repository: repository.undo(),
        "restore": lambda repository: repository.restore(1),
        "amend": amend,
    }
    before = state(furnished)
    pattern = "m*" if call == "amend" else "o*"
    just_before_update(furnished, monkeypatch, lambda repository: repository.protect_branch(pattern))
    with pytest.raises(vstore.ProtectedBranchError):
        calls[call](furnished)
    assert state(furnished) == before


def test_a_change_beside_a_protection_made_meanwhile_goes_on(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_before_update(furnished, monkeypatch, lambda repository: repository.protect_branch("main"))
    furnished.delete_branch("other")
    assert furnished.list_branches() == {"main"}
    assert furnished.list_protected_branches() == {"main"}


def test_an_amend_beside_the_protection_of_another_branch_goes_on(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_before_update(furnished, monkeypatch, lambda repository: repository.protect_branch("other"))
    amend(furnished)
    assert furnished.lookup_snapshot(head(furnished)).message == "amended"
    assert furnished.list_protected_branches() == {"other"}


def test_a_change_that_is_always_overtaken_gives_up(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = furnished.handle.catalog
    really = catalog.update
    protections = 0

    def update(transaction: Transaction) -> Any:
        nonlocal protections
        if transaction.kind == OperationKind.DELETE_BRANCH:
            protections += 1
            furnished.protect_branch(f"b{protections}")
        return really(transaction)

    monkeypatch.setattr(catalog, "update", update)
    with pytest.raises(vstore.ConflictError, match="protected was changed"):
        furnished.delete_branch("other")
    assert furnished.list_branches() == {"main", "other"}


def test_no_protection_is_lost_among_racing_ones(
    furnished: vstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    just_before_update(furnished, monkeypatch, lambda repository: repository.protect_branch("a"))
    furnished.protect_branch("b")
    assert furnished.list_protected_branches() == {"a", "b"}
    just_before_update(furnished, monkeypatch, lambda repository: repository.protect_branch("c"))
    furnished.unprotect_branch("b")
    assert furnished.list_protected_branches() == {"a", "c"}


def test_a_protected_branch_may_be_moved_forward_again(furnished: vstore.Repository) -> None:
    made = commit(furnished, {"x": b"3"})
    furnished.undo()
    furnished.protect_branch("main")
    furnished.undo()
    assert head(furnished) == made
    with pytest.raises(vstore.ProtectedBranchError):
        furnished.undo()
    assert head(furnished) == made


def test_a_protected_branch_that_was_deleted_before_may_be_put_back(furnished: vstore.Repository) -> None:
    before = state(furnished)
    furnished.delete_branch("other")
    furnished.protect_branch("other")
    furnished.undo()
    assert state(furnished) == before
    with pytest.raises(vstore.ProtectedBranchError):
        furnished.undo()


def test_a_protected_branch_is_not_moved_sideways(furnished: vstore.Repository) -> None:
    amend(furnished)
    furnished.protect_branch("main")
    with pytest.raises(vstore.ProtectedBranchError):
        furnished.undo()


def test_what_a_change_requires_of_protection(repository: vstore.Repository) -> None:
    repository.protect_branch("m*")
    with repository.handle.catalog.reading() as view:
        condition = require_unprotected(view, "other")
        assert (condition.name, condition.expected) == ("protected", view.value("protected"))
        with pytest.raises(vstore.ProtectedBranchError, match="protected by"):
            require_unprotected(view, "main")


# --- the log and the twins -----------------------------------------------------------------------------------


def test_the_log_names_the_author_that_each_handle_was_opened_with(
    place: Place, repository: vstore.Repository
) -> None:
    with place.open(author="grace") as other:
        commit(other, {"x": b"1"})
        other.create_tag("v1", head(other))
    commit(repository, {"x": b"2"})
    with place.open(author="") as nobody:
        nobody.delete_tag("v1")
    authors = [(entry.kind, entry.author) for entry in repository.ops_log()]
    assert authors == [
        ("delete-tag", ""),
        ("commit", "ada"),
        ("create-tag", "grace"),
        ("commit", "grace"),
        ("create-repository", "ada"),
    ]


def test_entries_of_the_log_are_values(furnished: vstore.Repository) -> None:
    furnished.undo()
    one, other = newest(furnished), newest(furnished)
    assert one == other
    assert len({one, other}) == 1


def test_async_twins(furnished: vstore.Repository) -> None:
    async def run() -> None:
        before = newest(furnished)
        await furnished.undo_async(expected=before.sequence)
        await furnished.restore_async(before)
        await furnished.protect_branch_async("main")
        assert await furnished.list_protected_branches_async() == {"main"}
        await furnished.unprotect_branch_async("main")

    asyncio.run(run())
    assert [entry.kind for entry in furnished.ops_log()][:4] == [
        "unprotect-branch",
        "protect-branch",
        "restore",
        "undo",
    ]


# --- the graph -----------------------------------------------------------------------------------------------


def test_the_graph_of_a_repository(furnished: vstore.Repository) -> None:
    session = furnished.writable_session("other")
    write(session, {"y": b"1"})
    made = session.commit("on other\n\nat length")
    tip, tagged, first = (info.id for info in furnished.ancestry(branch="main"))
    lines = list(furnished.ancestry_graph())
    marked = {line.split(" (")[0].split()[-1]: line for line in lines if "*" in line and "(" in line}
    assert set(marked) == {made[:12], tip[:12], tagged[:12]}
    assert marked[made[:12]].endswith("(other) on other")
    assert marked[tip[:12]].endswith("(main) a commit")
    assert marked[tagged[:12]].endswith("(tag: v1) a commit")
    assert lines[-2:] == ["|/", f"* {first[:12]} Repository initialized"]
    assert str(furnished.ancestry_graph()) == "\n".join(lines)


def test_the_graph_of_one_line_of_history(furnished: vstore.Repository) -> None:
    tip, tagged, first = (info.id[:12] for info in furnished.ancestry(branch="main"))
    expected = [
        f"* {tip} (main) a commit",
        f"* {tagged} (tag: v1) a commit",
        f"* {first} (other) Repository initialized",
    ]
    assert list(furnished.ancestry_graph(branch="main")) == expected
    assert list(furnished.ancestry_graph(tag="v1")) == expected[1:]
    assert list(furnished.ancestry_graph(snapshot_id=first)) == expected[2:]


def test_the_graph_takes_at_most_one_start_that_is_there(furnished: vstore.Repository) -> None:
    with pytest.raises(vstore.InvalidInputError, match="one of"):
        furnished.ancestry_graph(branch="main", tag="v1")
    with pytest.raises(vstore.RefNotFoundError):
        furnished.ancestry_graph(branch="absent")


def test_the_graph_passes_through_expired_snapshots(furnished: vstore.Repository) -> None:
    tip, tagged, first = (info.id for info in furnished.ancestry(branch="main"))
    session = furnished.writable_session("other")
    write(session, {"y": b"1"})
    furnished.handle.clock.sleep(1)
    made = session.commit("on other")
    furnished.delete_tag("v1")
    drop(furnished, tagged)
    joined = [
        f"* {made[:12]} (other) on other",
        f"| * {tip[:12]} (main) a commit",
        "|/",
        f"* {first[:12]} Repository initialized",
    ]
    assert list(furnished.ancestry_graph()) == joined
    assert [info.id for info in furnished.ancestry(branch="main")] == [tip, first]
    assert furnished.lookup_snapshot(tip).parent_ids == (tagged,)
    drop(furnished, first)
    assert list(furnished.ancestry_graph()) == [joined[0], "", f"* {tip[:12]} (main) a commit"]
    for named in (
        lambda: furnished.readonly_session(snapshot_id=tagged),
        lambda: furnished.lookup_snapshot(tagged),
    ):
        with pytest.raises(vstore.SnapshotExpiredError, match=tagged):
            named()


def test_the_graph_prints_colours_unless_plain(
    furnished: vstore.Repository, capsys: pytest.CaptureFixture[str]
) -> None:
    furnished.ancestry_graph(plain=True).print()
    assert capsys.readouterr().out == str(furnished.ancestry_graph()) + "\n"
    furnished.ancestry_graph().print()
    assert "\x1b[" in capsys.readouterr().out
