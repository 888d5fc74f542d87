# msr.pl REGISTER [VALUE]: reads an MSR of processor 0, writes it when there is a value, and prints what it reads then.
use strict;
my ($register, $value) = @ARGV;
system('modprobe msr 2>/dev/null');
if (!open(my $msr, '+<:raw', '/dev/cpu/0/msr')) {
    print "missing $!\n";
} else {
    if (defined $value) {
        sysseek($msr, $register, 0);
        my $written = syswrite($msr, pack('Q', $value));
        print "refused $!\n" unless defined $written;
    }
    sysseek($msr, $register, 0);
    my $got = sysread($msr, my $bytes, 8);
    print defined $got ? "value " . unpack('Q', $bytes) . "\n" : "unreadable $!\n";
}
