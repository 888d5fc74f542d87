# Makes the programs under test part of this host.
set -eu
systemctl is-system-running --wait || :
udevadm settle --timeout=240
failed=$(systemctl list-units --failed --plain --no-legend)
if [ -n "$failed" ]; then
    echo "units have failed during the boot: $failed" >&2
    exit 1
fi
mountpoint -q /opt/mayfly || mount -o ro LABEL=payload /opt/mayfly
install -m 0755 /opt/mayfly/bin/mayfly /opt/mayfly/bin/mayfly-agent /opt/mayfly/bin/libmayfly_preload.so /usr/local/bin
mkdir -p -m 0700 /var/lib/mayfly /var/lib/mayfly/images
mkdir -p /var/lib/mayfly/images/rootfs
install -D -m 0600 /opt/mayfly/seal.key /etc/mayfly/seal.key
for artifacts in /opt/mayfly/rootfs/*; do
    ln -sfn "$artifacts" "/var/lib/mayfly/images/rootfs/${artifacts##*/}"
done
# Emulation within emulation is slower than any bound was made for.
echo 'export MAYFLY_TIME_SCALE=10' >/etc/profile.d/mayfly.sh
systemctl set-environment MAYFLY_TIME_SCALE=10
mayfly --version
