"""The drawn flock: scenes with several birds that hide each other, in the layout of COCO.

``species`` defines the birds, ``scene`` draws them and their truth, ``masks`` writes masks in
COCO's forms, ``dataset`` writes the files.
"""

from cgnl.toy.flock.dataset import CATEGORY_IDS, contact_sheet, draw_flock
from cgnl.toy.flock.scene import FlockScene, SceneObject, draw_scene
from cgnl.toy.flock.species import catalogue

__all__ = ["CATEGORY_IDS", "FlockScene", "SceneObject", "catalogue", "contact_sheet", "draw_flock", "draw_scene"]
