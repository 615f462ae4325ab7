"""Where runs and datasets lie: a folder on a disk, or a prefix of an object store that a URL names (any of fsspec's).

Knows names and bytes, not what they mean. On a disk a file appears by rename once it is synced; in a store an object
appears when its upload ends. fsspec, and the library of a store, are imported where a URL asks for them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import IO, Any, Protocol

from teragpt.config import ConfigError, Problem


class Folder(Protocol):
    """A folder, there or not. Its methods raise OSError."""

    @property
    def look_every(self) -> float:
        """Seconds between looks at something that seldom changes."""
        ...

    def __truediv__(self, name: str) -> Folder: ...

    def entries(self) -> dict[str, int | None]:
        """What lies directly in it: each file's size in bytes, None for a folder; empty where it is not there."""
        ...

    def read(self, name: str) -> bytes:
        """A file's content."""
        ...

    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file to read from its beginning, as long as the context lasts."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one piece: it is absent, as before, or whole, also after a power cut."""
        ...

    def create(self, name: str, content: bytes) -> None:
        """Write a file where none is. Raises FileExistsError where one is; of two at once, one gets that."""
        ...

    def remove(self, first: str) -> None:
        """Remove it with all that lies in it, the file `first` before anything else."""
        ...

    def fill(self, make: Callable[[Path], None]) -> None:
        """Put into it what `make` writes to the folder that it is called with."""
        ...

    def local(self) -> AbstractContextManager[Path]:
        """The folder on this machine, for reading while the context lasts."""
        ...

    def log(self, name: str, part: int) -> Log:
        """A file to add to. In a store, which cannot add to an object, each `part` is a file of its own."""
        ...


class Log:
    """Records added to a file; `publish` makes them visible to others where adding alone does not."""

    def __init__(self, file: IO[bytes], publish: Callable[[], None]) -> None:
        self.file, self.publish = file, publish

    def add(self, record: bytes) -> None:
        """Add a line, or another record, which is whole for any who reads."""
        self.file.write(record)
        self.file.flush()

    def close(self) -> None:
        """Add no more."""
        self.file.close()


def folder_at(place: str | Path, field: str) -> Folder:
    """The folder at a path or URL. Raises ConfigError, naming the setting `field`, for a URL nothing here can open."""
    if "://" not in str(place):
        return Disk(Path(place))
    bucket = Bucket(str(place).rstrip("/"))
    try:
        bucket.open()
    except (ImportError, ValueError) as error:
        allowed = f"a path, or a URL that fsspec and what is installed beside it open ({error})"
        raise ConfigError([Problem(field, str(place), allowed)]) from None
    return bucket


