"""Record a video of a trained agent: the same as ``sb3-cpo video``."""

from sb3_cpo.record_video import main

if __name__ == "__main__":
    main(prog="python scripts/record_video.py")
