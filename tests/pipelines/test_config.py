"""Settings: YAML in and out, and a useful answer to every slip."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.config import (
    AugmentConfig,
    Brats18Config,
    BuildConfig,
    ChestXray14Config,
    ConfigError,
    DataSummary,
    ExplainConfig,
    FdgPetConfig,
    Normalisation,
    RunConfig,
    TrainConfig,
)
from preprocessing import brats, chestxray, fdg_pet


def run_config(**train: object) -> RunConfig:
    return RunConfig(
        data=DataSummary(
            name="blobs",
            classes=("a", "b"),
            in_channels=1,
            picture_size=(64, 48),
            recipe="fdg-pet",
            recipe_config={"seed": 3},
            rows={"train": 5},
        ),
        normalisation=Normalisation(mean=(1.5,), sd=(0.1,)),
        train=TrainConfig.of(dict(train)),
    )


class TestRoundTrip:
    @given(
        rate=st.floats(1e-9, 1e3),
        size=st.one_of(st.none(), st.integers(16, 4096)),
        angle=st.floats(0, 180),
        seed=st.integers(0, 2**32 - 1),
    )
    def test_yaml_reads_back_equal(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        rate: float,
        size: int,
        angle: float,
        seed: int,
    ) -> None:
        config = run_config(
            learning_rate=rate,
            image_size=size,
            augment={"rotate_deg": angle},
            seed=seed,
            network_options={"embedding": [8, 16], "weight": 0.5, "rescale": True},
        )
        path = tmp_path_factory.mktemp("config") / "config.yaml"
        path.write_text(config.to_yaml(), encoding="utf-8")
        assert RunConfig.from_yaml(path) == config

    def test_options_keep_their_types(self) -> None:
        options = {"embedding": (8, 16), "weight": 0.5, "rescale": False, "count": 3, "name": "x"}
        read = TrainConfig.of(TrainConfig(network_options=options).model_dump(mode="json"))
        assert read.network_options == options
        assert [type(value) for value in read.network_options.values()] == [
            tuple, float, bool, int, str,
        ]  # fmt: skip

    def test_defaults_are_valid(self) -> None:
        for kind in (TrainConfig, ExplainConfig, AugmentConfig, FdgPetConfig):
            assert kind.of({}) == kind()


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (TrainConfig, {"epoch": 3}, r"unknown setting 'epoch'; did you mean 'epochs'\?"),
        (TrainConfig, {"zzz": 3}, "unknown setting 'zzz'; known: preset, network"),
        (TrainConfig, {"augment": {"rotat_deg": 3}}, "augment: .*did you mean 'rotate_deg'"),
        (TrainConfig, {"epochs": 0}, r"epochs: .*greater than or equal to 1 \(got 0\)"),
        (TrainConfig, {"learning_rate": 0}, r"learning_rate: .*greater than 0 \(got 0\)"),
        (TrainConfig, {"balance": "yes"}, r"balance: .*'loss', 'batch', 'w-cel' or 'none' \(got"),
        (TrainConfig, {"feed": "disk"}, r"feed: .*'auto', 'resident' or 'stream'"),
        (TrainConfig, {"schedule": "step"}, r"schedule: .*'cosine', 'plateau' or 'constant'"),
        (TrainConfig, {"device": "tpu"}, r"device: .*'auto', 'cpu' or 'cuda'"),
        (TrainConfig, {"image_size": 8}, r"image_size: .*greater than or equal to 16 \(got 8\)"),
        (TrainConfig, {"augment": {"scale": 1}}, r"augment.scale: .*less than 1 \(got 1\)"),
        (ExplainConfig, {"split": "tset"}, r"split: .*'train', 'validation', 'test' or 'all'"),
        (ExplainConfig, {"target": "both"}, r"target: .*'prediction' or 'truth'"),
        (ExplainConfig, {"method": "gradcam"}, r"did you mean 'methods'\?"),
        (RunConfig, {"encoding_version": "9"}, r"encoding_version: .*'1.1' \(got '9'\)"),
    ],
)
def test_a_slip_is_named(kind: type, values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind.of(values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "config.yaml holds no 'key: value' settings"),
        ("a: [", "cannot read the settings in config.yaml"),
        ("a: !!python/object/apply:os.getcwd []", "cannot read the settings in config.yaml"),
    ],
)
def test_a_file_that_is_no_settings_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        TrainConfig.from_yaml(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings in none\.yaml"):
        TrainConfig.from_yaml(tmp_path / "none.yaml")


class TestDataSets:
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            (FdgPetConfig, fdg_pet.Options),
            (Brats18Config, brats.Options),
            (ChestXray14Config, chestxray.Options),
        ],
    )
    def test_settings_are_those_of_the_preprocessing_with_its_defaults(
        self, kind: type[BuildConfig], options: type
    ) -> None:
        own = kind().model_dump(exclude=set(BuildConfig.model_fields))
        assert options(**own) == options()

    def test_the_published_cut_reads_back(self) -> None:
        config = Brats18Config(crop="tumour-edge", crossing="label-both", min_half_area=7)
        assert Brats18Config.of(yaml.safe_load(config.to_yaml())) == config
