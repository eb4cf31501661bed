"""One video in memory: a figure and a ball that play, before a landscape, seen by a moving camera."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cgnl.toy.actions.backdrop import BESIDE, BOTTOM, TOP, hue, paint_landscape, sample_distractors
from cgnl.toy.actions.canvas import Canvas, View
from cgnl.toy.actions.figure import Bones, Look, ball_event_posture, body_event, draw_arms, draw_body, standing
from cgnl.toy.actions.plays import Play, Timeline
from cgnl.toy.birds.drawing import shade
from cgnl.toy.birds.skeleton import RGB

_SUPERSAMPLING = 2
_RAMP = 3  # frames in which an event begins, and ends
_LOOK_AT = 0.41  # height of the middle of the frame over the ground
_BALL: RGB = (238, 60, 24)
_BAND: RGB = (255, 236, 200)
_BALL_RADIUS = 0.135  # in heights of the figure


@dataclass(frozen=True)
class _Setting:
    """The random part of one clip: places in heights of the frame, paces in radians a frame.

    ``paces`` and ``phases`` are of swaying, of the body event and of the ball event; ``camera`` holds amplitudes, paces
    and phases of moving along x, y and zooming, [3, 3]; ``drift`` is how far the figure wanders while it stands.
    """

    mirror: int
    place: float
    unit: float
    drift: float
    paces: np.ndarray
    phases: np.ndarray
    flag: RGB
    light: float
    camera: np.ndarray
    shake: np.ndarray


def sample_look(rng: np.random.Generator) -> Look:
    """Return the figure of one group of clips."""
    tone = rng.uniform(0.45, 1.0)
    return Look(
        skin=shade((246, 204, 170), tone),
        hair=hue(rng.uniform(0.03, 0.13), rng.uniform(0.3, 0.8), rng.uniform(0.1, 0.7)),
        shirt=hue(rng.uniform(0.14, 0.9), rng.uniform(0.5, 0.9), rng.uniform(0.45, 0.95)),
        trousers=hue(rng.uniform(0.14, 0.9), rng.uniform(0.3, 0.8), rng.uniform(0.25, 0.6)),
        shoes=hue(rng.uniform(0, 1), rng.uniform(0, 0.3), rng.uniform(0.15, 0.95)),
        width=rng.uniform(0.9, 1.12),
    )


def draw_video(
    play: Play,
    timeline: Timeline,
    size: tuple[int, int],
    group_rng: np.random.Generator,
    clip_rng: np.random.Generator,
    every: int = 1,
) -> np.ndarray:
    """Draw the frames 0, every, 2 every, ... of one video, uint8 [T, H, W, 3].

    ``group_rng`` draws what the clips of a group share.
    """
    width, height = size
    aspect = width / height
    large = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    look = sample_look(group_rng)
    landscape = paint_landscape(aspect, large[1], group_rng)
    setting = _sample_setting(timeline.frames, clip_rng)
    landscape = landscape.point([min(255, round(value * setting.light)) for value in range(256)] * 3)
    movers = sample_distractors(aspect, clip_rng)
    numbers = range(0, timeline.frames, every)
    frames = np.empty((len(numbers), height, width, 3), dtype=np.uint8)
    for i, t in enumerate(numbers):
        view = _view(setting, t)
        image = _photograph(landscape, view, aspect, large)
        canvas = Canvas(image, view)
        for draw in movers:
            draw(canvas, t)
        _draw_players(canvas, play, timeline, setting, look, aspect, t)
        frames[i] = np.asarray(image.reduce(_SUPERSAMPLING))
    return frames


def _sample_setting(frames: int, rng: np.random.Generator) -> _Setting:
    camera = np.stack(
        [rng.uniform(0.2, 1.0, 3) * (0.1, 0.04, 0.1), rng.uniform(0.03, 0.1, 3), rng.uniform(0, 2 * math.pi, 3)]
    )
    return _Setting(
        mirror=int(rng.choice((-1, 1))),
        place=rng.uniform(-0.17, 0.17),
        unit=rng.uniform(0.53, 0.64),
        drift=rng.uniform(0.0, 0.06),
        paces=rng.uniform((0.08, 0.35, 0.35), (0.16, 0.7, 0.7)),
        phases=rng.uniform(0, 2 * math.pi, 3),
        flag=hue((0.16, 0.86, 0.5)[int(rng.integers(3))] + rng.uniform(-0.02, 0.02), 0.9, 0.95),
        light=rng.uniform(0.85, 1.1),
        camera=camera,
        shake=rng.normal(0, rng.uniform(0, 0.004), (frames, 2)),
    )


def _view(setting: _Setting, t: int) -> View:
    amplitude, pace, phase = setting.camera
    x, y, zoom = amplitude * np.sin(pace * t + phase)
    return View(x + setting.shake[t, 0], _LOOK_AT + y + setting.shake[t, 1], 1.0 + zoom)


def _photograph(landscape: Image.Image, view: View, aspect: float, size: tuple[int, int]) -> Image.Image:
    scale = landscape.height / (TOP - BOTTOM)
    half_width, half_height = aspect / 2 / view.zoom, 0.5 / view.zoom
    left, top = view.x - half_width + aspect / 2 + BESIDE, TOP - view.y - half_height
    box = (left * scale, top * scale, (left + 2 * half_width) * scale, (top + 2 * half_height) * scale)
    return landscape.resize(size, Image.Resampling.BILINEAR, box=box)


def _presence(span: tuple[int, int], t: int) -> float:
    """Return how far an event is under way at a frame: 0 outside its time, 1 in its middle."""
    return min(1.0, max(0.0, min(t - span[0] + 1, span[1] - t) / _RAMP))


def _draw_players(
    canvas: Canvas, play: Play, timeline: Timeline, setting: _Setting, look: Look, aspect: float, t: int
) -> None:
    sway, body_beat, ball_beat = np.sin(setting.paces * t + setting.phases)
    body, ball = _presence(timeline.body, t), _presence(timeline.ball, t)
    posture = standing(float(sway))
    if body:
        posture = posture.towards(body_event(play.body, float(body_beat)), body)
    if ball:
        posture = posture.towards(ball_event_posture(play.ball, float(ball_beat)), ball)
    bones = Bones(posture, setting.mirror)
    x = setting.place + setting.drift * math.sin(0.5 * setting.paces[0] * t + setting.phases[1])
    there = canvas.at(x, 0.0, setting.unit)
    there.oval(np.array([0.0, 0.02]), 0.26, 0.03, (70, 78, 70))
    if play.body == "Flag" and body:
        _draw_flag(there, bones, setting, body_beat, body)
    draw_body(there, bones, look)
    if ball:
        share = (t - timeline.ball[0]) / (timeline.ball[1] - timeline.ball[0] - 1)
        _draw_ball(there, play.ball, bones, setting, aspect, share, float(ball_beat), ball)
    draw_arms(there, bones, look)


def _draw_flag(canvas: Canvas, bones: Bones, setting: _Setting, beat: float, presence: float) -> None:
    hand = bones["arm1"][2]
    up = np.array([0.25 * setting.mirror * (0.6 + 0.4 * beat), 1.0])
    up /= np.linalg.norm(up)
    top = hand + 0.5 * presence * up
    out = np.array([up[1], -up[0]]) * setting.mirror
    along = np.linspace(0, 1, 7)[:, None]
    wave = 0.035 * np.sin(6 * along + 3 * beat) * along * up
    edge = top + 0.46 * presence * along * out + wave
    canvas.line(np.stack([hand - 0.15 * up, top]), 0.035, (96, 66, 44))
    canvas.polygon(np.concatenate([edge, (edge - 0.3 * presence * up)[::-1]]), setting.flag)


def _draw_ball(
    canvas: Canvas,
    event: str,
    bones: Bones,
    setting: _Setting,
    aspect: float,
    share: float,
    beat: float,
    presence: float,
) -> None:
    """Draw the ball, or the balls, of an event of which a share in 0..1 is over."""
    flip = np.array([setting.mirror, 1])
    neck, radius = bones["torso"][1], _BALL_RADIUS * presence
    if event == "Hold":
        _ball(canvas, neck + (0.0, -0.16 + 0.015 * beat), 1.35 * radius, beat)
    elif event == "Juggle":
        for i in range(3):
            angle = math.pi * ((2.5 * share + i / 3) % 1.0)
            _ball(canvas, flip * (-0.42 * math.cos(angle), 0.78 + 0.42 * math.sin(angle)), 0.72 * radius, angle)
    elif event == "Lob":
        height = 1.02 + _BALL_RADIUS + 0.16 * 4 * share * (1 - share)
        _ball(canvas, flip * (0.5 * (share - 0.5), height), radius, 6 * share)
    elif event == "Pump":
        large = presence * (0.3 + 0.04 * beat)
        _ball(canvas, flip * (0.48, large), large, 0.3)
    elif event == "Roll":
        reach = 0.5 * aspect / setting.unit
        x = reach * (2 * share - 1) - setting.mirror * setting.place / setting.unit
        _ball(canvas, flip * (x, 0.9 * _BALL_RADIUS), 1.15 * _BALL_RADIUS, -x / _BALL_RADIUS)
    else:
        raise ValueError(f"event ({event!r}) must be a ball event")


def _ball(canvas: Canvas, centre: np.ndarray, radius: float, turned: float) -> None:
    canvas.disc(centre, radius + 0.012, shade(_BALL, 0.4))
    canvas.disc(centre, radius, _BALL)
    across = 0.78 * radius * np.array([math.cos(turned), math.sin(turned)])
    canvas.line(np.stack([centre - across, centre + across]), 0.34 * radius, _BAND)
