# network.pl PORT NEIGHBOUR...: interfaces, routes, and connections to PORT of the host's loopback and to other addresses.
use strict;
use Socket;
use Fcntl;
my ($port, @others) = @ARGV;
sub try {
    my ($address, $port) = @_;
    socket(my $s, AF_INET, SOCK_STREAM, 0) or return "socket: $!";
    my $flags = fcntl($s, F_GETFL, 0);
    fcntl($s, F_SETFL, $flags | O_NONBLOCK);
    return 'connected' if connect($s, pack_sockaddr_in($port, inet_aton($address)));
    return "$!" unless $!{EINPROGRESS};
    my $want = '';
    vec($want, fileno($s), 1) = 1;
    select(undef, my $ready = $want, undef, 1.5) or return 'no answer';
    my $error = unpack('i', getsockopt($s, SOL_SOCKET, SO_ERROR));
    return 'connected' unless $error;
    $! = $error;
    return "$!";
}
use Errno;
print 'cards ', join(' ', map { m{/net/([^/]+)/device} } glob('/sys/class/net/*/device')), "\n";
print 'interfaces ', join(' ', map { m{([^/]+)$} } glob('/sys/class/net/*')), "\n";
sub routes {
    open(my $routes, '<', '/proc/net/route') or return 'unknown';
    return scalar grep { (split)[1] eq '00000000' && (split)[7] eq '00000000' } grep { !/^Iface/ } <$routes>;
}
print 'default-routes ', routes(), "\n";
print "loopback-host ", try('127.0.0.1', $port), "\n";
print "try-$_ ", try(split /:/), "\n" for @others;
# Controls: a listener of our own, also under a metadata address.
socket(my $listener, AF_INET, SOCK_STREAM, 0);
bind($listener, pack_sockaddr_in(0, INADDR_ANY)) or die "bind: $!\n";
listen($listener, 8);
my ($own) = unpack_sockaddr_in(getsockname($listener));
print "own ", try('127.0.0.1', $own), "\n";
system('ip', 'address', 'add', '169.254.169.254/32', 'dev', 'lo');
print "own-metadata ", try('169.254.169.254', $own), "\n";
system('ip', 'address', 'del', '169.254.169.254/32', 'dev', 'lo');
# A route and a card that are there are seen.
system('ip route add default dev lo');
print 'planted-routes ', routes(), "\n";
system('ip route del default dev lo');
system('ip link add mayfly0 type dummy 2>/dev/null || ip link add mayfly0 type bridge 2>/dev/null');
print 'planted ', (-e '/sys/class/net/mayfly0' ? 'seen' : 'not seen'), "\n";
system('ip link del mayfly0 2>/dev/null');
