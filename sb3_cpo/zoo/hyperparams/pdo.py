"""PDO: the penalty follows the violation, with the paper's step size."""

from sb3_cpo.zoo.hyperparams import entries

hyperparams = entries({"penalty_coef": 0.0, "penalty_lr": 0.01})
