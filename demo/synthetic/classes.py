"""Names of the base, validation and novel classes."""

from demo.synthetic.actions import ACTIONS
from demo.synthetic.shapes import PLURALS, SHAPES

# Hue in degrees, saturation and value in [0, 1]. Each clip varies them a little; neighbouring hues still stay apart.
COLOURS = {
    "red": (0, 0.88, 0.88),
    "orange": (28, 0.92, 0.98),
    "yellow": (55, 0.85, 0.97),
    "green": (120, 0.75, 0.70),
    "cyan": (182, 0.75, 0.90),
    "blue": (226, 0.80, 0.90),
    "purple": (284, 0.70, 0.75),
    "white": (0, 0.00, 0.98),
}
NUMBER_WORDS = {1: "", 2: "two", 4: "four"}


def parse_class_name(class_name: str) -> tuple[int, str, str, str]:
    """Number of objects, colour, shape (singular) and action of a class.

    "two green rings meeting" gives (2, "green", "ring", "meeting"). Any combination of a known colour, shape and action
    can be rendered, not only the classes of the splits. Raises `ValueError` for anything else.
    """
    words = class_name.split()
    numbers = {word: number for number, word in NUMBER_WORDS.items() if word}
    number = numbers.get(words[0], 1) if words else 1
    words = words[1:] if number > 1 else words
    singular = {PLURALS[shape] if number > 1 else shape: shape for shape in SHAPES}
    if len(words) >= 3 and words[0] in COLOURS and words[1] in singular:
        action = " ".join(words[2:])
        if action in ACTIONS and ACTIONS[action].num_objects == number:
            return number, words[0], singular[words[1]], action
    raise ValueError(
        f"'{class_name}' is not a class of synthetic actions: it should read 'COLOUR SHAPE ACTION', for example "
        f"'red star growing' or 'two green rings meeting', with a colour of {', '.join(COLOURS)}; a shape of "
        f"{', '.join(SHAPES)}; an action of {', '.join(ACTIONS)}."
    )


def join_class_name(colour: str, shape: str, action: str) -> str:
    """The class name of a colour, a shape (singular) and an action; the action says how many objects there are."""
    number = ACTIONS[action].num_objects
    return f"{NUMBER_WORDS[number]} {colour} {shape if number == 1 else PLURALS[shape]} {action}".strip()


# Every base action appears with each of three looks, so that in many base episodes, as in novel ones, only the action
# decides. With one look per four actions, training learned looks, which CLIP knows, and validation accuracy dropped.
_BASE_ACTIONS = (
    *("moving left", "moving right", "widening", "narrowing", "spinning clockwise", "spinning counterclockwise"),
    *("tilting left", "tilting right", "approaching", "receding", "soaring", "diving", "orbiting clockwise"),
    *("orbiting counterclockwise", "spiralling inwards", "spiralling outwards", "brightening", "darkening", "hopping"),
    *("shaking", "looping", "scattering", "gathering", "revolving"),
)
_BASE_LOOKS = (("green", "square"), ("purple", "heart"), ("white", "moon"))
BASE_CLASSES = tuple(
    join_class_name(colour, shape, action) for colour, shape in _BASE_LOOKS for action in _BASE_ACTIONS
)
VALIDATION_CLASSES = (
    "orange cross rolling left",
    "orange cross rolling right",
    "orange cross arriving",
    "orange cross departing",
    "orange cross pulsing",
    "orange cross zigzagging",
    "white heart stretching",
    "white heart flattening",
    "white heart blinking",
    "two white hearts swapping places",
)
# Few looks, many actions: a model that sees only colour and shape is right in 64% of 5-way novel episodes.
NOVEL_CLASSES = (
    "red star growing",
    "red star shrinking",
    "red star rising",
    "red star falling",
    "red circle fading in",
    "red circle fading out",
    "red circle filling",
    "red circle draining",
    "two green rings meeting",
    "two green rings parting",
    "green star swinging",
    "green star bouncing",
)
SPLITS = {"train": BASE_CLASSES, "validation": VALIDATION_CLASSES, "test": NOVEL_CLASSES}


__all__ = [
    "BASE_CLASSES",
    "COLOURS",
    "NOVEL_CLASSES",
    "NUMBER_WORDS",
    "SPLITS",
    "VALIDATION_CLASSES",
    "join_class_name",
    "parse_class_name",
]
