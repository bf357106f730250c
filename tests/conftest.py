import os
from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

from tests.typechecking import checked

jaxtyping.jaxtyped = checked  # which the import hook of the suite decorates with
# Shared machines stall: how long an example takes is no property of the code.
settings.register_profile("suite", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("suite")


def _reference_data() -> Path | None:
    named = os.environ.get("DUALWITNESS_TEST_DATA")
    folder = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder of real scans made by others; tests that need it skip on a machine without it."""
    folder = _reference_data()
    if folder is None:
        pytest.skip("no reference data: set DUALWITNESS_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def small_phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine coarse whole-body patients: ``dicom/``, ``labels.csv``, ``truth/``; read only."""
    from preprocessing.phantoms.fdg_pet import FdgPetOptions, write_fdg_pet

    folder = tmp_path_factory.mktemp("phantoms") / "scans"
    options = FdgPetOptions(spacing_mm=(24.0, 22.0, 22.0), matrix=32)
    write_fdg_pet(folder, subjects=9, seed=3, options=options)
    return folder
