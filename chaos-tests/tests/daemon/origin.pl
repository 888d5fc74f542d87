# A hostile server on a Unix socket and a port: answers each request of a connection with its head,
# under headers that act on an origin. Keeps what it has read in /tmp/heads.
use strict;
use Socket;
$| = 1;
$SIG{CHLD} = 'IGNORE';
my ($path, $port) = @ARGV;
unlink($path);
socket(my $unix, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
bind($unix, pack_sockaddr_un($path)) or die "bind: $!\n";
socket(my $inet, AF_INET, SOCK_STREAM, 0) or die "socket: $!\n";
setsockopt($inet, SOL_SOCKET, SO_REUSEADDR, 1);
bind($inet, pack_sockaddr_in($port, INADDR_LOOPBACK)) or die "bind: $!\n";
my $evil = join '', map { "$_\r\n" } 'Set-Cookie: login=evil; Path=/', 'Clear-Site-Data: "*"', 'Service-Worker-Allowed: /',
    'Alt-Svc: h2="evil.example:443"; ma=9', 'NEL: {"report_to":"evil","max_age":9}', 'Report-To: {"group":"evil"}',
    'Reporting-Endpoints: evil="https://evil.example"', 'Strict-Transport-Security: max-age=9', 'Refresh: 0; url=/',
    'WWW-Authenticate: Basic realm="your password"', 'X-Accel-Redirect: /internal', 'X-Content-Type-Options: off',
    'Access-Control-Allow-Origin: *', 'Location: /v1/sessions', 'X-Plain: 1';
for my $listener ($unix, $inet) {
    listen($listener, 16) or die "listen: $!\n";
    next if $listener == $unix && fork();
    print "listening\n";
    while (1) {
        accept(my $client, $listener) or next;
        next if fork();
        my $read = '';
        while (sysread($client, $read, 65536, length($read))) {
            while ($read =~ s/^(.*?\r\n\r\n)//s) {
                my $head = $1;
                open(my $heads, '>>', '/tmp/heads');
                syswrite($heads, $head);
                my $page = "<script>alert(1)</script>$head";
                my $size = sprintf('%x', length($page));
                my $answer = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n${evil}Transfer-Encoding: chunked\r\n" .
                    "Trailer: Set-Cookie, X-Plain\r\n\r\n$size\r\n$page\r\n0\r\nSet-Cookie: login=evil\r\nX-Plain: 1\r\n\r\n";
                $answer =~ s/ 200 OK/ 500 Oops/ if $head =~ m{ /\S*error};
                $answer =~ s{text/html}{multipart/x-mixed-replace; boundary=x} if $head =~ m{ /\S*parts};
                $answer = "HTTP/1.1 101 UPGRADED\r\n${evil}Connection: Upgrade\r\nUpgrade: tcp\r\n\r\n$head"
                    if $head =~ /^upgrade:/mi;
                syswrite($client, $answer);
            }
        }
        exit;
    }
}
