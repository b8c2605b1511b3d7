# A drive of the guest's own, and a data plane in the guest that drives it past the kernel.

# PCI address of the only NVMe drive, such as 0000:01:00.0.
drive() {
    local - path
    set +x
    for path in /sys/bus/pci/devices/*; do
        if [ "$(cat "$path/class")" = 0x010802 ]; then
            echo "${path##*/}"
            return 0
        fi
    done
    return 1
}
held_by() { [ -e "/sys/bus/pci/drivers/$1/$(drive)" ]; }

# Drivers, and huge pages of 2 MiB, $1 of them.
prepares_for_drives() {
    local module
    while read -r module; do insmod "/modules/$module.ko"; done </modules/order.drive
    echo "$1" >/proc/sys/vm/nr_hugepages
    equal "$(cat /proc/sys/vm/nr_hugepages)" "$1"
    mkdir -p /dev/hugepages
    mount -t hugetlbfs hugetlbfs /dev/hugepages
}

# Takes the drive from the kernel's own driver, which got it when it appeared, and gives it to driver
# $1, through which programs reach it.
is_handed_over() {
    local address
    within 60 held_by nvme
    # Not in the middle of the kernel's bring-up.
    within 60 kernel_uses_drive
    address=$(drive)
    echo "$address" >"/sys/bus/pci/devices/$address/driver/unbind"
    echo "$1" >"/sys/bus/pci/devices/$address/driver_override"
    echo "$address" >/sys/bus/pci/drivers_probe
    held_by "$1"
}
kernel_uses_drive() { [ "$(cat "/sys/bus/pci/devices/$(drive)"/nvme/nvme*/state)" = live ]; }

# --- the data plane -----------------------------------------------------------------------------

# Starts it with these arguments, and waits until it listens. How it ended, if it ends, is left in a
# file.
plane_begins() {
    rm -f /run/plane.pid /run/plane.out /run/plane.status
    setsid bash -c '
        "$@" </dev/null >/run/plane.out 2>>/run/plane.log &
        echo "$!" >/run/plane.pid
        wait "$!" && status=0 || status=$?
        echo "$status" >/run/plane.status' plane \
        bowline dataplane --listen "$ADDRESS:$PORT" "$@" </dev/null >/dev/null 2>&1 &
    within 240 plane_is_decided
    fails plane_has_ended
}
plane_starts() {
    plane_begins --engine spdk --device "$(drive)" --nqn "$NQN" --host "$HOST_FIRST" "$@"
}
plane_has_ended() { [ -e /run/plane.status ]; }
plane_is_decided() { plane_has_ended || grep -q '^ready ' /run/plane.out; }

# After a failed check: it runs again, if it does not.
plane_runs() { [ -e /run/plane.pid ] && fails plane_has_ended || plane_starts "$@"; }

# Sends signal $1 and waits for the end, which must have status $2.
plane_ends() {
    kill -s "$1" "$(cat /run/plane.pid)"
    within 120 plane_has_ended
    equal "$(cat /run/plane.status)" "$2"
}

# --- a drive that is pulled ---------------------------------------------------------------------

# What must be there when the drive comes back: 4 MiB that were flushed.
keeps_a_sum() {
    fill "$(disk 1)" 0 4096
    nvme flush "$(disk 1)" --namespace-id=1
    sum "$(disk 1)" 0 4096 >/run/sum
}
is_as_it_was() { equal "$(sum "$(disk 1)" 0 4096)" "$(cat /run/sum)"; }

# I/O ends, and with an error; the controller stays.
load_fails() {
    within 240 test -e /run/load.done
    cat /run/load.log
    test -e /run/load.failed
    live
    nvme_id_ctrl
}

refuses_the_drive() {
    within 60 logs 'is not that drive'
    logs 'serial number "another"'
}
logs() { grep -F "$1" /run/plane.log; }

# The load had written what no flush has covered: a host is told once that it may be lost.
has_its_drive_back() {
    within 60 logs 'device is back'
    fails plane_has_ended
    fails nvme flush "$(disk 1)" --namespace-id=1
    nvme flush "$(disk 1)" --namespace-id=1
}

vanished_times() { [ "$(grep -cF 'device vanished' /run/plane.log)" -ge "$1" ]; }

# It says that the drive was not flushed, which is for its operator to know.
stops_without_its_drive() {
    within 60 vanished_times 2
    plane_ends TERM 1
    tail -n 20 /run/plane.log | grep -F 'not flushed'
}
