# disk.pl read|write OFFSET TEXT: the raw disk, its end, and what is beyond.
use strict;
use Fcntl qw(:DEFAULT :seek);
my ($what, $offset, $text) = @ARGV;
sysopen(my $disk, '/dev/vda', $what eq 'write' ? O_RDWR | O_SYNC : O_RDONLY) or die "/dev/vda: $!\n";
my $size = sysseek($disk, 0, SEEK_END);
print "size $size\n";
if ($what eq 'write') {
    sysseek($disk, $offset, SEEK_SET);
    my $written = syswrite($disk, $text . ("\0" x (4096 - length $text)));
    print 'written ', defined $written ? $written : $!, "\n";
    sysseek($disk, $size, SEEK_SET);
    my $beyond = syswrite($disk, 'x' x 4096);
    print 'beyond-write ', defined $beyond ? $beyond : $!, "\n";
    my $at = sysseek($disk, $size + (1 << 30), SEEK_SET);
    my $far = defined $at ? sysread($disk, my $block, 4096) : undef;
    print 'beyond-read ', defined $far ? $far + 0 : $!, "\n";
    # BLKDISCARD (linux/fs.h) over the end.
    my $range = pack('QQ', $size - 4096, 1 << 20);
    print 'beyond-discard ', ioctl($disk, 0x1277, $range) ? 'done' : $!, "\n";
}
if (open(my $drop, '>', '/proc/sys/vm/drop_caches')) {
    print $drop "3\n";
    close $drop;
}
sysseek($disk, $offset, SEEK_SET);
sysread($disk, my $block, 4096);
print 'text ', $block =~ /^([ -~]+)/ ? $1 : '', "\n";