@dataclass(frozen=True)
class Disk:
    """A folder on a disk, local or shared by nodes."""

    path: Path
    look_every = 1.0

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> Disk:
        return Disk(self.path / name)

    def entries(self) -> dict[str, int | None]:
        """See Folder."""
        found: dict[str, int | None] = {}
        with suppress(FileNotFoundError), os.scandir(self.path) as listed:
            for one in listed:
                with suppress(FileNotFoundError):  # gone since: a draft
                    found[one.name] = None if one.is_dir() else one.stat().st_size
        return found

    def read(self, name: str) -> bytes:
        """See Folder."""
        return (self.path / name).read_bytes()

    def stream(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """See Folder."""
        return (self.path / name).open("rb")

    def write(self, name: str, content: bytes) -> None:
        """See Folder."""
        self.draft(name, content).replace(self.path / name)
        self.sync()

    def create(self, name: str, content: bytes) -> None:
        """See Folder: link(2) fails where the name is taken."""
        draft = self.draft(name, content)
        try:
            os.link(draft, self.path / name)
        finally:
            draft.unlink()
        self.sync()

    def draft(self, name: str, content: bytes) -> Path:
        """A synced file beside `name`."""
        self.path.mkdir(parents=True, exist_ok=True)
        draft = self.path / f".{name}.{os.getpid()}"
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        return draft

    def sync(self) -> None:
        """Wait until the names in it are on the disk too."""
        handle = os.open(self.path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)

    def remove(self, first: str) -> None:
        """See Folder."""
        (self.path / first).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def fill(self, make: Callable[[Path], None]) -> None:
        """See Folder."""
        make(self.path)

    def local(self) -> AbstractContextManager[Path]:
        """See Folder."""
        return nullcontext(self.path)

    def log(self, name: str, part: int) -> Log:
        """See Folder: parts follow one another in one file, each on a line of its own."""
        del part
        self.path.mkdir(parents=True, exist_ok=True)
        log = Log((self.path / name).open("ab"), lambda: None)
        with (self.path / name).open("rb") as there:
            there.seek(-1 if log.file.tell() else 0, os.SEEK_END)
            if there.read() not in {b"", b"\n"}:  # the one before was cut off within a line, as by a full disk
                log.add(b"\n")
        return log


@dataclass(frozen=True)
class Bucket:
    """A prefix of an object store. `url` has no slash at its end."""

    url: str
    look_every = 10.0  # every look is a request that is paid for

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> Bucket:
        return Bucket(f"{self.url}/{name}")

    def open(self) -> tuple[Any, str]:
        """fsspec's file system, which it keeps for the next call, and the prefix as that calls it."""
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(self.url, use_listings_cache=False)  # others write here too
        return fs, path

    @contextmanager
    def store(self) -> Generator[tuple[Any, str]]:
        """The same, for use: stores' libraries raise whatever they like, and OSError comes out."""
        try:
            yield self.open()
        except OSError:
            raise
        except Exception as error:
            raise OSError(None, f"{type(error).__name__}: {error}", self.url) from error

    def entries(self) -> dict[str, int | None]:
        """See Folder."""
        with suppress(FileNotFoundError), self.store() as (fs, path):
            found = {one["name"].rstrip("/"): one for one in fs.ls(path, detail=True)}
            found.pop(path, None)  # some stores list the prefix itself
            return {
                name.rpartition("/")[2]: None if one["type"] == "directory" else one["size"]
                for name, one in found.items()
            }
        return {}

    def read(self, name: str) -> bytes:
        """See Folder."""
        with self.store() as (fs, path):
            return bytes(fs.cat_file(f"{path}/{name}"))

    @contextmanager
    def stream(self, name: str) -> Generator[IO[bytes]]:
        """See Folder."""
        with self.store() as (fs, path), fs.open(f"{path}/{name}", "rb") as file:
            yield file

    def read_part(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of an object, or all of it from a server that knows no parts."""
        with self.store() as (fs, path):
            return bytes(fs.cat_file(f"{path}/{name}", start=start, end=stop))

    def write(self, name: str, content: bytes) -> None:
        """See Folder."""
        with self.store() as (fs, path):
            fs.pipe_file(f"{path}/{name}", content)

    def create(self, name: str, content: bytes) -> None:
        """See Folder: a conditional put, where the store has one; elsewhere the last of two at once keeps the name."""
        with self.store() as (fs, path):
            fs.pipe_file(f"{path}/{name}", content, mode="create")
        if self.read(name) != content:
            raise FileExistsError(None, "written by another at the same time", f"{self.url}/{name}")

    def remove(self, first: str) -> None:
        """See Folder."""
        self.discard(first)
        with suppress(FileNotFoundError), self.store() as (fs, path):
            fs.rm(escape(path), recursive=True)  # it takes patterns

    def fill(self, make: Callable[[Path], None]) -> None:
        """See Folder."""
        with tempfile.TemporaryDirectory(prefix="teragpt-") as folder:
            make(Path(folder))
            for file in Path(folder).iterdir():
                self.upload(file, file.name)

    @contextmanager
    def local(self) -> Generator[Path]:
        """See Folder."""
        with tempfile.TemporaryDirectory(prefix="teragpt-") as folder:
            for name, size in self.entries().items():
                if size is not None:
                    self.download(name, Path(folder, name))
            yield Path(folder)

    def log(self, name: str, part: int) -> Log:
        """See Folder: `name` with the part's number before its suffix."""
        stem, dot, suffix = name.rpartition(".")
        file = tempfile.NamedTemporaryFile("ab", prefix="teragpt-")  # noqa: SIM115 - the log closes it
        return Log(file, lambda: self.upload(Path(file.name), f"{stem}-{part}{dot}{suffix}"))

    def discard(self, name: str) -> None:
        """Remove an object, there or not."""
        with suppress(FileNotFoundError), self.store() as (fs, path):
            fs.rm_file(f"{path}/{name}")

    def upload(self, file: Path, name: str) -> None:
        """Put a file of this machine into the store."""
        with self.store() as (fs, path):
            fs.put_file(str(file), f"{path}/{name}")

    def download(self, name: str, file: Path) -> None:
        """Copy an object to a file of this machine."""
        with self.store() as (fs, path):
            fs.get_file(f"{path}/{name}", str(file))


def cache_folder() -> Path:
    """The folder of what can be made again: TERAGPT_CACHE, else `teragpt` in the user's cache folder."""
    given = os.environ.get("TERAGPT_CACHE")
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(user) / "teragpt"


@contextmanager
def appearing(target: Path, what: str) -> Generator[Path]:
    """A folder to fill with `what`; it becomes `target`, which is absent or empty until then, or goes again.

    Raises ConfigError of the setting `out` where it cannot be written, or another process is making it.
    """
    draft = target.with_name(f".{target.name}.part")
    try:
        draft.mkdir(parents=True, exist_ok=True)
        with held(draft):
            for old in draft.iterdir():  # of one that was killed
                shutil.rmtree(old) if old.is_dir() else old.unlink()
            try:
                yield draft
                if target.exists():
                    target.rmdir()
                draft.replace(target)
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)  # what did not become the folder would only fill the disk
                raise
    except BlockingIOError:
        allowed = "a folder that no other process is making at this moment"
        raise ConfigError([Problem("out", str(target), allowed)]) from None
    except OSError as error:
        allowed = f"a folder that can be written, with room for {what} ({error.strerror or error})"
        raise ConfigError([Problem("out", str(target), allowed)]) from None


@contextmanager
def held(folder: Path) -> Generator[None]:
    """Hold a lock on a folder itself, which needs no file in it. Raises BlockingIOError where another holds it."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not folder.exists() or os.fstat(handle).st_ino != folder.stat().st_ino:
            raise BlockingIOError(None, "another process has just been done with it", str(folder))
        yield
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Generator[None]:
    """Hold the lock file at `path`, which is made if need be; the system frees it when its holder dies.

    Raises BlockingIOError if it is held and `wait` is false, OSError if the file cannot be made.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
