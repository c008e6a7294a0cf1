# The same root, with systemd as its first process, which does what inside.sh says and nothing else.
. "$DIR/root.sh"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
# As on a node: what is mounted later is seen by services, too, such as pods' namespaces.
mount --make-rshared "$root"
mkdir -p "$root/run/systemd/system"
cat > "$root/run/systemd/system/inside.service" <<UNIT
[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
ExecStart=/bin/sh $DIR/inside.sh $DIR
UNIT
exec chroot "$root" env -i container=lxc PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --system --unit=inside.service --log-target=null --show-status=no
