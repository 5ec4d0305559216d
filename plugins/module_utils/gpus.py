"""The NVIDIA GPUs of a host: what nvidia-smi tells of them, and whether their driver is good for a version of CUDA."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What is asked of nvidia-smi, in this order.
FIELDS = ("index", "uuid", "name", "memory.total", "driver_version")

#: The oldest driver for the programs of a major version of CUDA, by minor version compatibility. From the CUDA Toolkit
#: release notes, table "CUDA Toolkit and Minimum Required Driver Version for CUDA Minor Version Compatibility", Linux;
#: see https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
OLDEST_DRIVERS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}

#: Where nvidia-smi is besides PATH: WSL2 has it in a folder that sudo's and SSH's PATH lack.
_FOLDERS = ("/usr/bin", "/usr/local/bin", "/usr/lib/wsl/lib")

#: Seconds within which nvidia-smi answers. Without persistence mode it loads the driver first.
_PATIENCE = 60

_WITHOUT = "To serve without a GPU: -e roundhouse_gpus=none, or the inventory inventories/k3d-cpu."


@dataclass(frozen=True)
class Gpu:
    """A GPU. Its memory is None where the driver does not tell, as on machines where GPU and CPU share theirs."""

    index: int
    uuid: str
    name: str
    memory_mib: int | None


@dataclass(frozen=True)
class Driver:
    """What the driver says; `problem` is a sentence if it can't be used."""

    version: str = ""
    cuda: str = ""
    gpus: tuple[Gpu, ...] = ()
    problem: str = ""


def program() -> str | None:
    """The path of nvidia-smi."""
    found = shutil.which("nvidia-smi")
    return found or next(
        (path for folder in _FOLDERS if (path := shutil.which("nvidia-smi", path=folder))), None
    )


