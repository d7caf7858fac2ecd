"""Feature maps: small values that turn rows into features whose inner products are a kernel's."""

# ruff: noqa: F401

from ntkdist.features.base import AnyMap, FeatureMap, FittedMap
from ntkdist.features.cntk_random_features import CNTKRandomFeatures
from ntkdist.features.cntk_sketch import CNTKSketch
from ntkdist.features.fourier import RandomFourier
from ntkdist.features.image_landmarks import ImageLandmarks
from ntkdist.features.imported import Imported
from ntkdist.features.linear import Linear
from ntkdist.features.ntk_random_features import NTKRandomFeatures
from ntkdist.features.ntk_sketch import NTKSketch
from ntkdist.features.nystrom import Nystrom
from ntkdist.features.patch_landmarks import PatchLandmarks
from ntkdist.features.zonal import ZonalFeatures

# What a job file or a saved model may name; a new map is a new file and a new name here.
AnyFeatureMap = (
    CNTKRandomFeatures
    | CNTKSketch
    | ImageLandmarks
    | Imported
    | Linear
    | NTKRandomFeatures
    | NTKSketch
    | Nystrom
    | PatchLandmarks
    | RandomFourier
    | ZonalFeatures
)
