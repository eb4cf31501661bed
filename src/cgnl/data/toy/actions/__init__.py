from cgnl.data.toy.actions.dataset import contact_strip, draw_actions, play_of, render, timeline_of
from cgnl.data.toy.actions.plays import Action, Play, Timeline, catalogue

__all__ = [
    "Action",
    "Play",
    "Timeline",
    "catalogue",
    "contact_strip",
    "draw_actions",
    "play_of",
    "render",
    "timeline_of",
]
