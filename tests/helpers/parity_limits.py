"""Limits that are wider than the recorded ones.

A limit under four times the distance between a float32 and a float64 run of ours tests the processor, not us. Measured
for every recorded array in one go, on one x86 CPU with torch 2.13: each test ran once as it is and once with every
tensor in float64, and the two results were compared by the error of that test. The distance stands behind each limit.
"""

from __future__ import annotations

# family/case (and the cases that continue its name) -> array -> limit, in the kind of error that the family uses.
WIDENED: dict[str, dict[str, float]] = {
    # Bodies some metres wide, of skinning weights that do not sum to one: large terms cancel.
    "dpmesh/smpl": {
        "joint_cam": 1.5e-5,  # distance 3.5e-6, recorded limit 1e-5
        "mesh_cam": 2.5e-5,  # 6.2e-6, 1e-5
    },
    # Few joints, aligned: the error is what is left of much larger numbers.
    "dpmesh/metrics": {
        "pa_mpjpe": 3e-5,  # 6.9e-6, 2e-5
        "pa_mpjpe_invisable": 5e-5,  # 1.0e-5, 2e-5
    },
    # The time embedding takes sine and cosine of up to 999 radians, of which float32 keeps 3e-5.
    "scorehmr/denoiser": {
        "sinusoid": 8e-5,  # 1.7e-5, 5e-5
        "eps": 8e-5,  # 1.9e-5, 5e-5
    },
    # The same, and an early estimate of x0 divides by sqrt(alpha), near zero.
    "scorehmr/ddim": {
        "vanilla_x0": 9e-4,  # 2.0e-4, 3e-4
        "vanilla_latents": 4e-4,  # 8.5e-5, 3e-4
        "vanilla_out_x_0": 4e-4,  # 8.3e-5, 3e-4
    },
    # The term of the views enters the gradient with 300^2.
    "scorehmr/guided_multiview": {
        "x0_first_loop": 2e-4,  # 4.4e-5, 1e-4
    },
    # Attention made sharp on purpose (logit_scale + 4) multiplies rounding.
    "postometro/pct_base_image": {
        "clamped_features": 4e-4,  # 8.7e-5, 2e-5
        "clamped_features, worst": 1.6e-3,  # 3.9e-4, 2e-4
    },
}


def limit(family: str, case: str, array: str, recorded: float) -> float:
    """The limit of one array: the recorded one or a wider one."""
    named = f"{family}/{case}_"
    wider = (arrays.get(array, 0.0) for known, arrays in WIDENED.items() if named.startswith(f"{known}_"))
    return max([recorded, *wider])
