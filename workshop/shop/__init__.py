"""The shop: its ORM classes (models.py), its rows (files.py), and the loaders that bring them to the servers."""

from workshop.shop.models import SHOP_TODAY, Base, Customer, Order, OrderItem, Product

DATABASE = "workshop_shop"  # the seeded database that lessons get a copy of, in PostgreSQL and in MongoDB
WITH_BIOGRAPHIES = f"{DATABASE}_biographies"  # the same with customers.bio, in PostgreSQL: made when a lesson asks

__all__ = ["DATABASE", "SHOP_TODAY", "WITH_BIOGRAPHIES", "Base", "Customer", "Order", "OrderItem", "Product"]
