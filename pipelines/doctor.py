"""What this machine can do for the toolkit: versions, GPU, VTK's mapper, codecs, memory, disk.

A doctor must be able to speak where a dependency is broken, so packages that may fail to load are
loaded inside the check that needs them, and their failure is the finding. Nothing that names the
machine, its user or a path appears in a finding.
"""

import os
import platform
import shutil
import warnings
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from preprocessing.mapper_process import mapper_available

DISTRIBUTION = "dualwitness"
GIB = 2**30
DISK_NEEDED_GIB = 10
"""Room for the shards of about five thousand scans and for a run."""
MEMORY_NEEDED_GIB = 8
TRANSFER_SYNTAXES = {
    "1.2.840.10008.1.2.4.50": "JPEG baseline",
    "1.2.840.10008.1.2.4.51": "JPEG extended",
    "1.2.840.10008.1.2.4.57": "JPEG lossless",
    "1.2.840.10008.1.2.4.70": "JPEG lossless SV1",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000 lossless",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.5": "RLE",
}
"""Compressed transfer syntaxes that scanners and archives use (DICOM PS3.5 A.4)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One finding.

    Attributes
    ----------
    name
        What was looked at.
    status
        ``ok``; ``warn``: works, with the restriction that ``advice`` names; ``missing``: something
        that the toolkit needs is absent or too old.
    value
        What was found.
    advice
        What to do; "" where nothing needs doing.
    """

    name: str
    status: Literal["ok", "warn", "missing"]
    value: str
    advice: str = ""


def diagnose(folder: Path = Path()) -> list[Check]:
    """Look at everything; ``folder`` is where data sets and runs would be written."""
    return [
        check_python(),
        *check_versions(),
        check_gpu(),
        check_processors(),
        check_memory(),
        check_disk(folder),
        check_codecs(),
        check_mapper(),
    ]


def check_python() -> Check:
    """Compare the interpreter with what the installed package asks for."""
    version = platform.python_version()
    try:
        wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or ""
    except metadata.PackageNotFoundError:
        wanted = ""
    if SpecifierSet(wanted).contains(version, prereleases=True):
        return Check(name="python", status="ok", value=version)
    return Check(name="python", status="missing", value=version, advice=f"use Python {wanted}")


def check_versions() -> list[Check]:
    """Compare every dependency with the range that the installed package states."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        advice = "install the repository: pip install -c constraints.txt -e ."
        return [Check(name=DISTRIBUTION, status="missing", value="not installed", advice=advice)]
    needed = [
        item
        for item in map(Requirement, lines)
        if item.marker is None or item.marker.evaluate({"extra": ""})
    ]
    own = Check(name=DISTRIBUTION, status="ok", value=version)
    return [own, *(check_requirement(item) for item in needed)]


def check_requirement(requirement: Requirement) -> Check:
    """Compare one installed package with the range asked for."""
    name, wanted = requirement.name, f"{requirement.name}{requirement.specifier}"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        advice = f"pip install '{wanted}'"
        return Check(name=name, status="missing", value="not installed", advice=advice)
    if requirement.specifier.contains(version, prereleases=True):
        return Check(name=name, status="ok", value=version)
    advice = f"pip install --upgrade '{wanted}'"
    return Check(name=name, status="missing", value=version, advice=advice)


def check_gpu() -> Check:
    """Name the GPU that training would use; without one everything runs on the processor."""
    torch = _loaded("torch")
    if isinstance(torch, str):
        return Check(name="GPU", status="missing", value=torch, advice="reinstall torch")
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        usable = torch.cuda.is_available()
    if not usable:
        advice = "training runs on the processor; for a GPU install its driver and a CUDA torch"
        said = [str(item.message).splitlines()[0] for item in heard][:1]
        return Check(name="GPU", status="warn", value="none", advice="; ".join([*said, advice]))
    try:
        value = _describe_gpu(torch.cuda)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        return Check(name="GPU", status="warn", value="found, not usable", advice=reason)
    return Check(name="GPU", status="ok", value=value)


def _describe_gpu(cuda: Any) -> str:
    properties = cuda.get_device_properties(0)
    half = "bfloat16" if cuda.is_bf16_supported() else "no bfloat16"
    return f"{properties.name}, {properties.total_memory / GIB:.0f} GiB, {half}"


def check_processors() -> Check:
    """Count the processors this process may use."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    return Check(name="processors", status="ok", value=str(count))


def check_memory() -> Check:
    """Look at the machine's memory."""
    try:
        gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    except (AttributeError, ValueError, OSError):
        return Check(name="memory", status="ok", value="not known on this system")
    if gib >= MEMORY_NEEDED_GIB:
        return Check(name="memory", status="ok", value=f"{gib:.0f} GiB")
    advice = "use fewer --workers and a smaller batch size"
    return Check(name="memory", status="warn", value=f"{gib:.1f} GiB", advice=advice)


def check_disk(folder: Path) -> Check:
    """Look at the room left where ``folder`` lies."""
    try:
        free = shutil.disk_usage(folder).free / GIB
    except OSError as error:
        advice = "choose a folder that can be read and written"
        value = error.strerror or "not readable"
        return Check(name="disk", status="missing", value=value, advice=advice)
    if free >= DISK_NEEDED_GIB:
        return Check(name="disk", status="ok", value=f"{free:.0f} GiB free")
    advice = f"make room: {DISK_NEEDED_GIB} GiB hold the shards of a large data set"
    return Check(name="disk", status="warn", value=f"{free:.1f} GiB free", advice=advice)


def check_codecs() -> Check:
    """Look which compressed transfer syntaxes can be read."""
    pixels = _loaded("pydicom.pixels")
    if isinstance(pixels, str):
        return Check(name="codecs", status="missing", value=pixels, advice="reinstall pydicom")
    readable = {
        name: pixels.get_decoder(uid).is_available for uid, name in TRANSFER_SYNTAXES.items()
    }
    absent = [name for name, usable in readable.items() if not usable]
    value = f"{len(readable) - len(absent)} of {len(readable)} compressed transfer syntaxes"
    if not absent:
        return Check(name="codecs", status="ok", value=value)
    advice = f"not readable: {', '.join(absent)}; pip install '{DISTRIBUTION}[codecs]'"
    return Check(name="codecs", status="warn", value=value, advice=advice)


def check_mapper() -> Check:
    """Ask a child process whether VTK's volume mapper can draw; the default needs no graphics."""
    usable, reason = mapper_available()
    if usable:
        return Check(name="projectors", status="ok", value="vtk, vtk-mapper")
    return Check(name="projectors", status="warn", value="vtk (the default)", advice=reason)


def _loaded(name: str) -> Any:
    """Return a module, or one line that says why it cannot be loaded."""
    try:
        return import_module(name)
    except (ImportError, OSError) as error:
        package = name.split(".")[0]
        return f"{package} cannot be loaded: {type(error).__name__}"
