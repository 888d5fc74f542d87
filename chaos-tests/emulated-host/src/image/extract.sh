#!/bin/sh
# mmdebstrap extract hook: what must be there before packages are configured.
set -eu
root=$1
# A small initramfs for the one machine it boots on: less to unpack under emulation.
mkdir -p "$root/etc/initramfs-tools/conf.d" "$root/usr/share/initramfs-tools/modules.d"
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/emulated-host"
printf '%s\n' virtio_pci virtio_blk ext4 >"$root/usr/share/initramfs-tools/modules.d/emulated-host"
