"""The invented species: groups that share all but one small part, or all but the relation of two parts."""

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from cgnl.toy.birds.skeleton import PART_NAMES, RGB, Look

MAX_SPECIES = 200


@dataclass(frozen=True)
class Relation:
    """Two distant parts whose colours are equal in one species and differ in its sibling.

    Each part takes each colour of the palette equally often in both species, so that neither part alone tells
    them apart.
    """

    first: str
    second: str
    palette: tuple[RGB, RGB]
    same: bool


@dataclass(frozen=True)
class Species:
    """One class of the set.

    Args:
        name: As in ``classes.txt``, without the number.
        group: Number of the sibling group.
        part: The part its siblings differ in, or the two of a relation with a stroke between.
        look: Common to all birds of the species.
        relation: For the species that are told apart by two parts only.
    """

    name: str
    group: int
    part: str
    look: Look
    relation: Relation | None = None

    def sample_look(self, rng: np.random.Generator) -> Look:
        """Return the look of one bird of this species."""
        colours = dict(self.look.colours)
        if self.relation:
            first = int(rng.integers(2))
            second = first if self.relation.same else 1 - first
            colours |= _parts(self.relation.first, self.relation.palette[first])
            colours |= _parts(self.relation.second, self.relation.palette[second])
        return replace(
            self.look,
            colours=colours,
            plumpness=self.look.plumpness * rng.uniform(0.95, 1.06),
            head_size=self.look.head_size * rng.uniform(0.96, 1.04),
            tail_length=self.look.tail_length * rng.uniform(0.94, 1.06),
            # More than the sizes of siblings' parts can differ when drawn in whole pixels.
            detail_size=rng.uniform(0.86, 1.12),
            texture_seed=int(rng.integers(2**31)),
        )


@dataclass(frozen=True)
class _Genus:
    """A sibling group: a common look, and the marks of its members."""

    noun: str
    part: str
    colours: Mapping[str, RGB]
    shape: Mapping[str, Any]
    members: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    member_colours: Mapping[str, Mapping[str, RGB]] = field(default_factory=dict)
    palette: tuple[RGB, RGB] | None = None


_CREAM, _WHITE, _BLACK = (242, 236, 215), (240, 240, 238), (24, 18, 16)
_EMBER, _SKY = (238, 118, 24), (64, 156, 222)

# The order decides which groups a smaller set holds.
_GENERA = (
    _Genus(
        "Warbler",
        "eye",
        {"back": (112, 126, 62), "crown": (98, 110, 56), "face": (124, 134, 72), "breast": (206, 190, 88),
         "belly": (226, 208, 112), "throat": (214, 200, 104), "wing": (78, 86, 56), "tail": (84, 92, 52),
         "beak": (66, 62, 58), "leg": (120, 96, 84), "markings": _CREAM},
        {"tail_length": 0.46},
        members={"Ringeye": {"eye_mark": "ring"}, "Almondeye": {"eye_mark": "almond"}},
    ),
    _Genus(
        "Tanager",
        "crown/tail",
        {"back": (118, 122, 132), "face": (146, 150, 158), "breast": (196, 198, 202),
         "belly": (214, 214, 216), "throat": (188, 190, 196), "wing": (82, 86, 96), "beak": (70, 70, 76),
         "leg": (84, 78, 80)},
        {"tail_length": 0.58, "crest": 0.45},
        palette=((204, 36, 30), (34, 88, 206)),
    ),
    _Genus(
        "Finch",
        "wing bars",
        {"back": (146, 86, 48), "crown": (118, 66, 40), "face": (176, 112, 62), "breast": (214, 140, 78),
         "belly": (228, 176, 118), "throat": (206, 130, 72), "wing": (58, 50, 48), "tail": (66, 54, 48),
         "beak": (92, 84, 80), "leg": (106, 78, 66), "markings": _CREAM},
        {"beak": "cone", "plumpness": 1.1, "tail_length": 0.42, "tail_fork": 0.3},
        members={"Twobar": {"wing_bars": 2}, "Threebar": {"wing_bars": 3}, "Fourbar": {"wing_bars": 4}},
    ),
    _Genus(
        "Jay",
        "beak",
        {"back": (62, 104, 150), "crown": (46, 84, 136), "face": (216, 222, 228), "breast": (206, 214, 222),
         "belly": (228, 230, 232), "throat": (224, 226, 228), "wing": (50, 84, 138), "tail": (44, 76, 130),
         "beak": (232, 146, 34), "leg": (70, 68, 74)},
        {"crest": 0.7, "tail_length": 0.62, "tail_fork": -0.35},
        members={
            "Conebill": {"beak": "cone"}, "Hookbill": {"beak": "hook"}, "Needlebill": {"beak": "needle"},
        },
    ),
    _Genus(
        "Oriole",
        "throat/tail",
        {"back": (66, 74, 58), "crown": (54, 60, 50), "face": (72, 80, 62), "breast": (150, 158, 136),
         "belly": (178, 182, 160), "wing": (48, 54, 46), "beak": (96, 100, 108), "leg": (82, 80, 82)},
        {"tail_length": 0.56, "tail_fork": 0.45, "plumpness": 0.94},
        palette=((244, 204, 36), (122, 40, 150)),
    ),
    _Genus(
        "Magpie",
        "leg",
        {"back": (46, 46, 56), "crown": (38, 38, 46), "face": (44, 44, 54), "breast": (228, 228, 226),
         "belly": (238, 238, 236), "throat": (50, 50, 58), "wing": (40, 46, 66), "tail": (36, 40, 58),
         "beak": (52, 50, 54)},
        {"tail_length": 0.7, "tail_fork": -0.5, "plumpness": 0.96},
        members={"Emberfoot": {}, "Skyfoot": {}},
        member_colours={"Emberfoot": {"leg": _SKY, "feet": _EMBER}, "Skyfoot": {"leg": _EMBER, "feet": _SKY}},
    ),
    _Genus(
        "Lark",
        "throat",
        {"back": (166, 138, 100), "crown": (140, 112, 78), "face": (196, 170, 130), "breast": (214, 192, 156),
         "belly": (230, 216, 188), "wing": (124, 100, 74), "tail": (116, 92, 68), "beak": (112, 96, 82),
         "leg": (150, 116, 96), "throat": (226, 210, 178), "markings": (190, 30, 42)},
        {"eye_line": True, "crest": 0.3, "plumpness": 1.05},
        members={"Collar": {"throat_mark": "across"}, "Beard": {"throat_mark": "along"}},
    ),
    _Genus(
        "Robin",
        "beak/belly",
        {"back": (70, 112, 106), "crown": (52, 92, 90), "face": (74, 118, 112), "breast": (96, 138, 130),
         "throat": (84, 128, 122), "wing": (46, 78, 78), "tail": (44, 74, 76), "leg": (88, 82, 82)},
        {"beak": "cone", "plumpness": 1.12, "tail_length": 0.44, "head_size": 0.23},
        palette=((244, 132, 28), (238, 232, 222)),
    ),
    _Genus(
        "Thrush",
        "belly",
        {"back": (124, 92, 64), "crown": (112, 82, 56), "face": (156, 124, 92), "breast": (236, 224, 198),
         "belly": (240, 234, 216), "throat": (238, 228, 206), "wing": (100, 76, 54), "tail": (106, 80, 56),
         "beak": (116, 92, 60), "leg": (180, 136, 116), "markings": (66, 46, 34)},
        {"plumpness": 1.06, "tail_length": 0.48},
        members={"Dropbelly": {"belly_pattern": "spots"}, "Streakbelly": {"belly_pattern": "streaks"}},
    ),
)  # fmt: skip
_NICKNAMES = {"crown": "cap", "throat": "bib", "beak": "bill"}
_LANDS = ("", "Marsh", "Island", "Desert", "Mountain", "River", "Forest", "Coast", "Prairie", "Tundra", "Savanna")


