"""Made-up biographies of the shop's customers: 2.1 to 6 kB of plain prose each, the same for an id on every
machine.

They are made while loading, not shipped: wide rows are needed to show what reading all columns costs, and 260
MB of them would not fit in a repository. The choice of phrases is integer arithmetic on the customer's id
(SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), so no
library's random generator can change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

_GAMMA = 0x9E3779B97F4A7C15
_BITS = 3  # eight choices for each blank

OPENINGS = """joined the shop after a friend's advice, and stayed.|found us by accident, one rainy evening.
came for one gift, and is still here.|has been shopping with us for a while, mostly on weekends.
writes to us now and then, always with a good question.|likes to compare first, and then decides fast.
reads every review, the long ones twice.|buys rarely, but with a list.""".replace("\n", "|").split("|")

_BLANKS = {
    "town": "Bristol|Ghent|Porto|Aarhus|Leipzig|Toulouse|Bergamo|Gdansk",
    "place": "a small town by the coast|a village in the hills|the old part of a city|"
    "a suburb with good trains|an island with one school|"
    "a farm at the end of a road|a river town|the edge of a forest",
    "work": "a school nurse|a bus driver|an accountant|a carpenter|a translator|a lab technician|"
    "a baker|a land surveyor",
    "hobby": "birdwatching|choir singing|open-water swimming|bookbinding|chess|gardening|long-distance cycling|pottery",
    "food": "lentil soup|rye bread|plum cake|noodles|roast vegetables|fish stew|pancakes|stuffed peppers",
    "animal": "dog|cat|rabbit|parrot|tortoise|horse|pair of hens|goldfish",
    "month": "January|March|April|May|June|September|October|November",
    "room": "kitchen|hallway|study|balcony|cellar|workshop|attic|spare room",
}

# Each theme is used at most once in a biography; each is longer than 300 bytes whatever fills its blanks.
_THEMES = """\
Home is {place}, a good hour from {town}, with a garden that is too large for one person and too small for \
two. The house was meant to be a stop of a few months. That was eleven years ago, and the boxes in the \
attic still carry the labels of the move, in three kinds of handwriting and two languages.
The working week belongs to a job as {work}, which begins early and seldom ends when it should. The best \
part is the people, the worst part is the paper. On the way home there is time for one podcast, usually \
about {hobby}, and for a list of what is missing in the cupboard, which is then left on the seat of the \
train.
Weekends are for {hobby}. It started with a course in {month} that nobody else wanted to take, and turned \
into a circle of nine people who meet in a borrowed hall with bad heating. They keep a notebook of what \
went wrong, because what went right is remembered anyway, and they read from it aloud once a year.
The {animal} has a name that changes with the weather and an opinion on every parcel. Deliveries are \
announced long before the bell rings. Nothing that came in a box has ever been thrown away before it was \
inspected from the inside, and the neighbours in {town} still tell the story of the afternoon when the \
door was left open.
Cooking is done by memory, with {food} at the head of the list. A grandmother's recipe says only how it \
should smell. After many attempts in the {room}, which has the only good light, the result is close enough \
that nobody at the table argues about it any more, and the second helping is usually gone before the first \
guest is.
Every {month} there is a journey with one bag and no fixed plan, most often by train and once by ferry. \
The last one ended in {town}, four days later than intended, because of a market, a missed connection and \
a conversation about maps. The photographs are blurred, but the address book has grown by two pages.
The {room} has been under repair for so long that visitors ask about it first. The shelves are up, the \
floor is nearly level, and a lamp from the first order still hangs where it was meant to hang for one \
night. Advice from a neighbour, {work} by trade, has saved at least two walls and one friendship.
On reading: one novel at a time, one book about {hobby} beside it, and a newspaper on paper on Sundays. \
Borrowed books go back with a note inside. A shelf in the {room} holds those that could not be finished \
and could not be given away, and every winter one of them is given a second chance, seldom with success.
Two children, nearly grown, know the password of this account and use it with care. One wants to become \
{work}, the other has plans that change with the season. They agree about {food}, about the dog next door, \
and about very little else, so that a delivery of one single thing can lead to an evening of negotiation.
For eight years now there has been a seat on the board of a club for {hobby}, won in an election without \
other candidates. The post comes with a key, a cash box and a drawer of unpaid invoices. Since {month} the \
invoices are in order, and the members have begun to ask whether the summer party could be larger.
School was in {town}, then a year abroad that became three, then a return for reasons that sound better \
after dinner. Of the languages learned on the way two are still good enough for jokes. The certificate \
hangs in the {room}, slightly crooked, next to a railway timetable that has been out of date for a long \
time.
Mornings begin at six with coffee at the window and a look at the thermometer. The numbers go into a table \
that was started by an uncle, who was {work} and trusted no forecast. The coldest {month} so far is \
underlined twice. Friends laugh about the table and then ask for it whenever there is a wedding to be \
planned outdoors.
There is a bicycle for the summer, a better one for the winter, and a third one in parts in the {room}. \
The longest ride led from {town} to the sea and back, with a tent that let in more rain than it kept out. \
It is spoken of as a success, and the tent has been on the list of things to replace ever since.
Music came late: first a borrowed guitar, then lessons from a patient teacher who also works as {work}. \
Practice takes place in the {room} with the door closed. There is one piece that can be played from \
beginning to end without a stop, and it is played at every birthday, whether or not anybody has asked for \
it.
Letters are still written by hand, on plain paper, to an aunt in {town} who answers by return of post. \
They are mostly about {food}, the price of stamps and the health of a very old cat. All of them are kept \
in order of date, in a box that once held a kettle, and there is talk of making a small book of them one \
day.
The allotment behind the railway line gives beans, too many courgettes and a reason to be outside in \
{month}. The hut was built from doors that other people no longer wanted. On the wall hangs a plan for the \
coming year, drawn with a ruler in the {room} and ignored from the first warm day on, as every plan before \
it.
As a volunteer at the repair evening, on the first Thursday of {month} and of most other months, toasters \
and radios pass over the table by the dozen. Half of them only need cleaning. The others become a lesson \
in patience, and in how many kinds of screws there are. A {animal} usually sleeps under the bench and is \
consulted in hard cases.
What is wanted from a shop is simple: parcels that are no larger than they need to be, a person who \
answers, and things that can be mended. Colours are a matter of mood and sizes a matter of luck. The best \
order so far was for a cousin in {town}, {work} by profession, who has never stopped asking where it came \
from."""


def _paragraphs() -> tuple[list[bytes], int]:
    """All paragraphs, theme by theme, and how many there are for one theme."""
    variants = 1 << (2 * _BITS)
    made = []
    for theme in _THEMES.split("\n"):
        blanks = [name for name in _BLANKS if "{" + name + "}" in theme]
        choices = [_BLANKS[name].split("|") for name in blanks]
        filled = [theme.format(**dict(zip(blanks, words, strict=True))) for words in product(*choices)]
        # A theme with fewer blanks has fewer variants: repeat them, so that every theme takes the same number
        # of places.
        made += [filled[i % len(filled)].encode("ascii") for i in range(variants)]
    return made, variants


_POOL, _VARIANTS = _paragraphs()
_COUNT = len(_POOL) // _VARIANTS
_OPENINGS = [opening.encode("ascii") for opening in OPENINGS]
# Paragraphs per biography: 7 always, then one more for each entry that a draw from 0 to 1023 reaches: a long,
# thin tail.
_MORE = np.array([512, 780, 880, 940, 970, 988, 1000, 1008, 1014, 1018, 1021], dtype=np.uint64)
_LEAST = 7


def splitmix64(numbers: np.ndarray) -> np.ndarray:
    """SplitMix64 of each number: uint64 to uint64, the same shape."""
    with np.errstate(over="ignore"):
        z = numbers.astype(np.uint64) * np.uint64(_GAMMA)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def biographies(ids: Sequence[int], names: Sequence[bytes]) -> list[bytes]:
    """A biography in ASCII for each customer, without quotes or line ends. ``names`` are the customers'
    names.
    """
    steps = _LEAST + len(_MORE)
    base = np.asarray(ids, dtype=np.uint64)
    draws = splitmix64(base[:, None] * np.uint64(32) + np.arange(1, steps + 2, dtype=np.uint64))
    first = draws[:, 0]
    opening = (first & np.uint64(len(_OPENINGS) - 1)).tolist()
    theme = (first >> np.uint64(8)) % np.uint64(_COUNT)
    lengths = (_LEAST + np.searchsorted(_MORE, (first >> np.uint64(40)) & np.uint64(1023), side="right")).tolist()
    themes = (theme[:, None] + np.arange(steps, dtype=np.uint64)) % np.uint64(_COUNT)
    places = (themes * np.uint64(_VARIANTS) + (draws[:, 1:] >> np.uint64(64 - 2 * _BITS))).tolist()
    pool, openings = _POOL, _OPENINGS
    return [
        b" ".join([name, openings[o], *[pool[i] for i in row[:n]]])
        for name, o, n, row in zip(names, opening, lengths, places, strict=True)
    ]


def avatars(ids: Sequence[int]) -> list[bytes]:
    """An avatar URL for each customer, under a domain that RFC 2606 reserves."""
    tokens = splitmix64(np.asarray(ids, dtype=np.uint64)).tolist()
    return [b"https://img.shop.example/avatars/%016x.png" % token for token in tokens]
