"""The shop's tables as SQLAlchemy 2 classes, for PostgreSQL 15 and later.

Lessons add what they teach. So `customers.email` has no index and no unique constraint, although its values
are unique: a lesson shows the sequential scan first and creates the index itself.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

from sqlalchemy import (
    DDL,
    BigInteger,
    DateTime,
    ForeignKey,
    Identity,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Text,
    event,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

SHOP_TODAY = datetime(2026, 6, 30, tzinfo=UTC)
"""The shop's "now": every time in the data lies before it. Lessons use it instead of the clock, so that
`last_login > SHOP_TODAY - timedelta(days=30)` finds the same rows on every day.
"""


class Base(DeclarativeBase):
    """Base of the shop's classes; constraint names follow PostgreSQL's own pattern, so that they are the same
    everywhere.
    """

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
            "uq": "%(table_name)s_%(column_0_name)s_key",
        }
    )


class Customer(Base):
    """A registered customer; 23.2 % have never ordered."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    email: Mapped[str] = mapped_column(String(200))
    membership_level: Mapped[str] = mapped_column(String(20))
    """One of basic, silver, gold, platinum."""
    is_active: Mapped[bool]
    last_login: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    """None for a customer who never logged in."""
    last_purchase_date: Mapped[date | None]
    """Date in UTC of the latest order; None without orders."""
    avatar_url: Mapped[str | None] = mapped_column(String(200))
    bio: Mapped[str | None] = mapped_column(Text)
    """2 to 6 kB, stored out of line and uncompressed: reading it costs visits to the TOAST table. None where the lesson
    did not ask for biographies.
    """

    orders: Mapped[list[Order]] = relationship(back_populates="customer", order_by="Order.id")


class Product(Base):
    """A product of the catalogue, with its price today."""

    __tablename__ = "products"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    category: Mapped[str] = mapped_column(String(40))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))

    items: Mapped[list[OrderItem]] = relationship(back_populates="product")


class Order(Base):
    """An order; at scale 1 a higher id is never an earlier order."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
    ordered_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    status: Mapped[str] = mapped_column(String(20))
    """One of processing, shipped, delivered, returned, cancelled."""

    customer: Mapped[Customer] = relationship(back_populates="orders")
    items: Mapped[list[OrderItem]] = relationship(back_populates="order", order_by="OrderItem.id")


class OrderItem(Base):
    """One line of an order. `unit_price` is what was paid for one piece, offers included."""

    __tablename__ = "order_items"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"), index=True)
    product_id: Mapped[int] = mapped_column(ForeignKey("products.id"), index=True)
    quantity: Mapped[int] = mapped_column(SmallInteger)
    unit_price: Mapped[Decimal] = mapped_column(Numeric(10, 2))

    order: Mapped[Order] = relationship(back_populates="items")
    product: Mapped[Product] = relationship(back_populates="items")


# STORAGE in CREATE TABLE itself is new in PostgreSQL 16, so 15 needs the ALTER.
STORE_BIO_OUT_OF_LINE = DDL("ALTER TABLE customers ALTER COLUMN bio SET STORAGE EXTERNAL")
event.listen(Customer.__table__, "after_create", STORE_BIO_OUT_OF_LINE)
