#!/bin/bash
# Start mongod as the one member of a replica set, with authentication: transactions, write concern and the oplog need
# the set, and with a password mongod asks its members for a key file.
set -euo pipefail

key=/tmp/members.key
head -c 96 /dev/urandom | base64 -w 0 >"$key"
chown mongodb "$key"
chmod 400 "$key"

# The image makes the root user on a server that is no member yet; only the one after it can be told of the set.
make_the_set() {
  local give_up=$((SECONDS + 120))
  until mongosh --quiet -u "$MONGO_INITDB_ROOT_USERNAME" -p "$MONGO_INITDB_ROOT_PASSWORD" --eval '
    try {
      rs.status();
    } catch (error) {
      if (error.codeName !== "NotYetInitialized") throw error;
      rs.initiate({_id: "workshop", members: [{_id: 0, host: "mongo:27017"}]});
    }' >/tmp/make-the-set 2>&1; do
    if ((SECONDS > give_up)); then
      echo "mongo: the replica set was not made within 120 s: $(tail -n 1 /tmp/make-the-set)" >&2
      kill 1
      return
    fi
    sleep 1
  done
}
make_the_set &

exec docker-entrypoint.sh mongod --replSet workshop --keyFile "$key" --bind_ip_all \
  --oplogSize 200 --wiredTigerCacheSizeGB 0.25
