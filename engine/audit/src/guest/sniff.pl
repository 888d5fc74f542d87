# sniff.pl SECONDS PREFIX OWN: captures on all interfaces, sends a packet of its own, and prints the tags that were seen.
use strict;
use Socket;
my ($seconds, $prefix, $own) = @ARGV;
$| = 1;
# AF_PACKET, ETH_P_ALL (packet(7)).
socket(my $capture, 17, SOCK_RAW, unpack('S', pack('n', 3))) or die "packet socket: $!\n";
print "ready\n";
socket(my $out, AF_INET, SOCK_DGRAM, 0) or die "socket: $!\n";
my ($end, $packets, %seen) = (time + $seconds, 0);
while (time < $end) {
    send($out, $prefix . $own, 0, pack_sockaddr_in(9, INADDR_LOOPBACK));
    my $want = '';
    vec($want, fileno($capture), 1) = 1;
    while (select(my $ready = $want, undef, undef, 0.1)) {
        recv($capture, my $packet, 65536, 0);
        $packets++;
        $seen{$1}++ while $packet =~ /\Q$prefix\E([0-9a-f]{32})/g;
        last if $packets > 20000;
    }
}
print "packets $packets\n";
print "mark $_ $seen{$_}\n" for keys %seen;
