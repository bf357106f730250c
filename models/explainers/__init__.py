"""Explainers by name; each is called with a model, images and target classes."""

from collections.abc import Mapping
from types import MappingProxyType

from models.explainers.attention_maps import AttentionMaps
from models.explainers.base import Explainer
from models.explainers.gradcam import GradCam

EXPLAINERS: Mapping[str, Explainer] = MappingProxyType(
    {"attention": AttentionMaps(), "gradcam": GradCam()}
)
"""Name of a method -> the explainer with its defaults; ``GradCam(layer=...)`` has other ones."""

__all__ = ["EXPLAINERS", "AttentionMaps", "Explainer", "GradCam"]
