#!/bin/bash
# Start mongod as the one member of a replica set, with authentication: transactions, write concern and the oplog need
# the set, and with a password mongod asks its members for a key file.
set -euo pipefail

ready=/tmp/takes-writes # what the health check looks for: mongosh itself would take a processor's time from the lessons
rm -f "$ready"
key=/tmp/members.key
head -c 96 /dev/urandom | base64 -w 0 >"$key"
chown mongodb "$key"
chmod 400 "$key"

# The image makes the root user on a server that is no member yet; only the one after it can be told of the set.
make_the_set() {
  local give_up=$((SECONDS + 120))
  # The password comes from the environment: a command line is there for all to read.
  until mongosh --quiet --eval '
    db.getSiblingDB("admin").auth(process.env.MONGO_INITDB_ROOT_USERNAME, process.env.MONGO_INITDB_ROOT_PASSWORD);
    try {
      rs.status();
    } catch (error) {
      if (error.codeName !== "NotYetInitialized") throw error;
      rs.initiate({_id: "workshop", members: [{_id: 0, host: "mongo:27017"}]});
    }
    if (!db.hello().isWritablePrimary) throw new Error("no primary yet");' >/tmp/make-the-set 2>&1; do
    if ((SECONDS > give_up)); then
      echo "mongo: the replica set was not made within 120 s: $(tail -n 1 /tmp/make-the-set)" >&2
      kill 1
      return
    fi
    sleep 1
  done
  touch "$ready"
}
make_the_set &

exec docker-entrypoint.sh mongod --replSet workshop --keyFile "$key" --bind_ip_all --quiet \
  --oplogSize 200 --wiredTigerCacheSizeGB 0.25
