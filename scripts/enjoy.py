"""Watch an agent of the zoo: the same as ``python -m sb3_cpo.zoo.enjoy``."""

from sb3_cpo.zoo.enjoy import enjoy

if __name__ == "__main__":
    enjoy("python scripts/enjoy.py")
