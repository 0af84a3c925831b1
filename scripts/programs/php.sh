#!/bin/sh
# php-fpm behind nginx, in one container, as many images have it.
set -e
mkdir -p /run/php
php-fpm8.2 --daemonize
exec nginx -g 'daemon off;'
