#!/bin/sh
# What a setup command must not be able to do: prints "NAME yes" or "NAME no" for each attempt.
# Variables: SECRET, a file of the host that root alone may read; FOLDER, a folder of the host that root alone may write; DISK,
# major and minor number of a block device of the host; USER_NAMESPACE, that of the host.
set +e
tell() {
    if [ "$2" = 0 ]; then echo "$1 yes"; else echo "$1 no"; fi
}
work=$(mktemp -d)

[ "$(readlink /proc/self/ns/user)" = "$USER_NAMESPACE" ]
tell "have the capabilities of the host's root" $?

# shellcheck disable=SC2086 # two numbers
(mknod "$work/disk" b $DISK && head -c 512 "$work/disk" >"$work/sector" && [ -s "$work/sector" ]) 2>/dev/null
tell "read a disk of the host" $?
rm -f "$work/disk"

# The value that it has.
mkdir "$work/proc"
(mount -t proc proc "$work/proc" && cat "$work/proc/sys/vm/swappiness" >"$work/value" &&
    cat "$work/value" >"$work/proc/sys/vm/swappiness") 2>/dev/null
tell "write a setting of the host's kernel" $?
umount "$work/proc" 2>/dev/null

mkdir "$work/sys"
(mount -t sysfs sysfs "$work/sys" && [ -d "$work/sys/kernel" ]) 2>/dev/null
tell "mount the devices and drivers of the host" $?
umount "$work/sys" 2>/dev/null

# Out of a change of root, by way of a process that is not in it.
(cat "/proc/1/root$SECRET" >"$work/secret" && [ -s "$work/secret" ]) 2>/dev/null
tell "read a file of the host's root" $?

(echo planted >"/proc/1/root$FOLDER/planted") 2>/dev/null
tell "write a folder of the host's root" $?

rm -r "$work"
