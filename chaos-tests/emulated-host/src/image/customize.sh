#!/bin/sh
# mmdebstrap customize hook: makes a host that boots to its multi-user target, and records what it is.
set -eu
root=$1
work=$MAYFLY_WORK
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"

echo emulated >"$root/etc/hostname"
printf '127.0.0.1 localhost\n127.0.1.1 emulated\n::1 localhost ip6-localhost ip6-loopback\n' >"$root/etc/hosts"
echo '/dev/vda / ext4 defaults 0 1' >"$root/etc/fstab"
mkdir -p "$root/opt/mayfly"
# machine-id(5). An empty one would be a first boot, with all its presets.
echo "$MAYFLY_MACHINE_ID" >"$root/etc/machine-id"

# The control path gives logs and runs commands; both begin with their virtio port.
mkdir -p "$root/etc/systemd/system"
cat >"$root/etc/systemd/system/emulated-host-journal.service" <<'END'
[Unit]
Description=Journal of the emulated host, to the outside
DefaultDependencies=no
BindsTo=dev-virtio\x2dports-mayfly.host.journal.device
After=dev-virtio\x2dports-mayfly.host.journal.device systemd-journald.service
Conflicts=shutdown.target

[Service]
ExecStart=/bin/sh -c 'exec journalctl --follow --lines=all --boot --output=short-monotonic --no-hostname >/dev/virtio-ports/mayfly.host.journal'
OOMScoreAdjust=-1000

[Install]
WantedBy=dev-virtio\x2dports-mayfly.host.journal.device
END
mkdir -p "$root/etc/udev/rules.d" "$root/etc/systemd/system/qemu-guest-agent.service.d"
echo 'SUBSYSTEM=="virtio-ports", ATTR{name}=="mayfly.host.journal", TAG+="systemd"' \
    >"$root/etc/udev/rules.d/80-emulated-host.rules"
# It logs each of its commands.
printf '[Service]\nOOMScoreAdjust=-1000\nLogLevelMax=notice\n' >"$root/etc/systemd/system/qemu-guest-agent.service.d/emulated-host.conf"

mkdir -p "$root/etc/systemd/network"
printf '[Match]\nName=en*\n[Network]\nAddress=10.0.2.15/24\nGateway=10.0.2.2\n' \
    >"$root/etc/systemd/network/emulated-host.network"
echo 'nameserver 10.0.2.3' >"$root/etc/resolv.conf"

systemctl() { chroot "$root" systemctl --quiet "$@"; }
systemctl enable emulated-host-journal.service systemd-networkd.service
systemctl set-default multi-user.target
# Nothing runs by itself while a case measures. Of docker.io the client alone is wanted.
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer \
    e2scrub_reap.service docker.service docker.socket containerd.service systemd-networkd-wait-online.service \
    getty@tty1.service serial-getty@ttyS0.service; do
    systemctl mask "$unit"
done

# shellcheck disable=SC2016 # dpkg-query expands it
chroot "$root" dpkg-query --show --showformat='${Package}=${Version}\n' >"$work/packages"
mkdir "$work/boot"
for kernel in "$root"/boot/vmlinuz-*; do
    release=${kernel##*/vmlinuz-}
    mkdir "$work/boot/$release"
    cp "$kernel" "$work/boot/$release/vmlinuz"
    cp "$root/boot/initrd.img-$release" "$work/boot/$release/initrd"
done

apt-get -qq autoclean
umount "$root/var/cache/apt/archives" "$root/var/lib/apt/lists"
find "$root/var/log" -type f -delete
rm -rf "$root/usr/share/man" "$root/usr/share/doc" "$root/usr/share/locale"
