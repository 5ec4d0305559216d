"""What images a stack needs, their archives, and the index of those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.roundhouse.llm.plugins.module_utils import image_archives, images, k3d
from ansible_collections.roundhouse.llm.plugins.module_utils.image_archives import Archive, Image
from ansible_collections.roundhouse.llm.plugins.module_utils.job import JobError, Progress
from ansible_collections.roundhouse.llm.plugins.plugin_utils.catalog.resolve import resolve

ROOT = Path(__file__).parents[2]
SYSTEM = yaml.safe_load((ROOT / "roles/images/defaults/main.yml").read_text())["images_system"]
NODE = yaml.safe_load((ROOT / "roles/k3d_cluster/defaults/main.yml").read_text())["k3d_cluster_image"]

ONE, TWO = "ghcr.io/org/one:1", "two:2"


class TestNeeded:
    CLUSTER = (Image("rancher/k3s:v1", "the cluster's node", in_node=False), Image("pause:3", "k3s"))

    def deployments(
        self, stacks: dict[str, dict[str, Any]], engines: dict[str, Any], platform: str, stack: str
    ) -> list[dict[str, Any]]:
        resolved = resolve(stacks[platform], stack, platform, engines)
        assert resolved["problems"] == []
        found: list[dict[str, Any]] = resolved["deployments"]
        return found

    def test_a_cluster_of_ours(
        self, shipped_stacks: dict[str, dict[str, Any]], engines: dict[str, Any]
    ) -> None:
        given = self.deployments(shipped_stacks, engines, "k3d", "multi-engines")
        found = image_archives.needed("k3d", given, "roundhouse-gateway:0", self.CLUSTER)
        assert [(image.name, image.purpose) for image in found] == [
            ("vllm/vllm-openai:v0.12.0", "engine of vllm-llama-32-1b"),
            ("lmsysorg/sglang:v0.5.6", "engine of sglang-llama-32-1b"),
            ("roundhouse-gateway:0", "gateway"),
            ("rancher/k3s:v1", "the cluster's node"),
            ("pause:3", "k3s"),
        ]
        assert [image.name for image in found if not image.in_node] == ["rancher/k3s:v1"]

    def test_one_image_of_two_deployments(
        self, shipped_stacks: dict[str, dict[str, Any]], engines: dict[str, Any]
    ) -> None:
        given = self.deployments(shipped_stacks, engines, "k3d", "multi-models")
        found = image_archives.needed("k3d", given, "roundhouse-gateway:0")
        assert found[0].purpose == "engine of vllm-llama-32-1b, vllm-phi-tiny-moe"
        assert len(found) == 2

    def test_somebody_elses_cluster_brings_its_own(self) -> None:
        given = [{"name": "one", "image": ONE}]
        assert [image.name for image in image_archives.needed("kubernetes", given, "", self.CLUSTER)] == [ONE]

    def test_processes_need_none(
        self, shipped_stacks: dict[str, dict[str, Any]], engines: dict[str, Any]
    ) -> None:
        given = self.deployments(shipped_stacks, engines, "local", "multi-models")
        assert image_archives.needed("local", given, "roundhouse-gateway:0", self.CLUSTER) == []

    def test_more_of_the_users(self) -> None:
        more = [Image(TWO, "mine"), Image(ONE, "mine, too")]
        found = image_archives.needed("k3d", [{"name": "one", "image": ONE}], "", (), more)
        assert found == [Image(ONE, "engine of one"), Image(TWO, "mine")]


class TestSystemImages:
    def test_of_the_release_that_we_use(self) -> None:
        found = image_archives.system_images(SYSTEM, NODE)
        assert found is not None
        assert [image.name for image in found][:2] == [
            "rancher/mirrored-pause:3.6",
            "rancher/mirrored-coredns-coredns:1.13.1",
        ]
        assert all(image.in_node and image.purpose for image in found)

    def test_of_a_variant_of_it(self) -> None:
        assert image_archives.system_images(SYSTEM, f"registry.example.org/cuda-{NODE.split('/')[1]}-12.8")

    def test_of_another_release(self) -> None:
        assert image_archives.system_images(SYSTEM, "rancher/k3s:v1.99.0-k3s1") is None
        assert image_archives.system_images(SYSTEM, "") is None

    def test_the_longest_name_counts(self) -> None:
        table = {"v1.3": [], "v1.34": [{"name": "a:1", "purpose": "b"}]}
        assert image_archives.system_images(table, "k3s:v1.34") == [Image("a:1", "b")]


class TestNames:
    def test_of_archives(self) -> None:
        assert image_archives.file_name("ghcr.io/ggml-org/llama.cpp:server") == (
            "ghcr.io+ggml-org+llama.cpp@server.tar"
        )

    def test_no_two_images_share_one(self) -> None:
        given = ["a/b:c", "a_b:c", "a-b:c", "a/b_c", "a/b-c:1", "localhost:5000/a:1", "localhost/5000/a:1"]
        names = {image_archives.file_name(name) for name in given}
        assert len(names) == len(given)
        assert not any(set(name) & set('/:\\*?"<>|') for name in names)

    def test_digests_are_refused_all_at_once(self) -> None:
        with pytest.raises(JobError, match=r"^a@sha256:00, b:1@sha256:11: named by a digest"):
            image_archives.refuse_digests(["a@sha256:00", ONE, "b:1@sha256:11"])
        image_archives.refuse_digests([ONE, TWO])


class TestIndex:
    ARCHIVE = Archive(ONE, image_archives.file_name(ONE), "sha256:1", 3, "0" * 64)

    def test_what_is_written_is_read(self, tmp_path: Path) -> None:
        image_archives.write_index(tmp_path, {ONE: self.ARCHIVE})
        assert image_archives.read_index(tmp_path) == {ONE: self.ARCHIVE}
        entry = json.loads((tmp_path / "images.json").read_text())["images"][0]
        assert set(entry) == {"name", "file", "id", "size", "sha256"}

    def test_there_is_none(self, tmp_path: Path) -> None:
        assert image_archives.read_index(tmp_path) == {}

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            '{"images": [{"name": "a"}]}',
            '{"images": [{"name": "a", "file": "../a", "id": "", "size": 1, "sha256": ""}]}',
        ],
    )
    def test_one_that_is_broken(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "images.json").write_text(text)
        with pytest.raises(JobError, match=r"images\.json is no index of images .* carry the whole folder"):
            image_archives.read_index(tmp_path)

    def test_an_archive_of_another_size_is_not_there(self, tmp_path: Path) -> None:
        assert not self.ARCHIVE.is_there(tmp_path)
        (tmp_path / self.ARCHIVE.file).write_bytes(b"ab")
        assert not self.ARCHIVE.is_there(tmp_path)
        (tmp_path / self.ARCHIVE.file).write_bytes(b"abc")
        assert self.ARCHIVE.is_there(tmp_path)


DOCKER = """#!/bin/sh
# A Docker whose images are the files in store/; it has no registry to pull from.
here=${0%/*}
case "$1 $2" in
  "version --format")
    echo 1 ;;
  "image inspect")
    file=$here/store/${5##*/}
    [ -f "$file" ] || { echo "Error: No such image: $5" >&2; exit 1; }
    case $4 in *Size*) wc -c <"$file" ;; *) sha256sum <"$file" ;; esac ;;
  "save --output")
    echo "$4" >>"$here/saved"
    cp "$here/store/${4##*/}" "$3" || { echo "write $3: no space left on device"; exit 1; } ;;
  "load --input")
    name=${3##*[+/]}
    name=${name%.tar}
    cp "$3" "$here/store/$(echo "$name" | tr @ :)" ;;
  pull*)
    echo "manifest for $2 not found"
    exit 1 ;;
