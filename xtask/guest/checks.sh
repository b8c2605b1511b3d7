# What the host in the guest does. Every function is one request of the harness and ends with a
# non-zero status when what it claims does not hold. The shell runs with -e, -u, -x and pipefail.

# ADDRESS, PORT and NQN of the subsystem, written by the harness once it knows them.
[ ! -e /run/peer ] || . /run/peer

# Identities of this host, of another that is allowed too, and of one that is not.
HOST_FIRST=$(cat /etc/nvme/hostnqn)
HOST_SECOND=nqn.2014-08.org.nvmexpress:uuid:9a3f77c2-5c0e-4d0f-8f5b-2f0c3f6f6d02
HOST_OTHER=nqn.2014-08.org.nvmexpress:uuid:11111111-2222-4333-8444-555555555555

# --- finding things -----------------------------------------------------------------------------

# The controller of our subsystem, such as nvme0.
controller() {
    local - path
    set +x
    for path in /sys/class/nvme/nvme*; do
        if [ -e "$path" ] && [ "$(cat "$path/subsysnqn")" = "$NQN" ]; then
            echo "${path##*/}"
            return 0
        fi
    done
    return 1
}

# The paths to namespace 1 of our subsystem, or the one behind port $1, as folders of sysfs.
paths() {
    local - controller path
    set +x
    for controller in /sys/class/nvme/nvme*; do
        [ -e "$controller" ] && [ "$(cat "$controller/subsysnqn")" = "$NQN" ] || continue
        case $(cat "$controller/address"), in
            *trsvcid=${1:-*},*) ;;
            *) continue ;;
        esac
        for path in "$controller"/nvme*n*; do
            [ ! -e "$path/nsid" ] || [ "$(cat "$path/nsid")" != 1 ] || echo "$path"
        done
    done
}

# The block device of namespace $1, such as /dev/nvme0n1.
disk() {
    local - path
    set +x
    for path in /sys/class/nvme-subsystem/*/nvme*n*; do
        [ -e "$path/nsid" ] || continue
        if [ "$(cat "${path%/*}/subsysnqn")" = "$NQN" ] && [ "$(cat "$path/nsid")" = "$1" ] &&
            [ -b "/dev/${path##*/}" ]; then
            echo "/dev/${path##*/}"
            return 0
        fi
    done
    return 1
}

# Repeats a command for at most $1 seconds, until it succeeds. The limits are ends for what hangs, far
# beyond what a busy machine needs.
within() {
    local - until=$((SECONDS + $1))
    set +x
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$until" ] || return 1
        sleep 0.1
    done
}

gone() { fails disk "$1"; }
live() { [ "$(cat "/sys/class/nvme/$(controller)/state")" = live ]; }
equal() { [ "$1" = "$2" ] || { echo "is '$1', should be '$2'" >&2; return 1; }; }

# A plain "!" would never stop the shell, whatever -e says.
fails() {
    if "$@"; then
        echo "should have failed: $*" >&2
        return 1
    fi
}

# Bytes $2 to $2 + $3 (in KiB) of disk $1, past the page cache.
content() {
    dd if="$1" bs=64K iflag=direct,skip_bytes,count_bytes skip=$(($2 * 1024)) \
        count=$(($3 * 1024)) status=none
}
sum() { content "$@" | sha256sum; }
zeros() { head -c $(($1 * 1024)) /dev/zero | sha256sum; }
fill() {
    head -c $(($3 * 1024)) /dev/urandom |
        dd of="$1" bs=64K conv=nocreat iflag=fullblock oflag=direct,seek_bytes \
            seek=$(($2 * 1024)) status=none
}

# --- connecting ---------------------------------------------------------------------------------

discovers() {
    nvme discover -t tcp -a "$ADDRESS" -s "$PORT" -o json "$@" |
        jq -e --arg nqn "$NQN" --arg port "$PORT" \
            '[.records[] | select(.subnqn == $nqn and .trsvcid == $port and .trtype == "tcp")] | length == 1'
}

is_refused() {
    fails nvme connect -t tcp -a "$ADDRESS" -s "$PORT" -n "$NQN" --hostnqn="$HOST_OTHER" \
        --hostid="${HOST_OTHER##*:}"
    fails controller
}

