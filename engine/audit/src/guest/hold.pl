# Holds marks: PREFIX TAG...
use strict;
use Socket;
$| = 1;
my ($prefix, @tags) = @ARGV;
my (@held, @sockets);
for my $tag (@tags) {
    my $mark = $prefix . $tag;
    push @held, $mark x 64;
    for my $path ("/root/$mark", "/dev/shm/$mark") {
        open(my $file, '>', $path) or die "$path: $!\n";
        print $file $mark x 128;
        close $file;
    }
    socket(my $listener, AF_UNIX, SOCK_STREAM, 0) or die "socket: $!\n";
    bind($listener, pack_sockaddr_un("\0$mark")) or die "bind: $!\n";
    listen($listener, 4) or die "listen: $!\n";
    push @sockets, $listener;
    my $child = fork();
    if (!$child) {
        $0 = $mark;
        sleep 3600;
        exit;
    }
}
system('sync');
print "held\n";
sleep 3600;
