import os
import shutil
import sys
from collections import namedtuple
from importlib import metadata
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

from pipelines import doctor
from pipelines.doctor import (
    TRANSFER_SYNTAXES,
    check_codecs,
    check_disk,
    check_gpu,
    check_mapper,
    check_memory,
    check_processors,
    check_python,
    check_requirement,
    check_versions,
    diagnose,
)


@pytest.fixture
def no_mapper(monkeypatch):
    monkeypatch.setattr(doctor, "mapper_available", lambda: (False, "install libegl1"))


def absent(name):
    raise metadata.PackageNotFoundError(name)


def fake_torch(monkeypatch, **cuda):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(**cuda)))


def test_every_question_has_an_answer_and_every_restriction_an_advice(no_mapper, tmp_path):
    checks = diagnose(tmp_path)
    names = [check.name for check in checks]
    assert len(names) == len(set(names))
    assert {"python", "GPU", "processors", "memory", "disk", "codecs", "projectors"} <= set(names)
    assert {"torch", "vtk", "pydicom", "monai"} <= set(names)
    for check in checks:
        assert check.value
        assert check.advice or check.status == "ok"


def test_findings_name_neither_paths_nor_the_machine(no_mapper, tmp_path):
    words = " ".join(f"{check.value} {check.advice}" for check in diagnose(tmp_path))
    assert str(tmp_path) not in words
    assert os.uname().nodename not in words


def test_installed_dependencies_are_in_range():
    assert {check.status for check in check_versions()} == {"ok"}
    assert check_python().status == "ok"


def test_extras_are_not_asked_for():
    assert "hypothesis" not in [check.name for check in check_versions()]


@pytest.mark.parametrize(
    ("requirement", "status", "advice"),
    [
        ("numpy>=1.0", "ok", ""),
        ("numpy>=999", "missing", "pip install --upgrade 'numpy>=999'"),
        ("no-such-package>=2", "missing", "pip install 'no-such-package>=2'"),
    ],
)
def test_a_package_is_compared_with_its_range(requirement, status, advice):
    check = check_requirement(Requirement(requirement))
    assert (check.status, check.advice) == (status, advice)
    assert check.value in ("not installed", metadata.version("numpy"))


def test_a_checkout_that_is_not_installed_is_told_how(monkeypatch):
    monkeypatch.setattr(metadata, "requires", absent)
    (check,) = check_versions()
    assert (check.status, check.value) == ("missing", "not installed")
    assert "pip install -c constraints.txt -e ." in check.advice


def test_python_without_an_installed_package_is_not_judged(monkeypatch):
    monkeypatch.setattr(metadata, "metadata", absent)
    assert check_python().status == "ok"


def test_an_old_python_is_told_what_is_needed(monkeypatch):
    monkeypatch.setattr(metadata, "metadata", lambda name: {"Requires-Python": ">=99.1"})
    check = check_python()
    assert (check.status, check.advice) == ("missing", "use Python >=99.1")


def test_a_torch_that_does_not_load_is_the_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    check = check_gpu()
    assert check.status == "missing"
    assert check.value == "torch cannot be loaded: ModuleNotFoundError"
    assert check.advice == "reinstall torch"


def test_a_machine_without_a_gpu_is_told_what_happens(monkeypatch):
    fake_torch(monkeypatch, is_available=lambda: False)
    check = check_gpu()
    assert (check.status, check.value) == ("warn", "none")
    assert check.advice.startswith("training runs on the processor")


def test_what_the_driver_says_is_passed_on(monkeypatch):
    def is_available():
        import warnings

        warnings.warn("The NVIDIA driver is too old\nsecond line", stacklevel=1)
        return False

    fake_torch(monkeypatch, is_available=is_available)
    assert check_gpu().advice.startswith("The NVIDIA driver is too old; training runs")


def test_a_gpu_is_named_with_its_memory(monkeypatch):
    fake_torch(
        monkeypatch,
        is_available=lambda: True,
        is_bf16_supported=lambda: True,
        get_device_properties=lambda index: SimpleNamespace(name="H100", total_memory=80 * 2**30),
    )
    check = check_gpu()
    assert (check.status, check.value) == ("ok", "H100, 80 GiB, bfloat16")


def test_a_gpu_that_fails_when_asked_is_no_traceback(monkeypatch):
    def fail(index):
        raise RuntimeError("CUDA error: all devices are busy\nmore")

    fake_torch(monkeypatch, is_available=lambda: True, get_device_properties=fail)
    check = check_gpu()
    assert (check.status, check.advice) == ("warn", "CUDA error: all devices are busy")


def test_processors_are_counted(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    assert check_processors().value == "2"
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert check_processors().value == "1"


@pytest.mark.parametrize(("pages", "status"), [(2**30, "ok"), (2**20, "warn")])
def test_little_memory_is_said(monkeypatch, pages, status):
    monkeypatch.setattr(os, "sysconf", lambda name: 4096 if name == "SC_PAGE_SIZE" else pages)
    check = check_memory()
    assert check.status == status
    assert ("--workers" in check.advice) == (status == "warn")


def test_a_system_without_sysconf_is_no_failure(monkeypatch):
    def sysconf(name):
        raise ValueError(name)

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert check_memory().value == "not known on this system"


@pytest.mark.parametrize(("gib", "status"), [(10, "ok"), (9, "warn")])
def test_little_room_on_the_disk_is_said(monkeypatch, tmp_path, gib, status):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, gib * 2**30))
    check = check_disk(tmp_path)
    assert check.status == status
    assert ("make room" in check.advice) == (status == "warn")


def test_a_folder_that_is_not_there_is_no_traceback(tmp_path):
    check = check_disk(tmp_path / "absent")
    assert (check.status, check.value) == ("missing", "No such file or directory")
    assert "choose a folder" in check.advice


def test_codecs_that_cannot_be_read_are_named(monkeypatch):
    def get_decoder(uid):
        return SimpleNamespace(is_available=TRANSFER_SYNTAXES[uid] != "JPEG-LS")

    monkeypatch.setitem(sys.modules, "pydicom.pixels", SimpleNamespace(get_decoder=get_decoder))
    check = check_codecs()
    assert (check.status, check.value) == ("warn", "7 of 8 compressed transfer syntaxes")
    assert check.advice == "not readable: JPEG-LS; pip install 'dualwitness[codecs]'"


def test_codecs_of_this_environment_include_what_pydicom_brings_itself():
    check = check_codecs()
    assert "RLE" not in check.advice
    assert check.value.endswith("of 8 compressed transfer syntaxes")


def test_a_pydicom_that_does_not_load_is_the_finding(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydicom.pixels", None)
    check = check_codecs()
    assert (check.status, check.advice) == ("missing", "reinstall pydicom")


def test_mapper_is_reported_with_what_to_install(no_mapper):
    check = check_mapper()
    assert (check.status, check.value, check.advice) == (
        "warn",
        "vtk (the default)",
        "install libegl1",
    )


def test_mapper_that_draws_is_reported(monkeypatch):
    monkeypatch.setattr(doctor, "mapper_available", lambda: (True, "draws"))
    assert check_mapper().value == "vtk, vtk-mapper"
