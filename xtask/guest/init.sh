#!/bin/bash
# First program of the guest: devices, modules, network, then commands from the second serial port.
export PATH=/usr/sbin:/usr/bin HOME=/ LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp

while read -r module; do
    insmod "/modules/$module.ko" || echo "init: cannot load $module"
done </modules/order

ip link set lo up
ip address add 10.0.2.15/24 dev eth0
ip link set eth0 up
ip route add default via 10.0.2.2

channel=/dev/ttyS1
stty -F "$channel" raw -echo
exec 3<>"$channel"
echo ready >&3
# The shell of each command ends with it; what goes on in the background is kept by its own session.
while IFS= read -r -u 3 request; do
    id=${request%% *}
    timeout 280 bash -euo pipefail -c ". /checks.sh; . /drive.sh; . /pool.sh; . /power.sh; set -x; ${request#* }" \
        </dev/null >/run/stdout 2>/run/stderr
    status=$?
    # A long trace would hold up the slow channel; its end is what matters.
    echo "$id $status $(tail -c 60000 /run/stdout | base64 -w 0) $(tail -c 6000 /run/stderr | base64 -w 0)" >&3
done
