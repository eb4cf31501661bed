"""The species of the flock: told apart at a glance, by colour and by shape."""

from typing import Any

from cgnl.toy.birds.skeleton import PART_NAMES, RGB, Look
from cgnl.toy.birds.species import Species

_BLACK, _WHITE = (24, 18, 16), (240, 240, 238)

# Upper side, under side, wings, tail, beak and legs, and what the shape has of its own.
_KINDS: dict[str, tuple[RGB, RGB, RGB, RGB, RGB, RGB, dict[str, Any]]] = {
    "Cardinal": (
        (196, 30, 34), (222, 62, 52), (140, 26, 34), (150, 24, 30), (240, 150, 40), (92, 64, 58),
        {"beak": "cone", "crest": 0.8, "tail_length": 0.55},
    ),
    "Bluejay": (
        (44, 96, 190), (226, 232, 240), (34, 76, 168), (30, 66, 150), (60, 60, 70), (70, 68, 74),
        {"beak": "slim", "crest": 0.5, "tail_length": 0.66, "tail_fork": -0.35, "wing_bars": 3},
    ),
    "Canary": (
        (238, 206, 40), (250, 226, 90), (214, 176, 36), (196, 160, 36), (236, 150, 120), (214, 140, 120),
        {"beak": "cone", "plumpness": 1.1, "tail_length": 0.36, "head_size": 0.24},
    ),
    "Magpie": (
        (34, 34, 42), (240, 240, 238), (30, 38, 66), (26, 30, 48), (30, 30, 34), (44, 42, 46),
        {"beak": "hook", "plumpness": 0.94, "tail_length": 0.85, "tail_fork": -0.5},
    ),
    "Parakeet": (
        (60, 160, 60), (132, 206, 84), (34, 124, 58), (30, 120, 110), (214, 44, 40), (128, 120, 110),
        {"beak": "hook", "plumpness": 0.92, "tail_length": 0.8, "tail_fork": -0.7, "head_size": 0.25},
    ),
    "Starling": (
        (96, 44, 150), (142, 86, 186), (66, 30, 112), (58, 26, 100), (238, 196, 60), (150, 90, 70),
        {"beak": "needle", "tail_length": 0.4, "tail_fork": 0.5},
    ),
    "Dove": (
        (206, 204, 210), (232, 222, 222), (176, 176, 186), (190, 188, 196), (90, 80, 84), (206, 90, 100),
        {"beak": "slim", "plumpness": 1.18, "head_size": 0.19, "tail_length": 0.5},
    ),
    "Thrush": (
        (140, 88, 46), (242, 226, 190), (112, 68, 38), (118, 72, 40), (120, 92, 60), (190, 142, 118),
        {"belly_pattern": "spots", "plumpness": 1.04, "tail_length": 0.48},
    ),
}  # fmt: skip
MAX_SPECIES = len(_KINDS)


def catalogue(num_species: int) -> list[Species]:
    """Return the first species of the flock, in a fixed order; ValueError for a number out of range.

    >>> [species.name for species in catalogue(3)]
    ['Cardinal', 'Bluejay', 'Canary']
    """
    if not 1 <= num_species <= MAX_SPECIES:
        raise ValueError(f"num_species ({num_species}) must lie between 1 and {MAX_SPECIES}")
    return [_species(group, name) for group, name in enumerate(list(_KINDS)[:num_species])]


def _species(group: int, name: str) -> Species:
    upper, under, wing, tail, beak, leg, shape = _KINDS[name]
    regions = {
        **dict.fromkeys(("back", "crown", "forehead", "nape", "face"), upper),
        **dict.fromkeys(("belly", "breast", "throat"), under),
        "wing": wing,
        "tail": tail,
        "beak": beak,
        "leg": leg,
        "feet": leg,
        "eye": _BLACK,
        "markings": _BLACK if "belly_pattern" in shape else _WHITE,
    }
    sided = {part: regions[part.removeprefix("left ").removeprefix("right ")] for part in PART_NAMES}
    return Species(name, group, "plumage", Look({**regions, **sided}, **shape))
