"""The words that may stand beside a number: units with their sizes, nouns that are counted, and names of quantities.

A word that is not listed here has no meaning beside a number, so the answer is refused. The lists hold no word that could change
the number: no operation (`squares`, `inverse`), no part (`thirds`), no collection of unknown size (`pairs`, `scores`).
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """A unit as a multiple of others."""

    factor: Fraction
    dimension: dict[str, int]  # powers of the basic units


# One unit a line: its spellings, its size and the unit that the size counts. A spelling with a capital letter, or of one
# letter, keeps its case; the others may be written in any case. No exact factor joins the units whose size is 1.
_UNITS = """
m meter meters metre metres = 1 m
mm millimeter millimeters millimetre millimetres = 1/1000 m
cm centimeter centimeters centimetre centimetres = 1/100 m
dm decimeter decimeters decimetre decimetres = 1/10 m
km kilometer kilometers kilometre kilometres = 1000 m
nm nanometer nanometers nanometre nanometres = 1/1000000000 m
micrometer micrometers micron microns = 1/1000000 m
in inch inches = 127/5000 m
ft foot feet = 381/1250 m
yd yard yards = 1143/1250 m
mi mile miles = 201168/125 m
nmi = 1852 m
parsec parsecs pc = 1 parsec
au AU = 1 au
ly lightyear lightyears = 1 ly
g gram grams = 1 g
mg milligram milligrams = 1/1000 g
kg kilogram kilograms kgs = 1000 g
lb lbs pound pounds = 45359237/100000 g
oz ounce ounces = 45359237/1600000 g
ton tons = 1 ton
tonne tonnes = 1000000 g
l L liter liters litre litres = 1/1000 m^3
ml mL milliliter milliliters millilitre millilitres = 1/1000000 m^3
cl cL centiliter centiliters = 1/100000 m^3
gallon gallons gal gals = 1 gallon
quart quarts qt = 1/4 gallon
pint pints = 1/8 gallon
cup cups = 1/16 gallon
tablespoon tablespoons tbsp = 1/256 gallon
teaspoon teaspoons tsp = 1/768 gallon
acre acres = 1 acre
hectare hectares ha = 10000 m^2
s sec secs second seconds = 1 s
ms millisecond milliseconds = 1/1000 s
min mins minute minutes = 60 s
h hr hrs hour hours = 3600 s
day days = 86400 s
week weeks = 604800 s
month months = 1 month
yr yrs year years = 12 month
decade decades = 120 month
century centuries = 1200 month
＄ dollar dollars USD usd buck bucks = 1 dollar
cent cents = 1/100 dollar
€ euro euros EUR eur = 1 euro
£ = 1 sterling
yuan RMB CNY = 1 yuan
¥ yen JPY = 1 yen
₹ rupee rupees Rs INR = 1 rupee
peso pesos = 1 peso
franc francs = 1 franc
pence = 1 penny
° deg degs degree degrees = 1 °
rad rads radian radians = 1 rad
sr steradian steradians = 1 sr
% percent pct percents = 1 %
°C celsius centigrade = 1 °C
°F fahrenheit = 1 °F
kelvin kelvins = 1 K
unit units = 1 unit
mph = 1397/3125 m s^-1
kph kmh kmph = 5/18 m s^-1
N newton newtons = 1000 g m s^-2
kN kilonewton kilonewtons = 1000000 g m s^-2
J joule joules = 1000 g m^2 s^-2
kJ kilojoule kilojoules = 1000000 g m^2 s^-2
MJ megajoule megajoules = 1000000000 g m^2 s^-2
W watt watts = 1000 g m^2 s^-3
kW kilowatt kilowatts = 1000000 g m^2 s^-3
MW megawatt megawatts = 1000000000 g m^2 s^-3
kWh = 3600000000 g m^2 s^-2
Pa pascal pascals = 1000 g m^-1 s^-2
kPa kilopascal kilopascals = 1000000 g m^-1 s^-2
MPa = 1000000000 g m^-1 s^-2
GPa = 1000000000000 g m^-1 s^-2
atm atmosphere atmospheres = 101325000 g m^-1 s^-2
bar bars = 100000000 g m^-1 s^-2
Hz hertz = 1 s^-1
kHz kilohertz = 1000 s^-1
MHz megahertz = 1000000 s^-1
GHz gigahertz = 1000000000 s^-1
cal calorie calories = 1 cal
kcal kilocalorie kilocalories Cal = 1000 cal
eV = 1 eV
keV = 1000 eV
MeV = 1000000 eV
GeV = 1000000000 eV
A ampere amperes amp amps = 1 A
mA milliampere milliamperes milliamps = 1/1000 A
coulomb coulombs = 1 A s
V volt volts = 1 V
mV millivolt millivolts = 1/1000 V
kV kilovolt kilovolts = 1000 V
ohm ohms = 1 ohm
farad farads = 1 farad
tesla teslas = 1 tesla
henry henries = 1 henry
mol mole moles = 1 mol
mmol millimole millimoles = 1/1000 mol
rpm = 1 revolution s^-1
erg ergs = 1/10000 g m^2 s^-2
dyne dynes = 1/100 g m s^-2
knot knots = 463/900 m s^-1
byte bytes = 1 byte
kilobyte kilobytes KB kB = 1 kilobyte
megabyte megabytes MB = 1 megabyte
gigabyte gigabytes GB = 1 gigabyte
""".strip()


def _power(text: str) -> tuple[str, int]:
    name, _, power = text.partition("^")
    return name, int(power or 1)


def _read_units() -> dict[str, Unit]:
    units: dict[str, Unit] = {}
    for line in _UNITS.splitlines():
        spellings, _, meaning = line.partition(" = ")
        factor, *dimension = meaning.split()
        units |= dict.fromkeys(spellings.split(), Unit(Fraction(factor), dict(map(_power, dimension))))
    # Minutes of an hour: 60 revolutions a minute are one a second.
    units["rpm"] = Unit(Fraction(1, 60), units["rpm"].dimension)
    return units


UNITS = _read_units()
"""The meaning of each spelling of a unit."""

UNIT_POWERS = {"sq": 2, "square": 2, "cubic": 3, "cu": 3}
"""Words before a unit that raise it to a power."""

ALONE = frozenset("% ° °C °F rad sr dollar euro sterling yen yuan rupee peso franc penny".split())  # noqa: SIM905
"""Basic units that stand beside no other unit without `per`."""

AFTER_POWERS = {"squared": 2, "cubed": 3}
"""Words after a unit that raise it to a power."""

MULTIPLIERS = {
    "dozen": 12, "hundred": 100, "thousand": 1000, "lakh": 10**5, "million": 10**6, "crore": 10**7, "billion": 10**9,
    "trillion": 10**12, "quadrillion": 10**15, "quintillion": 10**18,
}  # fmt: skip
"""Words after a number that multiply it, in the singular."""

# Adjectives that only say what is counted are dropped, so that `5 different ways` and `5 ways` agree.
DROPPED_MODIFIERS = frozenset("different distinct possible total unique such whole full additional".split())  # noqa: SIM905

MODIFIERS = frozenset(
    """red blue green yellow white black orange purple pink brown gray grey gold silver golden big small large little tall
    short long new old young male female adult right isosceles equilateral scalene acute obtuse congruent similar regular
    positive nonnegative prime composite even odd real rational irrational ordered unordered consecutive valid good bad
    license lattice complex chess soccer football baseball basketball tennis hockey playing business school high college
    math science history english french spanish art music paper plastic wooden glass metal steel fruit vegetable
    chocolate vanilla strawberry lemon birthday wedding pine oak maple apple cherry peach postage phone cell
    parking swimming bus train hot cold fresh empty wooly wild sea sports trading gift candy potato tomato""".split()  # noqa: SIM905
)
"""Words before a counted noun that tell it apart from others: 5 red balls are not 5 blue balls."""

SUBSTANCES = frozenset(
    """water milk flour sugar sand paint gold silver iron copper rice salt butter oil gas gasoline money time work dirt soil
    gravel cement concrete air oxygen hydrogen carbon alcohol acid solution mixture meat beef chicken pork fish cheese cream
    honey syrup wood coal grass hay rope string wire cloth fabric land sleep pizza cake pie chocolate punch cereal""".split()  # noqa: SIM905
)
"""What may follow `of` after a unit: `5 cups of flour`."""

# The forms of a noun that no rule gives.
_IRREGULAR = {
    "people": "person", "persons": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse",
    "geese": "goose", "teeth": "tooth", "oxen": "ox", "vertices": "vertex", "matrices": "matrix", "axes": "axis",
    "pennies": "penny", "loaves": "loaf", "knives": "knife", "leaves": "leaf", "shelves": "shelf", "wolves": "wolf",
    "calves": "calf", "wives": "wife", "lives": "life", "elves": "elf", "scarves": "scarf", "indices": "index",
    "firemen": "fireman", "policemen": "policeman", "fishermen": "fisherman", "freshmen": "freshman",
    "salesmen": "salesman", "gentlemen": "gentleman", "dice": "die", "buses": "bus", "gases": "gas", "quizzes": "quiz",
    "polyhedra": "polyhedron", "geniuses": "genius", "walruses": "walrus", "octopuses": "octopus", "lenses": "lens",
    "cacti": "cactus", "movies": "movie", "cookies": "cookie", "brownies": "brownie", "pies": "pie", "ties": "tie",
    "calories": "calorie", "selfies": "selfie", "zombies": "zombie", "smoothies": "smoothie", "shoes": "shoe",
    "toes": "toe", "canoes": "canoe", "axe": "axe", "houses": "house", "horses": "horse", "nurses": "nurse",
    "cases": "case", "roses": "rose", "noses": "nose", "vases": "vase", "purses": "purse", "courses": "course",
    "expenses": "expense", "exercises": "exercise", "blouses": "blouse", "phases": "phase", "responses": "response",
    "licenses": "license", "purchases": "purchase", "premises": "premise", "mazes": "maze", "prizes": "prize",
    "sizes": "size", "bronzes": "bronze", "caches": "cache", "headaches": "headache", "avalanches": "avalanche",
    "clauses": "clause", "hoses": "hose", "doses": "dose", "mousses": "mousse", "pauses": "pause", "causes": "cause",
    "bacteria": "bacterium", "octahedra": "octahedron", "tetrahedra": "tetrahedron",
    # Nouns in the plural only: `5 prime` is 5', `5 zero` is 50.
    "primes": "primes", "zeros": "zeros", "zeroes": "zeros",
}  # fmt: skip

# Nouns that are counted, in the singular.
_NOUNS = """
acorn actor adult afternoon airplane album alien alligator almond angle animal answer ant apartment ape apple appointment
apron aquarium arc arrangement article artist assignment asteroid athlete atom aunt author award baby backpack bacterium badge
bag bagel baker ball balloon ballot banana bandage bank banner barn barrel basket bathroom battery beach bead bean bear bed
bedroom bee beetle belt bench bicycle bike bill binder bird birthday biscuit blanket block blouse blueberry board boat bolt
bond book bookcase boot booth bottle bowl box boy bracelet branch bread brick bridge broom brother brownie brush bucket
building bulb bull bun bunch bundle bunny burger burrito bus bush butterfly button cabbage cabinet cable cactus cage cake calf
call camel camera can candidate candle candy canoe cap capsule car card carpenter carrot cart carton case cashew cat
caterpillar cell certificate chain chair chapter chart chef cherry chick chicken child chip chocolate chord chore church
circle citizen city clam class classmate classroom clerk clock clown club coach coaster coat coconut code coefficient coffee
coin college collision colony column comb combination comet comic company computer concert cone container contestant continent
contract cook cookie corn costume couch counter country county coupon course cousin cow crab cracker crate crayon crocodile
croissant crop crow crumb cucumber cupcake curtain customer cycle cyclist cylinder daisy dancer dart date daughter deer
delivery desk dessert diagonal die digit dinosaur disc dish disk district doctor document dog doll dolphin donkey donut door
dose doughnut dragon drawer drawing dress drill drink driver drop duck duckling dumpling eagle earring edge egg election
electron element elephant elevator elf email employee engine engineer envelope episode equation eraser errand escalator essay
evening event exam expression fabric face family farm farmer feather fence ferry festival field file film fireman firework
fish fisherman flag flight flip flock floor flower fly folder forest fork form fox frame freshman friend frog fry function
galaxy game garage garden garland garment gate gene gentleman gift giraffe girl glass glove goal goat goose grade grain
grandchild grape grid guest gumball gumdrop hamburger hammer hamster handshake hat hawk helicopter helmet hen heptagon herd
hexagon highway hill hit hive holiday home homework hoodie hook horse hospital hotel house human husband icicle inning insect
installment integer intersection interview island item jacket jar jean jellybean jellyfish job journey judge juice junior
juror kangaroo kayak kennel key keyboard kid king kiosk kite kitten kiwi knife knight koala label ladder lady ladybug lake
lamb lamp lane lantern lap laptop lawyer layer leaf lecture lemon lesson letter lettuce level library light lily lime line
link lion litter lizard llama loaf loan lobster lock lollipop loser machine magazine man mango map marble marker marshmallow
match mathematician meal medal meeting melon member message method milkshake mirror mitten molecule monitor monk monkey moon
mop morning mosquito motorcycle mountain mouse move movie muffin mug museum mushroom musician mutation nail name napkin
necklace needle neighbor nest neutron newspaper night noodle note notebook novel nugget number nurse nut object octagon
octopus office officer olive onion orange orchard ornament oscillation otter outcome owl ox oyster pack package packet page
painter painting pajama pan pancake panda pant paper paperclip paragraph parallelogram parcel parent park parrot participant
party passcode passenger password pastry path patient payment pea peach peanut pear pebble pen pencil penguin penny pentagon
pepper permutation person pet petal phone photo photocopy photograph photon pickle picture pie piece pig pigeon piglet pile
pill pillow pilot pin pineapple pirate pitcher pixel pizza plane planet plank plant plate player plum poem point pole
policeman polygon polyhedron polynomial pond popsicle possibility post postcard poster pot potato pouch present pretzel prince
princess printer prism prize problem product professor programmer project proton pumpkin pupil puppy purchase purse puzzle
pyramid quadrilateral quarterback queen question quilt quiz rabbit raccoon race racer radio raft raisin raspberry rat ray
reaction reader record rectangle region report resident restaurant revolution rhombus ribbon ride ring river road robot rock
rocket roll room rooster rope rose rotation round row rug ruler rung runner sack sailor salad salesman sample sandal sandwich
satellite sausage saw scarf school scientist scoop scooter scout screw seal seat seed segment selection senior sentence
sequence share shark sheep sheet shelf shell shift ship shipment shirt shoe shop shot show shrub sibling side sign singer
sister skateboard skirt sled slice slipper smoothie snack snail snake snowball snowflake snowman soap sock soda sofa soldier
solution son song sophomore soup sparkler sparrow sphere spider spin sponge spool spoon squirrel stable stack stage stair
stall stamp stand staple star starfish state steak stem step stick sticker stock stone store story straw strawberry streamer
street string student subject suit sundae sunflower sunrise swan swarm sweater sweatshirt sweet swimmer symbol table
tablecloth tablet taco tag tangent tank tape tart task taxi tea teacher team teammate telephone television term test textbook
thing thread ticket tiger tile tin tire toad token tomato tortoise toss tour tourist tournament towel tower town toy track
trail train trapezoid tray treat tree trial triangle tricycle trip trolley trophy truck tshirt tube tulip tunnel tuple turkey
turn turtle twig uncle unicorn uniform university vaccine value van vehicle verse vertex vest video village vine virus visit
visitor vote voter waffle wagon waiter waitress wall wallet walnut walrus watch watermelon wavelength way website weed weekend
whale wheel wife window wing winner wire wolf woman word worker worm wrap wreath wrench writer yarn zebra zoo
anagram automorphism berry bit bone bounce bouquet bug coloring colouring committee cricket decoration dime divisor dot entry
eye factor factorization flavor flavour fruit gnome goldfish guppy hole hotdog isomer leg meatball monomial multiple nickel
octahedron outfit pairing palindrome partition pattern pen primes root route seashell serving spot subgroup subsequence subset
substring switch tetrahedron tiling vector vegetable widget zeros
"""
NOUNS = frozenset(_NOUNS.split())
"""The counted nouns in the singular."""

ORDERED = frozenset("pair triple quadruple quintuple".split())  # noqa: SIM905
"""Nouns after `ordered` only, in the singular: `5 pairs` may be ten things."""

_LABELS = """
answer result solution value total sum difference product quotient remainder ratio average mean median mode range variance
area perimeter volume length width height depth radius diameter circumference distance speed velocity acceleration time
age cost price profit loss revenue income salary tax interest principal balance weight mass density force energy
power work pressure temperature voltage current resistance frequency period amplitude wavelength angle slope gradient
intercept limit derivative integral probability expectation odds percentage percent fraction number count amount quantity
minimum maximum min max least greatest largest smallest final exact required desired unknown original new total surface
lateral base side edge hypotenuse leg altitude diagonal area arc sector segment chord degree order rank det determinant
trace dimension domain range codomain image kernel gcd lcm hcf units tens hundreds digit digits score points steps
moves ways cases outcomes rate efficiency yield
"""
LABELS = frozenset(_LABELS.split())
"""Words of which one must name the quantity left of an equals sign: `\\text{total area} = 5`."""

_BESIDE_LABELS = frozenset("of the in is for per and a an".split())  # noqa: SIM905


def singular(word: str) -> str:
    """The singular of a noun in lower case, by the rules of English spelling."""
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in NOUNS or word.endswith("ss"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")):
        return word[:-2]
    return word.removesuffix("s")


def unit(word: str) -> Unit | None:
    """The meaning of a unit's spelling. Case matters in one and two letters (`5 M` is not 5 m), not in longer words."""
    return UNITS.get(word) or (UNITS.get(word.lower()) if len(word) > 2 else None)


def noun(word: str) -> str | None:
    """The singular of a counted noun in any case; None for another word."""
    found = singular(word.lower())
    return found if found in NOUNS else None


def multiplier(word: str) -> int | None:
    """What a word like `million` or `dozens` multiplies a number by; None for another word."""
    return MULTIPLIERS.get(word.lower().removesuffix("s"))


def is_label(text: str) -> bool:
    r"""Whether words, as in `\text{total area}`, name a quantity or points (`AB`), and say nothing else."""
    words = re.findall(r"[A-Za-z]+", text)
    if not words or not re.fullmatch(r"[A-Za-z .:]*", text):
        return False
    if all(re.fullmatch("[A-Z]{1,4}|[a-z]", word) for word in words):
        return len(words) == 1
    known = [word.lower() in LABELS or noun(word) is not None for word in words]
    beside = [word.lower() in _BESIDE_LABELS or word.lower() in MODIFIERS or unit(word) is not None for word in words]
    return any(known) and all(one or other for one, other in zip(known, beside, strict=True))