def catalogue(num_species: int) -> list[Species]:
    """Return the species of a set of this size, 2 to 200 (else ValueError): whole sibling groups, in a fixed order.

    A group is skipped if it would leave a single species over. Among the first twenty species, only a relation tells
    three pairs apart; after twenty, the groups come again in other colours.
    """
    if not 2 <= num_species <= MAX_SPECIES:
        raise ValueError(f"num_species ({num_species}) must lie between 2 and {MAX_SPECIES}")
    species: list[Species] = []
    for group, (land, genus) in enumerate(product(_LANDS, _GENERA)):
        members = _members(genus, land, group)
        left = num_species - len(species) - len(members)
        if left >= 0 and left != 1:
            species += members
        if left == 0:
            break
    return species


def _members(genus: _Genus, land: str, group: int) -> list[Species]:
    def local(colour: RGB) -> RGB:
        return _in_colours_of(land, colour)

    palette = genus.palette or (_WHITE, _WHITE)
    regions = {
        **dict.fromkeys(("beak", "belly", "crown", "leg", "tail", "throat"), palette[0]),
        "eye": _BLACK,
        "forehead": genus.colours.get("crown", genus.colours["face"]),
        "feet": genus.colours.get("leg", _WHITE),
        "markings": _WHITE,
        "nape": genus.colours["back"],
        **genus.colours,
    }

    def species(name: str, shape: Mapping[str, Any], relation: Relation | None = None) -> Species:
        colours: dict[str, RGB] = {}
        for region, colour in {**regions, **genus.member_colours.get(name, {})}.items():
            colours |= _parts(region, local(colour))
        full_name = "_".join(filter(None, (land, name, genus.noun)))
        return Species(full_name, group, genus.part, Look(colours, **{**genus.shape, **shape}), relation)

    if genus.palette:
        first, second = genus.part.split("/")
        local_palette = (local(genus.palette[0]), local(genus.palette[1]))
        return [
            species(f"{kind}{_NICKNAMES[first]}", {}, Relation(first, second, local_palette, same=kind == "Match"))
            for kind in ("Match", "Odd")
        ]
    return [species(name, shape) for name, shape in genus.members.items()]


def _parts(region: str, colour: RGB) -> dict[str, RGB]:
    """Return the colour under the region's name, or under both names of a part that comes left and right."""
    if f"left {region}" in PART_NAMES:
        return {f"left {region}": colour, f"right {region}": colour}
    return {region: colour}


def _in_colours_of(land: str, colour: RGB) -> RGB:
    """Turn a colour's hue and tint it, by an amount of the land's own; the first land leaves it."""
    number = _LANDS.index(land)
    if number == 0:
        return colour
    hue, lightness, saturation = colorsys.rgb_to_hls(*(c / 255 for c in colour))
    turned = colorsys.hls_to_rgb((hue + 0.382 * number) % 1.0, lightness, saturation)
    tint = colorsys.hls_to_rgb((0.618 * number) % 1.0, 0.5, 0.6)
    red, green, blue = (round(255 * (0.75 * a + 0.25 * b)) for a, b in zip(turned, tint, strict=True))
    return red, green, blue
