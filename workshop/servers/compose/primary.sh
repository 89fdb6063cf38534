#!/bin/bash
# Run by the image once, when it has made the primary's data folder.
set -euo pipefail

echo "include '/etc/workshop/postgresql.conf'" >>"$PGDATA/postgresql.conf"
# A replica that is away may come back later; one that never does must not fill the disk.
echo "max_slot_wal_keep_size = 1GB" >>"$PGDATA/postgresql.conf"
echo "host replication replicator all scram-sha-256" >>"$PGDATA/pg_hba.conf"
# psql takes the password from its environment: a command line is there for all to read.
psql -v ON_ERROR_STOP=1 -U postgres -d postgres <<'SQL'
\getenv password POSTGRES_PASSWORD
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'password';
CREATE EXTENSION pg_stat_statements;
SQL