# Connects with further options and waits for namespace 1. The keep-alive time is long, because an
# emulated host on a busy machine may stand still for seconds; a killed peer is noticed by its reset.
connects() {
    nvme connect -t tcp -a "$ADDRESS" -s "$PORT" -n "$NQN" --reconnect-delay=1 \
        --ctrl-loss-tmo=-1 --keep-alive-tmo=30 "$@"
    within 60 live
    within 60 disk 1
}

# $1 I/O queues and the admin queue.
has_queues() { equal "$(cat "/sys/class/nvme/$(controller)/queue_count")" $(($1 + 1)); }

disconnects() {
    nvme disconnect -n "$NQN"
    within 60 gone 1
    within 60 fails controller
}

# --- what nvme-cli asks -------------------------------------------------------------------------

# $1: size in bytes.
nvme_list() {
    nvme list -o json | jq -e --arg disk "$(disk 1)" --argjson bytes "$1" \
        '.Devices[] | select(.DevicePath == $disk) | .PhysicalSize == $bytes'
}

nvme_list_subsys() {
    nvme list-subsys | grep -F "NQN=$NQN"
    nvme list-subsys | grep -E ' tcp .*live'
}

nvme_id_ctrl() {
    nvme id-ctrl "/dev/$(controller)" -o json >/run/id-ctrl
    jq -e --arg nqn "$NQN" '.subnqn == $nqn and .cntrltype == 1 and .nn >= 1 and .kas > 0
        and .sgls != 0 and .sqes == 102 and .cqes == 68 and .mdts == 8' /run/id-ctrl
    # In-capsule data of 16 KiB and the 64-byte command, in units of 16 bytes.
    jq -e '.ioccsz == 1028 and .iorcsz == 1' /run/id-ctrl
}

# $1: size in logical blocks.
nvme_id_ns() {
    nvme id-ns "$(disk 1)" -o json >/run/id-ns
    jq -e --argjson blocks "$1" \
        '.nsze == $blocks and .ncap >= .nuse and .lbafs[.flbas % 16].ds == 9' /run/id-ns
    nvme ns-descs "$(disk 1)" -o json | grep -i -E 'uuid|nguid'
}

nvme_smart_log() {
    nvme smart-log "/dev/$(controller)" -o json |
        jq -e '.critical_warning == 0 and (.media_errors | tonumber) == 0 and .percent_used < 100'
}

nvme_error_log() { nvme error-log "/dev/$(controller)" -o json | jq -e '.errors | type == "array"'; }

# Identify, Flush, Write and Read are there at least. Without a command set named, nvme-cli looks for
# registers in PCI memory and gives up.
nvme_effects_log() {
    nvme effects-log "/dev/$(controller)" --csi=0 -o json >/run/effects
    cat /run/effects
    jq -e '[.. | objects | keys[]] | map(select(test("^IOCS_[012] "))) | length == 3' /run/effects
    jq -e '[.. | objects | keys[]] | map(select(test("^ACS_6 "))) | length == 1' /run/effects
}

nvme_get_feature() {
    local feature
    # Number of queues, event configuration, keep-alive timer.
    for feature in 0x07 0x0b 0x0f; do
        nvme get-feature "/dev/$(controller)" -f "$feature"
    done
    nvme get-feature "/dev/$(controller)" -f 0x0f -H | grep -i 'keep.alive.*30000'
}

nvme_show_regs() {
    nvme show-regs "/dev/$(controller)" -H >/run/regs
    cat /run/regs
    grep 'Ready .*(RDY): Yes' /run/regs
}

nvme_other_logs() {
    nvme fw-log "/dev/$(controller)" -o json | jq -e .
    nvme supported-log-pages "/dev/$(controller)"
    nvme changed-ns-list-log "/dev/$(controller)"
}

# A command that does not exist is refused and hurts nothing.
refuses_unknown_commands() {
    fails nvme admin-passthru "/dev/$(controller)" --opcode=0x6f
    fails nvme io-passthru "$(disk 1)" --opcode=0x6f --namespace-id=1
    live
}

# --- data ---------------------------------------------------------------------------------------

