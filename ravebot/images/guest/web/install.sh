#!/bin/sh
set -eu
rm -f /etc/nginx/sites-enabled/default
# One process is enough, and it must read what agent may read.
sed -i 's/^worker_processes .*/worker_processes 1;/; s/^user .*/user agent;/' /etc/nginx/nginx.conf
systemctl enable -q nginx.service
