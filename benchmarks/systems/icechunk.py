"""icechunk: in a local folder, which it never syncs, and in memory."""

from __future__ import annotations

from typing import Any

from benchmarks.systems.repositories import RepositorySystem, SessionChange


class Icechunk(RepositorySystem):
    name = "icechunk"
    packages = ("icechunk", "zarr")

    def make_storage(self) -> Any:
        """Return where the repository is."""
        import icechunk

        return icechunk.local_filesystem_storage(str(self.folder))

    def _options(self) -> dict[str, Any]:
        import icechunk

        config = icechunk.RepositoryConfig.default()
        store = icechunk.local_filesystem_store(str(self.sources.absolute()))
        config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(self.sources_prefix, store))
        access = icechunk.containers_credentials({self.sources_prefix: None})
        return {"config": config, "authorize_virtual_chunk_access": access}

    def create_repository(self) -> Any:
        import icechunk

        self.sources.mkdir(exist_ok=True)
        return icechunk.Repository.create(self.make_storage(), **self._options())

    def open_repository(self) -> Any:
        import icechunk

        return icechunk.Repository.open(self.make_storage(), **self._options())

    def commit_change(self, change: SessionChange, message: str) -> None:
        import icechunk

        change.session.commit(message, rebase_with=icechunk.ConflictDetector())


class IcechunkMemory(Icechunk):
    name = "icechunk-memory"
    is_persistent = False

    def make_storage(self) -> Any:
        import icechunk

        return icechunk.in_memory_storage()
