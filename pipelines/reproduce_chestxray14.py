"""What is reproduced on chest radiographs: findings, where maps see them, and robust training.

Official test patients have all the boxes, so that no training picture has one.

References
----------
Khakzar, Albarqouni, Navab, "Learning interpretable features via adversarially robust optimization",
MICCAI 2019, arXiv 1905.03767.
Wang et al., "ChestX-ray8: hospital-scale chest X-ray database and benchmarks", CVPR 2017.
Han et al., "Advancing diagnostic performance and clinical usability of neural networks via
adversarial training and dual batch normalization", Nature Communications 2021.
"""

from collections.abc import Mapping
from typing import Any

from pipelines.box_attacks import BoxAttack
from pipelines.box_evaluation import BoxSettings
from pipelines.config import ChestXray14Config, EvaluateConfig, RobustnessConfig
from pipelines.reproduce_groups import BASELINE, Group, Plan, robust_groups

# So few pictures are read sooner by the training itself than its readers are started.
_SMALL: Mapping[str, Any] = {"preset": "small-chestxray14", "workers": 0}
_FULL: Mapping[str, Any] = {"preset": "paper-chestxray14"}
_RADII = (0.002, 0.005, 0.01)
"""Of attacks on predictions; the first is enough to lead a standard network astray (Han et al.)."""
# Of Han et al.: the first for DenseNet-121, the second, which leads a standard network astray
# already, for narrow networks on faint synthetic findings. There 0.002 costs nothing (l1) or
# 1.5 points (pgd) of the mean area on validation patients, and 0.005 four points.
_STRENGTHS: Mapping[str, Mapping[str, Any]] = {
    "l1": {"radius": 0.005, "weight": 0.5},
    "pgd": {"radius": 0.005, "weight": 0.5},
}
_STRENGTHS_SMALL: Mapping[str, Mapping[str, Any]] = {
    "l1": {"radius": 0.002, "weight": 0.5},
    "pgd": {"radius": 0.002, "weight": 0.5, "steps": 3},  # of seven: to keep the hour
}

SMALL = Plan(
    dataset="chestxray14",
    size="small",
    subjects=400,
    phantoms={"image_size": 256},
    phantom_build=ChestXray14Config(image_size=128),
    real_build=ChestXray14Config(),
    groups=(
        Group(name=BASELINE, variants=(BASELINE,), settings=_SMALL),
        Group(
            name="stride32",
            variants=(BASELINE,),
            settings={**_SMALL, "network": "densenet-narrow"},
        ),
        Group(name="unweighted", variants=(BASELINE,), settings={**_SMALL, "balance": "none"}),
        Group(name="joint", variants=("exact",), settings=_SMALL),
        *robust_groups(_SMALL, _STRENGTHS_SMALL),
    ),
    evaluate=EvaluateConfig(
        fills=("blur",),
        perturbation_samples=60,
        robustness=RobustnessConfig(
            enabled=True,
            samples=24,
            explained=6,
            radii=(0.03, 0.1),
            linf_radii=_RADII,
            l2_radii=(),
            steps=10,
            restarts=1,
        ),
    ),
    boxes=BoxSettings(attacks=(BoxAttack(radius=0.005, steps=10),)),
    pictures=2.5,
    megabytes=0.2,
    seconds=0.5,
    real_pictures=112_120,
    left_out=(
        "narrow DenseNets on pictures of 96 x 96 instead of DenseNet-121 on 224 x 224",
        "PGD of three steps instead of seven",
        "weights of each batch instead of the unweighted loss, which is a run of its own",
    ),
)

FULL = Plan(
    dataset="chestxray14",
    size="full",
    subjects=2000,
    phantom_build=ChestXray14Config(),
    real_build=ChestXray14Config(),
    groups=(
        Group(name=BASELINE, variants=(BASELINE,), settings=_FULL),
        Group(
            name="stride16",
            variants=(BASELINE,),
            settings={**_FULL, "network": "densenet121-stride16"},
        ),
        Group(
            name="stride8",
            variants=(BASELINE,),
            settings={**_FULL, "network": "densenet121-stride8"},
        ),
        Group(
            name="upsampled",
            variants=(BASELINE,),
            settings={**_FULL, "network": "densenet121-upsampled"},
        ),
        Group(name="w-cel", variants=(BASELINE,), settings={"preset": "paper-chestxray14-w-cel"}),
        Group(name="batch", variants=(BASELINE,), settings={**_FULL, "balance": "batch"}),
        Group(name="joint", variants=("exact",), settings=_FULL),
        *robust_groups(_FULL, _STRENGTHS),
    ),
    evaluate=EvaluateConfig(
        robustness=RobustnessConfig(enabled=True, linf_radii=_RADII, l2_radii=())
    ),
    boxes=BoxSettings(attacks=(BoxAttack(radius=0.002), BoxAttack(radius=0.005))),
    pictures=2.5,
    megabytes=1.6,
    seconds=1.2,
    real_pictures=112_120,
)