esac
"""


class TestFolders:
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The images of the host, as files; and a docker that works on them."""
        (tmp_path / "docker").write_text(DOCKER)
        (tmp_path / "docker").chmod(0o755)
        (tmp_path / "store").mkdir()
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        (tmp_path / "store" / "one:1").write_text("one")
        (tmp_path / "store" / "two:2").write_text("two two")
        return tmp_path / "store"

    def save(self, store: Path, *names: str, check: bool = False) -> dict[str, Any]:
        return image_archives.save(store.parent / "to", names, Progress(), check=check)

    def load(self, store: Path, *, check: bool = False) -> dict[str, Any]:
        return image_archives.load(store.parent / "to", Progress(), check=check)

    def test_saved_once(self, store: Path) -> None:
        foretold = self.save(store, ONE, TWO, check=True)
        assert (foretold["changed"], foretold["saved"]) == (True, [ONE, TWO])
        assert not (store.parent / "to").exists()
        first = self.save(store, ONE, TWO)
        assert (first["changed"], first["saved"], first["bytes"]) == (True, [ONE, TWO], 10)
        assert (store.parent / "saved").read_text().split() == [images.full_name(ONE), images.full_name(TWO)]
        again = self.save(store, ONE, TWO)
        assert (again["changed"], again["saved"]) == (False, [])
        (store / "two:2").write_text("another two")
        assert self.save(store, ONE, TWO)["saved"] == [TWO]
        assert not list((store.parent / "to").glob(".saving-*"))

    def test_what_is_saved_need_not_be_on_the_host(self, store: Path) -> None:
        self.save(store, ONE)
        (store / "one:1").unlink()
        assert self.save(store, ONE)["changed"] is False

    def test_a_damaged_archive_is_saved_again(self, store: Path) -> None:
        self.save(store, ONE)
        (store.parent / "to" / image_archives.file_name(ONE)).write_text("half")
        assert self.save(store, ONE)["saved"] == [ONE]

    def test_all_that_cannot_be_pulled_is_named(self, store: Path) -> None:
        with pytest.raises(JobError, match=r"(?s)2 image.*x:1: manifest for x:1 .*y:1: manifest for y:1"):
            self.save(store, ONE, "x:1", "y:1")
        assert image_archives.read_index(store.parent / "to") == {}

    def test_a_full_disk(self, store: Path) -> None:
        self.save(store, ONE)
        (store.parent / "docker").write_text(DOCKER.replace("cp ", "false ", 1))
        with pytest.raises(JobError, match=r"No space left on the disk of .*/to for two:2 .* images_save"):
            self.save(store, ONE, TWO)
        assert sorted(path.name for path in (store.parent / "to").glob("[!.]*")) == [
            image_archives.file_name(ONE),
            "images.json",
        ]

    def test_a_folder_that_cannot_be_made(self, store: Path) -> None:
        (store.parent / "to").write_text("a file")
        with pytest.raises(JobError, match=r"Images can't be saved in .* images_save"):
            self.save(store, ONE)

    def test_loaded_once(self, store: Path) -> None:
        self.save(store, TWO)
        (store / "two:2").rename(store / "gone")
        assert self.load(store, check=True) == {"changed": True, "loaded": [TWO]}
        assert self.load(store) == {"changed": True, "loaded": [TWO]}
        assert (store / "two:2").read_text() == "two two"
        assert self.load(store) == {"changed": False, "loaded": []}

    def test_all_damage_is_told_before_anything_is_loaded(self, store: Path) -> None:
        self.save(store, ONE, TWO)
        for image in ("one:1", "two:2"):
            (store / image).unlink()
        folder = store.parent / "to"
        (folder / image_archives.file_name(ONE)).write_text("onf")
        (folder / image_archives.file_name(TWO)).unlink()
        with pytest.raises(
            JobError, match=r"(?s)Nothing was loaded.*one@1.tar has another checksum.*two@2.tar is m"
        ):
            self.load(store)
        assert list(store.iterdir()) == []

    def test_a_folder_without_an_index(self, store: Path) -> None:
        with pytest.raises(JobError, match=r"There is no images\.json in .*images_save=FOLDER"):
            self.load(store)

    def test_without_docker(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(k3d, "engine", lambda: k3d.Engine("missing", "Docker is not installed"))
        with pytest.raises(JobError, match="Docker is not installed"):
            image_archives.save(tmp_path, [ONE], Progress(), check=True)