def look(*, wsl: bool) -> Driver:
    """Ask the driver."""
    smi = program()
    if smi is None:
        return Driver(problem=missing(wsl=wsl))
    try:
        answer = _run([smi, f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits"])
        if answer.returncode:
            return Driver(problem=unanswered(answer.returncode, f"{answer.stdout}\n{answer.stderr}", wsl=wsl))
        found, version = read(answer.stdout)
        return Driver(version, cuda_version(_run([smi]).stdout), tuple(found))
    except subprocess.TimeoutExpired:
        return Driver(problem=unanswered(124, f"no answer within {_PATIENCE} s", wsl=wsl))
    except (OSError, ValueError) as error:
        return Driver(problem=unanswered(126, str(error), wsl=wsl))


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PATIENCE,
        check=False,
    )


def read(text: str) -> tuple[list[Gpu], str]:
    """The GPUs and the driver's version, out of what nvidia-smi printed. Raises ValueError if it is something else."""
    found = []
    version = ""
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if not row:
            continue
        if len(row) < len(FIELDS):
            raise ValueError(f"nvidia-smi printed '{', '.join(row)}'")
        # A name might have a comma; the other fields have none.
        index, uuid, *name, memory, version = (cell.strip() for cell in row)
        found.append(Gpu(int(index), uuid, ", ".join(name), int(memory) if memory.isdigit() else None))
    if not found:
        raise ValueError("nvidia-smi lists no GPU")
    return found, version


def cuda_version(table: str) -> str:
    """The newest CUDA that the driver speaks, out of nvidia-smi's table; empty if the table does not tell."""
    told = re.search(r"CUDA (?:UMD )?Version:\s*(\d+\.\d+)", table)
    return told[1] if told else ""


def numbers(version: str) -> tuple[int, ...]:
    """A version to compare by. Raises ValueError if it is none."""
    if not re.fullmatch(r"\d+(\.\d+)*", version):
        raise ValueError(f"'{version}' is no version")
    return tuple(int(part) for part in version.split("."))


# What is wrong, in words


def missing(*, wsl: bool) -> str:
    """What to say without a driver."""
    if wsl:
        install = (
            "This is WSL2, where the driver is that of Windows: install NVIDIA's driver for Windows (none in "
            "Linux), run 'wsl --shutdown' in Windows, and try again."
        )
    else:
        install = (
            "Install it (Ubuntu: sudo ubuntu-drivers install; Debian: sudo apt install nvidia-driver "
            "firmware-misc-nonfree; others: https://www.nvidia.com/drivers), reboot, and see that nvidia-smi lists "
            "the GPU."
        )
    return f"There is no NVIDIA driver on this machine (there is no program nvidia-smi). {install} {_WITHOUT}"


def unanswered(status: int, text: str, *, wsl: bool) -> str:
    """What to say of a driver that does not answer."""
    reason = " ".join(text.split()) or f"it ended with status {status}"
    if "version mismatch" in reason:
        remedy = "the driver was updated while its old version was loaded: reboot the machine."
    elif "No devices" in reason or "lists no GPU" in reason:
        remedy = (
            "the driver is there and finds no GPU: see whether the machine has one (lspci | grep -i nvidia), and "
            "what the kernel says of it (sudo dmesg | grep -i nvrm)."
        )
    elif wsl:
        remedy = "update NVIDIA's driver in Windows, and run 'wsl --shutdown' there."
    else:
        remedy = (
            "see whether its kernel module is loaded (lsmod | grep nvidia) and what the kernel says (sudo dmesg "
            "| grep -i nvrm); after an update of the kernel or of the driver, reboot, or install the driver again."
        )
    return f"The NVIDIA driver does not answer. nvidia-smi says: {reason.rstrip('.')}. What to do: {remedy} {_WITHOUT}"


def too_old(version: str, cuda: str) -> str | None:
    """What to say of a driver that can't run the programs of a version of CUDA; None if it can."""
    try:
        major = numbers(cuda)[0]
    except ValueError:
        return f"container_toolkit_cuda is '{cuda}', and must be a version of CUDA as in \"12.9\"."
    oldest = OLDEST_DRIVERS.get(major)
    if oldest is None:
        known = ", ".join(str(each) for each in OLDEST_DRIVERS)
        return f"container_toolkit_cuda is '{cuda}', and its major version must be one of {known}."
    try:
        if numbers(version) >= numbers(oldest):
            return None
    except ValueError:
        return None  # a driver that is not numbered as NVIDIA's are: let it show what it can do
    return (
        f"The NVIDIA driver {version} is too old: the images' CUDA {cuda} needs {oldest} or newer. Update the "
        f"driver, and reboot. {_WITHOUT}"
    )


def chosen(found: Sequence[Gpu], choice: str) -> tuple[list[Gpu], list[str]]:
    """The GPUs that `all` or ids such as `0,1` choose, and a sentence for each id that is not there."""
    if choice == "all":
        return list(found), []
    problems = []
    taken: list[Gpu] = []
    for word in (part.strip() for part in choice.split(",")):
        gpu = next((each for each in found if word in (str(each.index), each.uuid)), None)
        if gpu is None:
            there = ", ".join(f"{each.index} ({each.name})" for each in found)
            problems.append(
                f"roundhouse_gpus names the GPU '{word}', and this machine has {there}: write all, none, or such "
                "numbers with commas between them."
            )
        elif gpu not in taken:
            taken.append(gpu)
    return taken, problems


def request(choice: str) -> str:
    """The same for docker's option --gpus."""
    return "all" if choice == "all" else f'"device={",".join(part.strip() for part in choice.split(","))}"'


# The packages


@dataclass(frozen=True)
class Package:
    """An installed package."""

    version: str
    held: bool


#: What dpkg-query is to print for each package.
PACKAGE_FORMAT = "${Package} ${Version} ${db:Status-Abbrev}\n"


def packages(text: str) -> dict[str, Package]:
    """The installed packages, out of what dpkg-query printed."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[2][1:2] == "i":
            found[words[0]] = Package(words[1], held=words[2][0] == "h")
    return found


def toolkit_version(text: str) -> str:
    """The version out of what `nvidia-ctk --version` prints; empty if there is none."""
    told = re.search(r"version (\d+(?:\.\d+)+\S*)", text)
    return told[1] if told else ""


def is_version(toolkit: str, package: str) -> bool:
    """Whether a toolkit's own version is that of a package: 1.18.0 is 1.18.0-1."""
    return bool(toolkit) and toolkit == package.rpartition("-")[0]


# A container that uses a GPU

#: What docker may say when a container does not get its GPU, and what helps.
_CAUSES = (
    (
        r"could not select device driver",
        "Docker does not know the toolkit: it was started before the toolkit was there. Restart it",
    ),
    (
        r"unsatisfied condition: ([^\n,\"]*)",
        "The image asks for more than the driver has: update the driver, or choose a test image of an older CUDA "
        "(container_toolkit_test_image)",
    ),
    (
        r"load library failed: libnvidia-ml|libnvidia-ml\.so.*(no such file|cannot open)|driver (not loaded|error)",
        "The driver's libraries are not where the toolkit looks: see nvidia-container-cli info, and install the "
        "driver again; after an update of it, reboot",
    ),
    (
        r"[Uu]nknown runtime specified nvidia|unknown or invalid runtime name",
        "Docker has not read its runtimes anew: restart it",
    ),
    (
        r"nvidia-container-(cli|runtime|runtime-hook).*(not found|no such file)",
        "A part of the toolkit is missing: see dpkg --list '*nvidia-container*', and run the same command again",
    ),
    (
        r"unresolvable CDI devices",
        "The toolkit finds no device to give: see nvidia-ctk cdi list, and whether nvidia-smi works on the host. "
        "In WSL2 and in virtual machines the driver may have to be installed again",
    ),
    (
        r"Failed to initialize NVML|no NVIDIA GPU|No devices were found",
        "The container got no GPU. If it worked before: 'systemctl daemon-reload' takes GPUs from running "
        "containers, and so does a host whose Docker uses cgroups of systemd; else see "
        "/etc/nvidia-container-runtime/config.toml",
    ),
    (
        r"executable file not found|nvidia-smi.*(not found|no such file)",
        "The image has no GPU tools of its own, and the driver's were not brought in: the variable "
        "NVIDIA_DRIVER_CAPABILITIES in it must have utility; choose another image (container_toolkit_test_image)",
    ),
    (
        r"(bpf_prog_query|cgroup|devices?\.allow).*(permission|not permitted|failed)",
        "The cgroup rules for the GPU's devices can't be set: Docker runs rootless or within a container. See "
        "no-cgroups in /etc/nvidia-container-runtime/config.toml",
    ),
    (
        r"pull access denied|manifest unknown|manifest for .* not found|no such host|Client\.Timeout|i/o timeout|"
        r"connection refused|toomanyrequests|TLS handshake",
        "The image can't be pulled: check its name, the network and its proxy, or the registry's login and "
        "limits; any image that is here already will do (container_toolkit_test_image)",
    ),
    (r"no space left on device", "The disk of Docker is full: see docker system df, and free some"),
)

#: Docker must be restarted before anything else is worth a thought.
_STALE = re.compile(
    r"could not select device driver|[Uu]nknown runtime specified nvidia|unknown or invalid runtime name"
)


def cause(text: str) -> str | None:
    """What helps against what docker printed; None if we don't know."""
    return next((words for pattern, words in _CAUSES if re.search(pattern, text, re.IGNORECASE)), None)


def wants_restart(text: str) -> bool:
    """Whether Docker failed because it has not noticed the toolkit yet."""
    return bool(_STALE.search(text))


def listed(text: str) -> list[str]:
    """The GPUs that `nvidia-smi -L` lists."""
    return [line.strip() for line in text.splitlines() if re.match(r"GPU \d+:", line.strip())]


def numbered(text: str, choice: str) -> list[dict[str, Any]]:
    """The GPUs that `nvidia-smi -L` lists and a choice (`all`, `none`, or ids) takes, each with index and uuid."""
    found = [
        Gpu(int(told[1]), told[3], told[2], None)
        for line in listed(text)
        if (told := re.match(r"GPU (\d+): (.*) \(UUID: (\S+)\)", line))
    ]
    taken = [] if choice == "none" else chosen(found, choice)[0]
    return [{"index": gpu.index, "uuid": gpu.uuid} for gpu in taken]


# The whole host


@dataclass(frozen=True)
class Survey:
    """What a host has for containers with GPUs."""

    driver: Driver
    gpus: tuple[Gpu, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


WSL_NOTE = (
    "This is WSL2: a Docker engine that is installed in this Linux works with NVIDIA's toolkit; Docker Desktop "
    "has a toolkit of its own, and gets none from us."
)


def is_wsl(release: str) -> bool:
    """Whether a kernel's release is one of WSL's."""
    return "microsoft" in release.lower()


def survey(driver: Driver, *, cuda: str, choice: str, wsl: bool) -> Survey:
    """Judge a driver, all problems at once."""
    notes = [WSL_NOTE] if wsl else []
    if driver.problem:
        return Survey(driver, problems=(driver.problem,), notes=tuple(notes))
    old = too_old(driver.version, cuda)
    taken, problems = chosen(driver.gpus, choice)
    if old:
        problems.insert(0, old)
    elif driver.cuda and numbers(driver.cuda) < numbers(cuda):
        notes.append(
            f"The driver {driver.version} speaks CUDA {driver.cuda}, and the images are made with {cuda}: they "
            "run by minor version compatibility, but for those that ask for more (unsatisfied condition: "
            "cuda>=...), which need a newer driver."
        )
    return Survey(driver, tuple(taken), tuple(problems), tuple(notes))
