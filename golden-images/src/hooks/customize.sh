#!/bin/sh
# mmdebstrap customize hook: unpacks the kernel beside the root directory (installing it would pull in initramfs tools),
# moves its modules in, records the package versions and detaches the package cache.
set -eu
root=$1
work=$MAYFLY_WORK
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"

# A meta package depends on the real kernel image.
kernel=$(apt-cache depends --important "$MAYFLY_KERNEL" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -n 1)
: "${kernel:=$MAYFLY_KERNEL}"
(cd "$root/var/cache/apt/archives" && apt-get -q download "$kernel")
deb=$(apt-get -qq --print-uris download "$kernel" | cut -d ' ' -f 2)
mkdir "$work/kernel"
dpkg-deb --extract "$root/var/cache/apt/archives/$deb" "$work/kernel"

# shellcheck disable=SC2016 # for dpkg
chroot "$root" dpkg-query --show --showformat='${Package}=${Version}\n' >"$work/packages"
# shellcheck disable=SC2016 # for dpkg
dpkg-deb --show --showformat='${Package}=${Version}\n' "$root/var/cache/apt/archives/$deb" >>"$work/packages"

for modules in "$work"/kernel/usr/lib/modules/* "$work"/kernel/lib/modules/*; do
    [ -d "$modules" ] || continue
    release=${modules##*/}
    mkdir -p "$root/usr/lib/modules"
    mv "$modules" "$root/usr/lib/modules/$release"
    chroot "$root" depmod "$release"
    # depmod's outputs are all that modprobe needs; /boot stays empty.
    printf '%s\n' "$release" >"$work/release"
done

apt-get -qq autoclean
umount "$root/var/cache/apt/archives" "$root/var/lib/apt/lists"

cd "$root"
find usr/share/doc -mindepth 1 ! -type d ! -name copyright -delete
find usr/share/man usr/share/info usr/share/locale usr/share/lintian -mindepth 1 -delete 2>/dev/null || :
find var/log -type f -delete
rm -f boot/* vmlinuz vmlinuz.old initrd.img initrd.img.old etc/dpkg/dpkg.cfg.d/mayfly.dpkg-*
