"""CPO: its defaults hold the limit."""

from sb3_cpo.zoo.hyperparams import entries

hyperparams = entries()
