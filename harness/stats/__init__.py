"""The statistics: pure functions of arrays. No model, no store, no randomness without a seed.

    intervals   one score: Wilson, Clopper-Pearson, clustered t, score; what a sample without spread still allows
    paired      two runs on the same items: McNemar mid-p, Tango and its exact tail, sign flips, studentised bootstrap
    restricted  any scores on a scale: the likeliest distribution with a given mean, its score test and exact tail
    evidence    which of those decides whether a difference lies above a threshold, or below it
    planning    Holm's adjustment, what n samples can show, and how many samples or repeats a question needs

Scores lie in [0, 1], differences in [-1, 1]. The unit of analysis is the item, or the cluster where items hang
together. Sources: Miller 2024 (arXiv:2411.00640); Brown, Cai & DasGupta 2001; Tango 1998; Fagerland, Lydersen & Laake
2013 (mid-p); Storer & Kim 1990 (exact tails); Owen 2001 ch. 2 (likeliest distributions); Efron & Tibshirani 1993 ch. 12
(bootstrap-t); Holm 1979.
"""

from rlhf_bench.harness.stats.evidence import Evidence, binary_evidence, continuous_evidence
from rlhf_bench.harness.stats.intervals import Interval, clopper_pearson, estimate, mean_interval, wilson
from rlhf_bench.harness.stats.paired import (
    bootstrap_t,
    mcnemar_midp,
    sign_flip_p,
    tango_exact_p,
    tango_interval,
    tango_low,
    tango_z,
)
from rlhf_bench.harness.stats.planning import (
    alpha_share,
    chance_to_show,
    detectable,
    holm,
    repeats_to_decide,
    samples_needed,
    samples_to_decide,
)
from rlhf_bench.harness.stats.sequential import (
    DESIGN,
    Design,
    anytime_evidence,
    chance_decided,
    conditional_power,
    levels,
    one_each_way,
)

__all__ = [
    "DESIGN",
    "Design",
    "Evidence",
    "Interval",
    "alpha_share",
    "anytime_evidence",
    "binary_evidence",
    "bootstrap_t",
    "chance_decided",
    "chance_to_show",
    "clopper_pearson",
    "conditional_power",
    "continuous_evidence",
    "detectable",
    "estimate",
    "holm",
    "levels",
    "mcnemar_midp",
    "mean_interval",
    "one_each_way",
    "repeats_to_decide",
    "samples_needed",
    "samples_to_decide",
    "sign_flip_p",
    "tango_exact_p",
    "tango_interval",
    "tango_low",
    "tango_z",
    "wilson",
]
