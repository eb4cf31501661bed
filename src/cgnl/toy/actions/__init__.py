"""Drawn actions: videos in the layout of UCF101, with pairs of classes that only two distant events tell apart.

In each video the body does one thing (waves a flag, does a handstand, push-ups, squats, or jumping jacks), then the
figure stands for a second, then a ball does one thing (is held, juggled, lobbed, pumped up, or rolls by). Either
event alone is easy to see, in any of its frames. The two classes of a pair show the same two body events and the
same two ball events, each equally often; they differ in which body event goes with which ball event. ``plays``
lists the classes and sets the times, ``figure``, ``backdrop`` and ``scene`` draw, ``dataset`` writes the files.

**Why frames one by one see nothing.** Within a pair let B = ±1 be the body event, L = ±1 the ball event; the class
is their product BL. A frame shows one of the two or neither, so the mean over time of any function of a frame is
a + bB + cL + noise in expectation, and over the two plays of a class (BL = 1 or BL = -1, both signs equally often)
a + noise: the same in both classes. Networks whose logits are a sum over frames, as an image network with global
average pooling and a linear classifier, reach at best a log loss of ln 2 within the pair, with b = c = 0. (Cut off
at a threshold such a sum can be right in three plays of four; cross-entropy does not lead there.)

**What a network needs** is a product of features of two distant frames, summed over pairs of frames: what NL and
CGNL blocks compute, as the mean over i of theta_i sum_j phi_j g_j. Temporal max pooling does not reach: 25 frames
or more lie between the events, and the pools of C2D networks, over 8 frames of 64 or over 32, join frames at most
24 apart. The order of the frames is no cue, and no class is another one played backwards: the body comes first in
all of them, and blocks without positions do not see order at all. Nor does a flip change a class: no event is told
from another by left and right, and every video is mirrored or not by chance.

**What is not excluded.** B and L can each be read from a mean over frames, though less well than from the frames, so
a classifier with a hidden layer behind the pooling, or a statistic that is not additive (the variance over time holds
the square of the mean, and with it BL), could in principle find the class. The tests show that small perceptrons on
means and standard deviations of colours, thumbnails and gradients do not, with some forty clips of a class; they
are no proof for more clips and better features.

**Why the pairs share events.** Nothing within a pair asks a network to tell its two body events apart, until their
product does. But each event also belongs to a neighbouring pair, with another partner: to tell the pairs, for which
sums over frames do, all ten events must be recognised. A plain network can reach 50 % of ten classes that way.
"""

from cgnl.toy.actions.dataset import contact_strip, draw_actions, play_of, render, timeline_of
from cgnl.toy.actions.plays import Action, Play, Timeline, catalogue

__all__ = [
    "Action", "Play", "Timeline", "catalogue", "contact_strip", "draw_actions", "play_of", "render", "timeline_of",
]  # fmt: skip
