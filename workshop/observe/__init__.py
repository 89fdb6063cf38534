"""Counters: what the servers and drivers saw while a block of code ran.

    observer = Observer(postgres_url, "my_database", mongo_url, redis_url)
    with observer.watch() as seen:
        ...
    seen                # a small table
    seen.statements     # one number

Counters, unlike times, are the same on every run, so a notebook's stored output can be compared with a new one. What a
server does not let us count is a `NotCounted` with the reason. Where each number comes from:

PostgreSQL (15 or newer), for one database, whichever program or connection did the work:
    `pg_stat_statements`, read before and after from a connection to another database, so the reading is not counted
    itself. A role without pg_read_all_stats counts its own statements. A statement is counted when it completes. One
    that fails is not counted, and the `SELECT` that a transaction ran last is not counted before the next statement or
    the end of the transaction; the table says so when that happened.

    `connections` is the growth of `pg_stat_database.sessions`, or the number of backends that have come, if larger (a
    pooler's backends, not its clients): a login that meets another, or a reader, is added to `sessions` seconds later.
    Such a login can still be missing where others came and went in the same block, and it is counted in a later block
    where the observer was made after it, or where its role is another's, without pg_read_all_stats.

    Not counted as `statements`: transaction control (BEGIN, COMMIT, SAVEPOINT, ...), the driver's DEALLOCATE
    (PostgreSQL before 17 does not report it), and the five catalog queries by which a new SQLAlchemy engine gets to
    know its server, with their transaction. So the same code gives the same counts on a cold and on a warm engine.
    `by_statement()` lists them all. `DECLARE`, `FETCH` and `CLOSE` of a server-side cursor count as a statement each. A
    statement that a function runs belongs to the statement that called the function.

    A `SELECT` may write WAL: the first read after a write sets hint bits, and where the cluster has checksums (the
    default from PostgreSQL 18 on) that is logged, up to a whole page at a time. VACUUM first.

Redis (7.0 or newer):
    `redis_commands` are the commands that this process's redis-py clients sent, to whichever server and through
    whichever proxy; not INFO and what a client sends to open a connection (HELLO, AUTH, SELECT, CLIENT ...). A script
    is one command. Redis keeps hits and misses for the whole server (`INFO stats`): `redis_hits` and `redis_misses` are
    counted where `INFO commandstats` shows that no other client, and no script, ran a command during the block.

MongoDB (6.0 or newer), for one database:
    `mongo_commands` are the commands that this process's PyMongo clients sent, a `getMore` for each further batch
    included, cursor and session clean-up (killCursors, endSessions) not, because PyMongo sends those in its own time.
    One `bulk_write` is one command, however many writes it holds, until it must be split. Only clients created after
    `workshop.observe.observer` was imported are heard; a client that is heard takes about 10 microseconds longer per
    command.

    `documents_examined` and `keys_examined` are summed from the database profiler, at level 2 during the block, in a
    `system.profile` of the observer's own that is dropped afterwards.
"""
