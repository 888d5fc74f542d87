#!/bin/sh
# Runs a program as root of a user namespace, who is nobody on the host, in a root directory that has what a build of an
# image needs. Begins as the host's root and as the first process of a PID namespace, in a mount namespace of its own.
#
# Arguments: the number of the user namespace's descriptor; an empty folder to make the root directory at; how many paths the
# program may write; these; the program and its arguments.
set -eu
umask 022
user=$1 stage=$2 writable=$3
shift 3

mount -t tmpfs -o mode=0755,size=64m,nosuid,nodev mayfly-build "$stage"
cd "$stage"
mkdir dev dev/shm etc old proc root run sys tmp usr var var/tmp
chmod 1777 dev/shm tmp var/tmp

# What every user of the host may read.
for dir in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$dir" ]; then
        ln -s "$(readlink "/$dir")" "$dir"
    elif [ -d "/$dir" ]; then
        mkdir "$dir"
        mount --rbind "/$dir" "$dir"
        mount -o remount,bind,ro,nosuid,nodev "$stage/$dir"
    fi
done
for dir in usr etc; do
    mount --rbind "/$dir" "$dir"
    mount -o remount,bind,ro,nosuid,nodev "$stage/$dir"
done
name_servers=$(readlink -f /etc/resolv.conf || :)
case $name_servers in
'' | /etc/* | /usr/*) ;;
*)
    if [ -f "$name_servers" ]; then
        mkdir -p ".${name_servers%/*}"
        : >".$name_servers"
        mount --bind "$name_servers" ".$name_servers"
        mount -o remount,bind,ro,nosuid,nodev "$stage$name_servers"
    fi
    ;;
esac

# Not the terminal, into which a program can push what its shell then runs (ioctl_tty(2), TIOCSTI).
for device in null zero full random urandom; do
    : >"dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin
ln -s fd/1 dev/stdout
ln -s fd/2 dev/stderr
mount -t proc -o nosuid,nodev,noexec proc proc

while [ "$writable" -gt 0 ]; do
    if [ -d "$1" ]; then
        mkdir -p ".$1"
    else
        mkdir -p ".${1%/*}"
        : >".$1"
    fi
    mount --bind "$1" ".$1"
    mount -o remount,bind,nosuid,nodev "$stage$1"
    writable=$((writable - 1))
    shift
done

pivot_root . old
cd /
umount --lazy /old
rmdir /old

# Capabilities that installing packages takes. They hold in the user namespace alone, and no further one can be made to have
# others in.
capabilities=-all
for name in chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service sys_chroot sys_admin mknod \
    audit_write setfcap; do
    capabilities=$capabilities,+$name
done
# Not in place of this shell: the kernel forgets whose death a process dies with when its user changes (prctl(2),
# PR_SET_PDEATHSIG). What is left in the PID namespace dies with this shell.
status=0
# shellcheck disable=SC2016 # for the inner shell
nsenter "--user=/proc/self/fd/$user" -- sh -c 'echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv "$@"' confine \
    --no-new-privs "--bounding-set=$capabilities" -- "$@" || status=$?
exit $status
