"""Oblivious sketches: short vectors whose inner products are those of long ones, in expectation."""

from ntkdist.features.sketch.buckets import (
    count_sketch,
    draw_count_sketch,
    draw_osnap,
    osnap,
    tensor_sketch,
    tensor_sketch_bytes,
)
from ntkdist.features.sketch.hadamard import draw_srht, hadamard, mix, next_power, srht, srht_values, tensor_srht
from ntkdist.features.sketch.tensor_powers import (
    WIDE,
    Powers,
    Step,
    draw_factor,
    draw_poly,
    drawn_values,
    factor,
    factor_values,
    poly_sketch,
    steps,
)

__all__ = [
    "WIDE",
    "Powers",
    "Step",
    "count_sketch",
    "draw_count_sketch",
    "draw_factor",
    "draw_osnap",
    "draw_poly",
    "draw_srht",
    "drawn_values",
    "factor",
    "factor_values",
    "hadamard",
    "mix",
    "next_power",
    "osnap",
    "poly_sketch",
    "srht",
    "srht_values",
    "steps",
    "tensor_sketch",
    "tensor_sketch_bytes",
    "tensor_srht",
]
