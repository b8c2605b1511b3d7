# A data plane in the guest over a drive that is logged, and that will lose its power. The drive has
# two pairs of partitions: one that is served, and one for the marks of its host.

# Serves all of partition 1.
serves_a_drive() { plane_begins --device /dev/vda1 --nqn "$NQN" --host any --block-size 512; }

# Makes a pool on partition 3, and serves it.
serves_a_pool() { plane_begins --device /dev/vda3 --format --host any; }

# Puts load number $1 on volumes, with these arguments.
is_written_to() {
    bowline-witness load --address "$ADDRESS:$PORT" --seed "$1" --marks "$2" --commands "$3" "${@:4}"
}

# Nothing is under way, and the drive's log is whole.
is_quiet() { plane_ends TERM 0; sync /dev/vda; }
