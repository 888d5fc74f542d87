# send.pl SECONDS PREFIX TAG...: sends marked packets over the loopback interface and docker's bridge.
use strict;
use Socket;
my ($seconds, $prefix, @tags) = @ARGV;
socket(my $out, AF_INET, SOCK_DGRAM, 0) or die "socket: $!\n";
setsockopt($out, SOL_SOCKET, SO_BROADCAST, 1);
my ($end, $sent) = (time + $seconds, 0);
while (time < $end) {
    for my $tag (@tags) {
        for my $address (INADDR_LOOPBACK, inet_aton('172.17.0.1'), inet_aton('172.17.255.255')) {
            $sent++ if send($out, $prefix . $tag, 0, pack_sockaddr_in(9, $address));
        }
    }
    select(undef, undef, undef, 0.05);
}
print "sent $sent\n";
