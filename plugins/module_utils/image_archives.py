"""Container images as files: an archive for each, as `docker save` writes it, and an index beside them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ansible_collections.roundhouse.llm.plugins.module_utils import child, images, k3d, locks
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress, write_whole

#: The index, in the folder of the archives.
INDEX = "images.json"

#: Where an archive is while it is written.
_SCRATCH = ".saving-"

_BLOCK = 1 << 22
_LAST_LINES = 5

#: Seconds between two words of progress while a checksum is computed.
_SAY = 0.5


# What a stack needs


@dataclass(frozen=True)
class Image:
    """An image that a stack needs, what for, and whether the cluster's node is to have it, too."""

    name: str
    purpose: str
    in_node: bool = True


def needed(
    platform: str,
    deployments: Sequence[Mapping[str, Any]],
    gateway: str,
    cluster: Sequence[Image] = (),
    more: Sequence[Image] = (),
) -> list[Image]:
    """All images of a stack, each once. `cluster` is what a k3d cluster itself is made of and pulls."""
    if platform == "local":
        return []
    served: dict[str, list[str]] = {}
    for deployment in deployments:
        served.setdefault(deployment["image"], []).append(deployment["name"])
    found = [Image(name, f"engine of {', '.join(names)}") for name, names in served.items()]
    if gateway:
        found.append(Image(gateway, "gateway"))
    if platform == "k3d":
        found += cluster
    unique: dict[str, Image] = {}
    for image in [*found, *more]:
        unique.setdefault(image.name, image)
    return list(unique.values())


def system_images(table: Mapping[str, Sequence[Mapping[str, str]]], node_image: str) -> list[Image] | None:
    """What k3s itself pulls: the entry whose release is in the name of the node's image; None if there is none."""
    release = max((key for key in table if key in node_image), key=len, default=None)
    return None if release is None else [Image(entry["name"], entry["purpose"]) for entry in table[release]]


# Archives


@dataclass(frozen=True)
class Archive:
    """An entry of the index. `id` is what Docker called the image where it was saved."""

    name: str
    file: str
    id: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if Path(self.file).name != self.file:
            raise ValueError(f"{self.file} is not the name of a file in its folder")

    def is_there(self, folder: Path) -> bool:
        """Whether there is a file of this name and size."""
        path = folder / self.file
        return path.is_file() and path.stat().st_size == self.size


def file_name(image: str) -> str:
    """The name of an image's archive; + and @ stand for / and :, which not every file system takes."""
    return f"{image.replace('/', '+').replace(':', '@')}.tar"


def read_index(folder: Path) -> dict[str, Archive]:
    """The archives of a folder by the names of their images; none if it has no index. Raises JobError."""
    try:
        text = (folder / INDEX).read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        found = [Archive(**entry) for entry in json.loads(text)["images"]]
    except (ValueError, TypeError, KeyError) as error:
        raise JobError(
            f"{folder / INDEX} is no index of images ({error}): delete it and save the images again, or carry the "
            "whole folder again."
        ) from error
    return {archive.name: archive for archive in found}


def write_index(folder: Path, archives: Mapping[str, Archive]) -> None:
    """Write the index of a folder, ordered by name."""
    entries = [asdict(archives[name]) for name in sorted(archives)]
    write_whole(folder / INDEX, json.dumps({"images": entries}, indent=2) + "\n", 0o644)


def refuse_digests(names: Sequence[str]) -> None:
    """Raises JobError for images that are named by a digest: an archive does not bring them back by that name."""
    if digests := [name for name in names if "@" in name]:
        raise JobError(
            f"{', '.join(digests)}: named by a digest, which docker save does not keep, so nodes would not find it "
            "again. Name it by its tag for machines without a registry (roundhouse_engines, gateway_image); the index "
            "of the archives pins what was saved."
        )


# Saving


