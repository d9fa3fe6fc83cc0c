"""The words of the small language. A concept is a tuple of words that mean the same; its first word names it."""

Concept = tuple[str, ...]

NAMES = ("Tom", "Ann", "Ben", "Mia", "Sam", "Eva", "Leo", "Zoe", "Max", "Ida", "Jon", "Lily")

# --- scenes: who did what to whom, and where -------------------------------------------------------------------------

PEOPLE: tuple[Concept, ...] = (
    ("doctor", "physician"),
    ("teacher", "tutor"),
    ("child", "kid"),
    ("boy", "lad"),
    ("girl", "lass"),
    ("farmer", "peasant"),
    ("sailor", "seaman"),
    ("cook", "chef"),
    ("thief", "robber"),
    ("king", "ruler"),
    ("painter", "artist"),
    ("singer", "vocalist"),
)
ANIMALS: tuple[Concept, ...] = (
    ("dog", "hound"),
    ("cat", "kitty"),
    ("horse", "steed"),
    ("rabbit", "bunny"),
    ("donkey", "mule"),
    ("pig", "hog"),
    ("snake", "serpent"),
    ("hen", "chicken"),
)
OBJECTS: tuple[Concept, ...] = (
    ("box", "crate"),
    ("stone", "rock"),
    ("car", "automobile"),
    ("cup", "mug"),
    ("picture", "image"),
    ("coat", "jacket"),
    ("bag", "sack"),
    ("letter", "note"),
    ("hat", "cap"),
    ("rug", "carpet"),
    ("bottle", "flask"),
    ("couch", "sofa"),
)
TO_THE_LIVING: tuple[Concept, ...] = (
    ("chased", "pursued"),
    ("followed", "trailed"),
    ("helped", "aided"),
    ("scared", "frightened"),
    ("called", "summoned"),
    ("saved", "rescued"),
)
TO_THINGS: tuple[Concept, ...] = (
    ("bought", "purchased"),
    ("fixed", "repaired"),
    ("cleaned", "washed"),
    ("lifted", "raised"),
    ("kept", "stored"),
    ("burned", "torched"),
)
TO_ANY: tuple[Concept, ...] = (
    ("found", "discovered"),
    ("watched", "observed"),
    ("pushed", "shoved"),
    ("pulled", "dragged"),
)
"""Verbs, by what they are done to. Past tense and participle are the same word."""
PLACES: tuple[Concept, ...] = (
    ("in the forest", "in the woods"),
    ("in the shed", "in the hut"),
    ("on the road", "on the street"),
    ("on the beach", "on the shore"),
    ("in the shop", "in the store"),
    ("on the hill", "on the slope"),
    ("by the river", "by the stream"),
    ("in the field", "in the meadow"),
    ("in the cellar", "in the basement"),
    ("in the harbour", "in the port"),
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
    "good", "great", "lovely", "superb", "pleasant", "perfect", "wonderful", "nice", "excellent", "delightful",
)  # fmt: skip
BLAME = (
    "bad", "awful", "terrible", "poor", "horrible", "dreadful", "nasty", "dull", "weak", "annoying",
)  # fmt: skip
PEOPLE_OF_MINE = ("brother", "sister", "mother", "father", "uncle", "aunt", "neighbour", "cousin")
GOOD_MOODS = ("happy", "glad", "proud", "calm", "cheerful", "hopeful", "relaxed", "grateful", "merry", "excited")
BAD_MOODS = ("sad", "angry", "afraid", "lonely", "worried", "upset", "bored", "jealous", "gloomy", "ashamed")
NO_MOODS = (
    "at home", "at work", "on the bus", "on the train", "in the office", "in the library", "at the bank", "awake",
    "busy", "upstairs",
)  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
DEGREES = ("", "", "very ", "really ", "so ", "quite ", "truly ")

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
