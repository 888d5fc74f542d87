# ask.pl HOST PORT TARGET [serve]: asks a proxy for a connection, and prints the first line of its answer and the
# reason of a refusal; with `serve`, the proxy is this script itself.
use strict;
use Socket;
$| = 1;
my ($host, $port, $target, $serve) = @ARGV;
my $child;
if ($serve) {
    socket(my $listener, AF_INET, SOCK_STREAM, 0);
    setsockopt($listener, SOL_SOCKET, SO_REUSEADDR, 1);
    bind($listener, pack_sockaddr_in($port, inet_aton($host))) or die "bind: $!\n";
    listen($listener, 1);
    $child = fork();
    if (!$child) {
        accept(my $client, $listener);
        sysread($client, my $request, 4096);
        syswrite($client, "HTTP/1.1 200 OK\r\n\r\n");
        exit 0;
    }
}
$SIG{ALRM} = sub { print "no answer\n"; exit 0 };
alarm 5;
socket(my $s, AF_INET, SOCK_STREAM, 0);
if (!connect($s, pack_sockaddr_in($port, inet_aton($host)))) {
    print "$!\n";
    exit 0;
}
syswrite($s, "CONNECT $target HTTP/1.1\r\nHost: $target\r\n\r\n");
sysread($s, my $answer, 4096);
my ($first, @rest) = split /\r?\n/, $answer // '';
print join("\n", $first // 'closed', grep(/^x-mayfly-egress:/i, @rest)), "\n";
waitpid($child, 0) if $child;
