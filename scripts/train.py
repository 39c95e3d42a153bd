"""Train an agent with the zoo: the same as ``python -m sb3_cpo.zoo.train``."""

from sb3_cpo.zoo.train import train

if __name__ == "__main__":
    train("python scripts/train.py")