def save(folder: Path, names: Sequence[str], progress: Progress, *, check: bool) -> dict[str, Any]:
    """Have an archive of each image, pulling what the host does not have; returns what was done. Raises JobError."""
    refuse_digests(names)
    _refuse_without_docker()
    if check:
        known = read_index(folder)
        pulled = [name for name in names if _id_to_save(folder, name, known) == ""]
        saved = [name for name in names if _id_to_save(folder, name, known) is not None]
        return _told(folder, pulled, saved, known)
    with _explained(folder), locks.locked(_made(folder) / ".images", progress):
        for leftover in folder.glob(f"{_SCRATCH}*"):
            shutil.rmtree(leftover)
        known = read_index(folder)
        pulled = [name for name in names if _id_to_save(folder, name, known) == ""]
        _pull(pulled, progress)
        saved = []
        for name in names:
            if identity := _id_to_save(folder, name, known):
                known[name] = _save_one(folder, name, identity, progress)
                write_index(folder, known)
                saved.append(name)
    return _told(folder, pulled, saved, known)


def _told(
    folder: Path, pulled: Sequence[str], saved: Sequence[str], known: Mapping[str, Archive]
) -> dict[str, Any]:
    return {
        "changed": bool(saved),
        "pulled": list(pulled),
        "saved": list(saved),
        "bytes": sum(archive.size for archive in known.values()),
        "folder": str(folder),
    }


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _id_to_save(folder: Path, name: str, known: Mapping[str, Archive]) -> str | None:
    """None if its archive is as it should be; else the image's id, which is empty if the host does not have it."""
    archive = known.get(name)
    whole = archive is not None and archive.is_there(folder)
    identity = host_id(name)
    if whole and archive is not None and identity in (archive.id, ""):
        return None
    return identity


def host_id(name: str) -> str:
    """The id of an image of the host; empty if it does not have it. Raises JobError."""
    if not images.on_host(name):
        return ""
    return k3d.docker("image", "inspect", "--format", "{{.Id}}", name).strip()


def host_size(name: str) -> int | None:
    """The bytes that an image of the host takes; None if it does not have it. Raises JobError."""
    if not images.on_host(name):
        return None
    return int(k3d.docker("image", "inspect", "--format", "{{.Size}}", name))


def _pull(names: Sequence[str], progress: Progress) -> None:
    failures = []
    for name in names:

        def watch(lines: list[str], name: str = name) -> None:
            progress.say(f"pulling {name}: {lines[-1]}" if lines else f"pulling {name}")

        status, lines = child.run(["docker", "pull", name], os.environ, watch)
        if status:
            failures.append(f"{name}: {lines[-1] if lines else 'docker pull says nothing'}")
    if failures:
        told = "".join(f"\n  - {failure}" for failure in failures)
        raise JobError(
            f"Nothing was saved, for {len(failures)} image(s) are not in the host's Docker and can't be pulled:{told}\n"
            "Check the names, the network and its proxy, and whether the registry wants docker login; then run the "
            "same command again. An image that you have elsewhere can be brought with docker load."
        )


def _save_one(folder: Path, name: str, identity: str, progress: Progress) -> Archive:
    expected = child.megabytes(host_size(name) or 0)
    scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=folder))
    try:

        def watch(_: list[str]) -> None:
            progress.say(f"saving {name}: {child.megabytes(child.folder_size(scratch))} of about {expected}")

        part = scratch / "image.tar"
        # The full name has a tag in any case: without one, all images of the repository would be saved.
        command = ["docker", "save", "--output", str(part), images.full_name(name)]
        status, lines = child.run(command, os.environ, watch)
        if status:
            raise JobError(
                _no_space(folder, f" for {name} (about {expected})")
                if _says_full(lines)
                else f"{name} can't be saved. {_last(lines)}"
            )
        found = _sha256(part, f"checksum of {name}", progress)
        archive = Archive(name, file_name(name), identity, part.stat().st_size, found)
        part.chmod(0o644)
        part.replace(folder / archive.file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)  # what is left of it harms nobody
    return archive


