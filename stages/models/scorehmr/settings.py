"""The settings of ScoreHMR: presets for published weights and the embedded prior, and what `hmr refine` sets."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.models.scorehmr.sampler import SamplingPlan

if TYPE_CHECKING:
    from stages.params import RefineParams

PUBLISHED_WEIGHT = 0.003
# The embedded prior has its own weights: its poses are standardised, its residuals relative to the person's size.
# Chosen on subjects that are neither trained on nor tested on. Low noise indices in small steps: inversion and sampling
# in large ones do not cancel, and the recoverer's estimate is better than that error.
EMBEDDED_PLAN = SamplingPlan(loops=14, start=20, step=2)
EMBEDDED_WEIGHT = 2e4


@dataclass(frozen=True)
class ScoreHmrSettings:
    """plan: the loop for rows of tracks and views · single_plan: the loop for rows that are refined by themselves and
    for views of a rig whose positions are known, which share one body · w_keypoints, w_smooth, w_views: weights of the
    terms, see Guidance · method: "score" or "fit" · fit_steps, fit_prior: of the method "fit" · use_hips: whether hip
    keypoints count · replace: see Guidance · hypotheses: how many poses are refined for each row · spread: noise index
    up to which the published weights' further hypotheses are blurred."""

    plan: SamplingPlan
    single_plan: SamplingPlan
    w_keypoints: float
    w_smooth: float = 30.0
    w_views: float = 0.005
    method: str = "score"
    fit_steps: int = 60
    fit_prior: float = 0.0
    use_hips: bool = True
    replace: bool = False
    hypotheses: int = 1
    spread: int = 200


def preset(name: str, *, published: bool) -> ScoreHmrSettings:
    """The preset "paper" (steps of 2), "fast" (steps of 10) or "default": what suits the weights, with the embedded
    prior no loop for single rows."""
    if published:
        plan = SamplingPlan(step=10 if name == "fast" else 2)
        return ScoreHmrSettings(plan, plan, PUBLISHED_WEIGHT)
    if name in ("paper", "fast"):
        plan = SamplingPlan(step=10) if name == "fast" else SamplingPlan()
        return ScoreHmrSettings(plan, plan, EMBEDDED_WEIGHT)
    return ScoreHmrSettings(EMBEDDED_PLAN, dataclasses.replace(EMBEDDED_PLAN, loops=0), EMBEDDED_WEIGHT)


def settings_of(params: RefineParams, *, published: bool) -> ScoreHmrSettings:
    """The preset, with what the user set in place of it."""
    base = preset(params.preset, published=published)
    return dataclasses.replace(
        base,
        plan=dataclasses.replace(base.plan, loops=params.loops or base.plan.loops),
        single_plan=dataclasses.replace(base.single_plan, loops=params.loops or base.single_plan.loops),
        w_keypoints=params.keypoint_weight or base.w_keypoints,
        w_smooth=params.smooth,
        method=params.method,
        fit_steps=params.fit_steps,
        fit_prior=params.fit_prior,
        use_hips=params.hips,
        hypotheses=params.hypotheses,
    )
