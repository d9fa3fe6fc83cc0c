"""The words of the small language. A concept is a tuple of words that mean the same; its first word names it."""

Concept = tuple[str, ...]

NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva")

# --- scenes: who did what to whom, and where -------------------------------------------------------------------------

PEOPLE: tuple[Concept, ...] = (
    ("doctor", "physician"),
    ("teacher", "tutor"),
    ("boy", "lad"),
    ("girl", "lass"),
    ("farmer", "peasant"),
    ("sailor", "seaman"),
)
ANIMALS: tuple[Concept, ...] = (
    ("dog", "hound"),
    ("cat", "kitty"),
    ("horse", "steed"),
    ("rabbit", "bunny"),
)
OBJECTS: tuple[Concept, ...] = (
    ("box", "crate"),
    ("car", "automobile"),
    ("cup", "mug"),
    ("coat", "jacket"),
    ("bag", "sack"),
    ("hat", "cap"),
)
TO_THE_LIVING: tuple[Concept, ...] = (
    ("chased", "pursued"),
    ("followed", "trailed"),
    ("helped", "aided"),
    ("saved", "rescued"),
)
TO_THINGS: tuple[Concept, ...] = (
    ("bought", "purchased"),
    ("fixed", "repaired"),
    ("cleaned", "washed"),
    ("lifted", "raised"),
)
TO_ANY: tuple[Concept, ...] = (
    ("found", "discovered"),
    ("watched", "observed"),
    ("pushed", "shoved"),
)
"""Verbs, by what they are done to. Past tense and participle are the same word."""
PLACES: tuple[Concept, ...] = (
    ("in the forest", "in the woods"),
    ("in the shed", "in the hut"),
    ("on the beach", "on the shore"),
    ("in the shop", "in the store"),
    ("on the hill", "on the slope"),
    ("in the cellar", "in the basement"),
)

# --- opinions: reviews of things, moods of people --------------------------------------------------------------------

REVIEWED: dict[str, tuple[str, ...]] = {
    "cafe": ("soup", "bread", "waiter", "coffee"),
    "hotel": ("room", "bed", "breakfast", "view"),
    "film": ("plot", "actor", "music", "ending"),
    "book": ("style", "cover", "hero", "chapter"),
    "show": ("dancer", "stage", "light", "sound"),
}
PRAISE = (
    "good", "great", "lovely", "superb", "pleasant", "perfect", "wonderful", "nice"
)  # fmt: skip
BLAME = (
    "bad", "awful", "terrible", "poor", "horrible", "dreadful", "nasty", "dull"
)  # fmt: skip
PEOPLE_OF_MINE = ("brother", "sister", "mother", "father", "uncle", "aunt", "neighbour", "cousin")
GOOD_MOODS = ("happy", "glad", "proud", "calm", "cheerful", "hopeful", "relaxed", "grateful")
BAD_MOODS = ("sad", "angry", "afraid", "lonely", "worried", "upset", "bored", "jealous")
NO_MOODS = (
    "at home", "at work", "on the bus", "on the train", "in the office", "in the library", "at the bank", "awake",
    "busy", "upstairs",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEGREES = ("", "", "very ", "really ", "so ")

# --- topics: word lists of equal length, no word in two ----------------------------------------------------------------

TOPICS: dict[str, tuple[str, ...]] = {
    "farm": (
        "tractor", "barn", "cow", "fence", "plough", "goat", "hay", "orchard", "sheep", "wheat", "stable", "pasture",
    ),
    "sea": (
        "wave", "whale", "anchor", "island", "shell", "dolphin", "lighthouse", "crab", "reef", "gull", "harpoon", "tide",
    ),
    "school": (
        "pupil", "desk", "lesson", "pencil", "exam", "blackboard", "eraser", "notebook", "homework", "classroom", "chalk",
        "spelling",
    ),
    "space": (
        "rocket", "planet", "comet", "star", "moon", "astronaut", "telescope", "orbit", "galaxy", "crater", "satellite",
        "meteor",
    ),
}  # fmt: skip
