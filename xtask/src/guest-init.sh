#!/usr/bin/busybox sh
# The guest's whole userland: mounts, modules, tests, and the count of failed test binaries to the second serial port.
# iproute2's programs come before busybox's of the same name.
export PATH=/usr/bin:/usr/sbin:/busybox HOME=/tmp
/usr/bin/busybox --install -s /busybox
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
mkdir -p /dev/shm /dev/pts && mount -t tmpfs shm /dev/shm && mount -t devpts pts /dev/pts
mount -t tmpfs run /run
while read -r module; do
    insmod "/modules/$module" || echo "cannot load $module"
done < /modules/order
# A test of what a module brings must not leave itself out where the module is there.
STELLWERK_MODULES=$(cat /modules/order)
export STELLWERK_MODULES
ip link set lo up
ulimit -l unlimited

export STELLWERK_EBPF_OBJECT=/stellwerk.o STELLWERK_BPF_DIR=/bpf STELLWERK_BIN=/stellwerk
export CARGO_MANIFEST_DIR=@PACKAGE@
cd @PACKAGE@ || exit
uname -r
failed=0
for test in /tests/*; do
    echo "+ $test --test-threads=1"
    "$test" --test-threads=1 || { echo "$test: exit status $?"; failed=$((failed + 1)); }
done
sync
echo "failed $failed" > /dev/ttyS1
poweroff -f
