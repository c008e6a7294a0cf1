# A root of its own below $DIR: the host's files under an overlay in memory, with file systems of its own for pins and
# /run. $DIR itself is seen inside by the same name.
set -e
over="$DIR/over"
root="$over/root"
mount -t tmpfs tmpfs "$over"
mkdir "$over/upper" "$over/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$over/upper,workdir=$over/work" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t bpf bpf "$root/sys/fs/bpf"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/lock"
mount --bind "$DIR" "$root$DIR"
touch "$DIR/mounted"
