#!/bin/busybox sh
# The first process of a guest. Lines that begin with @@ are for `cargo xtask vm-test`, all others for people.
export PATH=/usr/local/sbin:/bin

if [ "$1" != second ]; then
    # A container's root is changed with pivot_root, which refuses to leave the kernel's first root: go into a tmpfs.
    /bin/busybox --install -s /bin
    mount -t tmpfs -o size=100% tmpfs /new
    for thing in /*; do
        [ "$thing" = /new ] || cp -a "$thing" /new/
    done
    exec switch_root /new /init second
fi

mount -t devtmpfs dev /dev
exec >/dev/ttyS1 2>&1 </dev/null
stty -F /dev/ttyS1 raw -echo
mkdir -p /dev/pts /dev/shm /home
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devpts pts /dev/pts
mount -t tmpfs -o size=100% shm /dev/shm
# No file system of its own for /tmp: the binaries lie at the paths they have on the host, and that may be there.
chmod 1777 /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing
ln -s /proc/self/fd /dev/fd
hostname guest
ip link set lo up
while read -r module; do
    insmod "$module" || echo "@@ broken module $module"
done </modules/list

# The tests are to fail when they cannot run. An emulated processor is some ten times slower: times that depend on it are stretched.
# What is repeated many times is repeated less often.
export CI=true HOME=/home SNAPSHOT_TEST_SLACK=10 SNAPSHOT_TEST_SHARE=8
echo "times are stretched by $SNAPSHOT_TEST_SLACK, repetitions divided by $SNAPSHOT_TEST_SHARE"
# These kernels allow fentry: a test may not be content with a refusal.
export SNAPSHOT_TEST_FENTRY=required
step() {
    number=$1
    shift
    # Those before it were done by a guest that has died since. The kernel hands `first` over.
    [ "$number" -ge "${first:-0}" ] || return
    echo "@@ begin $number"
    timeout -s KILL 1200 "$@"
    status=$?
    echo "@@ end $number $status"
    # What was killed has left mounts and containers behind: the rest is for a fresh guest.
    [ "$status" != 137 ] || leave
}

leave() {
    # What was said last may still be on its way.
    sleep 1
    reboot -f
}

echo "@@ kernel $(uname -r)"
cd /
. /plan.sh
leave
