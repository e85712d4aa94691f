"""Words that prompts are made of."""

PLACES = (
    "Paris", "London", "Rome", "Berlin", "Madrid", "Lisbon", "Vienna", "Prague", "Dublin", "Oslo",
    "Athens", "Warsaw", "Cairo", "Tokyo", "Lima", "Delhi", "Boston", "Chicago", "Dallas", "Denver",
    "Houston", "Miami", "Phoenix", "Seattle", "Toronto", "Sydney", "Geneva", "Milan", "Naples",
    "Munich", "Hamburg", "Brussels",
)  # fmt: skip

FIRST_NAMES = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Ida", "Jack", "Kate",
    "Leo", "Mary", "Nora", "Oscar", "Paul", "Rosa", "Sam", "Tom", "Victor", "Alice", "Bruno",
    "Diana", "Eric", "Felix", "George", "Helen", "Julia", "Laura", "Martin", "Oliver", "Simon",
)  # fmt: skip

LAST_NAMES = (
    "Adams", "Baker", "Carter", "Davis", "Evans", "Foster", "Green", "Harris", "Hill", "Jones",
    "King", "Lewis", "Moore", "Nelson", "Owen", "Parker", "Reed", "Scott", "Turner", "Walker",
    "Ward", "White", "Wood", "Young", "Allen", "Bell", "Brown", "Clark", "Cook", "Gray", "Hall",
    "Stone",
)  # fmt: skip

TOWN_HEADS = (
    "Ash", "Black", "Bridge", "Cold", "Deer", "East", "Fair", "Green", "High", "King", "Long",
    "Maple", "Mill", "New", "North", "Oak", "Red", "River", "Rock", "Salt", "Silver", "South",
    "Spring", "Stone", "Sun", "West", "White", "Wind", "Winter", "Wood", "Lake", "Moor",
)  # fmt: skip

TOWN_TAILS = (
    "field", "ford", "hill", "ton", "wood", "port", "dale", "bury", "land", "bridge", "brook",
    "well", "mouth", "stead", "view", "side", "ham", "gate", "burg", "ley", "worth", "cliff",
    "haven", "shore", "wick", "marsh", "mere", "grove", "vale", "moor", "combe", "water",
)  # fmt: skip

JOBS = (
    "baker", "doctor", "teacher", "farmer", "painter", "driver", "nurse", "cook", "lawyer",
    "singer", "writer", "gardener", "builder", "tailor", "judge", "pilot",
)  # fmt: skip
