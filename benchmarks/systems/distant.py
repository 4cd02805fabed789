"""Systems in an S3 bucket that is far away: `distance` has the server, and the line that makes it far.

All have the settings that they come with, but for `+wide`: as many requests at once for zarr as vstore allows itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from benchmarks import distance
from benchmarks.systems.base import DEFAULT_PIPELINE, System
from benchmarks.systems.icechunk import Icechunk
from benchmarks.systems.repositories import RepositorySystem
from benchmarks.systems.tensorstore import TensorStoreFile, TensorStoreOcdbt
from benchmarks.systems.vstore import VStore
from benchmarks.systems.zarr_systems import FUSED, OWN, WIDE, PlainZarrSystem


class Distant(System):
    """What lies below the folder's name in the bucket; nothing lies in the folder."""

    is_distant = True
    is_durable = True

    @property
    def prefix(self) -> str:
        """What the names of all its objects start with."""
        return prefix_of(self.folder)

    def requests(self) -> Mapping[str, int]:
        found: Mapping[str, int] = distance.traffic()["requests"]
        return found

    @classmethod
    def remove(cls, folder: Path) -> None:
        distance.remove_below(prefix_of(folder).partition("/")[0])


def prefix_of(folder: Path) -> str:
    return f"{folder.parent.name}/{folder.name}"


class VStoreS3(Distant, VStore):
    name = "vstore-s3"
    pipelines: ClassVar[tuple[str, ...]] = (DEFAULT_PIPELINE, WIDE, FUSED, OWN)

    def create_repository(self) -> Any:
        import vstore

        return vstore.Repository.create(self.location())

    def open_repository(self) -> Any:
        import vstore

        return vstore.Repository.open(self.location())

    def location(self) -> Any:
        return distance.s3_store(self.prefix)

    def collecting(self) -> Iterator[tuple[str, Any]]:
        yield from RepositorySystem.collecting(self)


class IcechunkS3(Distant, Icechunk):
    name = "icechunk-s3"
    pipelines: ClassVar[tuple[str, ...]] = (DEFAULT_PIPELINE, WIDE)

    def make_storage(self) -> Any:
        import icechunk

        return icechunk.s3_storage(
            bucket=distance.BUCKET,
            prefix=self.prefix,
            region=distance.REGION,
            endpoint_url=distance.line_url(),
            allow_http=True,
            force_path_style=True,
            access_key_id=distance.KEY_ID,
            secret_access_key=distance.SECRET,
        )

    def _options(self) -> dict[str, Any]:
        return {}


class ZarrS3(Distant, PlainZarrSystem):
    """zarr's own store over obstore: an object for each chunk and each document, and no commits."""

    name = "zarr-s3"
    packages = ("zarr", "obstore")
    wants_consolidated = True
    is_durable = True
    pipelines: ClassVar[tuple[str, ...]] = (DEFAULT_PIPELINE, WIDE)

    def make_store(self) -> Any:
        from zarr.storage import ObjectStore

        return ObjectStore(distance.s3_store(self.prefix))


class _TensorStoreS3(Distant):
    def create(self) -> None:
        pass

    def base(self, path: str) -> dict[str, Any]:
        """Return the specification of the keys below `path`."""
        return {
            "driver": "s3",
            "bucket": distance.BUCKET,
            "path": f"{self.prefix}/{path}",
            "endpoint": distance.line_url(),
            "aws_region": distance.REGION,
            "aws_credentials": {"type": "environment"},
        }


class TensorStoreS3(_TensorStoreS3, TensorStoreFile):
    name = "tensorstore-s3"

    def key_values(self, path: str, **options: Any) -> dict[str, Any]:
        return {**self.base(f"{path}/"), **options}


class TensorStoreOcdbtS3(_TensorStoreS3, TensorStoreOcdbt):
    name = "tensorstore-ocdbt-s3"

    def key_values(self, path: str, **options: Any) -> dict[str, Any]:
        return {"driver": "ocdbt", "base": self.base(""), "path": f"{path}/", **options}


DISTANT: tuple[type[System], ...] = (VStoreS3, IcechunkS3, ZarrS3, TensorStoreS3, TensorStoreOcdbtS3)
