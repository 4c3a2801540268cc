"""Which classes are surely not in a picture whose classes are known: to teach that some queries have no answer.

That a class is not in the class map does not say that it is not in the picture: the sea is "sea" and so not "water", a
wooden floor is "floor-wood" and not "wood", and pixels without a class may be anything. Only semantic sets allow to say
it at all. Referring sets and parts do not: that nobody called a thing "the red cup" does not mean that there is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

MOST_UNKNOWN = 0.05
"""Share of pixels without a class up to which something can be called absent."""

# fmt: off
_UNSURE = frozenset((
    "apparel", "base", "branch", "case", "cloth", "clothes", "column", "dirt", "food", "glass", "leaves", "light",
    "metal", "moss", "net", "paper", "plaything", "plastic", "pole", "step", "stone", "straw", "trade name",
    "waterdrops", "wood",
))
# fmt: on
"""Materials, and what may hang, lie or grow anywhere unnoticed."""

_ALIKE = tuple(
    frozenset(name.replace("_", " ") for name in group.split())
    for group in (
        "building house skyscraper hovel tower grandstand roof booth tent pier bridge",
        "tree palm plant potted_plant bush flower grass field vegetable",
        "earth land ground field grass gravel sand mud path dirt_track playingfield road pavement sidewalk runway",
        "platform railroad pavement sidewalk stage",
        "floor rug carpet mat",
        "water sea river lake swimming_pool waterfall fountain",
        "mountain hill rock",
        "sofa couch armchair chair seat swivel_chair stool ottoman bench",
        "table desk coffee_table counter countertop kitchen_island buffet dining_table pool_table bar",
        "cabinet wardrobe shelf bookcase chest_of_drawers cupboard furniture counter kitchen_island buffet",
        "car van truck bus minibike motorcycle bicycle",
        "boat ship",
        "lamp chandelier sconce streetlight traffic_light",
        "stairs stairway escalator",
        "railing bannister fence cage",
        "windowpane window blind curtain mirror",
        "curtain blind towel blanket textile canopy awning banner flag napkin tent",
        "pillow cushion blanket bed sofa couch cradle",
        "television_receiver monitor screen crt_screen computer tv laptop",
        "signboard poster bulletin_board street_sign stop_sign banner painting sculpture",
        "box basket barrel bag cardboard handbag backpack suitcase tray ashcan",
        "pot vase bottle cup wine_glass bowl plate tray",
        "sky clouds fog",
        "stove oven microwave toaster",
        "fruit vegetable salad sandwich pizza cake hot_dog donut banana apple orange broccoli carrot",
        "animal bird cat dog horse sheep cow elephant bear zebra giraffe teddy_bear",
        "person tie hat shoe eye_glasses",
        "wall door screen_door building ceiling cabinet",
        "remote keyboard mouse cell_phone laptop computer",
        "fork knife spoon scissors",
        "ball sports_ball",
        "fan conveyer_belt radiator hood washer dishwasher refrigerator",
    )
)
"""Classes that two people may call by each other's name, or of which one is part of another."""


def surely_absent(classes: Iterable[str], present: Collection[str], unknown_share: float = 0.0) -> tuple[str, ...]:
    """List the classes that are surely not in a picture.

    Args:
        classes: Names, in an order that the result keeps.
        present: Names of the classes in the picture, those that are never asked for included ("floor-wood").
        unknown_share: Of pixels without a class, 0..1.

    Returns:
        Those that share no word and no group of like things with one that is present; none above `MOST_UNKNOWN`.
    """
    if unknown_share > MOST_UNKNOWN:
        return ()
    near = {word for name in present for word in _words(name)} | set(present)
    near |= {name for group in _ALIKE if group & near for name in group}
    return tuple(name for name in classes if name not in _UNSURE and not near & {name, *_words(name)})


def _words(name: str) -> set[str]:
    return set(name.replace("-", " ").split()) - {"other", "stuff", "of"}
