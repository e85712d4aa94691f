"""The words that the corpus is made of."""

from __future__ import annotations

NAMES = [
    "Ann", "Ben", "Tom", "Mia", "Sam", "Eva", "Max", "Lily", "Jack", "Nora", "Paul", "Rosa",
]  # fmt: skip

KINDS = {
    "bird": ["robin", "eagle", "owl", "duck", "goose", "crow"],
    "fish": ["trout", "shark", "salmon", "tuna", "carp", "cod"],
    "insect": ["ant", "bee", "wasp", "moth", "beetle", "flea"],
    "fruit": ["apple", "pear", "plum", "cherry", "grape", "lemon"],
    "tool": ["hammer", "saw", "drill", "wrench", "rake", "shovel"],
    "vehicle": ["car", "truck", "bus", "train", "van", "tram"],
    "garment": ["shirt", "coat", "scarf", "skirt", "sock", "jacket"],
}

COLOURS = {
    "butter": "yellow", "snow": "white", "grass": "green", "coal": "black", "blood": "red",
    "the sky": "blue", "milk": "white", "a tomato": "red", "a banana": "yellow", "a leaf": "green",
    "the sea": "blue", "tar": "black", "chalk": "white", "a frog": "green", "the night": "black",
    "a strawberry": "red", "the sun": "yellow", "a cucumber": "green",
}  # fmt: skip

PLACES = {
    "a cow": "farm", "a pig": "farm", "a hen": "farm", "a tractor": "farm",
    "a novel": "library", "a bookcase": "library", "a librarian": "library",
    "a nurse": "hospital", "a doctor": "hospital", "a patient": "hospital",
    "a teacher": "school", "a pupil": "school", "a blackboard": "school",
    "a deer": "forest", "a fox": "forest", "a mushroom": "forest",
    "an oven": "kitchen", "a pan": "kitchen", "a spoon": "kitchen", "a fridge": "kitchen",
    "a wave": "beach", "a shell": "beach", "a crab": "beach",
}  # fmt: skip

USES = {
    "a knife": "cut", "an axe": "cut", "a pair of scissors": "cut", "a pen": "write",
    "a pencil": "write", "ink": "write", "a broom": "clean", "soap": "clean", "a mop": "clean",
    "a bed": "sleep", "a pillow": "sleep", "a blanket": "sleep", "a cup": "drink",
    "a glass": "drink", "a straw": "drink", "a boat": "travel", "a bicycle": "travel",
    "a passport": "travel",
}  # fmt: skip

MATERIALS = {
    "a window": "glass", "a bottle": "glass", "a mirror": "glass", "a table": "wood",
    "a door": "wood", "a fence": "wood", "a coin": "metal", "a nail": "metal", "a key": "metal",
    "a notebook": "paper", "a letter": "paper", "a newspaper": "paper", "a sweater": "wool",
    "a mitten": "wool", "a shawl": "wool", "a boot": "leather", "a saddle": "leather",
    "a wallet": "leather",
}  # fmt: skip

SOUNDS = {
    "a dog": "barks", "a cat": "meows", "a lion": "roars", "a sheep": "bleats", "a horse": "neighs",
    "a snake": "hisses", "a wolf": "howls", "a rooster": "crows",
}  # fmt: skip

OPPOSITES = {
    "hot": "cold", "old": "new", "wet": "dry", "high": "low", "full": "empty", "hard": "soft",
    "dark": "light", "early": "late", "open": "closed", "rich": "poor", "long": "short",
    "near": "far", "left": "right", "thick": "thin", "sweet": "sour", "true": "false",
}  # fmt: skip

# Properties of people: two poles of three words that mean the same. Words of one pole imply each
# other, words of opposite poles exclude each other, words of two rows say nothing about each other.
PROPERTIES = [
    (("big", "large", "huge"), ("small", "little", "tiny")),
    (("glad", "merry", "cheerful"), ("gloomy", "unhappy", "sorrowful")),
    (("clean", "tidy", "neat"), ("dirty", "filthy", "messy")),
    (("brave", "bold", "fearless"), ("shy", "timid", "cowardly")),
    (("clever", "smart", "wise"), ("stupid", "foolish", "silly")),
    (("strong", "mighty", "powerful"), ("weak", "feeble", "frail")),
]

PEOPLE = ["king", "queen", "boy", "girl", "cook", "farmer", "sailor", "pilot", "baker", "giant"]

# What happened -> how it ends. {n} is the person, {t} one of THINGS, {w} one of WHO.
EVENTS = {
    "sad": [
        "{n} lost the {t}", "the old dog died", "{w} moved away", "rain spoiled the party",
        "{n} broke the {t}", "nobody came to play", "{w} forgot the birthday",
    ],
    "happy": [
        "{n} won a prize", "{n} got a {t} as a gift", "the lost cat came home", "{n} ate a cake",
        "{w} came to visit", "{n} found a gold coin", "{w} praised the {t}",
    ],
    "scared": [
        "a wolf howled outside", "thunder shook the window", "{n} heard a strange noise",
        "a snake lay on the path", "{n} was alone in the dark", "a bear ran after {n}",
        "lightning hit the {t}",
    ],
    "angry": [
        "{w} pushed {n}", "{w} stole the {t}", "{w} insulted {n}", "{w} tore the {t}",
        "{w} cheated {n}", "{n} was blamed for nothing", "{w} laughed at {n}",
    ],
}  # fmt: skip
WHO = ["a friend", "a neighbour", "the brother", "the sister", "the cousin"]

SCENES = [
    "{n} was in the garden.", "{n} walked to the market.", "{n} sat near the river.",
    "{n} was at home.", "{n} played in the park.", "{n} looked at the clouds.",
    "It was a quiet morning.", "It was late in the day.", "School was over.", "It was Sunday.",
]  # fmt: skip
AFTER = [
    "Then {n} went home.", "Then {n} told it to everyone.", "That was at noon.",
    "It took only a minute.", "The clock struck five.", "{n} stood still.",
]  # fmt: skip

THINGS = ["ball", "kite", "doll", "drum", "book", "lamp", "hat", "toy"]
COUNTED = ["apples", "coins", "books", "stones", "shells", "cards", "eggs", "pens"]
GAINS = ["gets {b} more", "finds {b} more", "buys {b} more", "takes {b} more"]
LOSSES = ["loses {b}", "gives away {b}", "sells {b}", "drops {b}"]
