# look.pl PREFIX TAG... -- PATH...: which marks are seen as processes, files, abstract sockets and containers, and which Unix sockets
# answer. Prints `KIND TAG` and `socket PATH OUTCOME`.
use strict;
use Socket;
my $prefix = shift @ARGV;
my (@tags, @paths);
push @tags, shift @ARGV while @ARGV && $ARGV[0] ne '--';
shift @ARGV;
@paths = @ARGV;
sub found {
    my ($kind, $text) = @_;
    my %seen;
    $seen{$1}++ while $text =~ /\Q$prefix\E([0-9a-f]{32})/g;
    print "$kind $_\n" for keys %seen;
}
my $processes = '';
for my $path (glob('/proc/[0-9]*/cmdline')) {
    next if $path =~ m{/$$/};
    open(my $file, '<', $path) or next;
    local $/;
    my $line = <$file>;
    # What looks for them knows both parts, but not in one word.
    $processes .= "$line\n";
}
found('process', $processes);
my $files = `find / -xdev -name '$prefix*' 2>/dev/null; find /dev/shm /run /tmp -name '$prefix*' 2>/dev/null`;
found('file', $files);
for my $tag (@tags) {
    socket(my $s, AF_UNIX, SOCK_STREAM, 0);
    print "abstract $tag\n" if connect($s, pack_sockaddr_un("\0$prefix$tag"));
}
found('container', scalar `docker ps -a --format '{{.Names}}' 2>&1`);
for my $path (@paths) {
    socket(my $s, AF_UNIX, SOCK_STREAM, 0);
    print "socket $path ", (connect($s, pack_sockaddr_un($path)) ? 'connected' : "$!"), "\n";
}
