#!/bin/sh
# The usual entrypoint of images: prepares, then becomes the command.
set -e
echo "entrypoint: preparing"
exec "$@"
