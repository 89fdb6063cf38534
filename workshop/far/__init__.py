"""A network distance of one's own choosing: a proxy, the servers behind it, and the gain at several distances."""
