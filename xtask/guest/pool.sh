# Volumes of a pool with ext4 on them. The data plane is not in this guest.

# Makes a file system that leaves nothing for later, and mounts it.
mounts_a_new_file_system() {
    mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$(disk 1)"
    mount "$(disk 1)" /mnt
}

# Starts passes of a load on files that go on until told to stop: blocks that fio verifies, written
# past the page cache, and small files that come and go, with a list of the sums of those that were
# synced.
files_start() {
    rm -f /run/load.* /run/files.*
    mkdir -p /mnt/files
    : >/run/files.sums
    setsid bash -euo pipefail -c '
        passes=0
        trap "echo \$passes >/run/load.done" EXIT
        trap "echo \$? >/run/load.failed" ERR
        while [ ! -e /run/load.stop ]; do
            fio --name=load --filename=/mnt/blocks --size=8m --direct=1 --ioengine=libaio \
                --iodepth=8 --rw=randrw --bssplit=4k/60:64k/30:512k/10 --verify=crc32c \
                --verify_fatal=1 --verify_backlog=32 --fsync=64 --thread --randseed="$RANDOM" \
                >/run/load.log 2>&1
            for number in $(seq 12); do
                name=/mnt/files/$((passes % 4))-$number
                head -c $((number * 9000)) /dev/urandom >"$name"
                sha256sum "$name" >>/run/files.new
            done
            sync -f /mnt
            cat /run/files.new >>/run/files.sums
            rm /run/files.new
            passes=$((passes + 1))
            echo "$passes" >>/run/load.passes
        done' files </dev/null >/dev/null 2>>/run/files.log &
    within 120 load_moves
}

# Of every small file the newest sum is right.
files_are_right() {
    local name
    declare -A newest
    while read -r sum name; do newest[$name]=$sum; done </run/files.sums
    [ "${#newest[@]}" -ge 12 ]
    for name in "${!newest[@]}"; do echo "${newest[$name]}  $name"; done >/run/files.newest
    sha256sum --check --quiet /run/files.newest
}

# Unmounted, checked and mounted again, with everything in it.
is_checked() {
    umount /mnt
    e2fsck -f -n "$(disk 1)"
    mount "$(disk 1)" /mnt
    files_are_right
}

# What the disk says is allocated, in bytes.
allocated() {
    nvme id-ns "$(disk 1)" -o json >/run/id-ns
    jq '.nuse * pow(2; .lbafs[.flbas % 16].ds)' /run/id-ns
}

# A large file makes the volume larger: how large is printed. Without it and after a trim it is as
# small as before.
takes_space() {
    local before full after
    rm -f /mnt/blocks
    sync -f /mnt
    fstrim /mnt
    before=$(allocated)
    head -c 48M /dev/urandom >/mnt/large
    sync -f /mnt
    full=$(allocated)
    [ "$full" -ge $((before + (40 << 20))) ]
    echo "$full"
}
trims() {
    rm /mnt/large
    sync -f /mnt
    fstrim -v /mnt
    [ "$(allocated)" -le $(($1 - (40 << 20))) ]
    files_are_right
}

# All files, and what they are to be in a snapshot; nothing changes until the file system thaws.
is_about_to_be_kept() {
    head -c 3M /dev/urandom >/mnt/changed
    head -c 2M /dev/urandom >/mnt/removed
    (cd /mnt && sha256sum changed removed files/*) >/run/kept.sums
    fsfreeze --freeze /mnt
}
goes_on_changed() {
    fsfreeze --unfreeze /mnt
    head -c 3M /dev/urandom >/mnt/changed
    rm /mnt/removed
    head -c 1M /dev/urandom >/mnt/new
    sync -f /mnt
}
reads_what_was_kept() {
    connects
    [ "$(cat "/sys/block/$(basename_of "$(disk 1)")/ro")" = 1 ]
    fails dd if=/dev/zero of="$(disk 1)" bs=4k count=1 oflag=direct conv=nocreat status=none
    mkdir -p /run/kept
    mount -o ro "$(disk 1)" /run/kept
    (cd /run/kept && sha256sum --check --quiet /run/kept.sums)
    [ ! -e /run/kept/new ]
    umount /run/kept
    e2fsck -f -n "$(disk 1)"
    disconnects
}
basename_of() { echo "${1##*/}"; }

# The disk has $1 bytes, and the file system takes them.
grows() {
    within 60 has_size 1 "$1"
    resize2fs "$(disk 1)"
    [ "$(df --output=size -B 1 /mnt | tail -n 1)" -ge $(($1 / 4 * 3)) ]
    head -c "$2" /dev/urandom >/mnt/beyond
    sync -f /mnt
    sha256sum /mnt/beyond >>/run/files.sums
}

leaves() {
    umount /mnt
    e2fsck -f -n "$(disk 1)"
    disconnects
}
