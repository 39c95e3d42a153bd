"""
Checkpoints of a training, from which it goes on as if it had never stopped.

``files`` writes and finds them; ``training`` is what one holds: the model, and what ``environments``, ``callbacks`` and
``logs`` say of theirs; ``snapshot`` pickles live objects and puts them back.
"""

from sb3_cpo.checkpoints.callback import TrainingCheckpoint
from sb3_cpo.checkpoints.files import find_checkpoint, list_checkpoints, load_vec_normalize

__all__ = ["TrainingCheckpoint", "find_checkpoint", "list_checkpoints", "load_vec_normalize"]
