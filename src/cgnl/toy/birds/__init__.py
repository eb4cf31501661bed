"""Drawn birds: a small data set in the layout of CUB-200-2011, with species that look alike but for a part or two.

``skeleton`` and ``drawing`` draw one bird, ``species`` defines the species, ``scene`` puts a bird
into an image, ``dataset`` writes the files.
"""

from cgnl.toy.birds.dataset import Told, contact_sheet, draw_birds
from cgnl.toy.birds.drawing import BirdLayer, draw_bird
from cgnl.toy.birds.parts import draw_parts
from cgnl.toy.birds.scene import Scene, draw_scene
from cgnl.toy.birds.skeleton import PART_NAMES, Look, Pose
from cgnl.toy.birds.species import Species, catalogue

__all__ = [
    "PART_NAMES", "BirdLayer", "Look", "Pose", "Scene", "Species", "Told", "catalogue", "contact_sheet", "draw_bird",
    "draw_birds", "draw_parts", "draw_scene",
]  # fmt: skip