# Block sizes from one sector to the largest transfer at once, each in its own 24 MiB.
verifies_all_sizes() {
    local size offset=0 jobs=()
    for size in 512 4k 16k 64k 256k 1m 512-1m; do
        jobs+=("--name=bs-$size" "--offset=${offset}m")
        case $size in
            *-*) jobs+=("--bsrange=$size" --size=16m) ;;
            512) jobs+=("--bs=$size" --size=512k) ;;
            4k) jobs+=("--bs=$size" --size=3m) ;;
            *) jobs+=("--bs=$size" --size=16m) ;;
        esac
        offset=$((offset + 24))
    done
    fio --filename="$(disk 1)" --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw \
        --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=64 --thread \
        --allow_file_create=0 --output-format=json --output=/run/fio.json "${jobs[@]}"
    jq -c '.jobs[] | [.jobname, .error, .read.total_ios, .write.total_ios]' /run/fio.json
    jq -e '[.jobs[] | select(.error != 0 or .write.total_ios == 0)] | length == 0' /run/fio.json
}

# Starts passes of verifying I/O over 24 MiB that go on until told to stop.
load_starts() {
    rm -f /run/load.*
    setsid bash -c '
        passes=0
        while [ ! -e /run/load.stop ]; do
            fio --name=load --filename="$0" --offset=192m --size=24m --direct=1 --ioengine=libaio \
                --iodepth=16 --rw=randrw --bssplit=4k/60:64k/30:512k/10 --verify=crc32c \
                --verify_fatal=1 --verify_backlog=32 --thread --randseed="$RANDOM" \
                --allow_file_create=0 >/run/load.log 2>&1 || { echo "$?" >/run/load.failed; break; }
            passes=$((passes + 1))
            # A line for each, so that whoever reads meanwhile finds all those before.
            echo "$passes" >>/run/load.passes
        done
        echo "$passes" >/run/load.done' "$(disk 1)" </dev/null >/dev/null 2>&1 &
    within 120 load_moves
}

# Sectors written to namespace 1 so far, over all paths or over that behind port $1: the seventh field
# of a path's statistics. The disk above the paths has none in older kernels.
written() {
    local - path fields sum=0
    set +x
    for path in $(paths "${1:-}"); do
        read -r -a fields <"$path/stat"
        sum=$((sum + fields[6]))
    done
    echo "$sum"
}
load_moves() {
    local before now
    before=$(written "${1:-}")
    sleep 0.2
    now=$(written "${1:-}")
    [ "$now" -gt "$before" ]
}
load_goes_on() { [ ! -e /run/load.failed ] && within 120 load_moves; }

# How many passes of the load have ended.
load_count() {
    local - passes=()
    set +x
    [ ! -e /run/load.passes ] || mapfile -t passes </run/load.passes
    echo "${#passes[@]}"
}

# One more whole pass, so one that began after everything before.
load_passes() {
    local passes
    passes=$(load_count)
    within 240 load_passed "$passes"
}

# Ends the load; it must not have seen an error.
load_ends() {
    : >/run/load.stop
    within 240 test -e /run/load.done
    cat /run/load.log
    [ ! -e /run/load.failed ]
    echo "passes: $(cat /run/load.done)"
}

# After a failed check: whatever load is left ends before the next check.
load_is_over() {
    [ -e /run/load.log ] || return 0
    : >/run/load.stop
    within 240 test -e /run/load.done
}
load_passed() { [ -e /run/load.done ] || [ "$(load_count)" -gt "$1" ]; }

# Deallocate and Write Zeroes touch their own range and nothing beside it.
discards() {
    local disk before after
    disk=$(disk 1)
    fill "$disk" 0 8192
    before=$(sum "$disk" 0 2048)
    after=$(sum "$disk" 4096 4096)
    blkdiscard -o $((2048 * 1024)) -l $((2048 * 1024)) "$disk"
    equal "$(sum "$disk" 0 2048)" "$before"
    equal "$(sum "$disk" 2048 2048)" "$(zeros 2048)"
    equal "$(sum "$disk" 4096 4096)" "$after"
}

