#!/bin/bash
# Start the streaming replica named $REPLICA. At its first start, and when the primary no longer keeps the log that it
# needs, it becomes a fresh copy of the primary.
set -euo pipefail
export PGHOST=postgres PGUSER=replicator PGPASSWORD=$POSTGRES_PASSWORD PGDATABASE=postgres PGCONNECT_TIMEOUT=5

give_up=$((SECONDS + 120))
until slot=$(psql -Atc "SELECT wal_status FROM pg_replication_slots WHERE slot_name = '$REPLICA'" 2>/tmp/refused); do
  if ((SECONDS > give_up)); then
    echo "replica: no primary answered within 120 s: $(cat /tmp/refused)" >&2
    exit 1
  fi
  sleep 1
done

if [ ! -s "$PGDATA/PG_VERSION" ] || [[ $slot != reserved && $slot != extended ]]; then
  if [ -n "$slot" ]; then psql -Atqc "SELECT pg_drop_replication_slot('$REPLICA')"; fi
  copy=$(dirname "$PGDATA")/copy # moved when it is whole
  rm -rf "$copy" "$PGDATA"
  install -d -o postgres -g postgres -m 700 "$copy"
  gosu postgres pg_basebackup -D "$copy" -R -X stream --checkpoint=fast --create-slot --slot="$REPLICA"
  mv "$copy" "$PGDATA"
fi

unset PGHOST PGUSER PGPASSWORD PGDATABASE PGCONNECT_TIMEOUT
exec docker-entrypoint.sh "$@"
