# Forks until there are 400 more processes or no more can be had, says how many, and keeps them busy with forking.
use strict;
$| = 1;
my ($count, $failed) = (0, '');
while ($count < 400) {
    my $child = fork();
    if (!defined $child) { $failed = " ($!)"; last }
    if (!$child) { sleep 600; exit }
    $count++;
}
my @processes = grep { m{/\d+$} } glob('/proc/[0-9]*');
print "exploded$failed ", scalar(@processes), "\n";
while (1) {
    my $child = fork();
    exit if defined $child && !$child;
    waitpid($child, 0) if $child;
}
