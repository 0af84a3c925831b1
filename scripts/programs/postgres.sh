#!/bin/sh
# As the image of PostgreSQL's makers: a cluster in $PGDATA, made at the first start.
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
mkdir -p "$PGDATA"
chown -R postgres:postgres "$PGDATA"
chmod 700 "$PGDATA"
install -d -o postgres -g postgres /var/run/postgresql
as() { setpriv --reuid=postgres --regid=postgres --init-groups "$@"; }
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    as "$bin/initdb" -D "$PGDATA" --auth=trust --encoding=UTF8 --no-locale
    echo 'host all all all trust' >>"$PGDATA/pg_hba.conf"
fi
exec setpriv --reuid=postgres --regid=postgres --init-groups \
    "$bin/postgres" -D "$PGDATA" -c listen_addresses='*' -c unix_socket_directories=/var/run/postgresql -c shared_buffers=32MB