# Loading


def load(folder: Path, progress: Progress, *, check: bool) -> dict[str, Any]:
    """Load the archives of a folder into the host's Docker, checked; returns what was done. Raises JobError."""
    _refuse_without_docker()
    archives = read_index(folder)
    if not archives:
        raise JobError(
            f"There is no {INDEX} in {folder} on this host: save the images where there is a registry, with "
            "-e images_save=FOLDER, and bring that folder here as a whole."
        )
    before = {name: host_id(name) for name in archives}
    absent = [archive for name, archive in archives.items() if before[name] != archive.id]
    _refuse_damaged(folder, absent, progress)
    if check:
        return {"changed": bool(absent), "loaded": [archive.name for archive in absent]}
    loaded = []
    for archive in absent:
        _load_one(folder, archive, progress)
        # Docker engines with another kind of store have other ids for the same images.
        if host_id(archive.name) != before[archive.name]:
            loaded.append(archive.name)
    return {"changed": bool(loaded), "loaded": loaded}


def _refuse_damaged(folder: Path, archives: Sequence[Archive], progress: Progress) -> None:
    problems = []
    for archive in archives:
        path = folder / archive.file
        if not path.is_file():
            problems.append(f"{archive.file} is missing")
        elif (size := path.stat().st_size) != archive.size:
            problems.append(f"{archive.file} has {size} bytes, and {archive.size} were saved")
        elif _sha256(path, f"checksum of {archive.name}", progress) != archive.sha256:
            problems.append(f"{archive.file} has another checksum than when it was saved")
    if problems:
        told = "".join(f"\n  - {problem}" for problem in problems)
        raise JobError(
            f"Nothing was loaded: what is in {folder} is not what was saved:{told}\nCarry these files again, or save "
            "them again where there is a registry."
        )


def _load_one(folder: Path, archive: Archive, progress: Progress) -> None:
    size = child.megabytes(archive.size)

    def watch(_: list[str]) -> None:
        progress.say(f"loading {archive.name} ({size}) into Docker")

    status, lines = child.run(["docker", "load", "--input", str(folder / archive.file)], os.environ, watch)
    if status:
        remedy = " Docker's disk is full: see docker system df, and free some." if _says_full(lines) else ""
        raise JobError(f"{archive.name} can't be loaded. {_last(lines)}{remedy}")
    if not images.on_host(archive.name):
        raise JobError(
            f"Docker has loaded {folder / archive.file}, and has no image {archive.name}. {_last(lines)}"
        )


# What can go wrong


def _refuse_without_docker() -> None:
    engine = k3d.engine()
    if engine.state != "ready":
        raise JobError(engine.message)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise JobError(_no_space(folder)) from error
        raise JobError(
            f"Images can't be saved in {folder} ({error.strerror}: {error.filename}): name a folder that you may write "
            "to with -e images_save=FOLDER."
        ) from error


def _says_full(lines: Sequence[str]) -> bool:
    return any("no space left on device" in line.lower() for line in lines)


def _no_space(folder: Path, wanted: str = "") -> str:
    free = child.megabytes(shutil.disk_usage(folder).free)
    return (
        f"No space left on the disk of {folder}{wanted}; {free} are free. The archives that are whole are kept: free "
        "some and run the same command again, or choose another disk with -e images_save=FOLDER."
    )


def _last(lines: Sequence[str]) -> str:
    return "Docker says: " + (" / ".join(lines[-_LAST_LINES:]) or "nothing")


def _sha256(path: Path, what: str, progress: Progress) -> str:
    digest = hashlib.sha256()
    size, done, said = path.stat().st_size, 0, 0.0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            done += len(block)
            if time.monotonic() - said > _SAY:
                said = time.monotonic()
                progress.say(f"{what}: {child.megabytes(done)} of {child.megabytes(size)}")
    return digest.hexdigest()