writes_zeroes() {
    local disk before after
    disk=$(disk 1)
    [ "$(cat "/sys/block/${disk##*/}/queue/write_zeroes_max_bytes")" -gt 0 ]
    fill "$disk" 0 4096
    before=$(sum "$disk" 0 516)
    after=$(sum "$disk" 1556 2540)
    blkdiscard -z -o $((516 * 1024)) -l $((1040 * 1024)) "$disk"
    equal "$(sum "$disk" 0 516)" "$before"
    equal "$(sum "$disk" 516 1040)" "$(zeros 1040)"
    equal "$(sum "$disk" 1556 2540)" "$after"
}

# Write Zeroes and Dataset Management of single blocks, as nvme-cli sends them.
zeroes_single_blocks() {
    local disk
    disk=$(disk 1)
    fill "$disk" 0 64
    sum "$disk" 4 60 >/run/rest
    nvme write-zeroes "$disk" --namespace-id=1 --start-block=0 --block-count=3
    equal "$(dd if="$disk" bs=2048 count=1 iflag=direct status=none | sha256sum)" "$(zeros 2)"
    nvme dsm "$disk" --namespace-id=1 --ad --slbs=4 --blocks=4
    equal "$(sum "$disk" 4 60)" "$(cat /run/rest)"
}

compares() {
    local disk
    disk=$(disk 1)
    head -c 4096 /dev/urandom >/run/block
    nvme write "$disk" --start-block=8 --block-count=7 --data-size=4096 --data=/run/block
    nvme compare "$disk" --start-block=8 --block-count=7 --data-size=4096 --data=/run/block
    tr '\000-\377' '\001-\377\000' </run/block >/run/other
    fails nvme compare "$disk" --start-block=8 --block-count=7 --data-size=4096 --data=/run/other
}

# Verify reads blocks and moves none of them; what lies beyond the end, from block $1, it cannot read.
verifies_blocks() {
    nvme verify "$(disk 1)" --namespace-id=1 --start-block=0 --block-count=1023
    fails nvme verify "$(disk 1)" --namespace-id=1 --start-block="$1" --block-count=0
}

# Copy puts two ranges one behind the other and touches nothing beside them.
copies() {
    local disk wanted before
    disk=$(disk 1)
    fill "$disk" 0 1024
    wanted=$( (content "$disk" 0 4; content "$disk" 32 8) | sha256sum)
    before=$(sum "$disk" 524 500)
    nvme copy "$disk" --namespace-id=1 --sdlba=1024 --slbs=0,64 --blocks=7,15
    equal "$(sum "$disk" 512 12)" "$wanted"
    equal "$(sum "$disk" 524 500)" "$before"
    fails nvme copy "$disk" --namespace-id=1 --sdlba=4 --slbs=0 --blocks=7
}

flushes() {
    nvme flush "$(disk 1)" --namespace-id=1
    dd if=/dev/zero of="$(disk 1)" bs=4k count=4 conv=nocreat oflag=direct,dsync status=none
}

# A file system made, filled, unmounted, checked, mounted again and read.
keeps_a_file_system() {
    local disk
    disk=$(disk 1)
    mkfs.ext4 -q -F -E lazy_itable_init=0 "$disk" 192M
    mount -o discard "$disk" /mnt
    mkdir -p /mnt/a/b
    for name in $(seq 40); do head -c $((name * 5000)) /dev/urandom >"/mnt/a/$name"; done
    head -c 20M /dev/urandom >/mnt/a/b/large
    (cd /mnt && sums) >/run/sums
    for name in $(seq 1 3 40); do rm "/mnt/a/$name"; done
    sync
    umount /mnt
    e2fsck -f -n "$disk"
    mount "$disk" /mnt
    (cd /mnt && sums) >/run/sums.after
    umount /mnt
    # What was not removed is as it was written.
    while read -r line; do grep -q -F "$line" /run/sums; done </run/sums.after
    equal "$(wc -l </run/sums.after)" 27
}
sums() { sha256sum a/[0-9]* a/b/large; }

# The runner of fio's jobs names the file system that it would destroy, and does not touch a mounted one.
spares_its_file_system() {
    local disk
    disk=$(disk 1)
    mkfs.ext4 -q -F "$disk" 32M
    fails bowline-perf fio --device "$disk" --only verify 2>/run/refused
    cat /run/refused
    grep 'on it: ext4' /run/refused
    mount "$disk" /mnt
    fails bowline-perf fio --device "$disk" --only verify --destroy 2>/run/refused
    umount /mnt
    cat /run/refused
    grep 'mounted at /mnt' /run/refused
    e2fsck -f -n "$disk"
}

# Every job of the runner, the long ones too: no errors, something done in each section, and all that
# was written to verify was read.
runs_every_fio_job() {
    local job jobs=()
    bowline-perf fio --list | sed -n 's/^\([a-z][a-z-]*\).*/\1/p' >/run/jobs
    [ "$(wc -l </run/jobs)" -ge 15 ]
    while read -r job; do jobs+=(--only "$job"); done </run/jobs
    bowline-perf fio --device "$(disk 1)" --destroy --runtime 500ms --size 16MiB -o json \
        "${jobs[@]}" >/run/fio.json
    jq -c '.jobs[] | [.name, .errors, (.operations[] | .operation, .commands)]' /run/fio.json
    jq -r '.jobs[].name | split("/")[0]' /run/fio.json | sort -u >/run/ran
    equal "$(cat /run/ran)" "$(sort -u /run/jobs)"
    jq -e 'all(.jobs[]; .errors == 0 and (.operations | length) > 0)' /run/fio.json
    jq -e '.jobs[] | select(.name == "verify") | .operations | .[0].commands == .[1].commands' \
        /run/fio.json
}

# A short life of an association, a little of everything, while somebody watches.
is_watched() {
    discovers "$@"
    connects "$@"
    nvme_id_ctrl
    nvme_smart_log
    nvme_error_log
    nvme_effects_log
    nvme_get_feature
    nvme_other_logs
    refuses_unknown_commands
    fio --name=watched --filename="$(disk 1)" --direct=1 --ioengine=libaio --iodepth=8 --rw=randrw \
        --bssplit=512/20:4k/20:16k/20:64k/20:256k/20 --size=6m --verify=crc32c --verify_fatal=1 \
        --allow_file_create=0
    compares
    zeroes_single_blocks
    flushes
    disconnects
}

# --- namespaces that come and go ----------------------------------------------------------------

# $1: namespace; $2: its size in bytes.
namespace_appears() {
    within 60 disk "$1"
    equal "$(blockdev --getsize64 "$(disk "$1")")" "$2"
    fill "$(disk "$1")" 0 1024
    sum "$(disk "$1")" 0 1024
}
has_size() { equal "$(blockdev --getsize64 "$(disk "$1")")" "$2"; }
namespace_grows() {
    within 60 has_size "$1" "$2"
    fill "$(disk "$1")" $(($2 / 1024 - 64)) 64
}
namespace_disappears() { within 60 gone "$1"; }

# --- several paths ------------------------------------------------------------------------------

# The controller behind port $1.
controller_at() {
    local - path
    set +x
    for path in /sys/class/nvme/nvme*; do
        if [ -e "$path" ] && [ "$(cat "$path/subsysnqn")" = "$NQN" ] &&
            grep -q -E "trsvcid=$1(,|\$)" "$path/address"; then
            echo "${path##*/}"
            return 0
        fi
    done
    return 1
}
live_at() { [ "$(cat "/sys/class/nvme/$(controller_at "$1")/state")" = live ]; }
path_has() { [ "$(cat "$(paths "$1")/ana_state")" = "$2" ]; }

# One more path to the subsystem, over port $1.
adds_path() {
    nvme connect -t tcp -a "$ADDRESS" -s "$1" -n "$NQN" --reconnect-delay=1 --ctrl-loss-tmo=-1 \
        --keep-alive-tmo=30 --nr-io-queues=2
    within 60 live_at "$1"
}

# The path behind port $1 is live and in ANA state $2: the kernel, nvme-cli and the log agree.
path_shows() {
    within 60 path_has "$1" "$2"
    within 60 disk 1
    nvme list-subsys "$(disk 1)" >/run/paths
    cat /run/paths
    grep -E "trsvcid=$1[, ].* live $2\$" /run/paths
    nvme ana-log "/dev/$(controller_at "$1")" -o json >/run/ana-log
    cat /run/ana-log
    jq -e --arg state "$2" '[.. | objects | select(.grpid? == 1) | .state] == [$state]' /run/ana-log
}

# The load uses the path behind port $1, and that behind $2 no more.
only_path_moves() {
    within 120 load_moves "$1"
    within 120 fails load_moves "$2"
}

# --- discovery that stays -----------------------------------------------------------------------

# Writes the kernel's uevents to a file, a line for each of their parts.
listens() {
    rm -f /run/uevents*
    # Family 16 is netlink, protocol 15 the kernel's uevents, group 1 everybody.
    setsid perl -e 'socket(S, 16, 2, 15) && bind(S, pack("S S L L", 16, 0, 0, 1)) or die; $| = 1;
        open(READY, ">", "/run/uevents.ready"); close(READY);
        while (sysread(S, $event, 65536)) { $event =~ tr/\0/\n/; print $event; }' \
        </dev/null >>/run/uevents 2>&1 &
    within 60 test -e /run/uevents.ready
}
discovery_controller() { NQN=nqn.2014-08.org.nvmexpress.discovery controller; }

# A discovery controller with a keep-alive, which asks for events.
stays_with_discovery() {
    listens
    nvme discover -t tcp -a "$ADDRESS" -s "$PORT" --persistent --keep-alive-tmo=30
    within 60 discovery_controller
}

# The event came, and the log then lists subsystem $1 $2 times.
hears_of_change() {
    within 60 grep -q -x NVME_AEN=0x70f002 /run/uevents
    : >/run/uevents
    nvme discover -t tcp -a "$ADDRESS" -s "$PORT" -d "$(discovery_controller)" -o json >/run/discovered
    cat /run/discovered
    jq -e --arg nqn "$1" --argjson count "$2" \
        '[.records[] | select(.subnqn == $nqn)] | length == $count' /run/discovered
}
leaves_discovery() {
    nvme disconnect -d "$(discovery_controller)"
    within 60 fails discovery_controller
}

# The same log under the name $1, which is the one that the log gives for itself.
discovers_by_name() {
    nvme discover -t tcp -a "$ADDRESS" -s "$PORT" -n "$1" -o json >/run/discovered
    cat /run/discovered
    jq -e --arg own "$1" --arg nqn "$NQN" \
        '[.records[].subnqn] | (index($own) != null) and (index($nqn) != null)' /run/discovered
}

# --- two hosts ----------------------------------------------------------------------------------

# Loads the drivers again without multipath: each controller gets a block device of its own. It is for
# the rest of the guest's life.
gives_multipath_up() {
    rmmod nvme_tcp nvme_fabrics nvme_core
    insmod /modules/nvme_core.ko multipath=N
    insmod /modules/nvme_fabrics.ko
    insmod /modules/nvme_tcp.ko
    equal "$(cat /sys/module/nvme_core/parameters/multipath)" N
}

# The controller of the host with NQN $1, such as nvme0, and its block device.
controller_of() {
    local - path
    set +x
    for path in /sys/class/nvme/nvme*; do
        if [ -e "$path" ] && [ "$(cat "$path/subsysnqn")" = "$NQN" ] &&
            [ "$(cat "$path/hostnqn")" = "$1" ]; then
            echo "${path##*/}"
            return 0
        fi
    done
    return 1
}
disk_of() {
    local - controller path
    set +x
    controller=$(controller_of "$1")
    for path in "/sys/class/nvme/$controller"/nvme*n*; do
        if [ -e "$path/nsid" ] && [ -b "/dev/${path##*/}" ]; then
            echo "/dev/${path##*/}"
            return 0
        fi
    done
    return 1
}

connects_as_two_hosts() {
    local host
    # nvme-cli takes the second host's controller for the first one's.
    for host in "$HOST_FIRST" "$HOST_SECOND"; do
        echo "transport=tcp,traddr=$ADDRESS,trsvcid=$PORT,nqn=$NQN,hostnqn=$host,hostid=${host##*:},\
ctrl_loss_tmo=-1,reconnect_delay=1,keep_alive_tmo=30,nr_io_queues=2" >/dev/nvme-fabrics
        within 60 disk_of "$host"
    done
    fails equal "$(disk_of "$HOST_FIRST")" "$(disk_of "$HOST_SECOND")"
    may_write "$HOST_FIRST" "$HOST_SECOND"
}
disconnects_both_hosts() {
    nvme disconnect -n "$NQN"
    within 60 fails controller
}

# What each of the hosts named may do, and that it is a conflict where it may not.
may_write() {
    local host
    for host in "$@"; do
        dd if=/dev/zero of="$(disk_of "$host")" bs=4k count=1 conv=nocreat oflag=direct status=none
    done
}
may_read() {
    local host
    for host in "$@"; do
        dd if="$(disk_of "$host")" of=/run/read bs=4k count=1 iflag=direct status=none
    done
}
conflicts() {
    fails "$@" 2>/run/conflict
    cat /run/conflict
    grep -E 'Invalid exchange|Device or resource busy' /run/conflict
}

# The report with host identifiers, as the host $1 gets it.
report() { nvme resv-report "$(disk_of "$1")" --namespace-id=1 --eds -o json >/run/report; cat /run/report; }

registers_both_hosts() {
    nvme resv-register "$(disk_of "$HOST_FIRST")" --namespace-id=1 --rrega=0 --nrkey=0x11
    nvme resv-register "$(disk_of "$HOST_SECOND")" --namespace-id=1 --rrega=0 --nrkey=0x22
    # Once registered, another key is a conflict.
    fails nvme resv-register "$(disk_of "$HOST_FIRST")" --namespace-id=1 --rrega=0 --nrkey=0x33
    for host in "$HOST_FIRST" "$HOST_SECOND"; do
        report "$host"
        jq -e '.regctl == 2 and .rtype == 0' /run/report
        jq -e '[.. | .rkey? // empty] | sort == [17, 34]' /run/report
    done
}
reserves_writing() {
    nvme resv-acquire "$(disk_of "$HOST_FIRST")" --namespace-id=1 --crkey=0x11 --racqa=0 --rtype=1
    fails nvme resv-acquire "$(disk_of "$HOST_SECOND")" --namespace-id=1 --crkey=0x22 --racqa=0 \
        --rtype=1
    report "$HOST_SECOND"
    jq -e '.rtype == 1 and ([.. | objects | select(.rcsts? == 1) | .rkey] == [17])' /run/report
    may_write "$HOST_FIRST"
    may_read "$HOST_FIRST" "$HOST_SECOND"
    conflicts may_write "$HOST_SECOND"
    conflicts blkdiscard -z -o 0 -l 4096 "$(disk_of "$HOST_SECOND")"
}
keeps_its_reservation_over_a_reset() {
    nvme reset "/dev/$(controller_of "$HOST_FIRST")"
    within 60 may_write "$HOST_FIRST"
    conflicts may_write "$HOST_SECOND"
    report "$HOST_FIRST"
    jq -e '.rtype == 1 and .regctl == 2' /run/report
}
releases_its_reservation() {
    # Of somebody who does not hold it, it changes nothing.
    nvme resv-release "$(disk_of "$HOST_SECOND")" --namespace-id=1 --crkey=0x22 --rrela=0 --rtype=1
    conflicts may_write "$HOST_SECOND"
    nvme resv-release "$(disk_of "$HOST_FIRST")" --namespace-id=1 --crkey=0x11 --rrela=0 --rtype=1
    may_write "$HOST_FIRST" "$HOST_SECOND"
}
admits_registrants() {
    nvme resv-acquire "$(disk_of "$HOST_SECOND")" --namespace-id=1 --crkey=0x22 --racqa=0 --rtype=4
    may_write "$HOST_FIRST" "$HOST_SECOND"
    nvme resv-register "$(disk_of "$HOST_FIRST")" --namespace-id=1 --rrega=1 --crkey=0x11
    conflicts may_write "$HOST_FIRST"
    conflicts may_read "$HOST_FIRST"
    may_read "$HOST_SECOND"
}
preempts_the_other_host() {
    nvme resv-register "$(disk_of "$HOST_FIRST")" --namespace-id=1 --rrega=0 --nrkey=0x11
    nvme resv-acquire "$(disk_of "$HOST_FIRST")" --namespace-id=1 --crkey=0x11 --prkey=0x22 \
        --racqa=1 --rtype=2
    may_write "$HOST_FIRST"
    conflicts may_write "$HOST_SECOND"
    conflicts may_read "$HOST_SECOND"
    report "$HOST_FIRST"
    jq -e '.rtype == 2 and .regctl == 1' /run/report
    # Byte 8 is the kind of the notification: its registration was preempted.
    nvme resv-notif-log "/dev/$(controller_of "$HOST_SECOND")" -o binary >/run/notice
    equal "$(od -A n -t u1 -j 8 -N 1 /run/notice | tr -d ' ')" 1
}
clears_all_reservations() {
    nvme resv-release "$(disk_of "$HOST_FIRST")" --namespace-id=1 --crkey=0x11 --rrela=1
    report "$HOST_SECOND"
    jq -e '.regctl == 0 and .rtype == 0' /run/report
    may_write "$HOST_FIRST" "$HOST_SECOND"
}

# --- reservations through the kernel ------------------------------------------------------------

# A request of linux/pr.h to the disk of host $1: its number, the layout of its structure and the
# fields. What the disk refuses comes back as a status, which is printed.
pr() {
    local disk
    disk=$(disk_of "$1")
    shift
    perl -e 'my ($disk, $number, $layout, @fields) = @ARGV;
        my $structure = pack($layout, @fields);
        open(my $file, "+<", $disk) or die "$disk: $!\n";
        my $request = 1 << 30 | length($structure) << 16 | ord("p") << 8 | $number;
        defined(my $status = ioctl($file, $request, $structure)) or die "request $number: $!\n";
        printf("status 0x%x\n", $status) and exit 1 if $status != 0;' "$disk" "$@"
}
# Keys are numbers; types are those of Linux, which count as those of NVMe do.
pr_register() { pr "$1" 200 QQLx4 "$2" "$3" 0; }
pr_reserve() { pr "$1" 201 QLL "$2" "$3" 0; }
pr_release() { pr "$1" 202 QLL "$2" "$3" 0; }
# The key that Linux calls the old one is the caller's own, the new one is that of the victim.
pr_preempt() { pr "$1" 203 QQLL "$2" "$3" "$4" 0; }
pr_preempt_abort() { pr "$1" 204 QQLL "$2" "$3" "$4" 0; }
pr_clear() { pr "$1" 205 QLx4 "$2" 0; }
# Reservation Conflict: older kernels pass NVMe's status on, with Do Not Retry and More in front;
# newer ones say what SCSI would.
is_conflict() {
    fails "$@" >/run/refused
    cat /run/refused
    grep -E -x 'status 0x(18|83|[2-6]083)' /run/refused
}

registers_through_the_kernel() {
    pr_register "$HOST_FIRST" 0 17
    pr_register "$HOST_SECOND" 0 34
    is_conflict pr_register "$HOST_FIRST" 99 51
    report "$HOST_SECOND"
    jq -e '.regctl == 2 and .rtype == 0 and .ptpls == 1' /run/report
    jq -e '[.. | .rkey? // empty] | sort == [17, 34]' /run/report
}
reserves_with_every_type() {
    local type
    for type in 1 2 3 4 5 6; do
        pr_reserve "$HOST_FIRST" 17 "$type"
        report "$HOST_FIRST"
        jq -e --argjson type "$type" '.rtype == $type' /run/report
        pr_release "$HOST_FIRST" 17 "$type"
    done
    report "$HOST_FIRST"
    jq -e '.rtype == 0 and .regctl == 2' /run/report
}
reserves_through_the_kernel() {
    pr_reserve "$HOST_FIRST" 17 1
    is_conflict pr_reserve "$HOST_SECOND" 34 1
    is_still_reserved
}
is_still_reserved() {
    within 60 may_write "$HOST_FIRST"
    within 60 may_read "$HOST_SECOND"
    conflicts may_write "$HOST_SECOND"
    report "$HOST_SECOND"
    jq -e '.rtype == 1 and .regctl == 2 and .ptpls == 1' /run/report
    jq -e '[.. | objects | select(.rcsts? == 1) | .rkey] == [17]' /run/report
}
preempts_through_the_kernel() {
    pr_preempt "$HOST_SECOND" 34 17 2
    may_write "$HOST_SECOND"
    conflicts may_write "$HOST_FIRST"
    pr_register "$HOST_FIRST" 0 17
    pr_preempt_abort "$HOST_FIRST" 17 34 1
    conflicts may_write "$HOST_SECOND"
    pr_release "$HOST_FIRST" 17 1
    may_write "$HOST_FIRST" "$HOST_SECOND"
    pr_clear "$HOST_FIRST" 17
    report "$HOST_FIRST"
    jq -e '.regctl == 0 and .rtype == 0' /run/report
}

# --- resets and losses --------------------------------------------------------------------------

resets() {
    nvme reset "/dev/$(controller)"
    within 120 live
}

# After the host came back to the data plane.
is_back() { within 120 live; within 60 disk 1; }
