"""Explainers by name; each is called with a model, images and target classes."""

from collections.abc import Mapping
from types import MappingProxyType

from models.explainers.attention_maps import AttentionMaps
from models.explainers.base import Explainer
from models.explainers.cam import ClassActivation
from models.explainers.deeplift import DeepLift
from models.explainers.gradcam import GradCam
from models.explainers.gradients import (
    GradientTimesInput,
    SimpleGradient,
    SmoothGrad,
)
from models.explainers.integrated import IntegratedGradients
from models.explainers.moreau import MoreauGrad
from models.explainers.occlusion import Occlusion
from models.explainers.projected_maps import ProjectedMaps
from models.explainers.relevance import LayerwiseRelevance
from models.explainers.rules import AlphaBeta, Epsilon, Gamma
from models.explainers.transformer import AttentionRollout, SelfAttention

EXPLAINERS: Mapping[str, Explainer] = MappingProxyType(
    {
        "attention": AttentionMaps(),
        "gradcam": GradCam(),
        "cvx": ProjectedMaps(),
        "self-attention": SelfAttention(),
        "rollout": AttentionRollout(),
        "cam": ClassActivation(),
        "gradient": SimpleGradient(),
        "gradient-x-input": GradientTimesInput(),
        "smoothgrad": SmoothGrad(),
        "integrated-gradients": IntegratedGradients(),
        "occlusion": Occlusion(),
        "moreaugrad": MoreauGrad(),
        "moreaugrad-sparse": MoreauGrad(eta=5e-3),
        "moreaugrad-group": MoreauGrad(eta=5e-2, patch=14),
        "deeplift": DeepLift(),
        "lrp": LayerwiseRelevance(),
        "lrp-epsilon": LayerwiseRelevance(convolution=Epsilon()),
        "lrp-gamma": LayerwiseRelevance(dense=Gamma(), rest=Gamma()),
        "lrp-alpha-beta": LayerwiseRelevance(
            convolution=AlphaBeta(), dense=AlphaBeta(), rest=AlphaBeta()
        ),
    }
)
"""Name of a method -> the explainer with its defaults; ``GradCam(layer=...)`` has other ones."""

__all__ = [
    "EXPLAINERS",
    "AlphaBeta",
    "AttentionMaps",
    "AttentionRollout",
    "ClassActivation",
    "DeepLift",
    "Epsilon",
    "Explainer",
    "Gamma",
    "GradCam",
    "GradientTimesInput",
    "IntegratedGradients",
    "LayerwiseRelevance",
    "MoreauGrad",
    "Occlusion",
    "ProjectedMaps",
    "SelfAttention",
    "SimpleGradient",
    "SmoothGrad",
]
