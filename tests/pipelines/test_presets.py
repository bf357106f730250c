"""Presets: what they stand for, what wins over them, and that they are the paper's."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from models.networks import build
from pipelines import console
from pipelines.augment import augment
from pipelines.config import AugmentConfig, ConfigError, TrainConfig
from pipelines.presets import DIFFERENCES, PRESETS, differences


def network(preset: str, *, in_channels: int, classes: int) -> torch.nn.Module:
    settings = TrainConfig.of({"preset": preset})
    return build(
        settings.network,
        variant=settings.variant,
        in_channels=in_channels,
        classes=classes,
        image_size=settings.image_size or 256,
        **settings.network_options,
    )


@pytest.mark.parametrize("name", PRESETS)
class TestEveryPreset:
    def test_says_what_it_says(self, name: str) -> None:
        settings = TrainConfig.of({"preset": name}).model_dump(mode="json")
        for key, value in PRESETS[name].items():
            found = settings[key]
            assert found == value or value.items() <= found.items(), key

    def test_reads_back_from_yaml(self, name: str, tmp_path: Path) -> None:
        settings = TrainConfig.of({"preset": name, "epochs": 3, "augment": {"translate": 0.5}})
        (tmp_path / "train.yaml").write_text(settings.to_yaml())
        assert TrainConfig.from_yaml(tmp_path / "train.yaml") == settings

    def test_does_not_change_by_being_used(self, name: str) -> None:
        TrainConfig.of({"preset": name, "augment": {"translate": 0.5}})
        assert TrainConfig.of({"preset": name}).augment.translate != 0.5


class TestOrder:
    """Preset, then the settings file, then options, then --set: the later wins."""

    def settings(self, tmp_path: Path, file: str, option: dict[str, Any], *pairs: str) -> Any:
        (tmp_path / "file.yaml").write_text(file)
        changes = console.merged(option, console.overrides(list(pairs)))
        return TrainConfig.of(console.settings(tmp_path / "file.yaml", changes))

    def test_the_preset_is_last(self, tmp_path: Path) -> None:
        found = self.settings(tmp_path, "epochs: 7", {"preset": "paper-brats18-baseline"})
        assert (found.epochs, found.batch_size, found.optimizer) == (7, 64, "adam")

    def test_options_win_over_the_file_and_pairs_over_options(self, tmp_path: Path) -> None:
        file = "preset: paper-brats18-baseline\nepochs: 7\nbatch_size: 3\nseed: 5"
        found = self.settings(tmp_path, file, {"epochs": 8, "batch_size": 4}, "epochs=9")
        assert (found.epochs, found.batch_size, found.seed) == (9, 4, 5)

    def test_groups_are_laid_over_setting_by_setting(self, tmp_path: Path) -> None:
        file = "augment: {zoom: 1.0}"
        option = {"preset": "paper-brats18-baseline"}
        found = self.settings(tmp_path, file, option, "augment.translate=0.1")
        augmentation = found.augment
        assert (augmentation.zoom, augmentation.translate, augmentation.scale) == (1.0, 0.1, 0.25)

    def test_an_unknown_name(self) -> None:
        message = r"no preset 'paper-brats'; did you mean 'paper-brats18'\? known: paper-fdg-pet"
        with pytest.raises(ConfigError, match=message):
            TrainConfig.of({"preset": "paper-brats"})


class TestThePaper:
    @pytest.mark.parametrize(
        ("preset", "channels", "classes", "low", "high"),
        [
            ("paper-brats18-baseline", 4, 2, 4_715_522, 4_715_522),
            ("paper-brats18", 4, 2, 4_915_204, 4_915_204),
            ("paper-fdg-pet-baseline", 1, 3, 23_450_000, 23_550_000),
            ("paper-fdg-pet", 1, 3, 30_750_000, 30_900_000),
        ],
    )
    def test_parameters_are_those_of_table_3(
        self, preset: str, channels: int, classes: int, low: int, high: int
    ) -> None:
        found = network(preset, in_channels=channels, classes=classes)
        assert low <= sum(value.numel() for value in found.parameters()) <= high

    def test_every_difference_is_told_and_only_for_the_paper(self) -> None:
        told = differences("paper-brats18")
        assert len(told) == len(DIFFERENCES["paper-brats18"])
        assert all(len(line) > 40 for line in told)
        assert differences("small") == differences("") == ()

    @pytest.mark.parametrize("name", ["paper-chestxray14", "paper-chestxray14-w-cel"])
    def test_chest_radiographs_are_trained_as_by_the_group(self, name: str) -> None:
        settings = TrainConfig.of({"preset": name})
        assert (settings.network, settings.image_size, settings.batch_size) == (
            "densenet121",
            224,
            32,
        )
        assert (settings.optimizer, settings.learning_rate, settings.weight_decay) == (
            "sgd",
            1e-3,
            1e-4,
        )
        pictures = torch.rand(3, 1, 16, 16)
        generator = torch.Generator().manual_seed(0)
        same = augment(pictures.clone(), settings.augment, generator=generator)
        torch.testing.assert_close(same, pictures, atol=1e-5, rtol=0)
        assert any("Nesterov" in line for line in differences(name))
        assert not any("frozen trunk" in line for line in differences(name))

    @pytest.mark.parametrize(
        ("ending", "channels", "grid"),
        [("", 1024, 7), ("-stride16", 1024, 14), ("-stride8", 512, 28), ("-upsampled", 1024, 28)],
    )
    def test_finer_networks_end_where_the_group_cuts_theirs(
        self, ending: str, channels: int, grid: int
    ) -> None:
        found = build(
            f"densenet121{ending}", variant="baseline", in_channels=1, classes=14, image_size=224
        )
        last = list(found.trunk.strides)[-1]
        assert (found.trunk.features, found.trunk.grid(last, (224, 224))) == (
            channels,
            (grid, grid),
        )

    def test_sizes_are_drawn_from_0_9_to_1_5(self) -> None:
        augmentation = TrainConfig.of({"preset": "paper-brats18"}).augment
        smallest = augmentation.zoom * (1 - augmentation.scale)
        assert (smallest, augmentation.zoom * (1 + augmentation.scale)) == pytest.approx((0.9, 1.5))


class TestShapes:
    """A picture of its own coordinates shows where each pixel came from."""

    def came_from(self, settings: AugmentConfig, count: int = 64) -> torch.Tensor:
        """Linear map from output to input pixels of each picture, "b 2 2", rows x and y."""
        side = 33
        axis = torch.arange(side, dtype=torch.float32) - side // 2
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        images = torch.stack([x, y]).expand(count, 2, side, side).contiguous()
        found = augment(images, settings, generator=torch.Generator().manual_seed(0))
        middle = side // 2
        right = found[:, :, middle, middle + 1] - found[:, :, middle, middle]
        down = found[:, :, middle + 1, middle] - found[:, :, middle, middle]
        return torch.stack([right, down], dim=2)

    def still(self, **changes: float) -> AugmentConfig:
        nothing = dict.fromkeys(
            ("flip_left_right", "rotate_deg", "translate", "scale", "intensity"), 0.0
        )
        return AugmentConfig.of({**nothing, **changes})

    def test_shear_moves_rows_sideways_and_nothing_else(self) -> None:
        found = self.came_from(self.still(shear_deg=20))
        torch.testing.assert_close(found[:, 0, 0], torch.ones(64), rtol=0, atol=1e-4)
        torch.testing.assert_close(found[:, 1, 1], torch.ones(64), rtol=0, atol=1e-4)
        torch.testing.assert_close(found[:, 1, 0], torch.zeros(64), rtol=0, atol=1e-4)
        lean = found[:, 0, 1]
        largest = math.tan(math.radians(20))
        assert 0.7 * largest < lean.max() <= largest + 1e-4
        assert -largest - 1e-4 <= lean.min() < -0.7 * largest

    def test_zoom_enlarges_every_picture_alike(self) -> None:
        found = self.came_from(self.still(zoom=1.25))
        expected = torch.eye(2).expand(64, 2, 2) / 1.25
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

    def test_shear_turns_with_the_picture(self) -> None:
        """Area is changed by the size alone: rotation and shear keep it."""
        found = self.came_from(self.still(zoom=1.2, scale=0.25, rotate_deg=180, shear_deg=20))
        area = torch.linalg.det(found).rsqrt()
        assert area.min() >= 0.9 - 1e-3
        assert area.max() <= 1.5 + 1e-3
        assert area.max() - area.min() > 0.4
