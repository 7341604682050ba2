"""InternImage in any PyTorch program, with timm's interface. Needs PyTorch only."""

from .classifier import InternImageClassifier
from .factory import create_model
from .features import FeatureExtractor, FeatureInfo, extract_features

__all__ = [
    'FeatureExtractor',
    'FeatureInfo',
    'InternImageClassifier',
    'create_model',
    'extract_features',
]
