# Lists devices: `KIND NAMES...`, and what comes of opening some.
use strict;
use Errno;
use Fcntl;
sub names { my @paths = glob($_[0]); s{.*/}{} for @paths; return join(' ', @paths) }
print "virtio ", names('/sys/bus/virtio/devices/*'), "\n";
print "virtio-ids ", join(' ', map { open(my $f, '<', $_); my $id = <$f>; chomp $id; hex $id } glob('/sys/bus/virtio/devices/*/device')), "\n";
print "pci ", names('/sys/bus/pci/devices/*'), "\n";
print "usb ", names('/sys/bus/usb/devices/*'), "\n";
print "scsi ", names('/sys/bus/scsi/devices/*'), "\n";
print "block ", join(' ', grep { -e "/sys/block/$_/device" } split ' ', names('/sys/block/*')), "\n";
print "ports ", names('/sys/class/virtio-ports/*'), "\n";
print "port-names ", join(' ', map { open(my $f, '<', $_); my $n = <$f>; chomp $n; $n } glob('/sys/class/virtio-ports/*/name')), "\n";
print "vsock ", (-e '/dev/vsock' ? 'there' : ''), "\n";
print "9p ", names('/sys/bus/virtio/drivers/9pnet_virtio/virtio*'), names('/sys/bus/virtio/drivers/virtiofs/virtio*'), "\n";
# Ports of the channel's device beyond the one that is there; the one in use is busy.
my ($major, $minor) = (0, 0);
if (my ($port) = glob('/sys/class/virtio-ports/*/dev')) {
    open(my $file, '<', $port);
    ($major, $minor) = split /:/, <$file>;
}
my (@opened, $own);
for my $n (0 .. 31) {
    # On /dev: elsewhere device files have no effect (nodev).
    my $path = "/dev/mayfly-audit-port$n";
    system('mknod', $path, 'c', $major, $n) == 0 or next;
    if (sysopen(my $port, $path, O_RDWR | O_NONBLOCK)) {
        # The kernel opens numbers without a port too; reading then is an error (EINVAL) and leads nowhere.
        my $got = sysread($port, my $byte, 1);
        push @opened, $n if defined $got || !$!{EINVAL};
    } elsif ($n == $minor) {
        $own = "$!";
    }
    unlink $path;
}
print "port-own ", $own, "\n";
print "port-opened ", join(' ', @opened), "\n";
for my $device (qw(kvm userfaultfd vhost-net vhost-vsock vfio/vfio sev iommu)) {
    if (!-e "/dev/$device") { print "open-$device not there\n" }
    elsif (sysopen(my $file, "/dev/$device", O_RDWR)) { print "open-$device opened\n" }
    else { print "open-$device $!\n" }
}
