"""FPO with the smallest penalty of the paper (it tries 1, 5 and 50)."""

from sb3_cpo.zoo.hyperparams import entries

hyperparams = entries({"penalty_coef": 1.0})
