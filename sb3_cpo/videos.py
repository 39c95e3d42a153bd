"""Videos of a policy: recording episodes, a callback that does so during training, and encoding."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import TensorBoardOutputFormat
from stable_baselines3.common.type_aliases import PolicyPredictor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, sync_envs_normalization

from sb3_cpo.cost_limits import CostLimits
from sb3_cpo.evaluation import EpisodeCostRecorder, evaluate_policy

# Height of a frame in which text can be read
SMALLEST_CAPTIONED = 64
VIDEO_ENDINGS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif")


class Recording(NamedTuple):
    """Episodes of the first copy of an environment, as they looked and what they paid."""

    frames: list[np.ndarray]
    """(height, width, 3) each."""
    rewards: list[float]
    lengths: list[int]
    costs: np.ndarray
    """(n_episodes, n_costs) as the model's limit has them: discounted by its ``cost_gamma``."""


def record_episodes(
    model: PolicyPredictor,
    env: VecEnv,
    n_episodes: int = 1,
    deterministic: bool = True,
    max_frames: int | None = None,
    cost_keys: Sequence[str] | None = None,
    caption: bool = False,
) -> Recording:
    """
    Play episodes and keep what the first copy of the environment looks like after each step.

    :param env: its ``render_mode`` is "rgb_array"
    :param max_frames: keep no more frames than these
    :param caption: write the episode's cost so far into the frames, with the limit; discounted where ``cost_gamma`` < 1
    """
    frames: list[np.ndarray] = []
    counted = EpisodeCostRecorder.for_model(model, cost_keys, gamma=getattr(model, "cost_gamma", 1.0))

    def grab(locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        counted(locals_)
        if locals_["i"] != 0 or (max_frames is not None and len(frames) >= max_frames):
            return
        # After the last step of an episode the environment already shows the next one
        if not locals_["done"]:
            frame = grab_frame(env)
            frames.append(write_caption(frame, caption_lines(model, counted.costs_so_far)) if caption else frame)

    rewards, lengths, _ = evaluate_policy(
        model,
        env,
        n_episodes,
        deterministic,
        callback=grab,
        return_episode_rewards=True,
        warn=False,
        cost_keys=cost_keys,
    )
    return Recording(frames, rewards, lengths, counted.episode_costs)


def record_replay(model: Any, env: VecEnv, seed: int, deterministic: bool, max_frames: int | None = None) -> Recording:
    """
    Record an episode of a :func:`sb3_cpo.safety_report`, with its cost in the frames. Arguments: see there.

    :param max_frames: keep no more frames than these
    """
    from sb3_cpo.safety_report import replay_episode

    frames: list[np.ndarray] = []

    def grab(played: VecEnv, costs: np.ndarray, reward: float, is_over: bool) -> None:
        if not is_over and (max_frames is None or len(frames) < max_frames):
            frames.append(write_caption(grab_frame(played), caption_lines(model, costs)))

    episode = replay_episode(model, env, seed, deterministic, on_step=grab)
    return Recording(frames, [episode.reward], [episode.length], episode.costs[None])


def grab_frame(env: VecEnv) -> np.ndarray:
    """
    What the first copy looks like, (height, width, 3).

    :raises ValueError: it does not render
    """
    frame = env.get_images()[0]
    if frame is None:
        raise ValueError(f'the environment cannot be recorded: its render_mode is {env.render_mode}, not "rgb_array"')
    return np.asarray(frame)


def caption_lines(model: Any, costs: np.ndarray) -> list[str]:
    """
    A line per constraint: "cost 3 / limit 5".

    :param costs: (n_costs,) of the episode so far
    """
    limits: CostLimits | None = getattr(model, "cost_limits", None)
    names = (limits.names if limits is not None and len(limits.names) == len(costs) else ()) or (
        ["cost"] if len(costs) == 1 else [f"cost {index}" for index in range(len(costs))]
    )
    bounds = np.full(len(costs), np.inf)
    if limits is not None and limits.is_limited and limits.n_costs == len(costs):
        bounds = model.current_cost_limit
    return [
        f"{name} {cost:.4g}" + (f" / limit {bound:g}" if np.isfinite(bound) else "")
        for name, cost, bound in zip(names, costs, bounds, strict=True)
    ]


def write_caption(frame: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """
    A frame with lines of text in its upper left corner; one that is too small for text as it is.

    :param frame: (height, width, 3)
    """
    from PIL import Image, ImageDraw, ImageFont

    if not lines or frame.shape[0] < SMALLEST_CAPTIONED:
        return frame
    image = Image.fromarray(np.ascontiguousarray(frame))
    draw, size = ImageDraw.Draw(image, "RGBA"), max(8, frame.shape[0] // 22)
    font, position, margin = ImageFont.load_default(size), (size // 2, size // 3), size // 3
    left, top, right, bottom = draw.multiline_textbbox(position, "\n".join(lines), font=font)
    draw.rectangle((left - margin, top - margin, right + margin, bottom + margin), fill=(0, 0, 0, 150))
    draw.multiline_text(position, "\n".join(lines), font=font, fill="white")
    return np.asarray(image)


class VideoRecorderCallback(BaseCallback):
    """
    Record a video of the current policy now and then, to disk and to TensorBoard (where it needs ``tensorboard_log``). The
    cost of the episode so far and the limit are written in the frames.

    :param eval_env: The environment to record, with ``render_mode="rgb_array"`` (``make_vec_env`` sets it). With several
        copies, the first one is shown
    :param record_freq: Record every ``record_freq`` call of the callback
    :param video_folder: Folder of the videos, ``<name_prefix>-step-<timesteps>.mp4``
    :param n_episodes: Episodes in one video
    :param max_frames: The video ends after this number of frames
    :param deterministic: Whether the policy acts deterministically
    :param name_prefix: First part of the names of the files
    :param fps: Frames per second. None: as the environment says
    :param tensorboard_scale: TensorBoard gets every n-th pixel and frame, as an animated GIF. 0: none
    :param verbose: Verbosity level: 0 for no output, 1 for the names of the files
    """

    def __init__(
        self,
        eval_env: gym.Env | VecEnv,
        record_freq: int = 10000,
        video_folder: str = "videos",
        n_episodes: int = 1,
        max_frames: int | None = 1000,
        deterministic: bool = True,
        name_prefix: str = "rl-video",
        fps: float | None = None,
        tensorboard_scale: int = 2,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        self.eval_env: VecEnv = eval_env if isinstance(eval_env, VecEnv) else DummyVecEnv([lambda: eval_env])
        self.record_freq = record_freq
        self.video_folder = video_folder
        self.n_episodes = n_episodes
        self.max_frames = max_frames
        self.deterministic = deterministic
        self.name_prefix = name_prefix
        self.fps = fps
        self.tensorboard_scale = tensorboard_scale

    def _on_step(self) -> bool:
        if self.n_calls % self.record_freq != 0:
            return True
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        recording = record_episodes(
            self.model, self.eval_env, self.n_episodes, self.deterministic, self.max_frames, caption=True
        )
        fps = self.fps or render_fps(self.eval_env)
        path = os.path.join(self.video_folder, f"{self.name_prefix}-step-{self.num_timesteps}.mp4")
        write_video(recording.frames, path, fps)
        if self.verbose >= 1:
            cost = ", ".join(f"{value:.2f}" for value in recording.costs.mean(axis=0))
            print(f"Video: {path} (reward {np.mean(recording.rewards):.2f}, cost {cost})")
        if self.tensorboard_scale > 0:
            self._write_tensorboard(recording.frames[:: self.tensorboard_scale], fps / self.tensorboard_scale)
        return True

    def _write_tensorboard(self, frames: Sequence[np.ndarray], fps: float) -> None:
        # torch's add_video, behind SB3's logger.Video, knows moviepy 1 only and silently writes nothing with moviepy 2
        from tensorboard.compat.proto.summary_pb2 import Summary

        small = [frame[:: self.tensorboard_scale, :: self.tensorboard_scale] for frame in frames]
        for output in self.logger.output_formats:
            if isinstance(output, TensorBoardOutputFormat) and frames:
                height, width, channels = small[0].shape
                gif = Summary.Image(
                    height=height, width=width, colorspace=channels, encoded_image_string=_encode_gif(small, fps)
                )
                summary = Summary(value=[Summary.Value(tag="eval/video", image=gif)])
                output.writer._get_file_writer().add_summary(summary, self.num_timesteps)
                output.writer.flush()


def render_fps(env: VecEnv) -> float:
    """Frames per second at which one second of video is one second of the simulation; 30 where the environment is silent."""
    return float(env.get_attr("metadata", indices=0)[0].get("render_fps") or 30)


def check_video_path(path: str) -> None:
    """
    :raises ValueError: no video has such a name
    """
    if not path.lower().endswith(VIDEO_ENDINGS):
        raise ValueError(f"the video is {path!r}: expected a name that ends in {', '.join(VIDEO_ENDINGS)}")


def write_video(frames: Sequence[np.ndarray], path: str, fps: float) -> None:
    """
    Write an mp4, or what the name of the file ends in; a GIF among them.

    :param frames: (height, width, 3) each
    :raises ValueError: there are no frames, or no video has such a name
    """
    check_video_path(path)
    if not frames:
        raise ValueError(f"no frames to write to {path}: the episodes ended in their first step")
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    if path.lower().endswith(".gif"):
        Path(path).write_bytes(_encode_gif(frames, fps))
        return
    try:
        from moviepy.video.io.ImageSequenceClip import ImageSequenceClip
    except ImportError as error:
        raise ImportError(
            "Videos need moviepy: pip install moviepy, or in a clone of the repository pip install -e '.[video]'"
        ) from error
    ImageSequenceClip(list(frames), fps=fps).write_videofile(path, logger=None)


def _encode_gif(frames: Sequence[np.ndarray], fps: float) -> bytes:
    from PIL import Image

    images = [Image.fromarray(np.ascontiguousarray(frame)) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / fps), loop=0)
    return buffer.getvalue()


__all__ = ["Recording", "VideoRecorderCallback", "record_episodes", "record_replay", "render_fps", "write_video"]
