# In place of a Docker daemon: answers each request of a connection with its head, as it came.
use strict;
use Socket;
$| = 1;
$SIG{CHLD} = 'IGNORE';
my ($path) = @ARGV;
unlink($path);
socket(my $listener, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
bind($listener, pack_sockaddr_un($path)) or die "bind: $!\n";
listen($listener, 16) or die "listen: $!\n";
print "listening\n";
while (1) {
    accept(my $client, $listener) or next;
    next if fork();
    my $read = '';
    while (sysread($client, $read, 65536, length($read))) {
        while ($read =~ s/^(.*?\r\n\r\n)//s) {
            my $head = $1;
            my $first = "HTTP/1.1 200 OK\r\nContent-Length: " . length($head);
            $first = "HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\nUpgrade: tcp" if $head =~ /^upgrade:/mi;
            syswrite($client, "$first\r\n\r\n$head");
        }
    }
    exit;
}
