"""A checkpoint from Hugging Face's hub, through its own client.

Knows how a revision is resolved there and what the hub says of its files; the client downloads.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgemma.download.arrival import DownloadFailed, arriving, check_space, settle
from dgemma.download.checkpoint import belonging, manifest_of
from dgemma.download.mirror import whole
from dgemma.download.progress import Progress
from dgemma.download.source import Hub
from dgemma.errors import ConfigurationError
from dgemma.profiles.inventory import FoundCheckpoint, read
from dgemma.profiles.pointer import CHECKPOINTS
from dgemma.sealed import FileRecord

_WORKERS = 4
_CHUNK = 4 << 20


@dataclass(frozen=True)
class _Remote:
    """What the hub says of a file: its SHA-256, or the SHA-1 that git gives small ones."""

    size: int
    sha256: str | None
    blob: str


def bring_from_hub(source: Hub, root: Path, progress: Progress) -> FoundCheckpoint:
    """Download a revision into the store `root`; files that are whole are not fetched again.

    Raises ConfigurationError where the hub does not have it or does not give it, DownloadFailed
    where it cannot be reached or what came is damaged.
    """
    from huggingface_hub import snapshot_download

    with _explained(source):
        revision, remotes = _look(source)
    place = root / CHECKPOINTS / revision
    if (found := whole(place)) is not None:
        return found
    with arriving(place, source) as work:
        client = work / ".cache"
        _remove_incomplete(client)
        size = sum(remote.size for remote in remotes.values())
        here = sum((work / n).stat().st_size for n in remotes if (work / n).is_file())
        check_space(root, size - here, source)
        progress.expect(f"{source}, {revision[:12]}", size)
        progress.advance(here)
        try:
            with _explained(source):
                _apart(
                    lambda: snapshot_download(
                        source.repository,
                        revision=revision,
                        local_dir=work,
                        cache_dir=client / "hub",
                        allow_patterns=list(remotes),
                        max_workers=_WORKERS,
                        tqdm_class=_bar(progress),
                    )
                )
        finally:
            _remove_incomplete(client)
        files = {n: _verified(work / n, remote, source) for n, remote in remotes.items()}
        shutil.rmtree(client)
        origin = f"hf://{source.repository}@{revision}"
        manifest_of(work, files, origin, revision).write(work)
        settle(work, place)
    arrived = read(place)
    assert isinstance(arrived, FoundCheckpoint), arrived
    return arrived


def _apart(call: Callable[[], object]) -> None:
    """In a thread that an interrupt does not wait for: the client's own wait for the network."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _remove_incomplete(client: Path) -> None:
    """The client begins a file anew that it has not finished."""
    for left in client.rglob("*.incomplete"):
        left.unlink(missing_ok=True)


def _look(source: Hub) -> tuple[str, dict[str, _Remote]]:
    """The commit that is meant, and the files of the checkpoint there."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    api = HfApi()
    revision = api.repo_info(source.repository, revision=source.revision).sha
    if revision is None:
        raise DownloadFailed(f"{source}: the hub names no commit of it; name one: @COMMIT")
    listed = api.list_repo_tree(source.repository, revision=revision)
    found = {f.path: f for f in listed if isinstance(f, RepoFile)}
    return revision, {
        name: _Remote(
            found[name].size,
            lfs.sha256 if (lfs := found[name].lfs) is not None else None,
            found[name].blob_id,
        )
        for name in belonging(found, source)
    }


def _verified(path: Path, remote: _Remote, source: Hub) -> FileRecord:
    """A file that is not what the hub says of it is removed, so that it is fetched again."""
    size = path.stat().st_size if path.is_file() else -1
    sha256, blob = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    if size == remote.size:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                sha256.update(chunk)
                if remote.sha256 is None:
                    blob.update(chunk)
        whole = (remote.sha256 or remote.blob) in (sha256.hexdigest(), blob.hexdigest())
        if whole:
            return FileRecord(size, sha256.hexdigest())
    path.unlink(missing_ok=True)
    raise DownloadFailed(
        f"{source}: {path.name}: is not what the hub says of it, and was removed; run it again to "
        "fetch it again"
    )


@contextmanager
def _explained(source: Hub) -> Iterator[None]:
    """Errors of the client, as what to do."""
    import httpx2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise ConfigurationError(
            f"{source}: is given only to those who have accepted its terms; accept them on its "
            "page, and set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise ConfigurationError(f"{source}: the hub has no such revision") from None
    except errors.RepositoryNotFoundError:
        raise ConfigurationError(
            f"{source}: the hub has no such repository, or HF_TOKEN may not see it"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise ConfigurationError(
            f"{source}: HF_HUB_OFFLINE forbids the network; unset it, or bring the model from the "
            "directory of a mirror"
        ) from None
    except (OSError, httpx2.HTTPError, errors.HfHubHTTPError) as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise DownloadFailed(
            f"{source}: {said[0]}; run it again to go on, or bring the model from the directory of "
            "a mirror"
        ) from None


def _bar(progress: Progress) -> Any:
    """What the client shows, which is how many bytes were written."""
    from huggingface_hub.utils.tqdm import tqdm

    class Forward(tqdm):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._counts = options.get("name") == "huggingface_hub.snapshot_download"
            super().__init__(*arguments, **options | {"disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> None:
            if self._counts and n:
                progress.advance(int(n))

    return Forward
