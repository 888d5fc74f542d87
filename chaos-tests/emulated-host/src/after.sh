# Ends what a case has left running in order, as a person would, and says what is left of Mayfly nevertheless.
systemctl stop 'mayfly*.service' 'case-*.service' 2>/dev/null
mayfly -q pager stop 2>/dev/null
systemctl reset-failed 2>/dev/null
left() {
    pgrep -a -x 'mayfly|qemu-system.*' || pgrep -a -f 'name=mayfly.agent'
    find /sys/fs/cgroup -type d -path '*mayfly*/*'
    find /run/mayfly/engines -mindepth 1 -maxdepth 1 2>/dev/null
    find /run/mayfly -name '*.sock' 2>/dev/null
    find /var/lib/mayfly/images/rootfs -maxdepth 1 -name '.tmp-*' 2>/dev/null
    find /tmp /dev/shm -maxdepth 1 -name 'mayfly-*'
}
# What ends by itself may take a moment.
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -n "$(left)" ] || exit 0
    sleep 1
done
left
exit 1
